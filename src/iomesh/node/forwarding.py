"""Exports of volumes that other nodes own: this node forwards its clients' requests to the owner, whoever that is.

A volume that is exported is exported by every node with an address for other nodes (`peers.listen`). While clients use
such an export, there is one connection to the volume's owner (docs/protocols.md, "A volume's I/O"); another one is made
whenever it ends. Requests wait in the engine until they are answered. If this node becomes the owner itself, the
connection leads to its own volume, and each client goes on without it as soon as it has no open request. When a volume
moves to another node, its clients here go the other way (`leave`).

`_Forwarded` is one such volume, from its first client until LINGER_SECONDS after its last.
"""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from iomesh.api.model import Export, VolumeState
from iomesh.errors import InUse, IomeshError, Unavailable
from iomesh.metadata.records import Lifecycle, VolumeRecord
from iomesh.node.backoff import pauses
from iomesh.node.cluster import Cluster, StoredVolume
from iomesh.node.engine import NodeEngine
from iomesh.node.exports import Exports
from iomesh.node.logs import logger
from iomesh.node.peers.link import dial
from iomesh.node.peers.server import CREDITS
from iomesh.node.supervisor import SupervisedTask, Supervisor
from iomesh.node.volume import NodeVolume, Registry
from iomesh.peers.handshake import HandshakeFailed, Identity, connect

log = logger("forwarding")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.5  # between attempts to reach the owner
QUIET_SECONDS = 1.0  # an owner that is not reached for less is no news
LEAVE_SECONDS = 10.0  # for the open requests of clients whose volume moves to another node
HOME_SECONDS = 10.0
LINGER_SECONDS = 0.2  # less than commands wait for clients to leave (iomesh.node.exports)
EXPORT_SECONDS = 5.0
LOOK_SECONDS = 1.0


class Forwarding:
    def __init__(
        self,
        engine: NodeEngine,
        cluster: Cluster,
        exports: Exports,
        volumes: Registry,
        me: Identity,
        supervisor: Supervisor,
    ) -> None:
        self._engine = engine
        self._cluster = cluster
        self._exports = exports
        self._volumes = volumes
        self._me = me
        self._supervisor = supervisor
        self._changed = asyncio.Event()
        self._published: dict[str, uuid.UUID] = {}
        self._forwarded: dict[uuid.UUID, _Forwarded] = {}
        self._following: SupervisedTask | None = None
        self.dial: Callable[[str], Awaitable[socket.socket]] = dial

    def start(self) -> None:
        """The cluster is followed already, and this node's own volumes are listed."""
        self._cluster.on_change.append(self._changed.set)
        self._following = self._supervisor.start("forward volumes", self._follow)

    async def stop(self) -> None:
        """Cuts the clients."""
        if self._following is not None:
            await self._following.stop()
        for name in self._published:
            await self._exports.withdraw(name)
        self._published.clear()
        for forwarded in list(self._forwarded.values()):
            await forwarded.end()

    async def _follow(self, task: SupervisedTask) -> None:
        while True:
            self._changed.clear()
            await self._publish()
            self._wake_links()
            self._come_home()
            task.progress()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _publish(self) -> None:
        """The exports of the volumes that other nodes own, and no others."""
        wanted = {stored.volume.record.name: stored for stored in self._volumes.elsewhere() if _is_exported(stored)}
        for name, identity in list(self._published.items()):
            stored = wanted.get(name)
            if stored is None and self._volumes.by_id(identity) is not None:
                continue  # it is this node's export now
            if stored is None or stored.volume.record.id != identity or not self._is_published(stored.volume.record):
                del self._published[name]
                if self._volumes.by_id(identity) is None:
                    await self._exports.withdraw(name)
                    log.info("volume not exported any more", volume=name)
        for name, stored in wanted.items():
            record = stored.volume.record
            if self._volumes.get(name) is not None:
                continue  # another volume of that name is being deleted here
            if name not in self._published:
                log.info("exporting a volume of another node", volume=name, owner=stored.log.record.owner)
            self._export(record)
            if (forwarded := self._forwarded.get(record.id)) is not None:
                forwarded.grow(record)

    def _export(self, record: VolumeRecord) -> None:
        self._published[record.name] = record.id
        self._exports.forward(
            record.id,
            record.name,
            size_bytes=record.size_bytes,
            read_only=record.exports[0].read_only,
            serve=self.serve,
        )

    def redirect(self, volume: NodeVolume) -> None:
        """Another node has taken the volume over: new clients' requests are forwarded from now on."""
        if volume.record.exports:
            self._export(volume.record)

    async def leave(self, volume: NodeVolume) -> None:
        """The volume is about to be closed here, because another node has it or will: clients' requests are forwarded
        from now on. Clients whose open requests are not answered in time are cut off."""
        if not volume.record.exports or not volume.in_engine:
            return
        forwarded = await self._open(volume.record.id, volume.recovery["reactor"])
        self._export(volume.record)
        try:
            async with forwarded.following:
                await self._engine.follow_owner(volume.record.id, here=False, seconds=LEAVE_SECONDS)
        except IomeshError as error:
            log.info("clients cannot follow their volume", volume=volume.record.name, reason=error.message)
            self._exports.cut_clients(volume.record.name)

    def _come_home(self) -> None:
        """Clients of volumes that this node owns now use them directly."""
        for volume, forwarded in self._forwarded.items():
            if not self.serves(volume) or forwarded.closing or forwarded.following.locked():
                continue
            if self._engine.forwarded_state(volume)["connections"]:
                self._supervisor.spawn("use own volume", self._use_own(forwarded), volume=forwarded.name)

    async def _use_own(self, forwarded: _Forwarded) -> None:
        async with forwarded.following:
            try:
                await self._engine.follow_owner(forwarded.volume, here=True, seconds=HOME_SECONDS)
            except IomeshError as error:  # it is on another reactor, or being closed again
                log.debug("clients stay where they are", volume=forwarded.name, reason=error.message)
            else:
                log.info("clients use this node's own volume", volume=forwarded.name)
        forwarded.changed.set()

    def _wake_links(self) -> None:
        for forwarded in self._forwarded.values():
            forwarded.changed.set()

    async def serve(
        self, volume: uuid.UUID, fd: int, *, structured: bool, context_id: int | None, read_only: bool
    ) -> dict[str, Any]:
        """A client's connection, past its handshake; returns when it has ended."""
        forwarded = await self._open(volume)
        return await forwarded.serve(fd, structured=structured, context_id=context_id, read_only=read_only)

    async def _open(self, volume: uuid.UUID, reactor: int | None = None) -> _Forwarded:
        while (forwarded := self._forwarded.get(volume)) is not None and forwarded.closing:
            await asyncio.wait((forwarded.closed,))
        if forwarded is None:
            forwarded = self._forwarded[volume] = _Forwarded(self, volume, reactor)
        return forwarded

    async def exported(self, record: VolumeRecord) -> list[Export]:
        """The export of a volume that its owner exports. record: as the metadata service has it, with an export. Raises
        Unavailable if this node does not know that record, or has no such export, in time."""
        deadline = time.monotonic() + EXPORT_SECONDS
        while not (self._knows(record) and self._is_published(record)):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"volume {record.name} is exported by its owner, and this node does not know of it within "
                    f"{EXPORT_SECONDS:g} s: the metadata service may not answer; try again"
                )
            await asyncio.sleep(FIRST_PAUSE_SECONDS)
        return self._exports.describe(record.name)

    def _is_published(self, record: VolumeRecord) -> bool:
        return self._exports.is_published(record.name, read_only=record.exports[0].read_only)

    def _knows(self, record: VolumeRecord) -> bool:
        stored = self.stored(record.id)
        return stored is not None and stored.volume.record.generation >= record.generation

    def state(self, volume: uuid.UUID) -> dict[str, Any] | None:
        """Of a volume with clients: see NodeEngine.forwarded_state, and `reason`: why there is no connection."""
        forwarded = self._forwarded.get(volume)
        if forwarded is None or forwarded.closing:
            return None
        return {**self._engine.forwarded_state(volume), "reason": forwarded.reason}

    @property
    def problems(self) -> list[str]:
        """Volumes with clients whose requests wait for an owner, for users."""
        found = []
        for volume, forwarded in self._forwarded.items():
            state = self.state(volume)
            if state is not None and not state["attached"] and forwarded.waiting_seconds > QUIET_SECONDS:
                found.append(
                    f"volume {forwarded.name}: {state['open']} request(s) of this node's clients wait for its owner"
                    + (f": {forwarded.reason}" if forwarded.reason else "")
                )
        return found

    # for _Forwarded

    @property
    def engine(self) -> NodeEngine:
        return self._engine

    def spawn(self, forwarded: _Forwarded) -> SupervisedTask:
        return self._supervisor.start("forward a volume", forwarded.keep, until_done=True, volume=forwarded.name)

    def forget(self, forwarded: _Forwarded) -> None:
        del self._forwarded[forwarded.volume]

    def stored(self, volume: uuid.UUID) -> StoredVolume | None:
        return self._cluster.volume(volume)

    def serves(self, volume: uuid.UUID) -> bool:
        """Whether this node has the volume, and serves it."""
        own = self._volumes.by_id(volume)
        return own is not None and own.in_engine and own.state == VolumeState.SERVING

    async def connect(self, volume: uuid.UUID) -> asyncio.Future[dict[str, Any]]:
        """The end, in time, of a new connection to the owner. Raises HandshakeFailed, OSError, IomeshError."""
        if self.serves(volume):
            return self._connect_here(volume)
        stored = self.stored(volume)
        owner = stored.log.record.owner if stored is not None else ""
        record = self._cluster.nodes.get(owner)
        if owner == self._me.node or record is None or not record.peer_address:
            raise HandshakeFailed(
                "the volume is deleted"
                if stored is None
                else f"its owner, node {owner}, " + ("does not serve it yet" if record is not None else "does not run")
            )
        agreement = await connect(
            await self.dial(record.peer_address),
            self._me,
            server=owner,
            reactor=0,
            server_reactor=0,
            volume=volume.bytes,
        )
        return self._engine.attach_forwarded(
            volume, agreement.fd, requests=agreement.credits.requests, bytes_=agreement.credits.bytes
        )

    def _connect_here(self, volume: uuid.UUID) -> asyncio.Future[dict[str, Any]]:
        """This node has become the owner itself."""
        ours, theirs = socket.socketpair()
        served = self._engine.serve_volume(volume, theirs.detach())
        served.ended.add_done_callback(asyncio.Future.exception)  # the other end hears of it
        return self._engine.attach_forwarded(volume, ours.detach(), requests=CREDITS.requests, bytes_=CREDITS.bytes)


class _Forwarded:
    """`keep` runs in a background task."""

    def __init__(self, forwarding: Forwarding, volume: uuid.UUID, reactor: int | None = None) -> None:
        stored = forwarding.stored(volume)
        self.volume = volume
        self.name = stored.volume.record.name if stored is not None else str(volume)
        self.size_bytes = stored.volume.record.size_bytes if stored is not None else 0
        self.following = asyncio.Lock()  # clients are moving
        self._arriving = 0
        self.reason = ""  # why there is no connection to the owner; empty: there is one, or it is being made
        self.changed = asyncio.Event()
        self.closing = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._forwarding = forwarding
        self._engine = forwarding.engine
        self._since = time.monotonic()  # without a connection
        self._reported = False
        self._engine.forward_volume(volume, size_bytes=self.size_bytes, reactor=reactor)
        self._task = forwarding.spawn(self)

    @property
    def waiting_seconds(self) -> float:
        return time.monotonic() - self._since

    async def serve(self, fd: int, *, structured: bool, context_id: int | None, read_only: bool) -> dict[str, Any]:
        self._arriving += 1
        try:
            return await self._engine.serve_forwarded(
                self.volume, fd, structured=structured, context_id=context_id, read_only=read_only
            )
        finally:
            self._arriving -= 1
            self.changed.set()

    @property
    def users(self) -> int:
        """Clients; some have come by serve(), and may have moved to this node's own volume since."""
        moving = self.following.locked()
        return moving or self._engine.forwarded_state(self.volume)["connections"] or self._arriving

    def grow(self, record: VolumeRecord) -> None:
        if record.size_bytes > self.size_bytes:
            self.size_bytes = record.size_bytes
            self._engine.grow_forwarded(self.volume, record.size_bytes)

    async def end(self) -> None:
        """Once its clients are cut."""
        await self._task.stop()
        await self._close()

    async def keep(self, task: SupervisedTask) -> None:
        """The connection to the owner, while there are clients."""
        task.progress()
        while not self.closing:
            await self._keep_connected()
            await self._close()

    async def _keep_connected(self) -> None:
        waits = pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        while self.users or await self._lingers():
            self.changed.clear()
            try:
                ended = await self._forwarding.connect(self.volume)
            except (HandshakeFailed, OSError, IomeshError) as error:
                self._not_connected(str(error))
            else:
                began = time.monotonic()
                await self._stays(ended)
                self._since = time.monotonic()
                if time.monotonic() - began > QUIET_SECONDS:
                    waits = pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            await self._changes(next(waits))

    async def _stays(self, ended: asyncio.Future[dict[str, Any]]) -> None:
        """Returns when the connection has ended; ends it when there are no clients any more."""
        if self._reported:
            log.info(
                "requests of clients are forwarded again", volume=self.name, seconds=round(self.waiting_seconds, 1)
            )
        self.reason, self._reported = "", False
        ended.add_done_callback(asyncio.Future.exception)  # retrieves it
        while not ended.done():
            if not self.users and not await self._lingers():
                self._engine.detach_forwarded(self.volume)
                await asyncio.wait((ended,))
                return
            self.changed.clear()
            change = asyncio.ensure_future(self.changed.wait())
            try:
                await asyncio.wait((ended, change), timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            finally:
                change.cancel()

    def _not_connected(self, reason: str) -> None:
        self.reason = reason
        if not self._reported and self.waiting_seconds > QUIET_SECONDS:
            self._reported = True
            log.warning("requests of clients wait for the volume's owner", volume=self.name, reason=reason)

    async def _lingers(self) -> bool:
        """Whether a client comes within LINGER_SECONDS."""
        deadline = time.monotonic() + LINGER_SECONDS
        while not self.users and (left := deadline - time.monotonic()) > 0:
            self.changed.clear()
            await self._changes(left)
        return self.users > 0

    async def _changes(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        except TimeoutError:
            pass

    async def _close(self) -> None:
        if self.closing:
            return
        self.closing = True
        try:
            await self._engine.close_forwarded(self.volume)
        except InUse:  # this node's own volume was lost meanwhile, and its clients have come
            self.closing = False
        finally:
            if self.closing:
                self._forwarding.forget(self)
            self.closed.set_result(None)
            self.closed = asyncio.get_running_loop().create_future()


def _is_exported(stored: StoredVolume) -> bool:
    record = stored.volume.record
    return record.state == Lifecycle.READY and bool(record.exports)
