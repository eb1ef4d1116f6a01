"""What the kernel says of the wall clock: whether a time service keeps it right, and how wrong it may be.

Times of snapshots and restore points are those of this clock. Which node owns a volume does not depend on it.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

STA_UNSYNC = 0x40  # linux/timex.h: set until a time service sets the clock, and again 16 s of error later


class _Timex(ctypes.Structure):
    """The beginning of struct timex; the rest is of no interest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


class Clock(NamedTuple):
    """error_seconds: at most, by the time service's estimate; the kernel lets it grow while there is none."""

    synchronised: bool
    error_seconds: float


def read_clock() -> Clock:
    """Raises OSError where the system does not allow the question."""
    timex = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "adjtimex")
    return Clock(not timex.status & STA_UNSYNC, timex.maxerror / 1e6)
