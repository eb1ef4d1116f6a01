"""Volumes on several reactors that share devices: everything that crosses from one reactor to another, at once.

The engine runs in this process, so that ThreadSanitizer sees its threads (`make sanitize-threads`). Each volume has two
connections under load. Meanwhile: checkpoints, snapshots of all volumes at one instant, clones, cleaning, scrubs,
volumes that are closed and opened again, and readings of all states. Then the engine stops as in a crash.
"""

import asyncio
import contextlib
import itertools
import random
import socket
import struct
import threading
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from iomesh.errors import NotFound
from iomesh.node.reactors import ALIKE
from support.amount import Amount
from support.model import Model
from support.nbd import READ, Connection
from support.several import LoadOn, Served, Several

BLOCK = 4096
MIB = 1 << 20
VOLUME = 8 << 20
REQUEST_MAGIC, REPLY_BYTES = 0x25609513, 16
ACKNOWLEDGED = 400  # requests of each volume in one run of the engine


class Work:
    """What goes on beside the loads, until they have ended."""

    def __init__(self, several: Several) -> None:
        self.several = several
        self.draw = several.draw
        self.ended = False
        self.snapshots = self.clones = self.scrubbed = self.cleaned = self.looks = 0

    def has_all(self) -> bool:
        return min(self.snapshots, self.clones, self.cleaned, self.scrubbed, self.looks) >= 2

    async def repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        while not self.ended:
            await step()
            await asyncio.sleep(0.001)

    async def checkpoint(self) -> None:
        await self.several.engine.checkpoint(self.draw.choice(self.several.volumes).id)

    async def snapshot_all(self) -> None:
        """A snapshot of all volumes, a clone of one of them, and all deleted again."""
        engine, volumes = self.several.engine, self.several.volumes
        ids = await self.several.snapshot(volumes, f"at-{self.snapshots}")
        self.snapshots += 1
        at = self.draw.randrange(len(volumes))
        clone = Served(volumes[at].size, volumes[at].model, self.several.new_id(), clone_of=(volumes[at].id, ids[at]))
        self.several.clones.append(clone)
        reactor = await self.several.open(clone)
        assert reactor == self.several.reactor_of(volumes[at]), "a clone is opened where its parent is"
        connection = await self.several.connect(clone)
        await connection.write(0, b"clone of" * 512)
        assert await connection.read(0, BLOCK) == b"clone of" * 512
        await connection.close()
        await engine.close_volume(clone.id, checkpoint=True)
        await self.several.ask(lambda compiled: compiled.erase_volume(clone.id.bytes))
        self.clones += 1
        for volume, identity in zip(volumes, ids, strict=True):
            await engine.delete_snapshot(volume.id, identity)

    async def clean(self) -> None:
        await self.several.clean(self.draw.choice(self.several.volumes))
        self.cleaned += 1

    async def scrub(self) -> None:
        for store in self.several.stores:
            rows = await self.several.engine.sealed(store)
            for row in rows[:2]:
                volume, segment = uuid.UUID(bytes=row["volume"].tobytes()), int(row["segment"])
                with contextlib.suppress(NotFound):  # it was removed meanwhile
                    found = await self.several.engine.scrub(store, volume, segment, bytes_per_second=0)
                    assert found["damaged"] == 0
                    self.scrubbed += 1

    async def look(self) -> None:
        """All that a metrics scrape reads."""
        engine = self.several.engine
        for volume in self.several.volumes:
            state = engine.volume_state(volume.id)
            assert state["sequence"] >= state["committed"] >= state["stable"]
            await engine.space(volume.id)
        for reactor in range(self.several.reactors):
            engine.reactor_state(reactor)
        for store in self.several.stores:
            assert engine.store_space(store)["free_slabs"] > 0
        self.looks += 1


async def load_all(several: Several) -> Work:
    work = Work(several)
    loads = [
        LoadOn(several, volume, several.draw.getrandbits(32), connections=2, depth=4) for volume in several.volumes
    ]

    async def end() -> None:
        while any(load.counts.acknowledged < ACKNOWLEDGED and not load.ended for load in loads):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        while not (work.has_all() or any(load.ended for load in loads)):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        work.ended = True
        for load in loads:
            load.stop()

    steps = (work.checkpoint, work.snapshot_all, work.clean, work.scrub, work.look)
    async with asyncio.timeout(1800), asyncio.TaskGroup() as group:
        for load in loads:
            group.create_task(load.run())
        for step in steps:
            group.create_task(work.repeat(step))
        group.create_task(end())
    return work


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("reactors", [1, 2])
async def test_all_at_once_on_shared_devices_loses_nothing(
    room: Path, draw: random.Random, amount: Amount, reactors: int
) -> None:
    several = Several(room, draw, reactors=reactors, devices=2, volumes=4, size=VOLUME)
    await several.format()
    for _ in range(5 if amount.soak else 2):
        async with several.running():
            await several.compare()
            assert {several.reactor_of(volume) for volume in several.volumes} == set(range(reactors))
            work = await load_all(several)
            await reopen_some(several)
        print(f"{work.snapshots} snapshots, {work.cleaned} cleanings, {work.scrubbed} scrubs, {work.looks} looks")
    async with several.running():
        await several.compare()


@pytest.mark.timeout(3600)
async def test_a_volume_is_opened_where_the_load_is_least(room: Path, draw: random.Random) -> None:
    """Not where the fewest volumes are, if that reactor works. A clone of a volume goes where the volume is."""
    several = Several(room, draw, reactors=2, devices=2, volumes=3, size=VOLUME)
    await several.format()
    async with several.running(), asyncio.timeout(1800):
        places = [several.reactor_of(volume) for volume in several.volumes]
        assert sorted(places) == [0, 0, 1], "without load, volumes are spread evenly"
        lonely = several.volumes[places.index(1)]
        connection = await several.connect(lonely)
        for offset in range(0, VOLUME, MIB):
            await connection.write(offset, several.draw.randbytes(MIB))
        ended = threading.Event()
        reading = asyncio.ensure_future(asyncio.to_thread(read_on_and_on, several.serve(lonely.id), ended))
        while several.engine.reactor_loads()[1] < several.engine.reactor_loads()[0] + 2 * ALIKE:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        another = Served(VOLUME, Model(VOLUME), several.new_id())
        several.volumes.append(another)
        assert await several.open(another) == 0
        (snapshot,) = await several.snapshot([lonely], "of the busy one")
        clone = Served(VOLUME, Model(VOLUME), several.new_id(), clone_of=(lonely.id, snapshot))
        several.clones.append(clone)
        assert await several.open(clone) == 1
        assert several.engine.reactor_state(0)["volumes"] == 3
        assert several.engine.reactor_state(1)["volumes"] == 2
        ended.set()
        await reading


def read_on_and_on(connection: socket.socket, ended: threading.Event) -> None:
    """Reads a volume whose peer is past the handshake, and looks at nothing: so most of the work is the reactor's."""
    request = struct.Struct(">IHHQQI")
    offsets = range(0, VOLUME, MIB)
    requests = b"".join(request.pack(REQUEST_MAGIC, 0, READ, offset, offset, MIB) for offset in offsets)
    buffer = bytearray(MIB)
    with connection:
        while not ended.is_set():
            connection.sendall(requests)
            left = len(offsets) * (REPLY_BYTES + MIB)
            while left:
                left -= connection.recv_into(buffer, min(left, MIB))


async def reopen_some(several: Several) -> None:
    """Closes volumes with or without a checkpoint while others are written, and opens them again."""
    closed = several.volumes[: len(several.volumes) // 2]
    others = several.volumes[len(closed) :]
    loads = [LoadOn(several, volume, several.draw.getrandbits(32), connections=1, depth=4) for volume in others]
    running = [asyncio.ensure_future(load.run()) for load in loads]
    for volume, checkpoint in zip(closed, itertools.cycle((True, False))):
        await several.engine.close_volume(volume.id, checkpoint=checkpoint)
        await several.open(volume)
        volume.model.settle_with(await several.read(volume))
    for load in loads:
        load.stop()
    await asyncio.gather(*running)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("reactors", [1, 2])
async def test_a_snapshot_of_volumes_on_different_reactors_is_of_one_instant(
    room: Path, draw: random.Random, reactors: int
) -> None:
    """One writer numbers its writes and alternates between the volumes: in a snapshot of all, the numbers follow each
    other."""
    several = Several(room, draw, reactors=reactors, devices=2, volumes=2, size=VOLUME)
    await several.format()
    ended = asyncio.Event()

    async def number(connections: list[Connection]) -> None:
        for count in itertools.count(1):
            if ended.is_set():
                return
            await connections[count % 2].write(0, count.to_bytes(8, "little") * (BLOCK // 8))

    async with several.running(), asyncio.timeout(1800):
        connections = [await several.connect(volume) for volume in several.volumes]
        writer = asyncio.ensure_future(number(connections))
        pairs = []
        for at in range(12):
            ids = await several.snapshot(several.volumes, f"at-{at}")
            pairs.append(sorted([await first_number(several, *one) for one in zip(several.volumes, ids, strict=True)]))
        ended.set()
        await writer
        assert len({tuple(pair) for pair in pairs}) > 1, "nothing was written between the snapshots"
        for older, newer in pairs:
            assert newer - older == 1 or (older, newer) == (0, 0), (
                f"write {newer} is in its snapshot, {older + 1} in none"
            )


async def first_number(several: Several, volume: Served, snapshot: uuid.UUID) -> int:
    return int.from_bytes((await several.read_snapshot(volume, snapshot, BLOCK))[:8], "little")
