"""`helm install` forms a pool of several nodes, and Kubernetes shows it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from support.kubernetes.cluster import Cluster
from support.kubernetes.disks import Disks
from support.kubernetes.installation import RELEASE, Installation


def test_an_installation_forms_a_pool_of_all_nodes(pool: Installation) -> None:
    status = pool.wait_formed(devices=2)
    assert status["clusterID"]
    assert status["capacityBytes"] > 0
    for node in pool.cluster.nodes:
        assert pool.condition("storagenodes", node)["status"] == "True"
        answer = json.loads(pool.iomesh(node, "status", "--json"))
        assert answer["node"]["cluster"] == status["clusterID"]
        assert answer["node"]["devices"] == 1
    shown = pool.kubectl("get", "iomeshclusters,storagenodes,devices.iomesh.dev")
    assert "True" in shown
    assert "Online" in shown


def test_disks_with_data_are_seen_and_left_alone(pool: Installation) -> None:
    devices = {each["spec"]["path"]: each for each in pool.get("devices.iomesh.dev")["items"]}
    ours = {path for paths in pool.disks.paths.values() for path in paths}
    found = {path for path, each in devices.items() if each["status"]["holds"] in ("Data", "InUse")}
    assert not found & ours
    assert {path for path, each in devices.items() if each["status"]["state"] == "Online"} == ours


def test_a_named_disk_with_data_is_erased_only_when_told_twice(
    pool: Installation, tmp_path: Path, cluster: Cluster
) -> None:
    pool.wait_formed(devices=2)
    with Disks(["node1"], 2 << 30) as more:
        (path,) = more.paths["node1"]
        subprocess.run(["mkfs.ext4", "-q", path], check=True)
        ours = [{"name": node, "paths": paths} for node, paths in pool.disks.paths.items()]
        ours[0]["paths"] = [*ours[0]["paths"], path]
        named = {"spec": {"devices": {"nodes": ours}}}
        pool.kubectl("patch", "iomeshcluster", RELEASE, "--type=merge", "--patch", json.dumps(named))
        name = f"node1-{path.removeprefix('/dev/')}"
        pool.cluster.wait(
            "a refusal", lambda: cluster.kubectl_succeeds("get", "-n", "iomesh", "devices.iomesh.dev", name)
            and pool.get("devices.iomesh.dev", name).get("status", {}).get("state") == "Refused",
        )  # fmt: skip
        assert "ext4" in pool.condition("devices.iomesh.dev", name)["message"]
        events = pool.get("events.events.k8s.io")["items"]
        assert any(each["reason"] == "HoldsData" and each["regarding"]["name"] == name for each in events)
        assert subprocess.run(["blkid", "-p", path], capture_output=True, text=True).stdout.count("ext4")
        pool.kubectl("annotate", "devices.iomesh.dev", name, f"iomesh.dev/erase={path}")
        pool.wait_formed(devices=3)
        pool.iomesh("node1", "device", "remove", path)
        pool.wait_formed(devices=2)


def test_a_volume_is_shown_and_survives_its_pods_and_an_uninstallation(pool: Installation) -> None:
    pool.wait_formed(devices=2)
    one, two = pool.cluster.nodes
    made = json.loads(pool.iomesh(one, "volume", "create", "db", "64Mi", "--replicas", "2", "--json"))

    def shown() -> bool:
        volumes = pool.get("volumes.iomesh.dev")["items"]
        return [each["metadata"]["name"] for each in volumes if each["status"]["state"] == "Serving"] == [made["id"]]

    pool.cluster.wait("the volume's object", shown)
    volume = pool.get("volumes.iomesh.dev", made["id"])
    assert (volume["status"]["name"], volume["status"]["owner"]) == ("db", one)
    assert sorted(volume["status"]["replicaNodes"]) == [one, two]
    pool.uninstall()
    assert pool.get("metadatarecords")["items"], "the metadata stays"
    pool.install()
    pool.wait_formed(devices=2)
    pool.cluster.wait("the volume", shown)
    show = ("volume", "list", "--json")
    pool.cluster.wait("the volume on the other node", lambda: made["id"] in pool.iomesh(two, *show))


def test_a_node_is_not_ready_once_its_pod_is_gone(pool: Installation) -> None:
    pool.wait_formed(devices=2)
    node = pool.cluster.nodes[1]
    pool.kubectl("taint", "node", node, "iomesh.test/gone=:NoExecute")
    try:
        pool.cluster.wait("the loss", lambda: pool.condition("storagenodes", node)["status"] == "Unknown")
        assert pool.condition("storagenodes", node)["reason"] == "NoPod", "long before its heartbeat is too old"
        pool.cluster.wait("the cluster", lambda: pool.get("iomeshclusters", RELEASE)["status"]["readyNodes"] == 1)
    finally:
        pool.kubectl("taint", "node", node, "iomesh.test/gone-")
    pool.wait_formed(devices=2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"devices": {"minimumSize": "plenty"}}, "write a size such as 10Gi"),
        ({"devices": {"paths": ["sdb"]}}, "should match"),
        ({"devices": {"nodes": [{"paths": ["/dev/sdb"]}]}}, "name"),
    ],
)
def test_an_invalid_cluster_is_refused_with_a_reason(pool: Installation, spec: dict[str, object], message: str) -> None:
    cluster = {"apiVersion": "iomesh.dev/v1alpha1", "kind": "IOMeshCluster", "metadata": {"name": "bad"}, "spec": spec}
    with pytest.raises(AssertionError, match=message):
        pool.kubectl("create", "--filename", "-", input=json.dumps(cluster))


def test_metadata_records_are_protected_from_people(pool: Installation) -> None:
    with pytest.raises(AssertionError, match="leads to a volume's data"):
        pool.kubectl("delete", "metadatarecords", "cluster")
    with pytest.raises(AssertionError, match="no volume can be opened"):
        pool.kubectl("delete", "crd", "metadatarecords.iomesh.dev")
