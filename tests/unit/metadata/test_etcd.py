"""What is particular to metadata in etcd: members that fail, stores that were replaced, access."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from iomesh.errors import ConfigError, Conflict, Damaged, NotFound
from iomesh.metadata import HistoryLost, Metadata, MetadataUnavailable, Put
from iomesh.metadata.etcd import EtcdMetadata
from iomesh.metadata.etcd_api import etcd_access
from support.etcd import Etcd, etcd_is_missing
from support.outage import serves_through_outage

pytestmark = pytest.mark.skipif(bool(etcd_is_missing()), reason=etcd_is_missing())

SOON = 120.0  # against hangs
_numbers = itertools.count(1)

Opener = Callable[..., Awaitable[EtcdMetadata]]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Etcd]:
    """Of one member, for what is done to the store itself."""
    server = Etcd(tmp_path / "etcd", members=1)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def other(own: Etcd, tmp_path: Path) -> Iterator[Etcd]:
    """Another one, with the same certificates."""
    server = Etcd(tmp_path / "other", members=1, certificates=own.folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
async def client(etcd_server: Etcd) -> AsyncIterator[Opener]:
    """Opens a client of all members, or of those that it names in their order."""
    prefix = f"/etcd-{next(_numbers)}/"
    async with AsyncExitStack() as stack:

        async def open_client(*members: int) -> EtcdMetadata:
            metadata = await EtcdMetadata.open(etcd_server.access(list(members) or None), prefix)
            stack.push_async_callback(metadata.close)
            return metadata

        yield open_client


async def answered(call: Callable[[], Awaitable[object]]) -> None:
    """As the daemon does: repeated until it is answered."""
    async with asyncio.timeout(SOON):
        while True:
            try:
                await call()
                return
            except MetadataUnavailable:
                await asyncio.sleep(0.1)


async def commit(metadata: Metadata, key: str, value: bytes) -> None:
    await answered(lambda: metadata.commit(Put(key, value, None)))


async def ask(metadata: EtcdMetadata, method: str, request: bytes) -> None:
    """What the metadata service itself never asks of etcd."""
    call: Any = metadata._api._members[0]._channel.unary_unary(f"/etcdserverpb.{method}")
    await call(request)


async def test_one_of_three_members_may_be_killed_at_any_time(etcd_server: Etcd, client: Opener) -> None:
    metadata, other = await client(), await client(2, 1, 0)
    revision = (await metadata.list_prefix("")).revision
    for member in range(3):
        changes = other.watch("volumes/", revision)
        etcd_server.kill(member)
        await commit(metadata, f"volumes/{member}", b"written")
        etcd_server.start_member(member)
        async with asyncio.timeout(SOON):
            while True:  # as the mirror of a daemon does: a watch that broke begins again where it was
                try:
                    async with aclosing(changes):
                        change = await anext(changes)
                    break
                except MetadataUnavailable:
                    await asyncio.sleep(0.1)
                    changes = other.watch("volumes/", revision)
        assert (change.key, change.value) == (f"volumes/{member}", b"written")
        revision = change.revision
        await asyncio.to_thread(etcd_server.wait, member)


async def test_a_member_that_is_silent_costs_one_call(etcd_server: Etcd, client: Opener) -> None:
    metadata = await client(0, 1)
    etcd_server.pause(0)
    try:
        with pytest.raises(MetadataUnavailable, match="no answer in time"):
            await metadata.get("volumes/a")
        await commit(metadata, "volumes/a", b"1")
    finally:
        etcd_server.go_on(0)
        await asyncio.to_thread(etcd_server.wait, 0)


async def test_without_a_majority_nothing_is_answered_and_nothing_is_lost(etcd_server: Etcd, client: Opener) -> None:
    metadata = await client()
    version = await metadata.commit(Put("volumes/a", b"1", 0))
    lease = await metadata.grant(600)
    for member in (0, 1):
        etcd_server.kill(member)
    try:
        for _ in range(3):  # whichever member is asked
            for call in (
                metadata.commit(Put("volumes/a", b"2", version)),
                metadata.get("volumes/a"),
                metadata.grant(5),
                metadata.renew(lease),
            ):
                with pytest.raises(MetadataUnavailable, match="etcd at 127"):
                    await call
            with pytest.raises(MetadataUnavailable):
                async with asyncio.timeout(SOON), aclosing(metadata.watch("volumes/", version)) as changes:
                    await anext(changes)
    finally:
        for member in (0, 1):
            etcd_server.start_member(member)
        for member in (0, 1):
            await asyncio.to_thread(etcd_server.wait, member)
    await commit(metadata, "volumes/b", b"")
    entry = await metadata.get("volumes/a")
    assert entry is not None and entry.value in (b"1", b"2"), "a commit without an answer may have been done"
    await metadata.renew(lease)


async def test_what_was_compacted_is_lost_history(own: Etcd) -> None:
    metadata = await EtcdMetadata.open(own.access())
    for value in (b"1", b"2", b"3"):
        revision = await metadata.commit(Put("a", value, None))
    await ask(metadata, "KV/Compact", b"\x08" + bytes([revision]))  # field 1, the revision
    with pytest.raises(HistoryLost):
        await anext(metadata.watch("", 1))
    assert [entry.value for entry in (await metadata.list_prefix("")).entries] == [b"3"]
    await metadata.close()


async def test_an_etcd_that_went_back_in_time_is_refused(own: Etcd) -> None:
    metadata = await EtcdMetadata.open(own.access())
    await metadata.commit(Put("volumes/a", b"1", 0))
    own.kill(0)
    shutil.copytree(own.folder / "m0", own.folder / "backup")
    own.start_member(0)
    own.wait(0)
    await commit(metadata, "volumes/a", b"2")
    own.kill(0)
    shutil.rmtree(own.folder / "m0")
    shutil.copytree(own.folder / "backup", own.folder / "m0")
    own.start_member(0)
    own.wait(0)
    with pytest.raises(Damaged, match="restored from a backup and lacks later changes"):
        await answered(lambda: metadata.get("volumes/a"))
    await metadata.close()


async def test_members_of_two_etcds_are_refused(own: Etcd, other: Etcd) -> None:
    endpoints = [own.endpoints[0], other.endpoints[0]]
    metadata = await EtcdMetadata.open(etcd_access(endpoints, *own.files.values()))
    own.kill(0)
    with pytest.raises(MetadataUnavailable):
        await metadata.get("a")
    with pytest.raises(Damaged, match="must name members of one etcd"):
        await metadata.get("a")
    await metadata.close()


async def test_a_full_etcd_says_what_to_do_and_is_still_read(own: Etcd) -> None:
    metadata = await EtcdMetadata.open(own.access())
    await metadata.commit(Put("a", b"1", 0))
    await ask(metadata, "Maintenance/Alarm", b"\x08\x01\x18\x01")  # ACTIVATE, NOSPACE
    with pytest.raises(MetadataUnavailable, match="compacted and defragmented"):
        await metadata.commit(Put("a", b"2", None))
    entry = await metadata.get("a")
    assert entry is not None and entry.value == b"1"
    await metadata.close()


async def test_installations_share_an_etcd_by_prefix(etcd_server: Etcd) -> None:
    one = await EtcdMetadata.open(etcd_server.access(), "/one/")
    two = await EtcdMetadata.open(etcd_server.access(), "/two/")
    await one.commit(Put("volumes/a", b"one", None))
    await two.commit(Put("volumes/a", b"two", None))
    assert [entry.value for entry in (await one.list_prefix("")).entries] == [b"one"]
    with pytest.raises(Conflict, match="volumes/a has version"):
        await two.commit(Put("volumes/a", b"three", 0))
    await one.close()
    await two.close()


async def test_access_that_is_wrong_is_refused_with_a_reason(etcd_server: Etcd, tmp_path: Path) -> None:
    files = etcd_server.files
    with pytest.raises(ConfigError, match=r"metadata\.endpoints is empty"):
        etcd_access([])
    with pytest.raises(ConfigError, match="'https://a:2379' is not host:port"):
        etcd_access(["https://a:2379"])
    with pytest.raises(ConfigError, match="name both or none"):
        etcd_access(["a:2379"], files["ca_file"], files["certificate_file"])
    with pytest.raises(ConfigError, match=r"needs metadata\.ca_file"):
        etcd_access(["a:2379"], "", files["certificate_file"], files["key_file"])
    with pytest.raises(NotFound, match=r"none\.crt does not exist"):
        etcd_access(["a:2379"], str(tmp_path / "none.crt"))
    with pytest.raises(ConfigError, match="with a slash at its end"):
        await EtcdMetadata.open(etcd_server.access(), "iomesh")
    for refused in (etcd_access(etcd_server.endpoints), etcd_access(etcd_server.endpoints, files["ca_file"])):
        with pytest.raises(MetadataUnavailable, match="etcd at 127"):  # it closes the connection and says no reason
            await EtcdMetadata.open(refused)


async def test_a_daemon_serves_its_volume_while_etcd_is_away(own: Etcd, tmp_path: Path) -> None:
    settings = {"metadata.kind": "etcd", "metadata.endpoints": ",".join(own.endpoints)}
    settings |= {f"metadata.{key}": file for key, file in own.files.items()}

    def start() -> None:
        own.start_member(0)
        own.wait(0)

    await serves_through_outage(tmp_path, settings, partial(own.kill, 0), start)
