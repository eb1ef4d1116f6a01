"""Which segments are worth cleaning, and when.

The cost of cleaning a segment is the number of blocks written per block freed: live over freed. It falls over time,
since more of the segment dies, and the more slowly it falls, the less is gained by waiting. So the segment is chosen
first whose cost declines least: the square of its cost, times the rate at which its blocks die (Lomet and Luo,
"Efficiently Reclaiming Space in a Log Structured Store", 2021, section 4, "minimum declining cost"). The rate is the
average since the segment was first observed: a segment of which half has died in some time is likely to lose half of
the rest in the same time. Among segments with equal rates, those with the most dead space come first, as is best for
uniform writes; among those with equal dead space, those in which nothing dies any more.

Dead space that is not cleaned yet saves work: the more of a segment is dead when it is cleaned, the less has to be
copied. So segments are cleaned when space is running out (`URGENT`), the best scores first and no more than needed; and
when there is plenty, or the volume is not written to, only segments at rest: mostly dead, with no recent deaths, as
after a trim.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Flags of a row; straggling segments are evacuated, all others compacted.
CLEANABLE, STRAGGLES, COMPACTED, KEPT = (
    1,
    2,
    4,
    8,
)
BITMAP_BLOCKS = 2  # of a compacted replica
FOOTER_ENTRIES = 256  # in a block of its footer's table, one for each live block
MARGIN_SEGMENTS = 1.5  # of free space above the reserve: with less, cleaning is urgent
MARGIN_SHARE = 0.0015  # likewise, of the device
TIGHT = 2  # times the reserve
LEAST_DEAD = 0.001  # of a segment's blocks: at least this share counts as died since it was first observed
REST_SHARE = 0.25  # of a segment's space must become free to clean it at rest

Table = NDArray[np.void]  # rows of engine.SEGMENT_ROW


class Need(enum.IntEnum):
    NONE = 0
    SOON = 1  # free space is within twice the margin
    URGENT = 2


@dataclass(frozen=True)
class DeviceSpace:
    """Of one store, in blocks."""

    total: int
    free: int
    reserve: int

    def missing(self, segment_blocks: int) -> float:
        """Blocks that must be freed until cleaning is not urgent; negative: that many are left before it is."""
        return self.reserve + max(MARGIN_SEGMENTS * segment_blocks, MARGIN_SHARE * self.total) - self.free

    def is_tight(self) -> bool:
        """Whether each new segment requires cleaning, by the engine's rule (OpenSegments.is_tight)."""
        return self.free <= TIGHT * self.reserve

    def has_spare(self) -> bool:
        """Whether evacuation is allowed: the space that it takes is freed only in the next round. The engine enforces
        this."""
        return 4 * self.free > 3 * self.reserve

    def need(self, segment_blocks: int) -> Need:
        missing = self.missing(segment_blocks)
        margin = max(MARGIN_SEGMENTS * segment_blocks, MARGIN_SHARE * self.total)
        return Need.URGENT if missing > 0 else Need.SOON if missing > -margin else Need.NONE


def freed_blocks(table: Table) -> NDArray[np.float64]:
    """Blocks that each row would free, whether or not it can be cleaned now; without those that the restore window
    keeps."""
    return np.where(is_kept(table), 0.0, _freed_blocks(table))


def kept_blocks(table: Table) -> NDArray[np.float64]:
    """Blocks that each row would free, were it not for the restore window."""
    return np.where(is_kept(table), _freed_blocks(table), 0.0)


def _freed_blocks(table: Table) -> NDArray[np.float64]:
    live = table["live"].astype(np.float64)
    footer = 1 + np.ceil(live / FOOTER_ENTRIES)
    compacted = np.ceil((live + footer + BITMAP_BLOCKS) / table["slab"]) * table["slab"]
    needed = np.where(straggles(table), live, compacted)
    freed: NDArray[np.float64] = np.maximum(table["space"] - needed, 0.0)
    return freed


def straggles(table: Table) -> NDArray[np.bool_]:
    straggle: NDArray[np.bool_] = table["flags"] & STRAGGLES > 0
    return straggle


def is_kept(table: Table) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = table["flags"] & KEPT > 0
    return kept


def scores(table: Table, rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per row; 0: it cannot be cleaned, or nothing is gained. rate: at which each row's blocks die (Memory)."""
    freed, live = freed_blocks(table), np.maximum(table["live"], 1)
    return np.where((freed > 0) & (table["flags"] & CLEANABLE > 0), (freed / live) ** 2 / rate, 0.0)


def choose(
    table: Table, allowed: NDArray[np.bool_], rate: NDArray[np.float64], most: int, enough: float
) -> NDArray[np.intp]:
    """Rows of up to `most` allowed segments, the best ones, and no more than needed to free `enough` blocks. Segments
    to be evacuated come last: evacuation takes space before it frees some."""
    score = np.where(allowed, scores(table, rate), 0.0)
    order = np.argsort(-score, kind="stable")[:most]
    order = order[score[order] > 0]
    before = np.cumsum(freed_blocks(table)[order]) - freed_blocks(table)[order]
    order = order[before < enough]
    chosen: NDArray[np.intp] = order[np.argsort(straggles(table)[order], kind="stable")]
    return chosen


@dataclass(frozen=True)
class Seen:
    """The history of each row of a table."""

    rest_seconds: NDArray[np.float64]  # how long no block of it has died
    # At which its blocks die: the logarithm of former blocks per remaining block, per segment of log.
    rate: NDArray[np.float64]
    tried: NDArray[np.bool_]  # it was cleaned, or that was tried, in its current state
    quiet_seconds: float  # how long no segment was opened


class Memory:
    """Remembers for each segment of one volume since when no block has died, how fast its blocks have died since it was
    first observed, and whether it was cleaned, or that was tried, since the last death. Tables are ordered by segment
    number; the newest number is the log's clock.
    """

    def __init__(self) -> None:
        self._segments = np.empty(0, np.uint32)
        self._live = np.empty(0, np.uint32)
        self._since = np.empty(0, np.float32)
        self._tried = np.empty(0, np.bool_)
        self._born = 0.0
        self._clock = 0
        self._quiet_since = 0.0
        self._first_live = np.empty(0, np.uint32)
        self._first_clock = np.empty(0, np.uint32)

    def look(self, table: Table, now: float) -> Seen:
        self._born = self._born or now  # seconds count from here: they are stored as 32-bit numbers
        now -= self._born
        clock = table["segment"].max(initial=0)
        if clock != self._clock:
            self._clock, self._quiet_since = clock, now
        since, tried = np.full(len(table), now, np.float32), np.zeros(len(table), np.bool_)
        first_live, first_clock = table["live"].copy(), np.full(len(table), clock, np.uint32)
        if len(self._segments) and len(table):
            at = np.minimum(np.searchsorted(self._segments, table["segment"]), len(self._segments) - 1)
            known = self._segments[at] == table["segment"]
            same = known & (self._live[at] == table["live"])
            since, tried = np.where(same, self._since[at], now), same & self._tried[at]
            # A segment that is still being written counts as new.
            dying = known & (self._first_live[at] >= table["live"])
            first_live, first_clock = (
                np.where(dying, self._first_live[at], first_live),
                np.where(dying, self._first_clock[at], first_clock),
            )
        self._segments, self._live, self._since, self._tried = (
            table["segment"].copy(),
            table["live"].copy(),
            since,
            tried,
        )
        self._first_live, self._first_clock = first_live, first_clock
        dead = np.log(np.maximum(first_live, 1) / np.maximum(table["live"], 1))
        rate = np.maximum(dead, LEAST_DEAD) / np.maximum(clock - first_clock, 1)
        return Seen(np.float64(now) - since, rate, tried.copy(), now - self._quiet_since)

    def try_rows(self, rows: NDArray[np.intp]) -> None:
        """These rows of the last observed table are being cleaned."""
        self._tried[rows] = True

    def retry(self, segments: NDArray[np.uint32]) -> None:
        """These were postponed."""
        self._tried &= ~np.isin(self._segments, segments)
