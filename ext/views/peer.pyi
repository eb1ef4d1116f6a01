"""Nodes that speak the peer protocol, for tests: see views/peer.pyx."""

import os
from collections.abc import Iterable

from iomesh.engine.simulation.world import World
from iomesh.engine.views.world import WorldView

Replica = tuple[str, int, int, int]  # state (open, sealed, compacted), blocks, epoch, fragment

class PeerWorld:
    world: World

    def __init__(self, world: World) -> None: ...
    def add(self, view: WorldView) -> None: ...
    def run(self, rounds: int) -> None: ...
    def settle(self) -> None: ...
    def turn(self) -> bool: ...

class Served:
    requests: int
    end: str | None
    words: str | None
    free_buffers: tuple[int, int]

    def stop(self) -> None: ...

class HolderNode:
    nodes: PeerWorld

    def __init__(
        self, nodes: PeerWorld, devices: dict[int, int], *, reactors: int = 1, volatile_cache: bool = True
    ) -> None: ...
    def crash(self, *, power: bool = True) -> None: ...
    def restart(self, *, volatile_cache: bool = True) -> None: ...
    def accept(self, face: int) -> tuple[int, Served]: ...
    def withdraw(self, number: int) -> None: ...
    def replicas(self, number: int) -> dict[tuple[bytes, int], Replica]: ...
    def fenced(self, number: int, volume: bytes) -> int: ...
    def content(self, number: int, volume: bytes, segment: int, block: int, blocks: int) -> bytes: ...
    def compact(self, number: int, volume: bytes, segment: int, live: list[int]) -> None: ...

class Call:
    over: bool
    order: int
    result: int
    data: bytes
    entries: int
    more: bool
    fence: int
    boot: int

class Caller:
    completed: int
    lost: int
    attached: bool
    end: str
    words: str | None
    sends: int

    def detach(self) -> None: ...
    def create(
        self,
        device: int,
        volume: bytes,
        segment: int,
        *,
        epoch: int = 1,
        blocks: int = 256,
        stream: int = 0,
        fragment: int = 0,
        urgent: bool = False,
    ) -> Call: ...
    def write(
        self,
        device: int,
        volume: bytes,
        segment: int,
        block: int,
        data: bytes,
        *,
        epoch: int = 1,
        stream: int = 0,
        footer: bool = False,
        completes: bool = False,
    ) -> Call: ...
    def flush(self, device: int) -> Call: ...
    def seal(
        self,
        device: int,
        volume: bytes,
        segment: int,
        blocks: int,
        footer_block: int = 0,
        *,
        epoch: int = 1,
        completes: bool = False,
    ) -> Call: ...
    def read(self, device: int, volume: bytes, segment: int, block: int, blocks: int = 1) -> Call: ...
    def remove(self, device: int, volume: bytes, segment: int, *, epoch: int = 1) -> Call: ...
    def compact(self, device: int, volume: bytes, segment: int, blocks: Iterable[int], *, epoch: int = 1) -> Call: ...
    def list(self, device: int, volume: bytes, first_segment: int = 0, room: int = 512) -> Call: ...
    def fence(self, device: int, volume: bytes, epoch: int) -> Call: ...
    def heartbeat(self, counter: int, room: int = 16) -> Call: ...

class OwnerNode(Caller):
    nodes: PeerWorld
    connection: int
    face: int

    def __init__(self, nodes: PeerWorld) -> None: ...
    def attach(self, holder: HolderNode, *, requests: int = 64, bytes: int = ...) -> Served: ...
    def connect_to(self, face: int) -> tuple[int, int]: ...
    def join(self, connection: int, *, requests: int = 64, bytes: int = ...) -> None: ...

class RingPair(Caller):
    def __init__(self, path: str | os.PathLike[str], number: int) -> None: ...
    def close(self) -> None: ...
    def attach(self, ours: int, theirs: int, *, requests: int = 64, bytes: int = ...) -> Served: ...
    def turn(self) -> None: ...
    def settle(self, *calls: Call, seconds: float = 60.0) -> None: ...
