"""Moves the checkpoint pointers of this node's volumes in the metadata service, raises the promises of segment numbers,
records the fragments of their logs, and reports the outcome of each update to the engine.

An update has three outcomes. Done. Refused: another node has taken the volume over. Unknown: it is repeated until one
of the other two is known; the volume stays served meanwhile, and `NodeVolume.unanswered` reports it. Only one update of
a volume is in flight. An update of a pointer raises the promise as well, so the engine rarely asks for numbers alone.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from iomesh.errors import Conflict, IomeshError
from iomesh.metadata import Metadata
from iomesh.metadata.records import (
    CheckpointPointer,
    FragmentRecord,
    LogRecord,
    fragments_from,
    promised_from,
)
from iomesh.node.backoff import pauses
from iomesh.node.engine import NodeEngine, Outcome
from iomesh.node.logs import logger
from iomesh.node.supervisor import Supervisor, end_all
from iomesh.node.volume import NodeVolume, Unanswered, write_log

SLOW_SECONDS = 2.0  # a longer call counts as unanswered: no caller waits without a bound
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
LOG_SECONDS = 60.0  # between two equal lines about one volume

log = logger("pointers")


@dataclass
class _Update:
    """Of one volume. `next_segment` may grow while it is in flight."""

    volume: NodeVolume
    checkpoint: CheckpointPointer | None  # None: only numbers are asked for
    next_segment: int  # numbers from this one on are needed
    fragments: list[FragmentRecord] = field(default_factory=list)  # that begin

    def change(self, log: LogRecord) -> LogRecord:
        known = {fragment.number for fragment in log.fragments}
        fragments = [*log.fragments, *(each for each in self.fragments if each.number not in known)]
        if self.checkpoint:
            fragments = fragments_from(fragments, self.checkpoint.sequence)
        return msgspec.structs.replace(
            log,
            checkpoint=self.checkpoint or log.checkpoint,
            promised=max(log.promised, promised_from(self.next_segment)) if self.next_segment else log.promised,
            fragments=fragments,
        )

    @property
    def sequence(self) -> int:
        """As the engine is told: 0 without a checkpoint."""
        return self.checkpoint.sequence if self.checkpoint else 0


class Pointers:
    def __init__(
        self,
        engine: NodeEngine,
        metadata: Metadata,
        supervisor: Supervisor,
        on_refused: Callable[[NodeVolume, Conflict], None],
    ) -> None:
        self._engine = engine
        self._metadata = metadata
        self._supervisor = supervisor
        self._on_refused = on_refused
        self._jobs: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._updates: dict[uuid.UUID, _Update] = {}  # of the jobs
        self._fragments: dict[uuid.UUID, list[FragmentRecord]] = {}  # that begin after the update in flight

    def move(self, volume: NodeVolume, value: dict[str, Any]) -> None:
        """Starts the update that the engine requests (`value` of its event "checkpoint")."""
        pointer, sequence = value["pointer"], value["sequence"]
        checkpoint = CheckpointPointer(segment=pointer.segment, block=pointer.block, crc=pointer.crc, sequence=sequence)
        fragments: list[FragmentRecord] = []
        if before := self._jobs.get(volume.record.id):
            before.cancel()  # it was for numbers, which this one asks for too; or the engine, closing, has abandoned it
            fragments = self._updates[volume.record.id].fragments
        self._start(_Update(volume, checkpoint, value["next_segment"], fragments))

    def promise(self, volume: NodeVolume, value: dict[str, Any]) -> None:
        """Raises the promise of segment numbers (`value` of the engine's event "numbers")."""
        if update := self._updates.get(volume.record.id):
            update.next_segment = max(update.next_segment, value["next_segment"])
        else:
            self._start(_Update(volume, None, value["next_segment"]))

    def begin_fragment(self, volume: NodeVolume, value: dict[str, Any]) -> None:
        """Records a fragment (`value` of the engine's event "fragment"): its records commit once that is done."""
        fragment = FragmentRecord(number=value["number"], first=value["first"], devices=value["devices"])
        log.info("replica set", volume=volume.record.name, fragment=fragment.number, devices=fragment.devices)
        if volume.record.id in self._updates:
            self._fragments.setdefault(volume.record.id, []).append(fragment)
        else:
            self._start(_Update(volume, None, 0, [fragment]))

    def _start(self, update: _Update) -> None:
        identity = update.volume.record.id
        job = self._supervisor.spawn("record checkpoint", self._carry_out(update), volume=update.volume.record.name)
        self._jobs[identity], self._updates[identity] = job, update
        job.add_done_callback(lambda _: self._forget(identity, job))

    async def end(self, volume: NodeVolume) -> None:
        """The engine has closed the volume: an update with unknown outcome is abandoned, and the next opening finds
        out."""
        if job := self._jobs.get(volume.record.id):
            await end_all([job])
        volume.unanswered = None

    def _forget(self, identity: uuid.UUID, job: asyncio.Task[None]) -> None:
        if self._jobs.get(identity) is job:
            update = self._updates[identity]
            del self._jobs[identity], self._updates[identity]
            if (waiting := self._fragments.pop(identity, [])) and not job.cancelled():
                self._start(_Update(update.volume, None, 0, waiting))

    async def _carry_out(self, update: _Update) -> None:
        for pause in pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS):
            try:
                if await self._attempt(update):
                    return
            except IomeshError as error:
                self._unknown(update, error.message)
            except Exception as error:  # a bug: no reason to stop serving the volume
                log.exception("internal error", volume=update.volume.record.name)
                self._unknown(update, f"internal error: {error!r}")
            await asyncio.sleep(pause)

    async def _attempt(self, update: _Update) -> bool:
        """Returns whether the outcome is known. Raises the error that makes it unknown."""
        write = asyncio.ensure_future(write_log(self._metadata, update.volume, update.change))
        try:
            done, _ = await asyncio.wait({write}, timeout=SLOW_SECONDS)
            if not done:
                self._unknown(update, f"no answer for {SLOW_SECONDS:g} seconds")
            await write
        except Conflict as error:
            self._refused(update, error)
        else:
            self._done(update)
        finally:
            write.cancel()
        return True

    def _done(self, update: _Update) -> None:
        volume, name = update.volume, update.volume.record.name
        if (missed := volume.unanswered) is not None:
            volume.unanswered = None
            seconds = round(time.monotonic() - missed.since, 1)
            log.info(
                "metadata service answers again: checkpoint recorded",
                volume=name,
                sequence=update.sequence,
                after_seconds=seconds,
            )
        if (at := update.checkpoint) is not None:
            log.debug("checkpoint", volume=name, sequence=at.sequence, segment=at.segment, block=at.block)
        # The job ends with this: an event "numbers" from now on starts another one.
        self._tell(update, Outcome.DONE)

    def _tell(self, update: _Update, outcome: Outcome, reason: str = "") -> None:
        volume = update.volume.record.id
        for fragment in update.fragments:
            self._engine.fragment_agreed(volume, fragment.number, outcome)
        if update.checkpoint or update.next_segment:
            promised = update.volume.log.promised if outcome == Outcome.DONE else 0
            self._engine.checkpoint_moved(volume, update.sequence, outcome, reason, promised=promised)

    def _refused(self, update: _Update, error: Conflict) -> None:
        update.volume.unanswered = None
        self._tell(update, Outcome.REFUSED)
        self._on_refused(update.volume, error)

    def _unknown(self, update: _Update, reason: str) -> None:
        volume, now = update.volume, time.monotonic()
        if volume.unanswered is None:
            volume.unanswered = Unanswered(now, time.time_ns(), reason)
        missed = volume.unanswered
        missed.reason = reason
        if now - missed.logged >= LOG_SECONDS:
            missed.logged = now
            log.warning(
                "metadata service does not answer: checkpoint not recorded; the volume stays served, retrying",
                volume=volume.record.name,
                sequence=update.sequence,
                reason=reason,
                for_seconds=round(now - missed.since, 1),
            )
        self._tell(update, Outcome.UNKNOWN, reason)
