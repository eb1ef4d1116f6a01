"""The connections between this node and every other node of its cluster, in both directions.

Each reactor of this node has one connection to each other node, as a client (link.py). Likewise this node serves its
devices to the reactors of the others (server.py). Which nodes there are, their addresses and their devices are in the
metadata service (iomesh.node.cluster). Handshakes are done here; then a connection is the engine's.

A node is known while `nodes/<name>` exists. The engine is told the devices of every other node, from `devices/`.
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from iomesh.metadata.nodes import NodeRecord
from iomesh.node.cluster import Cluster
from iomesh.node.engine import NodeEngine
from iomesh.node.logs import logger
from iomesh.node.peers.cut import Cut
from iomesh.node.peers.link import CLOCK_SECONDS, Link, dial
from iomesh.node.peers.server import PeerServer, PeerSockets
from iomesh.node.supervisor import SupervisedTask, Supervisor
from iomesh.peers.handshake import Identity

log = logger("peers")

END_SECONDS = 10.0  # for the engine to end the connections when the node stops

__all__ = ["PeerSockets", "Peers"]


class PeerConnection(NamedTuple):
    """Of one reactor of this node, as a client."""

    node: str
    reactor: int
    connected: bool
    calls: int  # that it has made since the daemon started
    ahead_seconds: float  # of the other node's clock before this one's, when the connection was made


class Peers:
    def __init__(
        self,
        engine: NodeEngine,
        cluster: Cluster,
        me: Identity,
        sockets: PeerSockets,
        supervisor: Supervisor,
        serves: Callable[[bytes], bool],
        cut_file: str,
    ) -> None:
        """sockets: bound. serves: whether this node serves the volume of this id. cut_file: while it exists, the node
        is cut off from the others; empty: never."""
        self._engine = engine
        self._me = me
        self._supervisor = supervisor
        self._server = PeerServer(engine, me, sockets, supervisor, lambda node: node in self._nodes, serves)
        self._cluster = cluster
        self._nodes: dict[str, NodeRecord] = {}  # the others that are known
        self._devices: dict[str, list[int]] = {}  # numbers in the cluster, by node: as the engine was told
        self._links: dict[tuple[str, int], _Kept] = {}  # by the other node and the reactor of this one
        self._cut = Cut(Path(cut_file), lambda: self._addresses(sockets)) if cut_file else None
        self._following_cut: SupervisedTask | None = None
        self._started = False

    async def dial(self, address: str) -> socket.socket:
        """A connection to another node; see link.dial."""
        return await dial(address, self._cut)

    def start(self) -> None:
        """The cluster is followed already. Connections are made in the background."""
        self._cluster.on_devices.append(self._devices_changed)
        self._cluster.on_nodes.append(self._nodes_changed)
        self._devices_changed()
        self._nodes = self._others()
        self._server.start()
        if self._cut is not None:
            self._following_cut = self._supervisor.start("cut off", self._cut.follow)
        self._started = True
        self._nodes_changed()

    async def stop(self) -> None:
        """Ends all connections."""
        self._started = False
        if self._following_cut is not None:
            await self._following_cut.stop()
        links = [kept.link for kept in self._links.values()]
        for kept in list(self._links.values()):
            await kept.task.stop()
        for link in links:
            link.end()
        await self._server.stop()
        try:
            async with asyncio.timeout(END_SECONDS):
                for link in links:
                    await link.ended()
        except TimeoutError:
            log.warning("connections to other nodes not ended in time", seconds=END_SECONDS)

    def forwarding_nodes(self, volume: uuid.UUID) -> list[str]:
        """The nodes that forward requests for this volume of this node."""
        return self._server.forwarding_nodes(volume)

    @property
    def problems(self) -> list[str]:
        """Nodes that cannot be reached, for users."""
        found = []
        for node, record in sorted(self._nodes.items()):
            links = [kept.link for (name, _), kept in self._links.items() if name == node]
            reasons = [link.reason for link in links if link.reason]
            if record.peer_address and reasons:
                found.append(
                    f"node {node} cannot be reached at {record.peer_address} ({len(reasons)} of {len(links)} "
                    f"connections): {reasons[0]}"
                )
            ahead = max((link.ahead_seconds for link in links), key=abs, default=0.0)
            if abs(ahead) > CLOCK_SECONDS:
                found.append(
                    f"the clock of node {node} was {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of "
                    f"node {self._me.node} when they connected: set both, best with NTP; until then times of snapshots "
                    "and restore windows differ by as much when a volume moves"
                )
        return found

    def connections(self) -> list[PeerConnection]:
        told = {(each["node"], each["reactor"]): each for each in self._engine.peers()}
        nothing = {"attached": False, "calls": 0}
        return [
            PeerConnection(node, reactor, each["attached"], each["calls"], kept.link.ahead_seconds)
            for (node, reactor), kept in sorted(self._links.items())
            for each in [told.get((node, reactor), nothing)]
        ]

    def _nodes_changed(self) -> None:
        before, self._nodes = self._nodes, self._others()
        for node in before.keys() - self._nodes.keys():
            log.info("node is not known any more", node=node)
        if not self._started:
            return
        for record in self._nodes.values():
            if record.peer_address:
                for reactor in range(self._engine.reactors):
                    self._keep_link(record, reactor)
        self._server.end_of(self._cluster.is_removed)
        for (node, _), kept in self._links.items():
            if node not in self._nodes or not self._nodes[node].peer_address:
                kept.link.update(None)

    def _addresses(self, sockets: PeerSockets) -> set[str]:
        return {sockets.address, *(record.peer_address for record in self._nodes.values())}

    def _others(self) -> dict[str, NodeRecord]:
        return {name: record for name, record in self._cluster.nodes.items() if name != self._me.node}

    def _keep_link(self, record: NodeRecord, reactor: int) -> None:
        key = record.name, reactor
        if key in self._links and not self._links[key].task.ended:
            self._links[key].link.update(record)
            return
        link = Link(self._engine, self._me, record, reactor, self._cut)
        task = self._supervisor.start(
            "connect to nodes", link.keep, until_done=True, node=record.name, reactor=str(reactor)
        )
        self._links[key] = kept = _Kept(link, task)
        task.handle.add_done_callback(lambda _: self._forget(key, kept))

    def _forget(self, key: tuple[str, int], kept: _Kept) -> None:
        """Its node is not known, and its connection has ended."""
        if self._links.get(key) is kept:
            del self._links[key]

    def _devices_changed(self) -> None:
        devices: dict[str, list[int]] = {}
        for record in self._cluster.devices():
            if record.node != self._me.node and record.number:
                devices.setdefault(record.node, []).append(record.number)
        for node in self._devices.keys() | devices.keys():
            numbers = sorted(devices.get(node, []))
            if numbers != self._devices.get(node, []):
                self._engine.know_devices(node, numbers)
        self._devices = {node: sorted(numbers) for node, numbers in devices.items()}


class _Kept(NamedTuple):
    link: Link
    task: SupervisedTask
