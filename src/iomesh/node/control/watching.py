"""The stream of changes: of every volume and node, as a list of them would show it.

A stream is told that something may have changed, and compares with what it sent last: a change that is undone at once
may be left out, the latest state never is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import msgspec

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.messages import to_message
from iomesh.api.model import ChangeKind, Flattening, Node, Space, Volume, WatchEvent
from iomesh.errors import Unavailable

if TYPE_CHECKING:
    from iomesh.node.node import Node as ThisNode

GATHER_SECONDS = 0.05  # changes that come together are looked at together
LOOK_SECONDS = 1.0  # between two looks at what this node's volumes do, which no record shows

Thing = Node | Volume | pb.Operation


class Watching:
    def __init__(
        self, node: ThisNode, members: Callable[[], list[Node]], operations: Callable[[], list[pb.Operation]]
    ) -> None:
        self._node = node
        self._operations = operations
        self._members = members
        self._woken: set[asyncio.Event] = set()
        self._ended = False

    def wake(self) -> None:
        for event in self._woken:
            event.set()

    def end(self) -> None:
        """Ends all streams: the node stops."""
        self._ended = True
        self.wake()

    async def watch(self, request: pb.WatchRequest) -> AsyncIterator[pb.WatchEvent]:
        both = request.nodes == request.volumes and (request.nodes or not request.operations)
        woken = asyncio.Event()
        self._woken.add(woken)
        sent: dict[str, Thing] | None = None
        try:
            while not self._ended:
                woken.clear()
                first, before = sent is None, sent or {}
                there = self._there(nodes=both or request.nodes, volumes=both or request.volumes)
                if request.operations:
                    there |= {f"operation {each.id}": each for each in self._operations()}
                for key, thing in there.items():
                    if before.get(key) is None or _lasting(before[key]) != _lasting(thing):
                        yield _event(ChangeKind.CURRENT if first else ChangeKind.CHANGED, thing)
                for key in [key for key in before if key not in there]:
                    yield _event(ChangeKind.REMOVED, before[key])
                if first:
                    yield _event(ChangeKind.SYNCED, None)
                sent = there
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await woken.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(GATHER_SECONDS)
        finally:
            self._woken.discard(woken)
        raise Unavailable(f"node {self._node.name} stops: watch at another node")

    def _there(self, *, nodes: bool, volumes: bool) -> dict[str, Thing]:
        """By kind and id: a name can be used again."""
        found: dict[str, Thing] = {}
        if nodes:
            found |= {f"node {each.name}": each for each in self._members()}
        if volumes:
            found |= {f"volume {each.id or each.name}": each for each in self._node.volumes.list_all()}
        return found


def _event(kind: ChangeKind, thing: Thing | None) -> pb.WatchEvent:
    if isinstance(thing, pb.Operation):
        return pb.WatchEvent(kind=to_message(pb.WatchEvent, WatchEvent(kind=kind)).kind, operation=thing)
    event = WatchEvent(
        kind=kind,
        node=thing if isinstance(thing, Node) else None,
        volume=thing if isinstance(thing, Volume) else None,
    )
    return to_message(pb.WatchEvent, event)


def _lasting(thing: Thing) -> Thing:
    """Without what changes with every write."""
    if not isinstance(thing, Volume):
        return thing
    return msgspec.structs.replace(
        thing,
        live_bytes=0,
        space=Space(),
        log_bytes_since_checkpoint=0,
        segments=0,
        sequence=0,
        window_from=None,
        flattening=Flattening(running=thing.flattening.running, reason=thing.flattening.reason),
        exports=[msgspec.structs.replace(each, connections=0) for each in thing.exports],
    )
