"""One operation at a time on each volume, snapshot or path. A second one is refused and repeated by its caller, as the
specification wants: it would else wait behind one that hangs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from iomesh.errors import Conflict


class Locks:
    def __init__(self) -> None:
        self._held: dict[str, str] = {}

    @contextmanager
    def hold(self, operation: str, *keys: str) -> Iterator[None]:
        """Raises Conflict (ABORTED) if another operation holds one of the keys."""
        for key in keys:
            if key in self._held:
                raise Conflict(f"{self._held[key]} of {key} is under way: repeat {operation} once it has ended")
        for key in keys:
            self._held[key] = operation
        try:
            yield
        finally:
            for key in keys:
                del self._held[key]
