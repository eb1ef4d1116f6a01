"""Interrupted deletions continue in the background until they end: a device that did not answer may do so later.

A volume in DELETING is not served, and accepts no command but `delete`; without this task it would stay until a user
repeats the command, or the node is restarted.
"""

from __future__ import annotations

import asyncio

from iomesh.api.model import VolumeState
from iomesh.node.supervisor import SupervisedTask, Supervisor, settle
from iomesh.node.volume import NodeVolume, Registry
from iomesh.node.volumes import Volumes

LOOK_SECONDS = 2.0


class Deleting:
    def __init__(self, volumes: Volumes, registry: Registry, supervisor: Supervisor) -> None:
        self._volumes = volumes
        self._registry = registry
        self._supervisor = supervisor
        self._task: SupervisedTask | None = None

    async def start(self) -> None:
        self._task = self._supervisor.start("delete", self._run)

    async def stop(self) -> None:
        if self._task is not None:
            await self._task.stop()
            self._task = None

    async def _run(self, task: SupervisedTask) -> None:
        while True:
            await settle(
                self._volumes.finish_deletion(volume) for volume in self._registry.values() if _is_held_up(volume)
            )
            task.progress()
            await asyncio.sleep(LOOK_SECONDS)


def _is_held_up(volume: NodeVolume) -> bool:
    return volume.state == VolumeState.DELETING and bool(volume.reason) and not volume.changing.locked()
