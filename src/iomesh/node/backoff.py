"""Pauses between attempts: exponential backoff with jitter, so that the clients of one service do not retry all at
once."""

from __future__ import annotations

import random
from collections.abc import Iterator


def pauses(first_seconds: float, longest_seconds: float) -> Iterator[float]:
    """Yields seconds, endlessly."""
    most = first_seconds
    while True:
        yield random.uniform(most / 2, most)
        most = min(2 * most, longest_seconds)
