"""What every implementation of the metadata protocol promises (src/iomesh/metadata/protocol.py)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from iomesh.errors import Conflict, InvalidArgument, NotFound
from iomesh.metadata import Change, Delete, Metadata, Put
from iomesh.metadata.protocol import VALUE_BYTES_MAX

Opener = Callable[[], Awaitable[Metadata]]
SOON = 120.0  # for what has to happen; it is not a measure of speed


async def test_what_was_never_written_is_not_there(metadata: Metadata) -> None:
    assert await metadata.get("volumes/a") is None
    assert (await metadata.list_prefix("volumes/")).entries == []


async def test_what_was_written_is_read_back_with_the_revision_that_wrote_it(metadata: Metadata) -> None:
    revision = await metadata.commit(Put("volumes/a", b"\x00one\xff", 0))
    entry = await metadata.get("volumes/a")
    assert entry == ("volumes/a", b"\x00one\xff", revision)


async def test_revisions_rise(metadata: Metadata) -> None:
    first = await metadata.commit(Put("a", b"1", 0))
    second = await metadata.commit(Put("b", b"1", 0))
    assert 0 < first < second
    assert (await metadata.list_prefix("")).revision >= second


async def test_version_zero_means_that_nobody_was_first(metadata: Metadata) -> None:
    await metadata.commit(Put("volumes/a", b"mine", 0))
    with pytest.raises(Conflict, match="volumes/a"):
        await metadata.commit(Put("volumes/a", b"yours", 0))
    entry = await metadata.get("volumes/a")
    assert entry is not None
    assert entry.value == b"mine"


async def test_a_value_is_only_replaced_by_who_has_seen_it(metadata: Metadata) -> None:
    first = await metadata.commit(Put("a", b"1", 0))
    second = await metadata.commit(Put("a", b"2", first))
    with pytest.raises(Conflict):
        await metadata.commit(Put("a", b"3", first))
    with pytest.raises(Conflict):
        await metadata.commit(Delete("a", first))
    assert await metadata.get("a") == ("a", b"2", second)


async def test_a_put_without_a_version_always_writes(metadata: Metadata) -> None:
    await metadata.commit(Put("a", b"1", None))
    revision = await metadata.commit(Put("a", b"2", None))
    assert await metadata.get("a") == ("a", b"2", revision)


async def test_a_commit_with_a_wrong_version_changes_nothing_and_names_the_key(metadata: Metadata) -> None:
    version = await metadata.commit(Put("a", b"1", 0))
    before = (await metadata.list_prefix("")).revision
    for operation in (
        Put("a", b"2", 0),
        Put("a", b"2", version + 1),
        Delete("a", version + 1),
        Put("b", b"2", 7),
        Delete("b", 7),
    ):
        with pytest.raises(Conflict, match=operation.key):
            await metadata.commit(operation)
    assert (await metadata.list_prefix("")).entries == [("a", b"1", version)]
    changes = metadata.watch("", before)  # the service may count others' commits as well: none of them is shown here
    after = await metadata.commit(Put("c", b"1", 0))
    assert await take(changes, 1) == [("c", b"1", after)]
    await changes.aclose()


async def test_a_name_is_reserved_by_one_and_free_for_the_next(client: Opener) -> None:
    """As volumes' names are: the entry holds whose it is, and only who has seen that takes it away."""
    clients = [await client() for _ in range(4)]
    tried = await asyncio.gather(
        *(each.commit(Put("names/db", b"%d" % number, 0)) for number, each in enumerate(clients)),
        return_exceptions=True,
    )
    (winner,) = [number for number, outcome in enumerate(tried) if isinstance(outcome, int)]
    assert all(isinstance(outcome, Conflict) for number, outcome in enumerate(tried) if number != winner)
    held = await clients[0].get("names/db")
    assert held is not None
    assert held.value == b"%d" % winner
    await clients[1].commit(Delete("names/db", held.version))
    again = await clients[2].commit(Put("names/db", b"next", 0))
    with pytest.raises(Conflict):
        await clients[3].commit(Delete("names/db", held.version))
    assert await clients[3].get("names/db") == ("names/db", b"next", again)


async def test_a_deleted_key_is_as_if_it_had_never_been(metadata: Metadata) -> None:
    first = await metadata.commit(Put("a", b"1", 0))
    await metadata.commit(Delete("a", first))
    assert await metadata.get("a") is None
    again = await metadata.commit(Put("a", b"2", 0))
    assert again > first
    await metadata.commit(Delete("a", None))
    await metadata.commit(Delete("never", None))


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "a b", "ä", "a" * 300, "a\n"])
async def test_what_is_no_key_is_refused(metadata: Metadata, key: str) -> None:
    with pytest.raises(InvalidArgument):
        await metadata.commit(Put(key, b"", None))
    with pytest.raises(InvalidArgument):
        await metadata.get(key)


async def test_values_have_a_limit_and_may_reach_it(metadata: Metadata) -> None:
    largest = bytes(range(256)) * (VALUE_BYTES_MAX // 256)
    await metadata.commit(Put("a", largest, 0))
    entry = await metadata.get("a")
    assert entry is not None
    assert entry.value == largest
    with pytest.raises(InvalidArgument, match="bytes"):
        await metadata.commit(Put("b", largest + b"x", 0))


async def test_a_listing_shows_what_begins_with_the_prefix_in_the_order_of_keys(metadata: Metadata) -> None:
    for key in ("volumes/b", "volumes/a", "volumes/a.1", "volumes-of-others/a", "volume", "devices/a", "volumes/zz/z"):
        await metadata.commit(Put(key, key.encode(), 0))
    listing = await metadata.list_prefix("volumes/")
    assert [(entry.key, entry.value) for entry in listing.entries] == [
        (key, key.encode()) for key in ("volumes/a", "volumes/a.1", "volumes/b", "volumes/zz/z")
    ]
    assert len((await metadata.list_prefix("")).entries) == 7


async def test_what_one_client_wrote_another_reads(client: Opener) -> None:
    writer, reader = await client(), await client()
    revision = await writer.commit(Put("a", b"1", 0))
    assert await reader.get("a") == ("a", b"1", revision)


async def test_of_those_who_change_one_key_at_once_one_wins_each_time(client: Opener) -> None:
    clients = [await client() for _ in range(4)]
    await clients[0].commit(Put("count", b"0", 0))

    async def add(metadata: Metadata, times: int) -> None:
        while times:
            entry = await metadata.get("count")
            assert entry is not None
            try:
                await metadata.commit(Put("count", str(int(entry.value) + 1).encode(), entry.version))
                times -= 1
            except Conflict:
                continue

    await asyncio.gather(*(add(metadata, 10) for metadata in clients))
    entry = await clients[0].get("count")
    assert entry is not None
    assert entry.value == b"40"


async def take(changes: AsyncGenerator[Change, None], count: int) -> list[Change]:
    async with asyncio.timeout(SOON):
        return [await anext(changes) for _ in range(count)]


async def test_a_watch_reports_every_change_after_the_revision_in_order(client: Opener) -> None:
    writer, watcher = await client(), await client()
    old = await writer.commit(Put("volumes/old", b"", 0))
    changes = watcher.watch("volumes/", old)
    one = await writer.commit(Put("volumes/a", b"1", 0))
    await writer.commit(Put("devices/a", b"1", 0))
    two = await writer.commit(Put("volumes/a", b"2", one))
    assert await take(changes, 2) == [("volumes/a", b"1", one), ("volumes/a", b"2", two)]
    three = await writer.commit(Delete("volumes/a", two))
    assert await take(changes, 1) == [("volumes/a", None, three)]
    await changes.aclose()


async def test_a_watch_wakes_for_ones_own_change(metadata: Metadata) -> None:
    changes = metadata.watch("a", (await metadata.list_prefix("a")).revision)
    waiting = asyncio.create_task(take(changes, 1))
    await asyncio.sleep(0.05)
    revision = await metadata.commit(Put("a", b"1", 0))
    assert await waiting == [("a", b"1", revision)]
    await changes.aclose()


async def test_a_listing_and_a_watch_from_its_revision_miss_nothing(client: Opener) -> None:
    writer, watcher = await client(), await client()

    async def write() -> None:
        for number in range(50):
            await writer.commit(Put(f"a/{number:02}", b"", 0))

    writing = asyncio.create_task(write())
    while not (listing := await watcher.list_prefix("a/")).entries:
        pass
    changes = watcher.watch("a/", listing.revision)
    seen = [entry.key for entry in listing.entries]
    seen += [change.key for change in await take(changes, 50 - len(seen))]
    assert seen == [f"a/{number:02}" for number in range(50)]
    await writing
    await changes.aclose()


async def put_for(metadata: Metadata, seconds: float, change: Put) -> tuple[int, int]:
    """Puts an entry under a new lease; retries with a longer one if it expired too soon. Returns the lease and the
    revision."""
    while True:
        lease = await metadata.grant(seconds)
        try:
            return lease, await metadata.commit(change._replace(lease=lease))
        except NotFound:
            assert seconds < 60, "a lease ended within a minute of being granted"
            seconds *= 4


async def test_a_lease_keeps_its_entries_while_it_is_renewed(metadata: Metadata) -> None:
    """Tried with a longer one where the machine paused for as long as the lease lasts."""
    for seconds in (0.5, 2.0, 8.0, 32.0):
        lease, _ = await put_for(metadata, seconds, Put("nodes/a", b"here", None))
        began = renewed = time.monotonic()
        paused = 0.0
        while time.monotonic() < began + 2 * seconds and paused < seconds:
            await asyncio.sleep(seconds / 5)
            with contextlib.suppress(NotFound):
                await metadata.renew(lease)
            paused, renewed = max(paused, time.monotonic() - renewed), time.monotonic()
        entry = await metadata.get("nodes/a")
        if max(paused, time.monotonic() - renewed) < seconds:
            assert entry is not None, f"it ended although it was renewed every {paused:.1f} of {seconds} s"
            return
    raise AssertionError("the machine pauses for half a minute: this shows nothing")


async def test_a_lease_that_is_not_renewed_takes_its_entries_with_it(client: Opener) -> None:
    holder, other = await client(), await client()
    await holder.commit(Put("kept", b"", 0))
    lease, revision = await put_for(holder, 0.2, Put("nodes/a", b"here", 0))
    changes = other.watch("", revision)
    (change,) = await take(changes, 1)
    assert (change.key, change.value) == ("nodes/a", None)
    assert change.revision > revision
    assert await other.get("nodes/a") is None
    assert await other.get("kept") is not None
    with pytest.raises(NotFound, match="lease"):
        await holder.renew(lease)
    with pytest.raises(NotFound, match="lease"):
        await holder.commit(Put("nodes/a", b"here", None, lease=lease))
    await changes.aclose()


async def test_an_entry_of_an_expired_lease_can_be_created_again(client: Opener) -> None:
    holder, successor = await client(), await client()
    await put_for(holder, 0.1, Put("nodes/a", b"old", 0))
    async with asyncio.timeout(120):
        while await successor.get("nodes/a") is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await successor.commit(Put("nodes/a", b"new", 0))
    entry = await holder.get("nodes/a")
    assert entry is not None
    assert entry.value == b"new"


async def test_a_revoked_lease_ends_at_once_and_once(metadata: Metadata) -> None:
    lease = await metadata.grant(60.0)
    await metadata.commit(Put("nodes/a", b"here", 0, lease=lease))
    await metadata.revoke(lease)
    assert await metadata.get("nodes/a") is None
    await metadata.revoke(lease)


async def test_an_entry_that_was_put_again_without_the_lease_survives_it(metadata: Metadata) -> None:
    lease = await metadata.grant(60.0)
    version = await metadata.commit(Put("nodes/a", b"here", 0, lease=lease))
    await metadata.commit(Put("nodes/a", b"for good", version))
    await metadata.revoke(lease)
    assert await metadata.get("nodes/a") is not None
