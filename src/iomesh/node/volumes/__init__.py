"""The volumes that this node owns, from their record in the metadata service to a published export and back.

    (none) --create--> OPENING --recovered--> SERVING --delete--> DELETING --erased--> (none)
                          |                      |                   ^
                          '--error--> FAILED ----'------delete-------'

A volume that is deleted while it has clones is hidden: it loses its name and its exports, still serves its clones, and
is deleted with the last of them. A clone is opened after its parent and closed before it.

- Records are written first (iomesh.metadata.volumes has the order). The engine's part can be repeated, so a crash
  between the two leaves unfinished work but no ambiguity: the next start opens a READY volume, continues to create a
  MAKING one, and continues to erase a DELETING one.
- Opening raises the epoch in the log's record, once all of the node's devices are open; every later change of that
  record requires that epoch and owner still match.
- A metadata service that does not answer stops nothing: served volumes stay served; opening and deleting are retried.
- A volume with an unreadable record is listed as FAILED and left alone. It keeps no other volume from being served.

Each verb is a module: creation, opening, changes, deletion; bring_up does all volumes at start and stop, ownership
follows who owns which, isolation states that this node cannot serve what it owns, failures has what becomes of a volume
whose operation failed, view what is reported of volumes, events what the engine reports of them.
"""

from __future__ import annotations

import functools

from iomesh.node.pointers import Pointers
from iomesh.node.volumes.bring_up import BringUp
from iomesh.node.volumes.changes import Changes
from iomesh.node.volumes.closing import Closing
from iomesh.node.volumes.creation import Creation
from iomesh.node.volumes.deletion import Deletion
from iomesh.node.volumes.events import Events
from iomesh.node.volumes.failures import Failures
from iomesh.node.volumes.isolation import Isolation
from iomesh.node.volumes.opening import Opening
from iomesh.node.volumes.ownership import Ownership
from iomesh.node.volumes.parts import Parts
from iomesh.node.volumes.view import View

__all__ = ["Parts", "Volumes"]


class Volumes:
    def __init__(self, parts: Parts) -> None:
        failures = Failures(parts)
        pointers = Pointers(parts.engine, parts.metadata, parts.supervisor, failures.lost)
        closing = Closing(parts, pointers)
        failures.close = functools.partial(closing.close, checkpoint=False, follow=True)
        opening = Opening(parts)
        view = View(parts)
        deletion = Deletion(parts, failures, pointers)
        creation = Creation(parts, opening, deletion, view)
        changes = Changes(parts, opening, view)
        bring_up = BringUp(parts, opening, closing, deletion, failures)
        ownership = Ownership(parts, opening, closing, failures, view)
        self._view = view
        self.events = Events(parts, pointers)

        self.open_all = bring_up.open_all
        self.retry = bring_up.retry
        self.close_all = bring_up.close_all
        self._ownership, self._isolation = ownership, Isolation(parts, failures)
        self.move = ownership.move
        self.take_over = ownership.take_over

        self.create = creation.create
        self.clone = creation.clone
        self.grow = changes.grow
        self.export = changes.export
        self.unexport = changes.unexport
        self.checkpoint = changes.checkpoint
        self.delete = deletion.delete
        self.finish_deletion = deletion.finish_deletion
        self.delete_unneeded = deletion.delete_unneeded

        self.show = view.show
        self.list = view.list
        self.list_all = view.list_all
        self.serving = view.serving
        self.unanswered_seconds = view.unanswered_seconds

    def follow_owners(self) -> None:
        self._ownership.start()
        self._isolation.start()

    async def leave_owners(self) -> None:
        await self._isolation.stop()
        await self._ownership.stop()

    @property
    def progress(self) -> str:
        return self._view.progress

    @property
    def open_in_engine(self) -> int:
        return self._view.open_in_engine
