"""Opens one volume: takes ownership under a new epoch, recovers the log, publishes the export.

A replicated volume is opened only while enough nodes of its replica set can be reached: before the epoch is raised, so
that a node that could not serve the volume takes it from nobody.
"""

from __future__ import annotations

import msgspec

from iomesh.api.model import VolumeState
from iomesh.engine.engine import Pointer
from iomesh.metadata import MetadataUnavailable
from iomesh.metadata.records import Lifecycle, minimum_replicas
from iomesh.node.engine import NodesUnavailable
from iomesh.node.logs import logger
from iomesh.node.volume import NodeVolume, take_over, write_record
from iomesh.node.volumes.parts import Parts

log = logger("volumes")


class Opening:
    def __init__(self, parts: Parts) -> None:
        self._engine = parts.engine
        self._metadata = parts.metadata
        self._stores = parts.stores
        self._exports = parts.exports
        self._volumes = parts.volumes
        self._snapshots = parts.snapshots
        self._windows = parts.windows
        self._cluster = parts.cluster
        self._tenure = parts.tenure
        self._node = parts.node

    async def open(self, volume: NodeVolume, *, former: str | None = None) -> None:
        """Takes ownership under a new epoch, recovers the volume, publishes its export. former: the node that owned it
        so far, if it is another one."""
        volume.state, volume.reason = VolumeState.OPENING, ""
        if not volume.in_engine:  # else a previous attempt opened it but failed in a later step
            await self._recover(volume, former)
        record, of = volume.record, volume.log.clone_of
        await self._windows.undo(volume)
        if record.state == Lifecycle.MAKING:
            if of is not None and of.at_ns:
                await self._windows.follow(volume, of)
            await write_record(
                self._metadata, volume, lambda record: msgspec.structs.replace(record, state=Lifecycle.READY)
            )
        volume.state, volume.awaits_answer = VolumeState.SERVING, False
        await self._snapshots.opened(volume)
        self.publish(volume)
        log.info("volume open", volume=record.name, epoch=volume.log.epoch, **volume.recovery)

    async def _recover(self, volume: NodeVolume, former: str | None) -> None:
        of = volume.log.clone_of
        parent = self._volumes.by_id(of.volume) if of is not None else None
        if of is not None and parent is not None and parent.awaits_answer:
            raise MetadataUnavailable(
                f"volume {volume.record.name} is a clone of {of.name}, which is not open yet: {parent.reason}"
            )
        if volume.record.policy.replicas > 1:
            await self._reach_copies(volume)
        first = await take_over(
            self._metadata, volume, self._node, former=former, incarnation=self._tenure.record.incarnation
        )
        record, at = volume.record, volume.log.checkpoint
        self._stores.refuse_while_changing()
        volume.opening = True
        try:
            volume.recovery = await self._engine.open_volume(
                record.id,
                size_bytes=record.size_bytes,
                epoch=volume.log.epoch,
                segment_bytes=record.segment_bytes,
                checkpoint=Pointer(at.segment, at.block, at.crc) if at else None,
                first_segment=first.segment,
                promised=volume.log.promised,
                clone_of=(of.volume, of.snapshot) if of else None,
                name=record.name,
                window_seconds=record.policy.window_seconds,
                replicas=record.policy.replicas,
                fragments=volume.log.fragments,
                first_fragment=first.fragment,
            )
            volume.in_engine = True
            volume.readies = {}
        finally:
            volume.opening = False

    async def _reach_copies(self, volume: NodeVolume) -> None:
        """Waits a while for the nodes that have copies and run. Raises NodesUnavailable if too few can be reached."""
        name, replicas, fragments = volume.record.name, volume.record.policy.replicas, volume.log.fragments
        running = {node for node in self._cluster.nodes if node != self._node and not self._cluster.is_lost(node)}
        here = self._stores.numbers
        current = {device for each in fragments[-1:] for device in each.devices} - here
        awaited = {device for device in current if self._cluster.node_of(device) in running}
        await self._engine.await_peers(awaited, min(replicas - 1, len(running)))
        reachable = self._engine.reachable()
        devices = here.union(*reachable.values())
        for fragment in fragments:
            if devices.isdisjoint(fragment.devices):
                nodes = sorted(
                    {self._cluster.node_of(device) or f"with device {device}" for device in fragment.devices}
                )
                raise NodesUnavailable(
                    f"volume {name} is not opened: records of its log are only on {_listed(nodes)}, and "
                    "none of these nodes can be reached: start one of them"
                )
        minimum = minimum_replicas(replicas)
        holders = [node for node, numbers in reachable.items() if numbers]
        if 1 + len(holders) < minimum:
            raise NodesUnavailable(
                f"volume {name} is not opened: {minimum} nodes have to keep what is written, and this one reaches "
                f"{len(holders)} other(s): start more of them"
            )

    def publish(self, volume: NodeVolume) -> None:
        record = volume.record
        for export in record.exports:
            self._exports.publish(
                record.id,
                record.name,
                size_bytes=record.size_bytes,
                read_only=export.read_only,
                # a replicated one may go to an owner that has one
                volatile_cache=self._stores.volatile_cache or record.policy.replicas > 1,
            )


def _listed(nodes: list[str]) -> str:
    return ("node " if len(nodes) == 1 else "nodes ") + ", ".join(nodes)
