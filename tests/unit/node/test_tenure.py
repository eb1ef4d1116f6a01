"""One daemon at a time runs under a node's name; the successor of a dead one on the same machine does not wait."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from iomesh.errors import Damaged, InUse
from iomesh.metadata import Put
from iomesh.metadata.nodes import NodeRecord, decode_node, node_key, put_node
from iomesh.metadata.sqlite import SqliteMetadata
from iomesh.node.processes import Process, this_process
from iomesh.node.supervisor import Supervisor
from iomesh.node.tenure import Tenure

SHORT_SECONDS = 0.4  # a lease that a test waits for
LONG_SECONDS = 3600.0  # one that it must not wait for
KEY = node_key("node-a")
Changes = dict[str, object]


@pytest.fixture
async def metadata(tmp_path: Path) -> AsyncIterator[SqliteMetadata]:
    metadata = await SqliteMetadata.open(tmp_path / "metadata.db")
    yield metadata
    await metadata.close()


@pytest.fixture
async def tenure(metadata: SqliteMetadata) -> AsyncIterator[Callable[..., Tenure]]:
    async with AsyncExitStack() as stack:

        def make(state: uuid.UUID | None = None, lease_seconds: float = LONG_SECONDS) -> Tenure:
            made = Tenure(metadata, "node-a", state or uuid.uuid4(), "/state", lease_seconds=lease_seconds)
            stack.push_async_callback(made.give_up)
            return made

        yield make


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    await supervisor.close()


async def left_behind(metadata: SqliteMetadata, tenure: Tenure, seconds: float, **changes: object) -> NodeRecord:
    """What a daemon that was killed leaves: its record, under a lease that nobody renews."""
    record = msgspec.structs.replace(tenure.record, incarnation=uuid.uuid4(), **changes)
    await metadata.commit(put_node(record, 0, await metadata.grant(seconds)))
    return record


async def holder(metadata: SqliteMetadata) -> uuid.UUID | None:
    entry = await metadata.get(KEY)
    return decode_node(entry).incarnation if entry else None


def dead_process() -> Process:
    with subprocess.Popen(["sleep", "1000"]) as process:
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        started = Process(process.pid, this_process().namespace, int(stat[19]))
        seen = [started.runs]
        process.kill()
    seen.append(started.runs)
    assert seen == [True, False]
    return started


async def test_a_name_is_held_by_one_and_free_when_it_is_given_up(
    metadata: SqliteMetadata, tenure: Callable[..., Tenure]
) -> None:
    first, second = tenure(), tenure()
    await first.take()
    with pytest.raises(InUse) as raised:
        await second.take()
    assert (
        f"a daemon runs as node node-a already, with the same metadata: process {os.getpid()} on"
        in raised.value.message
    )
    assert await holder(metadata) == first.record.incarnation
    await first.give_up()
    assert await holder(metadata) is None
    await second.take()


async def test_a_daemon_that_was_killed_is_followed_at_once_by_its_state_directory(
    metadata: SqliteMetadata, tenure: Callable[..., Tenure]
) -> None:
    # Its process seems to run: whoever holds the state directory's lock knows better.
    next_one = tenure()
    await left_behind(metadata, next_one, LONG_SECONDS)
    await next_one.take()
    assert await holder(metadata) == next_one.record.incarnation


async def test_a_daemon_that_was_killed_is_followed_at_once_on_the_same_machine(
    metadata: SqliteMetadata, tenure: Callable[..., Tenure]
) -> None:
    next_one, dead = tenure(), dead_process()
    await left_behind(
        metadata, next_one, LONG_SECONDS, state=uuid.uuid4(), process=dead.number, process_started=dead.started
    )
    await next_one.take()
    assert await holder(metadata) == next_one.record.incarnation


@pytest.mark.parametrize(
    "changes", [{"boot": uuid.uuid4()}, {"state": uuid.uuid4(), "process_namespace": 1}], ids=["boot", "namespace"]
)
async def test_where_nothing_else_tells_the_lease_does(
    metadata: SqliteMetadata, tenure: Callable[..., Tenure], changes: Changes
) -> None:
    next_one = tenure(lease_seconds=SHORT_SECONDS)
    await left_behind(metadata, next_one, SHORT_SECONDS, **changes)
    await next_one.take()
    assert await holder(metadata) == next_one.record.incarnation


async def test_a_lease_of_another_machine_that_is_renewed_is_respected(
    metadata: SqliteMetadata, tenure: Callable[..., Tenure]
) -> None:
    next_one = tenure(lease_seconds=SHORT_SECONDS)
    other = await left_behind(metadata, next_one, LONG_SECONDS, boot=uuid.uuid4(), host="elsewhere", process=4711)
    with pytest.raises(InUse, match="process 4711 on elsewhere"):
        await next_one.take()
    assert await holder(metadata) == other.incarnation


async def test_a_lease_is_renewed_for_as_long_as_the_daemon_runs(
    metadata: SqliteMetadata, tenure: Callable[..., Tenure], supervisor: Supervisor
) -> None:
    one = tenure(lease_seconds=30.0)
    one.renewals = 300  # ten times a second
    await one.take()
    one.start(supervisor)
    with sqlite3.connect(metadata.path) as database:

        def ends() -> float:
            return float(database.execute("SELECT max(ends) FROM leases").fetchone()[0])

        before = ends()
        await eventually(lambda: ends() > before)
    assert await holder(metadata) == one.record.incarnation
    assert not one.problem


async def test_a_lease_that_has_run_out_is_taken_again(
    metadata: SqliteMetadata, tenure: Callable[..., Tenure], supervisor: Supervisor
) -> None:
    one = tenure(lease_seconds=SHORT_SECONDS)
    await one.take()
    one.start(supervisor)
    await metadata.revoke(one.lease)
    await eventually(lambda: held_by(metadata, one.record))


async def test_who_loses_the_name_to_another_says_so(
    metadata: SqliteMetadata, tenure: Callable[..., Tenure], supervisor: Supervisor
) -> None:
    one = tenure(lease_seconds=SHORT_SECONDS)
    await one.take()
    one.start(supervisor)
    other = msgspec.structs.replace(one.record, incarnation=uuid.uuid4(), host="elsewhere")
    lease = await metadata.grant(LONG_SECONDS)
    put = put_node(other, 0, lease)
    await metadata.commit(Put(put.key, put.value, None, lease))
    await metadata.revoke(one.lease)
    await eventually(lambda: "on elsewhere" in one.problem)
    assert held_by(metadata, other)
    await metadata.revoke(lease)
    await eventually(lambda: held_by(metadata, one.record) and not one.problem)


async def test_a_record_that_cannot_be_read_is_not_overwritten(
    metadata: SqliteMetadata, tenure: Callable[..., Tenure]
) -> None:
    await metadata.commit(Put(KEY, b"{}", 0))
    with pytest.raises(Damaged, match=KEY):
        await tenure().take()


def held_by(metadata: SqliteMetadata, record: NodeRecord) -> bool:
    with sqlite3.connect(metadata.path) as database:
        row = database.execute("SELECT value FROM entries WHERE key = ?", (KEY,)).fetchone()
    return row is not None and msgspec.json.decode(row[0], type=NodeRecord).incarnation == record.incarnation


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):  # against hangs
        while not condition():  # noqa: ASYNC110 (another task, or another process, makes it true)
            await asyncio.sleep(0.02)
