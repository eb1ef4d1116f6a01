"""The handshake of the peer protocol, both sides: mutual proof of the cluster's key, version and credits
(docs/protocols.md, "Handshake").

`connect` and `accept` take a connected, non-blocking socket and own it from then on. They return a PeerAgreement with
the raw descriptor, from which exactly the handshake's bytes have been read: it goes to a reactor. If they fail, the
socket is closed.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from iomesh.peers import messages
from iomesh.peers.messages import (
    LENGTH_BYTES,
    NONCE_BYTES,
    PROTOCOL,
    Challenge,
    Hello,
    Malformed,
    Proof,
    Refused,
    Terms,
    Versions,
    Welcome,
)

VERSIONS: Versions = (1, 1)  # that this program speaks
SECONDS = 10.0  # for a whole handshake
REASON_BYTES_MAX = 1024  # of a refusal
KEY_BYTES_MIN = 32
UNACKNOWLEDGED_MS = 30_000  # data that the other node's kernel does not acknowledge for so long breaks the connection
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # seconds: one that is silent, within 30

T = TypeVar("T", Hello, Challenge, Proof, Welcome)


class HandshakeFailed(Exception):
    """There is no connection. The text names the other node, the reason and the remedy, for the log."""

    code = "message"


class WrongCluster(HandshakeFailed):
    """The other node belongs to another cluster."""

    code = "cluster"


class WrongKey(HandshakeFailed):
    """The other side does not have this cluster's key."""

    code = "key"


class IncompatibleVersion(HandshakeFailed):
    """No version of the protocol is spoken by both."""

    code = "version"


class UnknownNode(HandshakeFailed):
    """The other side is not the node that was wanted, or none that is known."""

    code = "node"


class NotServed(HandshakeFailed):
    """The other node does not serve the volume that the connection is for."""

    code = "volume"


class TimedOut(HandshakeFailed):
    """The other side did not answer in time."""


FAILURES: dict[str, type[HandshakeFailed]] = {
    failure.code: failure
    for failure in (HandshakeFailed, WrongCluster, WrongKey, IncompatibleVersion, UnknownNode, NotServed)
}


@dataclass(frozen=True)
class Identity:
    """Who this node is. Raises ValueError if the key is too short."""

    cluster: bytes  # 16 bytes
    node: str
    key: bytes = field(repr=False)
    versions: Versions = VERSIONS

    def __post_init__(self) -> None:
        if len(self.key) < KEY_BYTES_MIN:
            raise ValueError(f"the cluster's key has {len(self.key)} bytes; it needs at least {KEY_BYTES_MIN}")


@dataclass(frozen=True)
class Credits:
    """How much a server accepts without having replied."""

    requests: int
    bytes: int


@dataclass(frozen=True)
class PeerAgreement:
    """A connection that is in its working phase; the caller owns the descriptor, in blocking mode."""

    fd: int
    node: str  # the other one
    reactor: int  # the client's
    server_reactor: int
    version: int
    credits: Credits
    volume: bytes = b""  # that the connection is for; empty: for the server's devices
    ahead_seconds: float = 0.0  # of the server's clock before the client's, at least; as the client has found


# ---------------------------------------------------------------------- the client


async def connect(
    connection: socket.socket,
    me: Identity,
    *,
    server: str,
    reactor: int,
    server_reactor: int,
    volume: bytes = b"",
    seconds: float = SECONDS,
) -> PeerAgreement:
    """As the client: reach reactor `server_reactor` of the node `server`, or its volume of this id. Raises
    HandshakeFailed."""
    wire = _Wire(connection, f"node {server}")
    try:
        async with asyncio.timeout(seconds):
            hello = make_hello(me, server, reactor, server_reactor, volume)
            hello_bytes = messages.encode(hello)
            sent_ns = time.time_ns()
            await wire.send(hello_bytes)
            challenge = await wire.receive(Challenge)
            received_ns = time.time_ns()
            terms = check_challenge(me, hello, hello_bytes, challenge)
            await wire.send(messages.encode(Proof(messages.proof(me.key, "client", hello_bytes, challenge.terms))))
            await wire.receive(Welcome)
            credits = Credits(terms.requests, terms.bytes)
            ahead = clock_ahead(terms.time_ns, sent_ns, received_ns)
            return PeerAgreement(
                wire.hand_over(), terms.node, reactor, server_reactor, terms.version, credits, volume, ahead
            )
    except TimeoutError:
        raise TimedOut(f"node {server} did not complete the handshake within {seconds:g} s") from None
    except Malformed as malformed:
        raise HandshakeFailed(f"node {server} does not speak the peer protocol: {malformed}") from None
    finally:
        wire.close()


def clock_ahead(theirs_ns: int, sent_ns: int, received_ns: int) -> float:
    """Seconds by which a clock is at least ahead of this one, or behind it if negative. It was read between two
    readings of this one. 0: it may be the same."""
    if not theirs_ns or sent_ns <= theirs_ns <= received_ns:
        return 0.0
    return (theirs_ns - (received_ns if theirs_ns > received_ns else sent_ns)) / 1e9


def make_hello(me: Identity, server: str, reactor: int, server_reactor: int, volume: bytes = b"") -> Hello:
    """With a nonce of its own."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return Hello(PROTOCOL, me.cluster, me.node, reactor, server, server_reactor, me.versions, nonce, volume)


def check_challenge(me: Identity, hello: Hello, hello_bytes: bytes, challenge: Challenge) -> Terms:
    """What the server offers, if it has proved that it may. Raises HandshakeFailed, Malformed."""
    if not messages.proves(challenge.proof, me.key, "server", hello_bytes, challenge.terms):
        raise WrongKey(
            f"what answers for node {hello.server} does not have this cluster's key: compare the keys of both nodes"
        )
    terms = messages.decode_terms(challenge.terms)
    if terms.cluster != me.cluster:
        raise WrongCluster(f"node {hello.server} belongs to cluster {terms.cluster.hex()}, not {me.cluster.hex()}")
    if terms.node != hello.server:
        raise UnknownNode(f"node {terms.node} answers at the address of node {hello.server}: correct the address")
    if terms.nonce == hello.nonce:
        raise HandshakeFailed(f"node {hello.server} sent this node's own nonce back")
    if terms.version != messages.common_version(me.versions, terms.versions):
        raise IncompatibleVersion(f"node {terms.node} chose version {terms.version}, which was not to be chosen")
    return terms


# ---------------------------------------------------------------------- the server


async def accept(
    connection: socket.socket,
    me: Identity,
    *,
    knows: Callable[[str], bool],
    serves: Callable[[bytes], bool] = lambda volume: False,
    credits: Credits,
    seconds: float = SECONDS,
) -> PeerAgreement:
    """As the server. `knows` says whether a node of this name belongs to the cluster, `serves` whether this one serves
    the volume of this id. Raises HandshakeFailed."""
    wire = _Wire(connection, "the client")
    try:
        async with asyncio.timeout(seconds):
            try:
                return await _accept(wire, me, knows, serves, credits)
            except (Malformed, HandshakeFailed) as error:
                failed = (
                    error
                    if isinstance(error, HandshakeFailed)
                    else HandshakeFailed(f"a client does not speak the peer protocol: {error}")
                )
                reason = str(failed).encode()[:REASON_BYTES_MAX].decode(errors="ignore")
                with suppress(HandshakeFailed):  # whether or not it hears it, this is the reason of the failure
                    await wire.send(messages.encode(Refused(failed.code, reason)))
                raise failed from None
    except TimeoutError:
        raise TimedOut(f"a client did not complete the handshake within {seconds:g} s") from None
    finally:
        wire.close()


async def _accept(
    wire: _Wire, me: Identity, knows: Callable[[str], bool], serves: Callable[[bytes], bool], credits: Credits
) -> PeerAgreement:
    hello = await wire.receive(Hello)
    terms = make_terms(me, hello, credits)
    hello_bytes, terms_bytes = wire.last, messages.encode(terms)
    server_proof = messages.proof(me.key, "server", hello_bytes, terms_bytes)
    await wire.send(messages.encode(Challenge(terms_bytes, server_proof)))
    client_proof = await wire.receive(Proof)
    check_client(me, hello, messages.proves(client_proof.proof, me.key, "client", hello_bytes, terms_bytes), knows)
    if hello.volume and not serves(hello.volume):
        raise NotServed(f"node {me.node} does not serve volume {hello.volume.hex()}")
    await wire.send(messages.encode(Welcome()))
    return PeerAgreement(
        wire.hand_over(), hello.node, hello.reactor, hello.server_reactor, terms.version, credits, hello.volume
    )


def make_terms(me: Identity, hello: Hello, credits: Credits) -> Terms:
    """The server's offer to a client that is not authenticated yet. Raises HandshakeFailed."""
    if hello.protocol != PROTOCOL:
        raise HandshakeFailed(f"a client speaks {hello.protocol[:32]!r} instead of {PROTOCOL!r}")
    if hello.cluster != me.cluster:
        raise WrongCluster(
            f"node {hello.node} belongs to cluster {hello.cluster.hex()}, and node {me.node} to {me.cluster.hex()}"
        )
    version = messages.common_version(me.versions, hello.versions)
    if version is None:
        raise IncompatibleVersion(
            f"node {hello.node} speaks versions {_range(hello.versions)} of the peer protocol, and node {me.node} "
            f"speaks {_range(me.versions)}: update the older one"
        )
    nonce = secrets.token_bytes(NONCE_BYTES)
    return Terms(me.cluster, me.node, me.versions, version, credits.requests, credits.bytes, nonce, time.time_ns())


def check_client(me: Identity, hello: Hello, proved: bool, knows: Callable[[str], bool]) -> None:
    """Whether the client may have a connection. Raises HandshakeFailed."""
    if not proved:
        raise WrongKey(
            f"a client that calls itself node {hello.node} does not have this cluster's key: "
            "compare the keys of both nodes"
        )
    if hello.server != me.node:
        raise UnknownNode(
            f"node {hello.node} looks for node {hello.server}, and this is {me.node}: correct the address"
        )
    if hello.node == me.node:
        raise UnknownNode(f"a client calls itself {me.node}, which is this node: names of nodes must be unique")
    if not knows(hello.node):
        raise UnknownNode(f"node {hello.node} is not known to node {me.node}: add it to the cluster first")


def _range(versions: Versions) -> str:
    return f"{versions[0]}" if versions[0] == versions[1] else f"{versions[0]} to {versions[1]}"


# ---------------------------------------------------------------------- the socket


class _Wire:
    """Messages on a socket. It reads no byte beyond the message that it returns."""

    def __init__(self, connection: socket.socket, other: str) -> None:
        self._socket = connection
        self._other = other
        self.last = b""  # the message received last, as it was sent

    async def send(self, body: bytes) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, messages.framed(body))
        except OSError as error:
            raise HandshakeFailed(f"the connection to {self._other} broke: {error.strerror}") from None

    async def receive(self, expected: type[T]) -> T:
        """Raises Malformed; a refusal in place of a server's message as a HandshakeFailed."""
        self.last = await self._exactly(messages.length(await self._exactly(LENGTH_BYTES)))
        message = messages.decode(self.last)
        if isinstance(message, Refused) and expected in (Challenge, Welcome):
            failure = FAILURES.get(message.code, HandshakeFailed)
            raise failure(f"{self._other} refused the connection: {message.reason}")
        if not isinstance(message, expected):
            raise Malformed(f"it sent {type(message).__name__} instead of {expected.__name__}")
        return message

    def hand_over(self) -> int:
        """The descriptor, prepared for the engine."""
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE.items():
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._socket.setblocking(True)
        return self._socket.detach()

    def close(self) -> None:
        """Nothing, if the descriptor was handed over."""
        self._socket.close()

    async def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                arrived = await asyncio.get_running_loop().sock_recv(self._socket, count - len(data))
            except OSError as error:
                raise HandshakeFailed(f"the connection to {self._other} broke: {error.strerror}") from None
            if not arrived:
                raise HandshakeFailed(f"{self._other} closed the connection during the handshake")
            data += arrived
        return data
