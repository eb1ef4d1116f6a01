"""Moves the checkpoint pointers of this node's volumes in the metadata service, and reports the outcome of each update
to the engine.

An update has three outcomes. Done. Refused: another node has taken the volume over. Unknown: it is repeated until one
of the other two is known; the volume stays served meanwhile, and `OpenVolume.unanswered` reports it. Only one update of
a volume is in flight.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from iomesh.errors import Conflict, IomeshError
from iomesh.metadata import Metadata
from iomesh.metadata.records import CheckpointPointer
from iomesh.node.backoff import pauses
from iomesh.node.engine import NodeEngine, Outcome
from iomesh.node.logs import logger
from iomesh.node.supervisor import Supervisor, end_all
from iomesh.node.volume import OpenVolume, Unanswered, write_log

SLOW_SECONDS = 2.0  # a longer call counts as unanswered: no caller waits without a bound
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
LOG_SECONDS = 60.0  # between two equal lines about one volume

log = logger("pointers")


class Pointers:
    def __init__(
        self,
        engine: NodeEngine,
        metadata: Metadata,
        supervisor: Supervisor,
        on_refused: Callable[[OpenVolume, Conflict], None],
    ) -> None:
        self._engine = engine
        self._metadata = metadata
        self._supervisor = supervisor
        self._on_refused = on_refused
        self._jobs: dict[uuid.UUID, asyncio.Task[None]] = {}

    def move(self, volume: OpenVolume, value: dict[str, Any]) -> None:
        """Starts the update that the engine requests (`value` of its event "checkpoint")."""
        pointer, sequence = value["pointer"], value["sequence"]
        checkpoint = CheckpointPointer(segment=pointer.segment, block=pointer.block, crc=pointer.crc, sequence=sequence)
        if before := self._jobs.get(volume.record.id):
            before.cancel()  # the engine, which is closing the volume, has abandoned that one
        job = self._supervisor.spawn("record checkpoint", self._move(volume, checkpoint), volume=volume.record.name)
        self._jobs[volume.record.id] = job
        job.add_done_callback(lambda _: self._forget(volume.record.id, job))

    async def end(self, volume: OpenVolume) -> None:
        """The engine has closed the volume: an update with unknown outcome is abandoned, and the next opening finds
        out."""
        if job := self._jobs.get(volume.record.id):
            await end_all([job])
        volume.unanswered = None

    def _forget(self, identity: uuid.UUID, job: asyncio.Task[None]) -> None:
        if self._jobs.get(identity) is job:
            del self._jobs[identity]

    async def _move(self, volume: OpenVolume, checkpoint: CheckpointPointer) -> None:
        for pause in pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS):
            try:
                if await self._attempt(volume, checkpoint):
                    return
            except IomeshError as error:
                self._unknown(volume, checkpoint, error.message)
            except Exception as error:  # a bug: no reason to stop serving the volume
                log.exception("a bug", volume=volume.record.name)
                self._unknown(volume, checkpoint, f"internal error: {error!r}")
            await asyncio.sleep(pause)

    async def _attempt(self, volume: OpenVolume, checkpoint: CheckpointPointer) -> bool:
        """Returns whether the outcome is known. Raises the error that makes it unknown."""
        update = asyncio.ensure_future(
            write_log(self._metadata, volume, lambda log: msgspec.structs.replace(log, checkpoint=checkpoint))
        )
        try:
            done, _ = await asyncio.wait({update}, timeout=SLOW_SECONDS)
            if not done:
                self._unknown(volume, checkpoint, f"no answer for {SLOW_SECONDS:g} seconds")
            await update
        except Conflict as error:
            self._refused(volume, checkpoint, error)
        else:
            self._done(volume, checkpoint)
        finally:
            update.cancel()
        return True

    def _done(self, volume: OpenVolume, checkpoint: CheckpointPointer) -> None:
        name, identity = volume.record.name, volume.record.id
        if (missed := volume.unanswered) is not None:
            volume.unanswered = None
            seconds = round(time.monotonic() - missed.since, 1)
            log.info(
                "metadata service answers again: checkpoint recorded",
                volume=name,
                sequence=checkpoint.sequence,
                after_seconds=seconds,
            )
        log.debug(
            "checkpoint", volume=name, sequence=checkpoint.sequence, segment=checkpoint.segment, block=checkpoint.block
        )
        self._engine.checkpoint_moved(identity, checkpoint.sequence, Outcome.DONE)

    def _refused(self, volume: OpenVolume, checkpoint: CheckpointPointer, error: Conflict) -> None:
        volume.unanswered = None
        self._engine.checkpoint_moved(volume.record.id, checkpoint.sequence, Outcome.REFUSED)
        self._on_refused(volume, error)

    def _unknown(self, volume: OpenVolume, checkpoint: CheckpointPointer, reason: str) -> None:
        now = time.monotonic()
        if volume.unanswered is None:
            volume.unanswered = Unanswered(now, time.time_ns(), reason)
        missed = volume.unanswered
        missed.reason = reason
        if now - missed.logged >= LOG_SECONDS:
            missed.logged = now
            log.warning(
                "metadata service does not answer: checkpoint not recorded; the volume goes on, and it is asked again",
                volume=volume.record.name,
                sequence=checkpoint.sequence,
                reason=reason,
                for_seconds=round(now - missed.since, 1),
            )
        self._engine.checkpoint_moved(volume.record.id, checkpoint.sequence, Outcome.UNKNOWN, reason)
