"""What a user makes with kubectl: claims, pods, snapshots; and what is told about them."""

from __future__ import annotations

from typing import Any

from support.kubernetes.cluster import Cluster
from support.kubernetes.sidecars import BUSYBOX

SNAPSHOT_API = "snapshot.storage.k8s.io"


def from_snapshot(name: str) -> dict[str, str]:
    return {"name": name, "kind": "VolumeSnapshot", "apiGroup": SNAPSHOT_API}


def from_claim(name: str) -> dict[str, str]:
    return {"name": name, "kind": "PersistentVolumeClaim"}


class Work:
    """Objects in the namespace `default`."""

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
        self.begin_pod(name, claim, node=node, block=block)
        self.wait_running(name)

    def begin_pod(self, name: str, claim: str, *, node: str = "", block: bool = False) -> None:
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

    def wait_running(self, name: str) -> None:
        def running() -> bool:
            return bool(self.cluster.get("pod", name)["status"]["phase"] == "Running")

        try:
            self.cluster.wait(f"pod {name}", running)
        except AssertionError as error:
            raise AssertionError(self.cluster.kubectl("describe", "pod,pvc")) from error

    def run(self, pod: str, script: str) -> str:
        return self.cluster.kubectl("exec", pod, "--", "/bin/sh", "-c", script)

    def write(self, pod: str, file: str = "/mnt/file", mib: int = 8) -> str:
        """Random data, which is synced. Returns its SHA-256."""
        self.run(pod, f"dd if=/dev/urandom of={file} bs=1048576 count={mib} 2>/dev/null && sync")
        return self.digest(pod, file)

    def digest(self, pod: str, file: str = "/mnt/file") -> str:
        return self.run(pod, f"sha256sum {file}").split()[0]

    def mib(self, pod: str) -> int:
        """The size of the file system."""
        return int(self.run(pod, "df -P -m /mnt | tail -1").split()[1])

    def delete(self, kind: str, *names: str) -> None:
        self.cluster.kubectl("delete", kind, *names, "--timeout=5m")

    def snapshot(self, name: str, claim: str) -> None:
        spec = {"volumeSnapshotClassName": "iomesh", "source": {"persistentVolumeClaimName": claim}}
        kind = {"apiVersion": f"{SNAPSHOT_API}/v1", "kind": "VolumeSnapshot", "metadata": {"name": name}}
        self.apply(kind | {"spec": spec})
        ready = ("get", "volumesnapshot", name, "-o", "jsonpath={.status.readyToUse}")
        self.cluster.wait(f"snapshot {name}", lambda: self.cluster.kubectl(*ready) == "true")

    def expand(self, claim: str, size: str) -> None:
        self.cluster.kubectl(
            "patch", "pvc", claim, "--patch", f'{{"spec":{{"resources":{{"requests":{{"storage":"{size}"}}}}}}}}'
        )

    def wait_told(self, kind: str, name: str, message: str, *, namespace: str = "default") -> str:
        """Until `kubectl describe` of the object shows the message; returns all that it shows."""
        shown = ""

        def told() -> bool:
            nonlocal shown
            shown = self.cluster.kubectl("--namespace", namespace, "describe", kind, name)
            return message in " ".join(shown.split())

        try:
            self.cluster.wait(f"{message!r}", told)
        except AssertionError as error:
            raise AssertionError(f"{error}: {shown}") from error
        return shown

    def wait_no_volumes(self) -> None:
        self.cluster.wait("the end of the volumes", lambda: not self.cluster.get("pv")["items"])
