"""One cluster of Kubernetes with two nodes for all tests here, and disks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.kubernetes import images, programs, sidecars
from support.kubernetes.cluster import Cluster
from support.kubernetes.disks import Disks
from support.kubernetes.installation import Installation

DISK_BYTES = 3 << 30
NODE_PROGRAMS = [
    *(tool.rsplit("/", 1)[1] for name in ("control", "containerd", "helm") for tool in programs.modules()[name])
]


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces, mounts and loop devices")
    if (
        reason := programs.missing(*NODE_PROGRAMS, commands=["etcd", "openssl", "ip", "runc", "losetup"])
        or images.missing()
    ):
        pytest.skip(reason)
    Cluster().down()
    cluster = Cluster()
    try:
        cluster.up()
        cluster.load(*images.archives("node", "operator"))
        yield cluster
    finally:
        if not request.config.option.keep:
            cluster.down()


@pytest.fixture(scope="module")
def disks(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    with Disks(cluster.nodes, DISK_BYTES) as disks:
        yield disks


@pytest.fixture(scope="module")
def pool(
    request: pytest.FixtureRequest, cluster: Cluster, disks: Disks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """iomesh without the CSI driver."""
    installation = Installation(cluster, disks, tmp_path_factory.mktemp("values"), csi=False)
    installation.install()
    yield installation
    if not request.config.option.keep:
        installation.give_up()


@pytest.fixture(scope="session")
def driven(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster with what a CSI driver needs."""
    if reason := programs.missing():
        pytest.skip(reason)
    cluster.load(*images.archives("csi"))
    sidecars.load_images(cluster, tmp_path_factory.mktemp("images"))
    sidecars.start_snapshot_controller(cluster)
    return cluster


@pytest.fixture(scope="module")
def installation(
    request: pytest.FixtureRequest, driven: Cluster, disks: Disks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    installation = Installation(driven, disks, tmp_path_factory.mktemp("values"))
    installation.install()
    yield installation
    if not request.config.option.keep:
        installation.give_up()
