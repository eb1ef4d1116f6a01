"""What is particular to metadata in Kubernetes: outages of the API server, access, and what people do with kubectl."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path

import pytest

from iomesh.errors import ConfigError, Conflict, Damaged, NotFound, PermissionDenied, Unsupported
from iomesh.metadata import Delete, HistoryLost, MetadataUnavailable, Put
from iomesh.metadata.kubernetes import KubernetesMetadata, object_name
from iomesh.metadata.kubernetes_api import find_access
from support.kubernetes import programs
from support.kubernetes.cluster import ControlPlane
from support.outage import serves_through_outage
from support.run import pause

pytestmark = pytest.mark.skipif(bool(programs.without_api_server()), reason="see the first lines of the run")

SOON = 120.0  # against hangs
_numbers = itertools.count(1)

Opener = Callable[[], Awaitable[KubernetesMetadata]]


@pytest.fixture
def namespace(api_server: ControlPlane) -> str:
    name = f"kubernetes-{next(_numbers)}"
    api_server.kubectl("create", "namespace", name)
    return name


@pytest.fixture
async def client(api_server: ControlPlane, namespace: str) -> AsyncIterator[Opener]:
    access = find_access(str(api_server.kubeconfig))
    async with AsyncExitStack() as stack:

        async def open_client() -> KubernetesMetadata:
            metadata = await KubernetesMetadata.open(access, namespace)
            stack.push_async_callback(metadata.close)
            return metadata

        yield open_client


def go_on(server: ControlPlane) -> None:
    os.kill(server.processes.number("apiserver"), signal.SIGCONT)


async def test_an_api_server_that_is_away_leaves_commits_unknown_and_comes_back(
    api_server: ControlPlane, client: Opener
) -> None:
    metadata = await client()
    version = await metadata.commit(Put("volumes/a", b"1", 0))
    await asyncio.to_thread(api_server.processes.kill, "apiserver")
    try:
        for call in (metadata.commit(Put("volumes/a", b"2", version)), metadata.get("volumes/a"), metadata.grant(5)):
            with pytest.raises(MetadataUnavailable, match="Kubernetes at https"):
                await call
        with pytest.raises(MetadataUnavailable):
            async with aclosing(metadata.watch("volumes/", version)) as changes:
                await anext(changes)
    finally:
        await asyncio.to_thread(api_server.start_server)
    assert await metadata.get("volumes/a") == ("volumes/a", b"1", version)
    await metadata.commit(Put("volumes/a", b"2", version))


async def test_an_answer_that_does_not_come_is_unknown_and_the_commit_may_be_done(
    api_server: ControlPlane, client: Opener
) -> None:
    metadata = await client()
    version = await metadata.commit(Put("logs/a", b"1", 0))
    pause(api_server.processes.number("apiserver"))
    try:
        with pytest.raises(MetadataUnavailable, match="no answer in time"):
            await metadata.commit(Put("logs/a", b"2", version))
    finally:
        go_on(api_server)
    try:  # as the daemon does: repeat it, and take one's own value for done
        await metadata.commit(Put("logs/a", b"2", version))
    except Conflict:
        entry = await metadata.get("logs/a")
        assert entry is not None and entry.value == b"2"


async def test_an_outage_ends_no_lease_that_is_renewed_after_it(api_server: ControlPlane, client: Opener) -> None:
    holder, other = await client(), await client()
    lease = await holder.grant(2.0)
    await holder.commit(Put("nodes/a", b"here", 0, lease))
    await asyncio.to_thread(api_server.processes.kill, "apiserver")
    await asyncio.sleep(4.0)
    await asyncio.to_thread(api_server.start_server)
    for _ in range(20):
        try:
            await holder.renew(lease)
        except NotFound:
            pytest.skip("the machine paused for as long as the lease lasts")
        await asyncio.sleep(0.3)
    assert await other.get("nodes/a") is not None
    changes = other.watch("nodes/", (await other.list_prefix("nodes/")).revision)
    async with asyncio.timeout(SOON):
        assert (await anext(changes)).value is None, "it ends once nobody renews it"
    await changes.aclose()


async def test_entries_that_a_crash_left_without_their_lease_are_removed(
    api_server: ControlPlane, namespace: str, client: Opener
) -> None:
    holder = await client()
    lease = await holder.grant(600.0)
    await holder.commit(Put("nodes/a", b"here", 0, lease))
    await holder.close()
    api_server.kubectl("delete", "leases", "--all", "--namespace", namespace)
    other = await client()
    async with asyncio.timeout(SOON):
        while await other.get("nodes/a") is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_watch_from_before_the_known_history_is_refused(client: Opener) -> None:
    metadata = await client()
    await metadata.commit(Put("a", b"1", 0))
    with pytest.raises(HistoryLost):
        await anext(metadata.watch("", 0))


async def test_a_record_that_somebody_deletes_with_kubectl_is_seen_to_go(
    api_server: ControlPlane, namespace: str, client: Opener
) -> None:
    metadata = await client()
    version = await metadata.commit(Put("volumes/a", b"{}", 0))
    changes = metadata.watch("volumes/", version)
    await asyncio.to_thread(api_server.kubectl, "delete", "metadatarecord", "volumes.a", "--namespace", namespace)
    async with asyncio.timeout(SOON):
        change = await anext(changes)
    assert (change.key, change.value) == ("volumes/a", None)
    assert change.revision > version
    await changes.aclose()
    with pytest.raises(Conflict, match="volumes/a has version 0"):
        await metadata.commit(Put("volumes/a", b"{}", version))
    with pytest.raises(Conflict, match="volumes/a has version 0"):
        await metadata.commit(Delete("volumes/a", version))


async def test_records_are_readable_with_kubectl_and_keep_their_keys(
    api_server: ControlPlane, namespace: str, client: Opener
) -> None:
    metadata = await client()
    await metadata.commit(Put("names/Db_1", b'{"volume":"x"}', 0))
    await metadata.commit(Put("a", b"\xff\x00", 0))
    records = {
        each["spec"]["key"]: each for each in api_server.get("metadatarecords", "--namespace", namespace)["items"]
    }
    assert records["names/Db_1"]["spec"]["text"] == '{"volume":"x"}'
    assert records["names/Db_1"]["metadata"]["name"].startswith("names-db-1-")
    assert base64.b64decode(records["a"]["spec"]["base64"]) == b"\xff\x00"
    other = json.dumps({"spec": {"key": "b"}})
    with pytest.raises(AssertionError, match="does not change"):
        api_server.kubectl("patch", "metadatarecord", "a", "--namespace", namespace, "--type=merge", "--patch", other)
    named = records["a"] | {"metadata": {"name": object_name("volumes/b"), "namespace": namespace}}
    api_server.kubectl("create", "--filename", "-", input=json.dumps(named))
    with pytest.raises(Damaged, match="holds the key 'a', not 'volumes/b'"):
        await metadata.get("volumes/b")


def test_no_two_keys_have_one_name() -> None:
    keys = ["a/b", "a.b", "a-b", "A/b", "a_b", "a:b", "a/b/c", "x" * 256, "x" * 255]
    names = [object_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    assert all(len(name) <= 253 for name in names)


async def test_access_that_is_missing_is_refused_with_a_reason(
    api_server: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = api_server
    server.kubectl("create", "serviceaccount", "nobody", "--namespace", namespace)
    token = server.kubectl("create", "token", "nobody", "--namespace", namespace).strip()
    config = json.loads(server.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    (tmp_path / "nobody").write_text(json.dumps(config))
    with pytest.raises(PermissionDenied, match="needs the Role of the chart"):
        await KubernetesMetadata.open(find_access(str(tmp_path / "nobody")), namespace)
    config["current-context"] = "other"
    (tmp_path / "nobody").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="contexts has no 'other'"):
        find_access(str(tmp_path / "nobody"))
    with pytest.raises(NotFound, match="does not exist"):
        find_access(str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match=r"set metadata\.kubeconfig"):
        find_access()


async def test_a_cluster_without_the_kind_of_records_is_refused(tmp_path: Path) -> None:
    server = ControlPlane(tmp_path / "bare")
    try:
        await asyncio.to_thread(server.start)
        with pytest.raises(Unsupported, match="custom resource definitions"):
            await KubernetesMetadata.open(find_access(str(server.kubeconfig)), "default")
    finally:
        server.stop()


async def test_a_daemon_serves_its_volume_while_the_api_server_is_away(
    api_server: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    settings = {
        "metadata.kind": "kubernetes",
        "metadata.kubeconfig": str(api_server.kubeconfig),
        "metadata.namespace": namespace,
    }
    kill = partial(api_server.processes.kill, "apiserver")
    await serves_through_outage(tmp_path, settings, kill, api_server.start_server)
