"""Pages of a list that may change between two of them: a token is the id of the last entry of a page, and the next page
has the ids behind it. So an entry that is there all the time is in exactly one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from iomesh.errors import Conflict, InvalidArgument

Entry = TypeVar("Entry")


def page(
    entries: Sequence[Entry],
    identity: Callable[[Entry], str],
    *,
    most: int,
    token: str,
    valid: Callable[[str], bool],
) -> tuple[list[Entry], str]:
    """The entries of one page, and the token of the next; empty: it is the last. most: 0 is all. Raises Conflict
    (ABORTED, as the specification wants) for a token that no answer of this driver had."""
    if most < 0:
        raise InvalidArgument(f"max_entries is {most}: ask for 0, which is all, or more")
    if token and not valid(token):
        raise Conflict(f"the token {token!r} is of no list of this driver: start again without a token")
    ordered = sorted((entry for entry in entries if identity(entry) > token), key=identity)
    chosen = ordered[:most] if most else ordered
    return chosen, identity(chosen[-1]) if len(chosen) < len(ordered) else ""
