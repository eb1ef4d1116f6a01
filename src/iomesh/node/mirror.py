"""A copy of the records under a prefix of the metadata, kept up to date by a watch.

A metadata service that does not answer leaves the copy as it is: it is asked again, and what was known counts until it
answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from iomesh.errors import IomeshError
from iomesh.metadata import Change, Entry, HistoryLost, Listing, Metadata
from iomesh.node.backoff import pauses
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import LONGEST_PAUSE_SECONDS, answered, until_answered
from iomesh.node.supervisor import SupervisedTask

log = logger("mirror")
FIRST_PAUSE_SECONDS = 0.1


class Mirror:
    """`load` once, then `follow` in a background task. `changed` is called after each change of `entries`."""

    def __init__(self, metadata: Metadata, prefix: str, changed: Callable[[], None]) -> None:
        self.entries: dict[str, Entry] = {}  # by key
        self._metadata = metadata
        self._prefix = prefix
        self._changed = changed
        self._listed: int | None = None  # the revision from which to watch; None: list first

    async def load(self) -> None:
        """Returns once the metadata service has answered."""
        self._replace(await until_answered(lambda: self._metadata.list_prefix(self._prefix)))

    async def follow(self, task: SupervisedTask) -> None:
        waits = pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        while True:
            try:
                if self._listed is None:
                    self._replace(await answered(self._metadata.list_prefix(self._prefix)))
                listed, self._listed = self._listed, None
                assert listed is not None
                task.progress()
                waits = pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
                async with aclosing(self._metadata.watch(self._prefix, listed)) as changes:
                    async for change in changes:
                        self._apply(change)
            except HistoryLost:  # list again
                pass
            except IomeshError as error:
                log.warning("records cannot be followed; retrying", name=self._prefix, reason=error.message)
                await asyncio.sleep(next(waits))

    def _replace(self, listing: Listing) -> None:
        self.entries = {entry.key: entry for entry in listing.entries}
        self._listed = listing.revision
        self._changed()

    def _apply(self, change: Change) -> None:
        if change.value is None:
            self.entries.pop(change.key, None)
        else:
            self.entries[change.key] = Entry(change.key, change.value, change.revision)
        self._changed()
