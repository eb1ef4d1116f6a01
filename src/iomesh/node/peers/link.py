"""The connection from one reactor of this node to another node, as its client: made, watched, and made again.

    waiting -- the address answers, the handshake succeeds --> connected -- it ends --> waiting ...

Attempts have growing pauses between them; a change of the other node's record ends a pause. If the record disappears,
the connection is kept as long as it works, but no other is made. What is reported, once for each change: connected;
lost, and why; not reached for QUIET_SECONDS, and why.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

from iomesh.errors import IomeshError
from iomesh.metadata.nodes import NodeRecord
from iomesh.node.backoff import pauses
from iomesh.node.config import parse_address
from iomesh.node.engine import NodeEngine
from iomesh.node.logs import logger
from iomesh.node.peers.cut import Cut
from iomesh.node.supervisor import SupervisedTask, in_thread
from iomesh.peers.handshake import HandshakeFailed, Identity, connect

log = logger("peers")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 2.0
CONNECT_SECONDS = 5.0
QUIET_SECONDS = 1.0  # a node that starts, or has just been registered, is no news
CLOCK_SECONDS = 5.0  # by which two nodes' clocks may differ: more is a warning
STABLE_SECONDS = 5.0  # a connection that lasted so long is made again after the shortest pause

ENDS = {
    "closed": "the other node closed it",
    "error": "it broke",
    "malformed": "the other node sent invalid replies",
    "detached": "this node ended it",
    "silent": "the other node did not answer for 2 seconds",
}


class Link:
    """`keep` runs in a background task; `update` gives it the other node's record."""

    def __init__(
        self, engine: NodeEngine, me: Identity, record: NodeRecord, reactor: int, cut: Cut | None = None
    ) -> None:
        self.node = record.name
        self.reactor = reactor
        self.reason = ""  # why there is no connection, for users; empty: there is one, or it is being made
        self.ahead_seconds = 0.0  # of the other node's clock before this one's, when the connection was made
        self._engine = engine
        self._me = me
        self._cut = cut
        self._record: NodeRecord | None = record
        self._changed = asyncio.Event()
        self._ended: asyncio.Future[dict[str, Any]] | None = None  # of the present connection
        self._reached: NodeRecord | None = None  # the record by which it was made
        self._since = time.monotonic()  # of `waiting`

    @property
    def address(self) -> str:
        return self._record.peer_address if self._record is not None else ""

    def update(self, record: NodeRecord | None) -> None:
        """None: the node is not known any more, or has no address."""
        if record == self._record:
            return
        self._record = record
        self._changed.set()
        if record is not None and self._reached is not None and self._reached.incarnation != record.incarnation:
            self.end()  # of a process that is gone, whether or not TCP has noticed

    async def keep(self, task: SupervisedTask) -> None:
        """Ends once the node is not known and there is no connection."""
        await self.ended()  # of a connection that this task had before it failed
        task.progress()
        waits = pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        while (record := self._record) is not None:
            self._changed.clear()
            try:
                ended = await self._connect(record)
            except HandshakeFailed as failed:
                self._not_reached(str(failed))
            except OSError as error:
                self._not_reached(f"{record.peer_address}: {_words(error)}")
            except IomeshError as error:
                self._not_reached(error.message)
            else:
                began = time.monotonic()
                self._report_connected(record)
                self._report_lost(await self._end_of(ended))
                if time.monotonic() - began >= STABLE_SECONDS:
                    waits = pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            if await self._pause(next(waits)):
                waits = pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)

    def end(self) -> None:
        """Ends the connection, if there is one."""
        if self._ended is not None:
            self._engine.detach_peer(self.node, reactor=self.reactor)

    async def ended(self) -> None:
        """Returns once the engine does not use the connection any more."""
        if self._ended is not None:
            await asyncio.wait((self._ended,))

    async def _connect(self, record: NodeRecord) -> asyncio.Future[dict[str, Any]]:
        """The end of the new connection, in time. Raises HandshakeFailed, OSError, IomeshError."""
        agreement = await connect(
            await dial(record.peer_address, self._cut),
            self._me,
            server=self.node,
            reactor=self.reactor,
            server_reactor=self.reactor % record.reactors,
        )
        if abs(agreement.ahead_seconds) > CLOCK_SECONDS >= abs(self.ahead_seconds):
            log.warning("clock of node differs", node=self.node, ahead_seconds=round(agreement.ahead_seconds, 1))
        self.ahead_seconds = agreement.ahead_seconds
        self._ended = self._engine.attach_peer(
            self.node,
            agreement.fd,
            reactor=self.reactor,
            requests=agreement.credits.requests,
            bytes_=agreement.credits.bytes,
        )
        self._ended.add_done_callback(asyncio.Future.exception)  # retrieves it: after a stop nothing else does
        self._reached = record
        latest = self._record
        if latest is not None and latest.incarnation != record.incarnation:
            self.end()
        return self._ended

    async def _end_of(self, ended: asyncio.Future[dict[str, Any]]) -> str:
        await asyncio.wait((ended,))  # not the future itself: it outlives a cancelled task
        self._ended, self._reached = None, None
        try:
            return ENDS[ended.result()["end"]]
        except IomeshError as error:
            return error.message

    async def _pause(self, seconds: float) -> bool:
        """True: the record changed meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _report_connected(self, record: NodeRecord) -> None:
        self.reason = ""
        log.info("connected to node", node=self.node, reactor=self.reactor, address=record.peer_address)

    def _report_lost(self, why: str) -> None:
        self._since = time.monotonic()
        self.reason = f"the connection was lost: {why}"
        log.warning("connection to node lost", node=self.node, reactor=self.reactor, reason=why)

    def _not_reached(self, why: str) -> None:
        if time.monotonic() - self._since < QUIET_SECONDS or why == self.reason:
            return
        self.reason = why
        log.warning("node cannot be reached; retrying", node=self.node, reactor=self.reactor, reason=why)


async def dial(address: str, cut: Cut | None = None) -> socket.socket:
    """A connected, non-blocking socket. Raises OSError, ConfigError for what is no address."""
    host, port = parse_address(address, "peer_address")
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            found = await in_thread(
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), discard=lambda _: None
            )
            failure = OSError("no such host")
            for family, kind, protocol, _, place in found:
                connection = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
                try:
                    if cut is not None:
                        cut.apply(connection)
                    await asyncio.get_running_loop().sock_connect(connection, place)
                except OSError as error:
                    connection.close()
                    failure = error
                except BaseException:
                    connection.close()
                    raise
                else:
                    return connection
    except TimeoutError:
        raise OSError(f"no answer within {CONNECT_SECONDS:g} s") from None
    raise failure


def _words(error: OSError) -> str:
    """asyncio's own text repeats the address."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)
