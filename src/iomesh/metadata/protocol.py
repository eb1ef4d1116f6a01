"""The metadata service as iomesh sees it: get, list by prefix, compare-and-swap of one key, watch, lease.

Small on purpose: any service that keeps a few kilobytes consistently can implement it. Every implementation passes the
tests in tests/unit/metadata.

A commit changes one key, because Kubernetes cannot do more. Changes of several keys are written in an order in which a
crash between two commits leaves a state that the next start recognizes (iomesh.metadata.volumes).

Keys are ASCII paths without a leading slash ("names/db"). Every commit has a revision, higher than any before; the
version of an entry is the revision that wrote it, and 0 stands for "does not exist". Reads are linearisable: they see
every commit that was answered before.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

from iomesh.errors import Conflict, InvalidArgument, Unavailable

KEY = re.compile(r"[A-Za-z0-9._:-]+(/[A-Za-z0-9._:-]+)*", re.ASCII)
KEY_LENGTH_MAX = 256
VALUE_BYTES_MAX = 256 * 1024  # the limit of the smallest service we know, minus room for its own envelope


class Entry(NamedTuple):
    key: str
    value: bytes
    version: int


class Listing(NamedTuple):
    entries: list[Entry]  # ordered by key
    revision: int  # of the point in time that this shows: where a watch continues


class Put(NamedTuple):
    """Writes a value. `version`: the required version of the entry, 0 if it must not exist; None: any. `lease`: the
    entry is removed when the lease ends."""

    key: str
    value: bytes
    version: int | None
    lease: int | None = None


class Delete(NamedTuple):
    """Removes an entry; with `version` None it need not exist."""

    key: str
    version: int | None


Operation = Put | Delete


class Change(NamedTuple):
    key: str
    value: bytes | None  # None: it was removed
    revision: int


class HistoryLost(Conflict):
    """A watch was requested for changes that are no longer kept: list again, and watch from there."""


class MetadataUnavailable(Unavailable):
    """The service does not answer, or cannot carry out the request: locked, full, an I/O error, a connection lost.
    Whether a commit took place is then unknown: repeat it, and treat one that finds its own value stored as done."""


class Metadata(Protocol):
    """A commit has three outcomes. Done: it returns. Refused: Conflict, a version did not match, and nothing was
    changed. Unknown: MetadataUnavailable; Damaged (nothing can be read) leaves it unknown as well. InvalidArgument: a
    key or value that no implementation accepts."""

    async def get(self, key: str) -> Entry | None: ...

    async def list_prefix(self, prefix: str) -> Listing:
        """All entries whose key begins with `prefix`, as of one point in time. Name a folder with its slash:
        "volumes/"."""

    async def commit(self, operation: Operation) -> int:
        """Carries it out if the entry has the required version, else raises Conflict. Returns the revision."""

    def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
        """Every change of a key that begins with `prefix`, in the order of revisions, from the first after `after` on,
        endlessly. Raises HistoryLost."""

    async def grant(self, seconds: float) -> int:
        """A new lease: it and its entries are removed when it is not renewed for `seconds`."""

    async def renew(self, lease: int) -> None:
        """Raises NotFound if it has expired."""

    async def revoke(self, lease: int) -> None:
        """Ends it, and its entries, now. One that has expired is none to be sorry for."""

    async def close(self) -> None: ...


def check_operation(operation: Operation) -> None:
    """What every implementation refuses in the same way."""
    check_key(operation.key)
    if isinstance(operation, Put) and len(operation.value) > VALUE_BYTES_MAX:
        raise InvalidArgument(
            f"the value of {operation.key!r} has {len(operation.value)} bytes, more than {VALUE_BYTES_MAX}"
        )


def check_key(key: str) -> None:
    if len(key) > KEY_LENGTH_MAX or not KEY.fullmatch(key):
        raise InvalidArgument(
            f"{key!r} is not a key: use words of letters, digits and . _ : - separated by slashes, at most "
            f"{KEY_LENGTH_MAX} characters"
        )
