"""Which segments are worth cleaning, and when.

The score of a segment is the space that cleaning it frees, over the blocks that have to be written for that, times the square root of
its age: of two with as much dead space the older one is less likely to get more of it by waiting (Rosenblum and Ousterhout, "The
Design and Implementation of a Log-Structured File System", 1992, section 3.6, has the age itself; its root did best in simulations of
this design).

Space is a means of waiting: the more of it is dead before a segment is cleaned, the less has to be copied. So segments are cleaned
when space is running out (`URGENT`), the best scores first and no more than needed; and when there is plenty only those that have come
to rest: of which much is dead and nothing has died for a while, as after a trim.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SLAB_BLOCKS = 64
CLEANABLE, EVACUABLE, COMPACTED = 1, 2, 4  # flags of a row
EVACUATION_SHARE = 8  # a segment of which less than this part lives is evacuated, if no snapshot has any of it
OVERHEAD_BLOCKS = 4  # of a compacted replica: two bitmaps, the footer and some of its table
MARGIN_SEGMENTS = 8  # of free space above the reserve: less is urgent
MARGIN_SHARE = 0.005  # likewise, of the device
REST_SHARE = 0.25  # of a segment's slabs must come free for cleaning it at rest

Table = NDArray[np.void]  # rows of engine.SEGMENT_ROW


class Need(enum.IntEnum):
    NONE = 0
    SOON = 1  # free space is within twice the margin
    URGENT = 2


@dataclass(frozen=True)
class Space:
    """Of one store, in slabs."""

    total: int
    free: int
    reserve: int

    def need(self, segment_slabs: int) -> Need:
        margin = max(MARGIN_SEGMENTS * segment_slabs, MARGIN_SHARE * self.total)
        above = self.free - self.reserve
        return Need.URGENT if above < margin else Need.SOON if above < 2 * margin else Need.NONE


def freed_slabs(table: Table) -> NDArray[np.float64]:
    """Slabs that each row would give back, whether or not it can be cleaned now."""
    live = table["live"].astype(np.float64)
    compacted = np.ceil((live + OVERHEAD_BLOCKS) / SLAB_BLOCKS)
    needed = np.where(straggles(table), live / SLAB_BLOCKS, compacted)
    freed: NDArray[np.float64] = np.maximum(table["slabs"] - needed, 0.0)
    return freed


def straggles(table: Table) -> NDArray[np.bool_]:
    return (table["live"] * EVACUATION_SHARE < table["blocks"]) & (table["flags"] & EVACUABLE > 0)


def scores(table: Table, newest: int) -> NDArray[np.float64]:
    """Per row; 0: it cannot be cleaned, or nothing is gained. newest: number of the newest segment, by which age is told."""
    age = np.maximum(newest - table["segment"].astype(np.float64), 1.0)
    worth = freed_slabs(table) / np.maximum(table["live"], 1) * np.sqrt(age)
    gains = (freed_slabs(table) >= 1) & (table["flags"] & CLEANABLE > 0)
    return np.where(gains, worth, 0.0)


def choose(table: Table, allowed: NDArray[np.bool_], newest: int, most: int) -> NDArray[np.uint32]:
    """Numbers of up to `most` allowed segments, the best first."""
    score = np.where(allowed, scores(table, newest), 0.0)
    order = np.argsort(-score, kind="stable")[:most]
    chosen: NDArray[np.uint32] = table["segment"][order[score[order] > 0]]
    return chosen


class Rest:
    """Remembers of one volume since when nothing has died in each of its segments."""

    def __init__(self) -> None:
        self._segments = np.empty(0, np.uint32)
        self._live = np.empty(0, np.uint32)
        self._since = np.empty(0, np.float64)

    def look(self, table: Table, now: float) -> NDArray[np.float64]:
        """For how many seconds each row has been at rest. The table is in the order of numbers."""
        since = np.full(len(table), now)
        if len(self._segments) and len(table):
            at = np.minimum(np.searchsorted(self._segments, table["segment"]), len(self._segments) - 1)
            same = (self._segments[at] == table["segment"]) & (self._live[at] == table["live"])
            since = np.where(same, self._since[at], now)
        self._segments, self._live, self._since = table["segment"].copy(), table["live"].copy(), since
        return now - since
