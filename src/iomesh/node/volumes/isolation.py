"""States in the record of a log that this node owns whether it is isolated: it reaches the metadata service, but too
few other nodes to write. Its record there is renewed, so nobody else would take its volumes over.

Another node takes them over if it reaches enough others (ownership.py). Once this one does, it withdraws the statement.
Either is a compare-and-swap of the record, so exactly one of the two happens.
"""

from __future__ import annotations

import asyncio
import time
import uuid

import msgspec

from iomesh.api.model import VolumeState
from iomesh.errors import Conflict
from iomesh.metadata import MetadataUnavailable
from iomesh.metadata.records import Lifecycle, minimum_replicas
from iomesh.node.logs import logger
from iomesh.node.supervisor import SupervisedTask, settle
from iomesh.node.volume import NodeVolume, write_log
from iomesh.node.volumes.failures import Failures
from iomesh.node.volumes.parts import Parts

log = logger("isolation")

SHORT_SECONDS = 0.5  # after the silence that ended the connections
LOOK_SECONDS = 0.1


class Isolation:
    def __init__(self, parts: Parts, failures: Failures) -> None:
        self._engine = parts.engine
        self._metadata = parts.metadata
        self._volumes = parts.volumes
        self._supervisor = parts.supervisor
        self._node = parts.node
        self._failures = failures
        self._since: dict[uuid.UUID, float] = {}  # since when a volume lacks nodes; monotonic
        self._task: SupervisedTask | None = None

    def start(self) -> None:
        self._task = self._supervisor.start("state isolation", self._look)

    async def stop(self) -> None:
        if self._task is not None:
            await self._task.stop()

    async def _look(self, task: SupervisedTask) -> None:
        while True:
            others = sum(bool(devices) for devices in self._engine.reachable().values())
            now = time.monotonic()
            served = [volume for volume in self._volumes.values() if self._is_served(volume)]
            short = {each.record.id for each in served if 1 + others < minimum_replicas(each.record.policy.replicas)}
            self._since = {each: self._since.get(each, now) for each in short}
            await settle(self._state(volume, now) for volume in served)
            task.progress()
            await asyncio.sleep(LOOK_SECONDS)

    def _is_served(self, volume: NodeVolume) -> bool:
        return (
            volume.record.policy.replicas > 1
            and volume.record.state != Lifecycle.DELETING
            and volume.log.owner == self._node
            and volume.state == VolumeState.SERVING
            and volume.in_engine
            and not volume.moving
        )

    async def _state(self, volume: NodeVolume, now: float) -> None:
        since = self._since.get(volume.record.id)
        isolated = since is not None and (volume.log.isolated or now - since >= SHORT_SECONDS)
        if volume.log.isolated == isolated:
            return
        try:
            await write_log(self._metadata, volume, lambda each: msgspec.structs.replace(each, isolated=isolated))
        except MetadataUnavailable:
            return  # tried again
        except Conflict as error:
            self._failures.lost(volume, error)
            return
        if isolated:
            log.warning("too few nodes reached: another one may take the volume over", volume=volume.record.name)
        else:
            log.info("enough nodes reached again", volume=volume.record.name)
