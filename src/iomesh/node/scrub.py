"""Scrub: every sealed segment of every device is read at a low rate, again and again, and verified against its
checksums (ext/store/scrub.pyx). What it finds damaged is repaired from another node's copy, if there is one, and
verified again.

A pass over a large device takes days, so its progress and its findings are stored in the state directory, one file per
device. The file is written periodically: after a crash, a pass continues a little before the point where it was.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec

from iomesh.errors import IomeshError, NotFound
from iomesh.node.cluster import Cluster
from iomesh.node.config import ScrubConfig
from iomesh.node.engine import NodeEngine
from iomesh.node.logs import logger
from iomesh.node.stores import NodeStore, Stores
from iomesh.node.supervisor import SupervisedTask, Supervisor, in_thread, settle
from iomesh.node.volume import Registry

log = logger("scrub")

BLOCK_BYTES = 4096
LOOK_SECONDS = 1.0  # between two checks whether a pass is due
KEEP_SECONDS = 10.0  # between two writes of the file


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one device, as JSON."""

    format: int = 1
    ended_ns: int
    reached_volume: str  # hexadecimal
    reached_segment: int
    damaged: list[tuple[str, int, int]] = []  # volume, segment, blocks


class ScrubPasses:
    """A task that reads the devices, one segment of each at a time."""

    def __init__(
        self,
        config: ScrubConfig,
        engine: NodeEngine,
        stores: Stores,
        volumes: Registry,
        cluster: Cluster,
        directory: Path,
        supervisor: Supervisor,
    ) -> None:
        self._config = config
        self._volumes = volumes
        self._cluster = cluster
        self._directory = directory
        self._kept: dict[uuid.UUID, float] = {}  # devices whose file was read, and when it was last written
        self._engine = engine
        self._stores = stores
        self._supervisor = supervisor
        self._task: SupervisedTask | None = None

    async def start(self) -> None:
        if self._config.enabled:
            self._task = self._supervisor.start("scrub", self._run)

    async def stop(self) -> None:
        if self._task is not None:
            await self._task.stop()
            self._task = None
            for store in self._stores.online():
                if store.record.id in self._kept:  # else the file's contents are unknown
                    await self._keep(store)

    async def _run(self, task: SupervisedTask) -> None:
        while True:
            for store in self._stores.online():
                if store.record.id not in self._kept:
                    await self._recall(store)
            due = [store for store in self._stores.online() if self._is_due(store)]
            await settle((self._pass_over(store, task) for store in due), at_once=max(len(due), 1))
            task.progress()
            await asyncio.sleep(LOOK_SECONDS)

    def _is_due(self, store: NodeStore) -> bool:
        return time.time_ns() >= store.scrub.ended_ns + self._config.interval_seconds * 1e9

    async def _pass_over(self, store: NodeStore, task: SupervisedTask) -> None:
        progress = store.scrub
        try:
            sealed = await self._engine.sealed(store.number)
            rows = sorted((bytes(row["volume"]), int(row["segment"]), int(row["blocks"])) for row in sealed)
            there = {(volume, segment) for volume, segment, _ in rows}
            progress.damaged = {which: blocks for which, blocks in progress.damaged.items() if which in there}
            left = [row for row in rows if row[:2] > progress.reached]
            all_bytes, left_bytes = (sum(blocks for *_, blocks in each) * BLOCK_BYTES for each in (rows, left))
            progress.begin(all_bytes, all_bytes - left_bytes)
            for volume, segment, blocks in left:
                await self._verify(store, volume, segment)
                progress.done_bytes += blocks * BLOCK_BYTES
                progress.reached = volume, segment
                task.progress()
                if time.monotonic() - self._kept[store.record.id] >= KEEP_SECONDS:
                    await self._keep(store)
            if rows:
                progress.end(time.time_ns())
                await self._keep(store)
                log.info(
                    "pass complete",
                    device=str(store.record.id),
                    segments=len(rows),
                    damaged_blocks=progress.damaged_blocks,
                )
        except IomeshError as error:  # the device is being closed, or fails: that is reported elsewhere
            log.info("pass interrupted", device=str(store.record.id), reason=error.message)

    async def _verify(self, store: NodeStore, volume: bytes, segment: int) -> None:
        progress = store.scrub
        try:
            told = await self._scrub(store, volume, segment)
            progress.verified_bytes += told["blocks"] * BLOCK_BYTES
            if told["damaged"] and await self._repair(store, uuid.UUID(bytes=volume), segment, told):
                before, told = told, await self._scrub(store, volume, segment)
                self._report_repaired(store, volume, segment, before["damaged"] - told["damaged"])
        except NotFound:  # it was compacted or deleted concurrently: the next pass reads its new state
            progress.damaged.pop((volume, segment), None)
            return
        if not told["damaged"]:
            progress.damaged.pop((volume, segment), None)
            return
        if progress.damaged.get((volume, segment)) != told["damaged"]:
            log.error(
                "damage found",
                device=str(store.record.id),
                path=store.record.path,
                volume=str(uuid.UUID(bytes=volume)),
                segment=segment,
                blocks=told["damaged"],
                first_block=told["first_damaged"],
            )
        progress.damaged[volume, segment] = told["damaged"]

    async def _scrub(self, store: NodeStore, volume: bytes, segment: int) -> dict[str, Any]:
        return await self._engine.scrub(
            store.number, uuid.UUID(bytes=volume), segment, bytes_per_second=self._config.bytes_per_second
        )

    # repair

    async def _repair(self, store: NodeStore, volume: uuid.UUID, segment: int, told: dict[str, Any]) -> bool:
        """True: some of it is repaired. The owner has single blocks repaired, since its volume uses the replica; any
        other node replaces the replica."""
        here = self._volumes.by_id(volume)
        if here is not None and here.in_engine:
            if here.record.policy.replicas == 1 or not told["known"]:
                return False
            return await self._engine.repair_blocks(volume, segment, told["known"]) > 0
        return await self._refetch(store, volume, segment)

    async def _refetch(self, store: NodeStore, volume: uuid.UUID, segment: int) -> bool:
        for source in self._sources(volume):
            try:
                await self._engine.refetch(store.number, volume, segment, source=source)
            except IomeshError as error:  # it has none, or a damaged one, or does not answer
                log.info("not repaired from device", source=source, segment=segment, reason=error.message)
            else:
                return True
        return False

    def _sources(self, volume: uuid.UUID) -> list[int]:
        """The other nodes' devices, the owner's first: numbers in the cluster."""
        stored = self._cluster.log(volume)
        owner = stored.record.owner if stored is not None else ""
        mine = {store.record.number for store in self._stores.online()}
        others = [device for device in self._cluster.devices() if device.number and device.number not in mine]
        return [device.number for device in sorted(others, key=lambda device: device.node != owner)]

    def _report_repaired(self, store: NodeStore, volume: bytes, segment: int, blocks: int) -> None:
        if blocks > 0:
            log.warning(
                "damage repaired",
                device=str(store.record.id),
                path=store.record.path,
                volume=str(uuid.UUID(bytes=volume)),
                segment=segment,
                blocks=blocks,
            )

    # state that survives a restart

    def _file(self, store: NodeStore) -> Path:
        return self._directory / f"{store.record.id}.json"

    async def _keep(self, store: NodeStore) -> None:
        """Replaces the file atomically. A failure is reported, and costs a part of a pass after the next start."""
        progress = store.scrub
        self._kept[store.record.id] = time.monotonic()
        kept = Kept(
            ended_ns=progress.ended_ns,
            reached_volume=progress.reached[0].hex(),
            reached_segment=progress.reached[1],
            damaged=[(volume.hex(), segment, blocks) for (volume, segment), blocks in progress.damaged.items()],
        )
        file = self._file(store)

        def write() -> None:
            self._directory.mkdir(mode=0o750, exist_ok=True)
            file.with_suffix(".new").write_bytes(msgspec.json.encode(kept))
            file.with_suffix(".new").replace(file)

        try:
            await in_thread(write)
        except OSError as error:
            log.warning("progress not saved", device=str(store.record.id), path=str(file), reason=str(error))

    async def _recall(self, store: NodeStore) -> None:
        try:
            kept = msgspec.json.decode(await in_thread(self._file(store).read_bytes), type=Kept)
            store.scrub.reached = bytes.fromhex(kept.reached_volume), kept.reached_segment
            store.scrub.damaged = {(bytes.fromhex(volume), segment): blocks for volume, segment, blocks in kept.damaged}
            store.scrub.ended_ns = kept.ended_ns
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            log.warning(
                "progress lost: the pass starts over",
                device=str(store.record.id),
                path=str(self._file(store)),
                reason=str(error),
            )
        self._kept[store.record.id] = time.monotonic()
