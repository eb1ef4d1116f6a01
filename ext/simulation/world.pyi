"""The simulated world's settings and counts: see simulation/world.pyx."""

import os
from typing import TypedDict

class FaultRecord(TypedDict):
    fault: str
    time_ns: int
    target: int
    offset: int
    intended: int
    bytes: int

class World:
    seed: int
    digest: int
    events: int
    boundaries: int
    crashes: int
    faults: dict[str, float]
    latencies: dict[str, int]
    counts: dict[str, int]
    struck: list[FaultRecord]
    now_ns: int

    def __init__(self, seed: int) -> None: ...
    def make_device(self, bytes: int, *, volatile_cache: bool = True, cache_bytes: int = ...) -> int: ...
    def corruptible(self, device: int, start: int, end: int) -> None: ...
    def peek(self, device: int, offset: int, bytes: int) -> bytes: ...
    def poke(self, device: int, offset: int, data: bytes) -> None: ...
    def is_tainted(self, device: int, offset: int, bytes: int) -> bool: ...
    def unflushed(self, device: int) -> int: ...
    def save(self, device: int, path: str | os.PathLike[str]) -> None: ...
