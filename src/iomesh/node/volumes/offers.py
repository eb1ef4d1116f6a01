"""Offers volumes that this node owns and cannot serve to the rest of their replica sets.

- The node reaches too few others to write, but does reach the metadata service: its record there is renewed, so nobody
  would take its volumes over. A node that reaches enough others takes what is offered. If this one reaches them again
  before that, it withdraws the offer and goes on.
- The volume could not be opened here: what this node lacks may be on another one.
"""

from __future__ import annotations

import asyncio
import time
import uuid

import msgspec

from iomesh.api.model import VolumeState
from iomesh.errors import Conflict
from iomesh.metadata import MetadataUnavailable
from iomesh.metadata.records import ANY_NODE, Lifecycle, minimum_replicas
from iomesh.node.logs import logger
from iomesh.node.supervisor import SupervisedTask, settle
from iomesh.node.volume import NodeVolume, write_log
from iomesh.node.volumes.failures import Failures
from iomesh.node.volumes.parts import Parts

log = logger("offers")

ISOLATED_SECONDS = 0.5  # after the silence that ended the connections
FAILED_SECONDS = 5.0  # a volume that several nodes cannot open goes from one to the next at this pace
LOOK_SECONDS = 0.1


class Offers:
    def __init__(self, parts: Parts, failures: Failures) -> None:
        self._engine = parts.engine
        self._metadata = parts.metadata
        self._volumes = parts.volumes
        self._supervisor = parts.supervisor
        self._node = parts.node
        self._failures = failures
        self._since: dict[uuid.UUID, float] = {}  # since when a volume's nodes are too few; monotonic
        self._tasks: list[SupervisedTask] = []

    def start(self) -> None:
        self._tasks = [self._supervisor.start("offer volumes", self._look)]

    async def stop(self) -> None:
        for task in self._tasks:
            await task.stop()

    async def _look(self, task: SupervisedTask) -> None:
        while True:
            holders = sum(bool(devices) for devices in self._engine.reachable().values())
            unserved = {volume.record.id for volume in self._volumes.values() if self._is_unserved(volume, holders)}
            now = time.monotonic()
            self._since = {each: self._since.get(each, now) for each in unserved}
            await settle(self._offer(volume, self._is_due(volume, now)) for volume in self._volumes.values())
            task.progress()
            await asyncio.sleep(LOOK_SECONDS)

    def _is_unserved(self, volume: NodeVolume, holders: int) -> bool:
        """holders: number of other nodes with devices that are reached."""
        record = volume.record
        if record.policy.replicas == 1 or record.state == Lifecycle.DELETING or volume.log.owner != self._node:
            return False
        if volume.state == VolumeState.FAILED:
            return not volume.in_engine and not volume.opening
        return (
            volume.state in (VolumeState.OPENING, VolumeState.SERVING)  # opening ends with a record that members keep
            and not volume.moving
            and 1 + holders < minimum_replicas(record.policy.replicas)
        )

    def _is_due(self, volume: NodeVolume, now: float) -> bool:
        wait = FAILED_SECONDS if volume.state == VolumeState.FAILED else ISOLATED_SECONDS
        return now - self._since.get(volume.record.id, now) >= wait

    async def _offer(self, volume: NodeVolume, due: bool) -> None:
        """Stores the offer if it is due, and withdraws it if the volume can be served again."""
        stored = volume.log.offered_to
        offered_to = ANY_NODE if due else ""
        if stored == offered_to or (not due and (stored != ANY_NODE or volume.record.id in self._since)):
            return
        try:
            await write_log(self._metadata, volume, lambda each: msgspec.structs.replace(each, offered_to=offered_to))
        except MetadataUnavailable:
            return  # tried again
        except Conflict as error:
            self._failures.lost(volume, error)
            return
        if due:
            log.warning("volume offered to other nodes", volume=volume.record.name, state=volume.state)
        else:
            log.info("volume not offered any more", volume=volume.record.name)
