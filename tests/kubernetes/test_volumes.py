"""Claims, pods, snapshots, clones, expansion and block mode, with kubectl alone."""

from __future__ import annotations

from typing import Any

import pytest

from support.kubernetes.installation import Installation
from support.kubernetes.work import Work, from_claim, from_snapshot


@pytest.fixture(scope="module")
def work(installation: Installation) -> Work:
    installation.wait_formed(devices=2)
    return Work(installation.cluster)


def test_a_volume_is_made_and_owned_where_its_pod_runs(work: Work, installation: Installation) -> None:
    for node in work.cluster.nodes:
        work.claim(f"on-{node}")
        work.pod(f"on-{node}", f"on-{node}", node=node)
        name = work.cluster.get("pvc", f"on-{node}")["spec"]["volumeName"]

        def shown(name: str = name) -> dict[str, Any]:
            volumes = installation.get("volumes.iomesh.dev")["items"]
            found = (each["status"] for each in volumes if each.get("status", {}).get("name") == name)
            return next(found, {})

        work.cluster.wait("the volume's object", lambda: bool(shown()))
        assert shown()["owner"] == node
        assert sorted(shown()["replicaNodes"]) == work.cluster.nodes
        work.delete("pod", f"on-{node}")
        work.delete("pvc", f"on-{node}")
    work.wait_no_volumes()


def test_a_volume_is_written_its_pod_deleted_and_read_on_the_other_node(work: Work) -> None:
    one, two = work.cluster.nodes
    work.claim("first")
    work.pod("writer", "first", node=one)
    written = work.write("writer", mib=16)
    work.delete("pod", "writer")
    work.pod("reader", "first", node=two)
    assert work.digest("reader") == written
    work.delete("pod", "reader")
    work.delete("pvc", "first")
    work.wait_no_volumes()


def test_a_snapshot_is_restored_and_a_volume_cloned_and_each_is_independent(work: Work) -> None:
    work.claim("source")
    work.pod("source", "source")
    before = work.write("source")
    work.snapshot("before", "source")
    after = work.write("source")
    work.claim("restored", dataSource=from_snapshot("before"))
    work.pod("restored", "restored")
    assert work.digest("restored") == before, "the restored volume has the snapshot's data"
    work.claim("clone", "768Mi", dataSource=from_claim("source"))
    work.pod("clone", "clone")
    assert work.digest("clone") == after, "the clone has its parent's data"
    assert work.mib("clone") > 600, "the clone is larger than its parent"
    last = {name: work.write(name) for name in ("source", "restored", "clone")}
    assert len({before, after, *last.values()}) == 5
    for name in last:
        work.delete("pod", name)
        work.pod(name, name)  # mounted anew, so that the data comes from the volume
        assert work.digest(name) == last[name], f"{name} has what was written to it"
    work.claim("again", dataSource=from_snapshot("before"))
    work.pod("again", "again")
    assert work.digest("again") == before, "the snapshot is as it was"
    work.delete("pod", "source", "restored", "clone", "again")
    work.delete("pvc", "restored", "clone", "again")
    work.delete("volumesnapshot", "before")
    work.delete("pvc", "source")
    work.wait_no_volumes()


def test_a_volume_grows_while_it_is_used(work: Work) -> None:
    work.claim("growing")
    work.pod("growing", "growing")
    written, before = work.write("growing"), work.mib("growing")
    work.expand("growing", "1Gi")
    work.cluster.wait("the larger file system", lambda: work.mib("growing") > before + 400)
    assert work.digest("growing") == written
    more = work.write("growing", "/mnt/more", mib=before)  # more than fitted before
    assert work.digest("growing", "/mnt/more") == more
    assert work.cluster.get("pvc", "growing")["status"]["capacity"]["storage"] == "1Gi"
    work.delete("pod", "growing")
    work.delete("pvc", "growing")
    work.wait_no_volumes()


def test_a_block_device_is_written_snapshotted_and_read(work: Work) -> None:
    one, two = work.cluster.nodes
    work.claim("raw", "64Mi", volumeMode="Block")
    work.pod("raw", "raw", node=one, block=True)
    written = work.write("raw", "/data/disk", mib=64)
    work.snapshot("raw", "raw")
    later = work.write("raw", "/data/disk", mib=64)
    work.delete("pod", "raw")
    work.pod("raw-again", "raw", node=two, block=True)
    assert work.digest("raw-again", "/data/disk") == later
    work.claim("raw-restored", "64Mi", volumeMode="Block", dataSource=from_snapshot("raw"))
    work.pod("raw-restored", "raw-restored", block=True)
    assert work.digest("raw-restored", "/data/disk") == written
    work.delete("pod", "raw-again", "raw-restored")
    work.delete("pvc", "raw-restored")
    work.delete("volumesnapshot", "raw")
    work.delete("pvc", "raw")
    work.wait_no_volumes()


def test_an_uninstallation_leaves_the_data_alone_and_the_next_finds_it(work: Work, installation: Installation) -> None:
    work.claim("kept")
    work.pod("kept", "kept")
    written = work.write("kept")
    work.delete("pod", "kept")
    installation.uninstall()
    kinds = work.cluster.kubectl("api-resources", "--verbs=list", "--output=name").split()
    kinds.remove("events")  # listed twice
    left = work.cluster.kubectl(
        "get", ",".join(kinds), "--all-namespaces", "--selector=app.kubernetes.io/name=iomesh", "--output=name"
    )
    assert not left.split(), "every object of the chart is gone"
    nodes = work.cluster.kubectl("get", "csinodes", "--output=json")
    assert "csi.iomesh.dev" not in nodes, "no kubelet knows the driver"
    assert not work.cluster.processes_of_volumes(), "nothing of it runs on a node"
    assert installation.get("metadatarecords")["items"], "what leads to the data is there"
    installation.install()
    installation.wait_formed(devices=2)
    work.pod("kept", "kept")
    assert work.digest("kept") == written
    work.delete("pod", "kept")
    work.delete("pvc", "kept")
    work.wait_no_volumes()
