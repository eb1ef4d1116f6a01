"""What the node reports of its volumes: descriptions, progress of the start, those that are served."""

from __future__ import annotations

import builtins
import time
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec

from iomesh.api.model import Flattening, Policy, Redundancy, Space, Volume, VolumeState
from iomesh.engine import engine as compiled
from iomesh.metadata.records import LogRecord, VolumeRecord
from iomesh.metadata.volumes import Unreadable, is_hidden_name
from iomesh.node.cluster import StoredVolume
from iomesh.node.health import volume_warnings, why_log_failed
from iomesh.node.snapshots import visible
from iomesh.node.volume import NodeVolume
from iomesh.node.volumes.parts import Parts
from iomesh.node.windows import restore_points_of
from iomesh.times import time_of


class View:
    def __init__(self, parts: Parts) -> None:
        self._engine = parts.engine
        self._exports = parts.exports
        self._volumes = parts.volumes
        self._cluster = parts.cluster

    async def show(self, name: str) -> Volume:
        """Includes the space on devices, which the engine is asked for."""
        if (unreadable := self._volumes.unreadable.get(name)) is not None:
            return _describe_unreadable(unreadable)
        if self._volumes.get(name) is None and (stored := self._volumes.owned_elsewhere(name)) is not None:
            return self._describe_stored(stored)
        volume = self._volumes.find(name)
        described = self.describe(volume)
        if volume.state != VolumeState.SERVING:
            return described
        told = await self._engine.space(volume.record.id)
        live = told["physical_bytes"] - told["log_bytes"] - told["ahead_bytes"] - told["dead_bytes"]
        space = Space(**told, amplification=told["physical_bytes"] / live if live else 0.0)
        return msgspec.structs.replace(described, live_bytes=live, space=space)

    def list_all(self) -> list[Volume]:
        """This node's volumes, and those of the other nodes of the cluster."""
        elsewhere = [
            self._describe_stored(stored)
            for stored in self._volumes.elsewhere()
            if not is_hidden_name(stored.volume.record.name)
        ]
        return sorted([*self.list(), *elsewhere], key=lambda volume: volume.name)

    def list(self) -> list[Volume]:
        """This node's volumes."""
        unreadable = (
            _describe_unreadable(each) for each in self._volumes.unreadable.values() if not is_hidden_name(each.name)
        )
        return sorted([*unreadable, *map(self.describe, self._volumes.named())], key=lambda volume: volume.name)

    def describe(self, volume: NodeVolume) -> Volume:
        record = volume.record
        state = self._engine.volume_state(record.id) if volume.state == VolumeState.SERVING else {}
        broken = bool(state) and bool(state["error"])
        return Volume(
            name=record.name,
            id=str(record.id),
            size_bytes=record.size_bytes,
            segment_bytes=record.segment_bytes,
            epoch=volume.log.epoch,
            owner=volume.log.owner,
            state=VolumeState.READ_ONLY if broken else volume.state,
            reason=why_log_failed(state) if broken else volume.reason,
            warnings=volume_warnings(volume),
            generation=record.generation,
            replica_nodes=self.replica_nodes(volume.log),
            export_nodes=self._export_nodes(record, volume.log),
            forwarding_nodes=self._exports.forwarding_nodes(record.id),
            policy=Policy(replicas=record.policy.replicas, window_seconds=record.policy.window_seconds),
            created_at=time_of(record.created_ns),
            exports=self._exports.describe(record.name),
            live_bytes=state.get("live_blocks", 0) * compiled.BLOCK_BYTES,
            space=_mapped(state) if state else Space(),
            log_bytes_since_checkpoint=state.get("log_bytes_since_checkpoint", 0),
            segments=state.get("segments", 0),
            sequence=state.get("sequence", 0),
            reactor=volume.recovery.get("reactor", 0),
            recovery_seconds=volume.recovery.get("seconds", 0.0),
            snapshots=sum(visible(entry) for entry in volume.snapshots),
            clone_of=volume.log.clone_of.name if volume.log.clone_of else "",
            flattening=_progress(volume.flattening, state),
            redundancy=_redundancy(volume),
            recovery_bytes=volume.recovery.get("replayed_bytes", 0),
            # Rounded up to a restorable time.
            window_from=next((time_of(each["time_ns"] + 999) for each in restore_points_of(volume)), None),
        )

    def _describe_stored(self, stored: StoredVolume) -> Volume:
        """A volume that another node owns."""
        (record, _), (its_log, _) = stored
        lost = self._cluster.is_lost(its_log.owner)
        return Volume(
            name=record.name,
            id=str(record.id),
            size_bytes=record.size_bytes,
            segment_bytes=record.segment_bytes,
            epoch=its_log.epoch,
            owner=its_log.owner,
            state=VolumeState.ELSEWHERE,
            reason=f"its owner, node {its_log.owner}, does not run" if lost else "",
            policy=Policy(replicas=record.policy.replicas, window_seconds=record.policy.window_seconds),
            created_at=time_of(record.created_ns),
            clone_of=its_log.clone_of.name if its_log.clone_of else "",
            replica_nodes=self.replica_nodes(its_log),
            export_nodes=self._export_nodes(record, its_log),
            exports=self._exports.describe(record.name),
            generation=record.generation,
        )

    def replica_nodes(self, its_log: LogRecord) -> builtins.list[str]:
        """Of the current fragment."""
        devices = its_log.fragments[-1].devices if its_log.fragments else []
        return [self._cluster.node_of(device) or f"unknown (device {device})" for device in devices]

    def _export_nodes(self, record: VolumeRecord, its_log: LogRecord) -> builtins.list[str]:
        """That run: the owner, and every one with an address for other nodes."""
        running = self._cluster.running if record.exports else {}
        return sorted(name for name, node in running.items() if node.peer_address or name == its_log.owner)

    def unanswered_seconds(self) -> Iterator[tuple[str, float]]:
        """For every visible volume: its name, and for how long the metadata service has not answered for it."""
        now = time.monotonic()
        return (
            (each.record.name, now - each.unanswered.since if each.unanswered else 0.0)
            for each in self._volumes.named()
        )

    @property
    def progress(self) -> str:
        """Describes the progress of the start."""
        volumes = self._volumes.values()
        done = sum(volume.state != VolumeState.OPENING for volume in volumes)
        return f"{done} of {len(volumes)} volumes" if volumes else ""

    @property
    def open_in_engine(self) -> int:
        """The number of volumes that are open in the engine, or will be when it answers."""
        return sum(volume.in_engine or volume.opening for volume in self._volumes.values())

    def serving(self) -> Iterator[tuple[str, uuid.UUID]]:
        """Name and id of every volume that the engine can be asked about."""
        return (
            (volume.record.name, volume.record.id)
            for volume in self._volumes.values()
            if volume.state == VolumeState.SERVING
        )


def _describe_unreadable(unreadable: Unreadable) -> Volume:
    """Nothing else is known of it."""
    return Volume(
        name=unreadable.name,
        id=str(unreadable.id or ""),
        size_bytes=0,
        segment_bytes=0,
        epoch=0,
        owner=unreadable.node,
        state=VolumeState.FAILED,
        reason=unreadable.reason,
        policy=Policy(replicas=0),
    )


def _redundancy(volume: NodeVolume) -> Redundancy:
    known = volume.redundancy
    return Redundancy(
        exposed_segments=known.exposed_segments,
        exposed_bytes=known.exposed_bytes,
        rebuilt_segments=known.rebuilt_segments,
        rebuilt_bytes=known.rebuilt_bytes,
        bytes_per_second=int(known.bytes_per_second),
        eta_seconds=known.eta_seconds,
        reason=known.reason,
    )


def _mapped(state: dict[str, Any]) -> Space:
    """What is known without asking the engine's reactor."""
    mapped, exclusive, inherited = (
        state[f"{name}_blocks"] * compiled.BLOCK_BYTES for name in ("mapped", "exclusive", "inherited")
    )
    return Space(
        mapped_bytes=mapped,
        exclusive_bytes=exclusive,
        inherited_bytes=inherited,
        shared_bytes=max(mapped - exclusive - inherited, 0),
    )


def _progress(flattening: Flattening, state: dict[str, Any]) -> Flattening:
    if not flattening.running or not state:
        return flattening
    left = state["inherited_blocks"] * compiled.BLOCK_BYTES
    return msgspec.structs.replace(flattening, done_bytes=max(flattening.total_bytes - left, 0))
