"""What Kubernetes needs beside a driver: images of the CSI sidecars under the names that the chart gives them, and the
snapshot controller with its kinds."""

from __future__ import annotations

from pathlib import Path

import yaml

from support.kubernetes import images, programs
from support.kubernetes.cluster import Cluster
from support.kubernetes.installation import CHART

SNAPSHOT_KINDS = "github.com/kubernetes-csi/external-snapshotter/client/v8"
BUSYBOX = "iomesh.test/busybox:1"


def load_images(cluster: Cluster, folder: Path) -> None:
    named = yaml.safe_load((CHART / "values.yaml").read_text())["csi"]["sidecars"]
    for name, image in named.items():
        program = f"csi-{name}"
        images.make_image(
            folder / f"{name}.tar", [image], add={f"/{program}": programs.program(program)}, entry=[f"/{program}"]
        )
    images.make_image(folder / "busybox.tar", [BUSYBOX])
    cluster.load(*folder.glob("*.tar"))


def start_snapshot_controller(cluster: Cluster) -> None:
    kinds = sorted((programs.source("snapshotter", SNAPSHOT_KINDS) / "config" / "crd").glob("*snapshot*.yaml"))
    for path in kinds:
        cluster.kubectl("apply", "--filename", str(path))
    for path in kinds:
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=5m", "--filename", str(path))
    command = [programs.program("snapshot-controller"), "--kubeconfig", str(cluster.kubeconfig)]
    cluster.processes.start("snapshot-controller", [*command, "--leader-election=false"], cluster.network)
