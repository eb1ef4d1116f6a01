"""What cannot be done is told on the object that the user looks at, with the reason and the remedy."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from support.kubernetes.disks import Disks
from support.kubernetes.installation import NAMESPACE, RELEASE, Installation
from support.kubernetes.work import SNAPSHOT_API, Work

FS = "csi.storage.k8s.io/fstype"

# Parameters of a StorageClass, the claim, and what `kubectl describe pvc` shows: the code of CSI, and what to do.
CLAIMS: list[tuple[dict[str, str], dict[str, Any], str, str]] = [
    ({"replica": "2"}, {}, "InvalidArgument", "did you mean replicas?"),
    ({"replicas": "many"}, {}, "InvalidArgument", "write a number from 1 to 4"),
    ({"window": "soon"}, {}, "InvalidArgument", "window: "),
    ({"fsType": "xfs", FS: "ext4"}, {}, "ProvisioningFailed", "specified in parameters with both"),  # by the sidecar
    ({FS: "btrfs"}, {}, "InvalidArgument", "xfs"),
    ({"replicas": "3"}, {}, "ResourceExhausted", "add nodes, or choose a StorageClass with fewer replicas"),
    ({"replicas": "2"}, {"size": "1Ti"}, "OutOfRange", "ask for less, or add devices"),
    ({}, {"accessModes": ["ReadWriteMany"]}, "InvalidArgument", "use ReadWriteOnce, or volumeMode Block"),
]


@pytest.fixture(scope="module")
def work(installation: Installation) -> Work:
    installation.wait_formed(devices=2)
    return Work(installation.cluster)


def test_what_is_refused_is_told_where_the_user_looks(work: Work, installation: Installation) -> None:
    _refused_claims(work)
    _refused_growth_and_snapshot(work)
    _refused_disks(work, installation)
    _refused_objects(installation)


def _refused_claims(work: Work) -> None:
    for number, (parameters, claim, _, _) in enumerate(CLAIMS):
        name = f"bad-{number}"
        kind = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name}}
        work.apply(kind | {"provisioner": "csi.iomesh.dev", "parameters": parameters, "volumeBindingMode": "Immediate"})
        work.claim(name, storage_class=name, **{"size": "512Mi"} | claim)
    for number, (_, _, code, message) in enumerate(CLAIMS):
        name = f"bad-{number}"
        assert code in work.wait_told("pvc", name, message)
        work.delete("pvc", name)
        work.delete("storageclass", name)


def _refused_growth_and_snapshot(work: Work) -> None:
    work.claim("good")
    work.pod("good", "good")
    work.expand("good", "1Ti")
    assert "OutOfRange" in work.wait_told("pvc", "good", "ask for less, or add devices")
    kind = {"apiVersion": f"{SNAPSHOT_API}/v1", "metadata": {"name": "bad"}}
    what = {"driver": "csi.iomesh.dev", "deletionPolicy": "Delete", "parameters": {"replicas": "2"}}
    work.apply(kind | {"kind": "VolumeSnapshotClass"} | what)
    spec = {"volumeSnapshotClassName": "bad", "source": {"persistentVolumeClaimName": "good"}}
    work.apply(kind | {"kind": "VolumeSnapshot", "spec": spec})
    shown = work.wait_told("volumesnapshot", "bad", "is no parameter of a VolumeSnapshotClass: there is none")
    assert "InvalidArgument" in shown
    work.delete("volumesnapshot", "bad")
    work.delete("volumesnapshotclass", "bad")
    work.delete("pod", "good")
    work.delete("pvc", "good")
    work.wait_no_volumes()


def _refused_disks(work: Work, installation: Installation) -> None:
    """A disk with data on it, one that is not there, and a node that is not there."""
    with Disks(["node1"], 2 << 30) as more:
        (path,) = more.paths["node1"]
        subprocess.run(["mkfs.ext4", "-q", path], check=True)
        named = [{"name": node, "paths": paths} for node, paths in installation.disks.paths.items()]
        wrong = [{"name": "node1", "paths": [*named[0]["paths"], path, "/dev/nothing"]}, named[1]]
        _name_disks(installation, [*wrong, {"name": "node9", "paths": ["/dev/sdb"]}])
        device = f"node1-{path.removeprefix('/dev/')}"
        work.cluster.wait("the device", lambda: work.cluster.kubectl_succeeds(
            "get", "--namespace", NAMESPACE, "devices.iomesh.dev", device))  # fmt: skip
        remedy = "to erase that, run `kubectl annotate"
        shown = work.wait_told("devices.iomesh.dev", device, remedy, namespace=NAMESPACE)
        assert "HoldsData" in shown
        assert "ext4" in shown
        work.wait_told("iomeshcluster", RELEASE, "which has no such disk: attach it, or write", namespace=NAMESPACE)
        work.wait_told("iomeshcluster", RELEASE, "write names of nodes that run one", namespace=NAMESPACE)
        _name_disks(installation, named)


def _name_disks(installation: Installation, nodes: list[dict[str, Any]]) -> None:
    change = json.dumps({"spec": {"devices": {"nodes": nodes}}})
    installation.kubectl("patch", "iomeshcluster", RELEASE, "--type=merge", "--patch", change)


def _refused_objects(installation: Installation) -> None:
    """What the API server itself refuses is told by kubectl at once; a second cluster of a namespace on its object."""
    kind = {"apiVersion": "iomesh.dev/v1alpha1", "kind": "IOMeshCluster", "metadata": {"name": "second"}}
    for spec, message in (
        ({"devices": {"minimumSize": "plenty"}}, "write a size such as 10Gi"),
        ({"devices": {"paths": ["sdb"]}}, "should match"),
    ):
        with pytest.raises(AssertionError, match=message):
            installation.kubectl("create", "--filename", "-", input=json.dumps(kind | {"spec": spec}))
    installation.kubectl("create", "--filename", "-", input=json.dumps(kind | {"spec": {}}))
    work = Work(installation.cluster)
    remedy = "a namespace has one IOMeshCluster: delete the others"
    work.wait_told("iomeshcluster", "second", remedy, namespace=NAMESPACE)
    installation.kubectl("delete", "iomeshcluster", "second")
    installation.wait_formed(devices=2)
