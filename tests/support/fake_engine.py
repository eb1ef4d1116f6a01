"""An engine that only keeps connections between nodes: tests say when they end."""

from __future__ import annotations

import asyncio
import os
from typing import Any, NamedTuple, cast

from iomesh.node.engine import NodeEngine, ServedConnection


class Served(NamedTuple):
    fd: int
    reactor: int
    connection: ServedConnection


class Attached(NamedTuple):
    node: str
    reactor: int
    fd: int
    ended: asyncio.Future[dict[str, Any]]


class FakeEngine:
    def __init__(self, reactors: int = 1) -> None:
        self.reactors = reactors
        self.served: list[Served] = []
        self.asked_to_end: list[ServedConnection] = []
        self.attached: list[Attached] = []
        self.detached: list[tuple[str, int]] = []

    def as_engine(self) -> NodeEngine:
        return cast(NodeEngine, self)

    def serve_peer(self, descriptor: int, *, reactor: int) -> ServedConnection:
        connection = ServedConnection(len(self.served), asyncio.get_running_loop().create_future())
        self.served.append(Served(descriptor, reactor, connection))
        return connection

    def end_served_peer(self, connection: ServedConnection) -> None:
        self.asked_to_end.append(connection)

    def attach_peer(
        self, node: str, descriptor: int, *, reactor: int, requests: int, bytes_: int
    ) -> asyncio.Future[dict[str, Any]]:
        ended: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.attached.append(Attached(node, reactor, descriptor, ended))
        return ended

    def detach_peer(self, node: str, *, reactor: int) -> None:
        self.detached.append((node, reactor))

    def end(self, which: Served | Attached, end: str = "closed") -> None:
        """Closes the connection, and answers its ticket."""
        os.close(which.fd)
        if isinstance(which, Served):
            which.connection.ended.set_result({"end": end, "requests": 0})
        else:
            which.ended.set_result({"end": end, "calls": 0})
