"""Rebuild: each node restores the redundancy of the volumes that it owns.

In rounds, the engine lists the segments of every volume that have not as many working copies as are wanted; the policy
(iomesh.policies.rebuild) chooses which device gets a copy from which; and the nodes of these devices bring them
(ext/replicas/pull.pyx), several at a time, at a limited rate in all. So after a loss all owners read from and write to
all nodes. Nothing of it is stored: a round begins with what is there, whoever began it.

A segment that the newest checkpoint does not cover waits for the next one, which is asked for. A device that does not
answer is given `delay_seconds` to come back; one that has failed is not.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from iomesh.api.model import VolumeState
from iomesh.errors import IomeshError, NotFound
from iomesh.metadata import MetadataUnavailable
from iomesh.node.cluster import Cluster
from iomesh.node.config import RebuildConfig
from iomesh.node.engine import NodeEngine
from iomesh.node.logs import logger
from iomesh.node.supervisor import SupervisedTask, Supervisor, settle
from iomesh.node.volume import NodeVolume, Registry
from iomesh.policies.rebuild import Devices, Drop, Plan, Rebuild, plan

log = logger("rebuild")

LOOK_SECONDS = 2.0  # between two rounds
AT_ONCE = 4  # copies that are made for this node's volumes
OF_TARGET = 2  # of these on one device: as many as its node makes at once (PULLS in ext/replicas/pull.pxd)
ROUND_COPIES = 64  # of a volume: then what is most exposed may be another segment
RATE_SECONDS = 15.0  # over which the present speed is measured


@dataclass
class Progress:
    """Of one volume."""

    exposed_segments: int = 0
    exposed_bytes: int = 0
    rebuilt_segments: int = 0  # since this node opened it
    rebuilt_bytes: int = 0
    dropped_segments: int = 0
    running: int = 0  # copies that are being made
    reason: str = ""  # why nothing is rebuilt although segments are exposed
    failure: str = ""  # of the last copy that failed
    done: list[tuple[float, int]] = field(default_factory=list)  # when, bytes: of the last RATE_SECONDS

    def note(self, bytes_: int) -> None:
        self.rebuilt_segments += 1
        self.rebuilt_bytes += bytes_
        self.done.append((time.monotonic(), bytes_))

    @property
    def bytes_per_second(self) -> float:
        since = time.monotonic() - RATE_SECONDS
        self.done = [each for each in self.done if each[0] >= since]
        if not self.done:
            return 0.0
        return sum(bytes_ for _, bytes_ in self.done) / max(time.monotonic() - self.done[0][0], 1.0)

    @property
    def eta_seconds(self) -> float:
        """0: nothing is exposed, or nothing is known."""
        speed = self.bytes_per_second
        return self.exposed_bytes / speed if speed else 0.0


class Rebuilding:
    def __init__(
        self,
        config: RebuildConfig,
        engine: NodeEngine,
        cluster: Cluster,
        node: str,
        volumes: Registry,
        supervisor: Supervisor,
    ) -> None:
        self._config = config
        self._engine = engine
        self._cluster = cluster
        self._node = node
        self._volumes = volumes
        self._supervisor = supervisor
        self._silent: dict[int, float] = {}  # devices of other nodes, since when they do not answer
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._task: SupervisedTask | None = None
        self.progress: dict[uuid.UUID, Progress] = {}  # of the volumes with replicas that this node serves

    async def start(self) -> None:
        if self._config.enabled:
            self._task = self._supervisor.start("rebuild", self._run)

    async def stop(self) -> None:
        if self._task is not None:
            await self._task.stop()
            self._task = None

    async def _run(self, task: SupervisedTask) -> None:
        while True:
            volumes = [volume for volume in self._volumes.values() if _is_served(volume)]
            self.progress = {volume.record.id: self.progress.get(volume.record.id, Progress()) for volume in volumes}
            devices = self._devices()
            busy = await settle((self._look(volume, devices) for volume in volumes), at_once=AT_ONCE)
            task.progress()
            if not any(busy):
                await asyncio.sleep(LOOK_SECONDS)

    def _devices(self) -> Devices:
        """Of the other nodes, as their heartbeats report them."""
        free: dict[int, int] = {}
        for each in self._engine.peers():
            free |= each["free_bytes"]
        now = time.monotonic()
        known = {record.number for record in self._cluster.devices() if record.number and record.node != self._node}
        self._silent = {device: self._silent.get(device, now) for device in known - free.keys()}
        return Devices(free, self._cluster.node_of)

    def _is_awaited(self, device: int) -> bool:
        since = self._silent.get(device)
        node = self._cluster.node_of(device)
        if not node or self._cluster.is_removed(node):
            return False  # it will not come back
        return since is None or time.monotonic() - since < self._config.delay_seconds

    async def _look(self, volume: NodeVolume, devices: Devices) -> bool:
        """One round for one volume. True: something was done, and there may be more."""
        progress = self.progress[volume.record.id]
        try:
            rows = await self._engine.copies(volume.record.id)
            found = plan(rows, volume.record.policy.replicas, devices, self._is_awaited)
            progress.exposed_segments, progress.exposed_bytes = found.exposed_segments, found.exposed_bytes
            progress.reason = self._reason(found, progress)
            if found.unsettled and not found.rebuilds:
                await self._engine.checkpoint(volume.record.id)
        except (IomeshError, MetadataUnavailable) as error:  # it is being closed, or the metadata service is away
            progress.reason = error.message
            return False
        wanted = found.rebuilds[:ROUND_COPIES]
        streams = min(AT_ONCE, OF_TARGET * len({each.target for each in wanted}))
        rate = self._config.bytes_per_second // max(streams, 1)
        rebuilt = await settle((self._rebuild(volume, progress, each, rate) for each in wanted), at_once=AT_ONCE)
        dropped = await settle((self._drop(volume, progress, each) for each in found.drops), at_once=AT_ONCE)
        return any(rebuilt) or any(dropped)

    def _reason(self, found: Plan, progress: Progress) -> str:
        """Why exposed segments are not being rebuilt; empty: they are, or there are none."""
        if not found.exposed_segments or found.rebuilds:
            return progress.failure if found.rebuilds else ""
        if found.homeless:
            return (
                "no other node has a working device with space for more copies: add a node or a device, or start the "
                "nodes that are down"
            )
        if found.awaited:
            return (
                f"a device does not answer; its copies are made elsewhere once it has been away for "
                f"{self._config.delay_seconds:g} s"
            )
        return "a checkpoint has to cover the segments first"

    async def _rebuild(self, volume: NodeVolume, progress: Progress, wanted: Rebuild, rate: int) -> bool:
        async with self._slots:
            progress.running += 1
            try:
                await self._engine.rebuild_copy(
                    volume.record.id,
                    wanted.segment,
                    device=wanted.target,
                    source=wanted.source,
                    bytes_per_second=rate,
                )
            except NotFound:  # the segment has died meanwhile
                return True
            except IomeshError as error:
                if progress.failure != error.message:
                    log.warning(
                        "segment not rebuilt",
                        volume=volume.record.name,
                        segment=wanted.segment,
                        source=wanted.source,
                        target=wanted.target,
                        reason=error.message,
                    )
                progress.failure = error.message
                return False
            finally:
                progress.running -= 1
        progress.failure = ""
        progress.note(wanted.bytes)
        progress.exposed_bytes = max(progress.exposed_bytes - wanted.bytes, 0)
        return True

    async def _drop(self, volume: NodeVolume, progress: Progress, wanted: Drop) -> bool:
        try:
            await self._engine.drop_copy(volume.record.id, wanted.segment, device=wanted.device)
        except IomeshError as error:  # it is being cleaned, or a copy is lost: the next round decides anew
            log.debug("copy not dropped", volume=volume.record.name, segment=wanted.segment, reason=error.message)
            return False
        progress.dropped_segments += 1
        return True

    def described(self) -> Iterator[tuple[NodeVolume, Progress]]:
        for volume in self._volumes.values():
            if volume.record.id in self.progress:
                yield volume, self.progress[volume.record.id]


def _is_served(volume: NodeVolume) -> bool:
    return volume.in_engine and volume.state == VolumeState.SERVING and volume.record.policy.replicas > 1
