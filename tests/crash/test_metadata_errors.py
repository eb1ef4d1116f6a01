"""Errors of the metadata service during the update of a checkpoint pointer: the engine and the node's update of the
pointer, over a real metadata service with injected faults.
"""

import asyncio
import errno
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from iomesh.engine.engine import Event, Pointer
from iomesh.errors import Conflict
from iomesh.metadata import MetadataUnavailable, records
from iomesh.metadata.records import PROMISE, LogRecord, VolumeRecord, put_log
from iomesh.metadata.sqlite import SqliteMetadata
from iomesh.node.engine import counters_by_name
from iomesh.node.pointers import Pointers
from iomesh.node.supervisor import Supervisor
from iomesh.node.volume import NodeVolume, take_over
from support.bench import VOLUME, Bench
from support.faulty_metadata import Fault, FaultyMetadata
from support.nbd import Connection, NbdError

CHECKPOINT_BYTES = 1 << 20


class Pointed(Bench):
    """A bench whose pointers are in a real metadata service, updated by the node's code."""

    metadata: FaultyMetadata
    opened: NodeVolume
    pointers: Pointers | None = None
    refused: list[Conflict]

    async def begin(self, room: Path) -> None:
        self.metadata = FaultyMetadata(await SqliteMetadata.open(room / "metadata.db"))
        record = VolumeRecord(
            id=self.volume, name="db", node="node-a", size_bytes=VOLUME, segment_bytes=2 << 20, created_ns=1
        )
        self.opened = NodeVolume(record, LogRecord(id=self.volume, epoch=0, owner="node-a", promised=0))

    def on_event(self, event: Event) -> None:
        if event.kind == "checkpoint":
            self.node_pointers().move(self.opened, event.value)
        elif event.kind == "numbers":
            self.node_pointers().promise(self.opened, event.value)

    def node_pointers(self) -> Pointers:
        """Those of this run of the engine."""
        if self.pointers is None:
            self.pointers = Pointers(
                self.engine, self.metadata, Supervisor(), lambda _, error: self.refused.append(error)
            )
        return self.pointers

    @asynccontextmanager
    async def node(self) -> AsyncIterator[Connection]:
        """The volume taken over, recovered from the stored pointer, and served; it ends with a crash."""
        self.promised = (await take_over(self.metadata, self.opened, "node-a")).segment - 1
        at = self.opened.log.checkpoint
        self.pointer = Pointer(at.segment, at.block, at.crc) if at else None
        self.epoch = self.opened.log.epoch - 1
        self.refused = []
        async with self.running(checkpoint_bytes=CHECKPOINT_BYTES):
            try:
                async with self.connected() as connection:
                    yield connection
            finally:
                await self.node_pointers().end(self.opened)
                self.pointers = None

    def counter(self, name: str) -> int:
        return counters_by_name(self.engine.counters(self.volume))[name]

    async def write_until(self, connection: Connection, condition: Callable[[], object], what: str) -> None:
        async with asyncio.timeout(120):
            while not condition():
                await self.write(connection, 80)
                await asyncio.sleep(0.01)
        assert condition(), what


async def until(condition: Callable[[], object], what: str) -> None:
    try:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110  # the engine sends no event for this
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it never happened that {what}") from None


@pytest.fixture
async def bench(room: Path, draw: random.Random) -> AsyncIterator[Pointed]:
    made = Pointed(room, draw)
    await made.format(4 << 30)
    await made.begin(room)
    yield made
    await made.metadata.close()


@pytest.mark.parametrize("fault", Fault)
async def test_one_error_of_a_pointer_update_is_retried_unnoticed(bench: Pointed, fault: Fault) -> None:
    async with bench.node() as connection:
        bench.metadata.faults = [fault]
        await bench.write_until(connection, lambda: bench.counter("checkpoints") >= 3, "checkpoints go on")
        assert bench.metadata.failed == 1
        assert bench.engine.volume_state(bench.volume)["error"] == 0
        await until(lambda: bench.opened.unanswered is None, "the metadata service is known to answer again")
        await bench.compare(connection)
    async with bench.node() as connection:
        await bench.compare(connection)


@pytest.mark.parametrize("fault", Fault)
async def test_while_the_outcome_is_unknown_the_volume_goes_on_and_a_crash_loses_nothing(
    bench: Pointed, fault: Fault
) -> None:
    """Whether the old or the new pointer was stored."""
    async with bench.node() as connection:
        await bench.write_until(connection, lambda: bench.counter("checkpoints") >= 2, "checkpoints are written")
        bench.metadata.down = fault
        await bench.write_until(connection, lambda: bench.opened.unanswered, "the outcome is unknown")
        assert bench.engine.volume_state(bench.volume)["unanswered"]
        removed, checkpoints = bench.counter("segments_removed"), bench.counter("checkpoints")
        before = bench.counter("segments_sealed")
        await bench.write_until(connection, lambda: bench.counter("segments_sealed") > before + 8, "the log goes on")
        await bench.clean()
        await bench.compare(connection)
        assert bench.counter("segments_removed") == removed, "a segment of either checkpoint was removed"
        assert bench.counter("checkpoints") == checkpoints
    bench.metadata.down = None
    async with bench.node() as connection:
        await bench.compare(connection)


async def test_checkpoints_and_removal_go_on_once_the_metadata_service_answers(bench: Pointed) -> None:
    async with bench.node() as connection:
        bench.metadata.down = Fault.NOT_DONE
        await bench.write_until(connection, lambda: bench.opened.unanswered, "the outcome is unknown")
        with pytest.raises(MetadataUnavailable, match="disk I/O error"):
            await bench.engine.checkpoint(bench.volume)
        bench.metadata.down = None
        await until(lambda: bench.opened.unanswered is None, "the metadata service is known to answer again")
        checkpoints = bench.counter("checkpoints")
        await bench.write(connection, 80)
        await bench.engine.checkpoint(bench.volume)
        assert bench.counter("checkpoints") > checkpoints
        await bench.compare(connection)


async def test_a_snapshot_is_refused_with_the_reason_and_at_most_one_is_made(bench: Pointed) -> None:
    async with bench.node() as connection:
        await bench.write(connection, 80)
        bench.metadata.down = Fault.NOT_DONE
        with pytest.raises(
            MetadataUnavailable,
            match=r"the metadata service does not answer \(.*disk I/O error\); the command may still take effect",
        ):
            await bench.engine.create_snapshots([(bench.volume, bench.volume, "one")])
        with pytest.raises(MetadataUnavailable):
            await bench.engine.create_snapshots([(bench.volume, bench.volume, "one")])
        await bench.write(connection, 80)
        bench.metadata.down = None
        await until(lambda: bench.opened.unanswered is None, "the metadata service is known to answer again")
        await until(lambda: not bench.engine.volume_state(bench.volume)["checkpointing"], "the checkpoint ends")
        assert list(await bench.snapshots()) == ["one"]
        bench.engine.refuse_pending([bench.volume])
        await bench.compare(connection)


async def test_a_refused_update_ends_the_log_and_names_the_owner(bench: Pointed) -> None:
    async with bench.node() as connection:
        await bench.write(connection, 80)
        taken = msgspec.structs.replace(bench.opened.log, epoch=9, owner="node-b")
        await bench.metadata.commit(put_log(taken, None))
        with pytest.raises(Conflict, match="another node has taken the volume over"):
            await bench.engine.checkpoint(bench.volume)
        assert [error.message for error in bench.refused] == [
            "volume db has been taken over: node node-b owns it with epoch 9, and this node had epoch 1"
        ]
        assert bench.engine.volume_state(bench.volume)["error"] == errno.ESTALE
        with pytest.raises(NbdError):
            await connection.write(0, bytes(4096))


@pytest.mark.parametrize("fault", Fault)
async def test_closing_ends_though_the_outcome_is_unknown_and_loses_nothing(bench: Pointed, fault: Fault) -> None:
    async with bench.node() as connection:
        await bench.write(connection, 400)
        bench.metadata.down = fault
        await connection.close()
        with pytest.raises(MetadataUnavailable):
            async with asyncio.timeout(60):
                await bench.engine.close_volume(bench.volume, checkpoint=True)
    bench.metadata.down = None
    async with bench.node() as connection:
        await bench.compare(connection)
        await bench.check()


def awaits_numbers(bench: Pointed) -> bool:
    return bool(bench.engine.volume_state(bench.volume)["awaits_numbers"])


async def test_numbers_go_on_above_the_promise_after_a_crash(bench: Pointed) -> None:
    """What is found on the device may be less: the last segments may have been given back."""
    async with bench.node() as connection:
        await bench.write(connection, 80)
        promised = bench.opened.log.promised
        assert promised == PROMISE
    async with bench.node() as connection:
        await bench.compare(connection)
        assert bench.opened.log.promised == 2 * PROMISE
        await bench.write(connection, 80)
        await bench.engine.checkpoint(bench.volume)
        at = bench.opened.log.checkpoint
        assert at is not None and at.segment > promised
        assert bench.opened.log.promised >= at.segment + PROMISE - 1, "raised together with the pointer"
    async with bench.node() as connection:
        await bench.compare(connection)


@pytest.mark.parametrize("fault", Fault)
async def test_writes_wait_for_numbers_when_the_promise_is_used_up_and_go_on(
    bench: Pointed, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PROMISE", 8)
    async with bench.node() as connection:
        await bench.write(connection, 80)
        bench.metadata.down = fault
        writing = asyncio.create_task(bench.write_until(connection, lambda: bench.metadata.down is None, "it answers"))
        await until(lambda: awaits_numbers(bench), "the promise is used up")
        assert bench.opened.unanswered is not None
        with pytest.raises(MetadataUnavailable):
            await bench.engine.checkpoint(bench.volume)
        assert awaits_numbers(bench) and not writing.done()
        bench.metadata.down = None
        await writing
        await until(lambda: bench.opened.unanswered is None, "the metadata service is known to answer again")
        await bench.write(connection, 80)
        await bench.compare(connection)
        assert not awaits_numbers(bench)
        assert bench.engine.volume_state(bench.volume)["error"] == 0
    async with bench.node() as connection:
        await bench.compare(connection)


async def test_closing_ends_though_the_promise_is_used_up_and_loses_nothing(
    bench: Pointed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PROMISE", 8)
    async with bench.node() as connection:
        await bench.write(connection, 80)
        bench.metadata.down = Fault.NOT_DONE
        writing = asyncio.create_task(bench.write_until(connection, lambda: bench.metadata.down is None, "it answers"))
        await until(lambda: awaits_numbers(bench), "the promise is used up")
        with pytest.raises(MetadataUnavailable):
            async with asyncio.timeout(120):
                await bench.engine.close_volume(bench.volume, checkpoint=True)
        with pytest.raises((NbdError, ConnectionError, asyncio.IncompleteReadError)):
            await writing
    bench.metadata.down = None
    async with bench.node() as connection:
        await bench.compare(connection)


async def test_a_promise_that_is_refused_ends_the_log(bench: Pointed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PROMISE", 8)
    async with bench.node() as connection:
        taken = msgspec.structs.replace(bench.opened.log, epoch=9, owner="node-b")
        await bench.metadata.commit(put_log(taken, None))
        with pytest.raises(NbdError):
            await bench.write_until(connection, lambda: False, "writes fail")
        assert "node node-b owns it with epoch 9" in bench.refused[0].message
        assert bench.engine.volume_state(bench.volume)["error"] == errno.ESTALE
