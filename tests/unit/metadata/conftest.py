"""Every implementation of the metadata protocol passes the same tests: add a new one to IMPLEMENTATIONS."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from iomesh.metadata import Metadata
from iomesh.metadata.etcd import EtcdMetadata
from iomesh.metadata.kubernetes import KubernetesMetadata
from iomesh.metadata.kubernetes_api import find_access
from iomesh.metadata.sqlite import SqliteMetadata
from support.etcd import Etcd, etcd_is_missing
from support.kubernetes import programs
from support.kubernetes.cluster import ControlPlane

# Opens one more client of the one service that the test has.
Opener = Callable[[], Awaitable[Metadata]]

CRD = Path(__file__).parents[3] / "charts" / "iomesh" / "crds" / "metadatarecords.yaml"
_numbers = itertools.count(1)


def sqlite(request: pytest.FixtureRequest) -> Opener:
    folder: Path = request.getfixturevalue("tmp_path")
    return lambda: SqliteMetadata.open(folder / "metadata.db")


def kubernetes(request: pytest.FixtureRequest) -> Opener:
    """A namespace of its own on one API server."""
    server: ControlPlane = request.getfixturevalue("api_server")
    namespace = f"test-{next(_numbers)}"
    server.kubectl("create", "namespace", namespace)
    access = find_access(str(server.kubeconfig))
    return lambda: KubernetesMetadata.open(access, namespace)


def etcd(request: pytest.FixtureRequest) -> Opener:
    """A prefix of its own in one etcd of three members."""
    server: Etcd = request.getfixturevalue("etcd_server")
    prefix = f"/test-{next(_numbers)}/"
    return lambda: EtcdMetadata.open(server.access(), prefix)


IMPLEMENTATIONS: dict[str, Callable[[pytest.FixtureRequest], Opener]] = {
    "sqlite": sqlite,
    "etcd": etcd,
    "kubernetes": kubernetes,
}
MISSING = {"etcd": etcd_is_missing(), "kubernetes": programs.without_api_server()}  # tests/conftest.py says so


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and the API server of Kubernetes, which knows the kind of iomesh's records."""
    server = ControlPlane(tmp_path_factory.mktemp("kubernetes"))
    try:
        server.start()
        server.kubectl("apply", "-f", str(CRD))
        server.kubectl("wait", "--for=condition=Established", "--timeout=5m", "-f", str(CRD))
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    server = Etcd(tmp_path_factory.mktemp("etcd") / "members")
    try:
        server.start()
        yield server
    finally:
        server.stop()


USABLE = [name for name in IMPLEMENTATIONS if not MISSING.get(name)]


@pytest.fixture(params=USABLE)
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Opener]:
    opener = IMPLEMENTATIONS[request.param](request)
    async with AsyncExitStack() as stack:

        async def open_client() -> Metadata:
            metadata = await opener()
            stack.push_async_callback(metadata.close)
            return metadata

        yield open_client


@pytest.fixture
async def metadata(client: Opener) -> Metadata:
    return await client()
