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

from iomesh.api.model import VolumeState
from iomesh.errors import IomeshError, NotFound
from iomesh.metadata import MetadataUnavailable
from iomesh.node.cluster import Cluster
from iomesh.node.config import RebuildConfig
from iomesh.node.engine import NodeEngine
from iomesh.node.logs import logger
from iomesh.node.redundancy import Redundancy
from iomesh.node.supervisor import SupervisedTask, Supervisor, settle
from iomesh.node.volume import NodeVolume, Registry
from iomesh.policies.rebuild import Devices, Drop, Plan, Rebuild, plan

log = logger("rebuild")

LOOK_SECONDS = 2.0  # between two rounds
AT_ONCE = 4  # copies that are made for this node's volumes
OF_TARGET = 2  # of these on one device: as many as its node makes at once (PULLS in ext/replicas/pull.pxd)
CHECKPOINT_SECONDS = 5.0  # between two checkpoints of a volume that are asked for
ROUND_COPIES = 64  # of a volume: then what is most exposed may be another segment


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
        self._settled: dict[uuid.UUID, float] = {}  # volumes, when a checkpoint was last asked for
        self._drained: set[int] = set()  # devices, as the engine was told
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._task: SupervisedTask | None = None

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
        drained = self._cluster.drained_devices()
        if drained != self._drained:
            self._engine.drain_devices(drained)
            self._drained = drained
        return Devices(free, self._cluster.node_of, drained)

    def _is_awaited(self, device: int) -> bool:
        since = self._silent.get(device)
        node = self._cluster.node_of(device)
        if not node or self._cluster.is_removed(node):
            return False  # it will not come back
        return since is None or time.monotonic() - since < self._config.delay_seconds

    async def _look(self, volume: NodeVolume, devices: Devices) -> bool:
        """One round for one volume. True: something was done, and there may be more."""
        try:
            rows = await self._engine.copies(volume.record.id)
            found = plan(rows, volume.record.policy.replicas, devices, self._is_awaited)
            self._note(volume, found)
            if found.unsettled or self._has_exposed_fragments(volume):
                await self._settle(volume)
                self._note(volume, found)
        except (IomeshError, MetadataUnavailable) as error:  # it is being closed, or the metadata service is away
            volume.redundancy.reason = error.message
            return False
        wanted = found.rebuilds[:ROUND_COPIES]
        streams = min(AT_ONCE, OF_TARGET * len({each.target for each in wanted}))
        rate = self._config.bytes_per_second // max(streams, 1)
        rebuilt = await settle((self._rebuild(volume, each, rate) for each in wanted), at_once=AT_ONCE)
        dropped = await settle((self._drop(volume, each) for each in found.drops), at_once=AT_ONCE)
        return any(rebuilt) or any(dropped)

    def _has_exposed_fragments(self, volume: NodeVolume) -> bool:
        """Whether a new owner would need an earlier fragment that has fewer working members than copies are wanted."""
        return any(
            sum(device not in self._silent or self._is_awaited(device) for device in fragment.devices)
            < volume.record.policy.replicas
            for fragment in volume.log.fragments[:-1]
        )

    async def _settle(self, volume: NodeVolume) -> None:
        """Has a checkpoint cover the exposed segments; and the next one what is written before it, so that the log's
        record does not name these fragments any more."""
        now = time.monotonic()
        if now - self._settled.get(volume.record.id, -CHECKPOINT_SECONDS) >= CHECKPOINT_SECONDS:
            self._settled[volume.record.id] = now
            await self._engine.checkpoint(volume.record.id, renew=True)
            if self._has_exposed_fragments(volume):
                await self._engine.checkpoint(volume.record.id, renew=True)

    def _note(self, volume: NodeVolume, found: Plan) -> None:
        known = volume.redundancy
        known.exposed_segments, known.exposed_bytes = found.exposed_segments, found.exposed_bytes
        if self._has_exposed_fragments(volume):  # of the log's end a new owner needs more than is in copies
            known.exposed_segments += 1
            known.exposed_bytes += volume.record.segment_bytes
        known.reason = self._reason(found, known)

    def _reason(self, found: Plan, known: Redundancy) -> str:
        """Why exposed segments are not being rebuilt; empty: they are, or there are none."""
        if not known.exposed_segments or found.rebuilds:
            return known.failure if found.rebuilds else ""
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
        if found.written:
            return "what is written now goes to too few nodes"
        return "a checkpoint has to cover the segments first"

    async def _rebuild(self, volume: NodeVolume, wanted: Rebuild, rate: int) -> bool:
        async with self._slots:
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
                if volume.redundancy.failure != error.message:
                    log.warning(
                        "segment not rebuilt",
                        volume=volume.record.name,
                        segment=wanted.segment,
                        source=wanted.source,
                        target=wanted.target,
                        reason=error.message,
                    )
                volume.redundancy.failure = error.message
                return False
        volume.redundancy.note_rebuilt(wanted.bytes)
        return True

    async def _drop(self, volume: NodeVolume, wanted: Drop) -> bool:
        try:
            await self._engine.drop_copy(volume.record.id, wanted.segment, device=wanted.device)
        except IomeshError as error:  # it is being cleaned, or a copy is lost: the next round decides anew
            log.debug("copy not dropped", volume=volume.record.name, segment=wanted.segment, reason=error.message)
            return False
        volume.redundancy.dropped_segments += 1
        return True


def _is_served(volume: NodeVolume) -> bool:
    return volume.in_engine and volume.state == VolumeState.SERVING and volume.record.policy.replicas > 1
