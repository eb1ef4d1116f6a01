"""Claims, pods, snapshots, clones, expansion and block mode, with kubectl alone."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from support.kubernetes.cluster import Cluster
from support.kubernetes.installation import Installation
from support.kubernetes.sidecars import BUSYBOX

MIB = 1 << 20


class Work:
    """Objects in the namespace `default`, as a user makes them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def apply(self, *objects: dict[str, Any]) -> None:
        for each in objects:
            self.cluster.apply(each)

    def claim(self, name: str, size: str = "512Mi", *, storage_class: str = "iomesh", **spec: Any) -> None:
        resources = {"requests": {"storage": size}}
        wanted = {"storageClassName": storage_class, "accessModes": ["ReadWriteOnce"], "resources": resources}
        self.apply(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": wanted | spec}
        )

    def pod(self, name: str, claim: str, *, node: str = "", block: bool = False) -> None:
        container: dict[str, Any] = {
            "name": "work", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["/bin/sleep", "2147483647"],
        }  # fmt: skip
        if block:
            container["volumeDevices"] = [{"name": "data", "devicePath": "/data/disk"}]
        else:
            container["volumeMounts"] = [{"name": "data", "mountPath": "/mnt"}]
        spec: dict[str, Any] = {
            "containers": [container],
            "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
        }
        if node:
            spec["nodeSelector"] = {"kubernetes.io/hostname": node}
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
        self.wait_running(name)

    def wait_running(self, name: str) -> None:
        def running() -> bool:
            return bool(self.cluster.get("pod", name)["status"]["phase"] == "Running")

        try:
            self.cluster.wait(f"pod {name}", running)
        except AssertionError as error:
            raise AssertionError(self.cluster.kubectl("describe", "pod", name)) from error

    def run(self, pod: str, script: str) -> str:
        return self.cluster.kubectl("exec", pod, "--", "/bin/sh", "-c", script)

    def delete(self, kind: str, name: str) -> None:
        self.cluster.kubectl("delete", kind, name, "--timeout=5m")

    def snapshot(self, name: str, claim: str) -> None:
        source = {"persistentVolumeClaimName": claim}
        spec = {"volumeSnapshotClassName": "iomesh", "source": source}
        self.apply({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
                    "spec": spec})  # fmt: skip
        ready = ("get", "volumesnapshot", name, "-o", "jsonpath={.status.readyToUse}")
        self.cluster.wait(f"snapshot {name}", lambda: self.cluster.kubectl(*ready) == "true")


@pytest.fixture(scope="module")
def work(installation: Installation) -> Work:
    installation.wait_formed(devices=2)
    return Work(installation.cluster)


def test_a_volume_is_written_its_pod_deleted_and_read_on_the_other_node(work: Work) -> None:
    one, two = work.cluster.nodes
    work.claim("first")
    work.pod("writer", "first", node=one)
    data = "dd if=/dev/urandom of=/mnt/file bs=1048576 count=16 && sync && sha256sum /mnt/file"
    written = work.run("writer", f"{data} 2>/dev/null").split()[0]
    work.delete("pod", "writer")
    work.pod("reader", "first", node=two)
    assert work.run("reader", "sha256sum /mnt/file").split()[0] == written
    work.delete("pod", "reader")
    work.delete("pvc", "first")
    work.cluster.wait("the end of the volume", lambda: not work.cluster.get("pv")["items"])


def test_a_volume_is_made_and_owned_where_its_pod_runs(work: Work, installation: Installation) -> None:
    for node in work.cluster.nodes:
        work.claim(f"on-{node}")
        work.pod(f"on-{node}", f"on-{node}", node=node)
        name = work.cluster.get("pvc", f"on-{node}")["spec"]["volumeName"]

        def owner(name: str = name) -> str:
            volumes = installation.get("volumes.iomesh.dev")["items"]
            return next((each["status"]["owner"] for each in volumes if each.get("status", {}).get("name") == name), "")

        work.cluster.wait("the volume's object", lambda: bool(owner()))
        assert owner() == node
        work.delete("pod", f"on-{node}")
        work.delete("pvc", f"on-{node}")


def test_a_snapshot_is_restored_a_volume_cloned_and_expanded(work: Work) -> None:
    work.claim("source")
    work.pod("source", "source")
    work.run("source", "echo one > /mnt/file && sync")
    work.snapshot("before", "source")
    work.run("source", "echo two > /mnt/file && sync")
    kind = {"name": "before", "kind": "VolumeSnapshot", "apiGroup": "snapshot.storage.k8s.io"}
    work.claim("restored", dataSource=kind)
    work.pod("restored", "restored")
    assert work.run("restored", "cat /mnt/file") == "one\n"
    work.claim("clone", "768Mi", dataSource={"name": "source", "kind": "PersistentVolumeClaim"})
    work.pod("clone", "clone")
    assert work.run("clone", "cat /mnt/file") == "two\n"
    assert int(work.run("clone", "df -P -m /mnt | tail -1").split()[1]) > 600, "the clone is larger than its source"
    before = int(work.run("source", "df -P -m /mnt | tail -1").split()[1])
    work.cluster.kubectl("patch", "pvc", "source", "--patch", '{"spec":{"resources":{"requests":{"storage":"1Gi"}}}}')
    work.cluster.wait(
        "the larger file system", lambda: int(work.run("source", "df -P -m /mnt | tail -1").split()[1]) > before + 400
    )
    assert work.run("source", "cat /mnt/file") == "two\n"
    for name in ("source", "restored", "clone"):
        work.delete("pod", name)
    work.delete("volumesnapshot", "before")
    for name in ("source", "restored", "clone"):
        work.delete("pvc", name)
    work.cluster.wait("the end of the volumes", lambda: not work.cluster.get("pv")["items"])


def test_a_block_device_is_written_and_read(work: Work) -> None:
    work.claim("raw", "256Mi", volumeMode="Block")
    work.pod("raw", "raw", block=True)
    data = hashlib.sha256(b"raw").hexdigest()
    work.run("raw", f"echo {data} | dd of=/data/disk bs=4096 seek=7 conv=sync && sync")
    work.delete("pod", "raw")
    work.pod("again", "raw", block=True)
    assert data in work.run("again", "dd if=/data/disk bs=4096 skip=7 count=1")
    work.delete("pod", "again")
    work.delete("pvc", "raw")


@pytest.mark.parametrize(
    ("parameters", "size", "message"),
    [
        ({"replica": "2"}, "1Gi", "did you mean replicas?"),
        ({"replicas": "3"}, "1Gi", "needs 3 nodes with a device, and 2 are ready"),
        ({"replicas": "2"}, "1Ti", "can never be filled"),
    ],
)
def test_a_bad_class_or_size_is_told_in_an_event_on_the_claim(
    work: Work, parameters: dict[str, str], size: str, message: str
) -> None:
    kind = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "bad"}}
    work.apply(kind | {"provisioner": "csi.iomesh.dev", "parameters": parameters, "volumeBindingMode": "Immediate"})
    work.claim("bad", size, storage_class="bad")
    try:
        told = ("get", "events", "--field-selector=involvedObject.name=bad", "-o", "jsonpath={.items[*].message}")
        work.cluster.wait(f"an event with {message!r}", lambda: message in work.cluster.kubectl(*told))
    finally:
        work.delete("pvc", "bad")
        work.delete("storageclass", "bad")
