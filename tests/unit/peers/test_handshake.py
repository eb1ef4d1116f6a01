"""Two nodes recognize each other; who lacks the key, the cluster or the version is told so and gets no connection."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from iomesh.peers import messages
from iomesh.peers.handshake import (
    Credits,
    HandshakeFailed,
    Identity,
    IncompatibleVersion,
    PeerAgreement,
    TimedOut,
    UnknownNode,
    WrongCluster,
    WrongKey,
    accept,
    check_challenge,
    connect,
    make_hello,
    make_terms,
)
from iomesh.peers.messages import Challenge, Hello, Malformed, Proof, Refused, Terms, Welcome

CLUSTER, KEY = b"cluster-of-tests", b"k" * 32
OWNER, HOLDER = Identity(CLUSTER, "owner", KEY), Identity(CLUSTER, "holder", KEY)
CREDITS = Credits(64, 8 << 20)
LONG = 120.0  # seconds: never reached unless something hangs


def everyone(_node: str) -> bool:
    return True


def pair() -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


async def shake(
    client: Identity = OWNER,
    server: Identity = HOLDER,
    *,
    wanted: str = "holder",
    knows: Callable[[str], bool] = everyone,
) -> tuple[PeerAgreement | HandshakeFailed, PeerAgreement | HandshakeFailed]:
    """What the client and the server got."""
    ours, theirs = pair()
    outcome: tuple[Any, Any] = await asyncio.gather(
        connect(ours, client, server=wanted, reactor=2, server_reactor=3, seconds=LONG),
        accept(theirs, server, knows=knows, credits=CREDITS, seconds=LONG),
        return_exceptions=True,
    )
    for one, connection in zip(outcome, (ours, theirs), strict=True):
        assert isinstance(one, PeerAgreement | HandshakeFailed), repr(one)
        assert connection.fileno() == -1, "the socket is closed or handed over"
    return outcome[0], outcome[1]


def closed(*agreements: PeerAgreement | HandshakeFailed) -> None:
    for agreement in agreements:
        assert isinstance(agreement, PeerAgreement)
        os.close(agreement.fd)


# ---------------------------------------------------------------------- agreement


async def test_both_sides_agree_on_nodes_reactors_version_and_credits() -> None:
    ours, theirs = await shake()
    assert isinstance(ours, PeerAgreement) and isinstance(theirs, PeerAgreement)
    assert (ours.node, theirs.node) == ("holder", "owner")
    assert (ours.reactor, ours.server_reactor) == (theirs.reactor, theirs.server_reactor) == (2, 3)
    assert (ours.version, theirs.version) == (1, 1)
    assert ours.credits == theirs.credits == CREDITS
    closed(ours, theirs)


async def test_the_descriptors_carry_the_connection_and_no_byte_of_it_is_lost() -> None:
    ours, theirs = pair()
    accepting = asyncio.create_task(accept(theirs, HOLDER, knows=everyone, credits=CREDITS, seconds=LONG))
    agreement = await connect(ours, OWNER, server="holder", reactor=0, server_reactor=0, seconds=LONG)
    os.write(agreement.fd, b"first request")  # before the server's handshake task has run on
    served = await accepting
    assert os.get_blocking(agreement.fd) and os.get_blocking(served.fd)
    assert os.read(served.fd, 100) == b"first request"
    os.write(served.fd, b"first reply")
    assert os.read(agreement.fd, 100) == b"first reply"
    closed(agreement, served)


async def test_the_highest_common_version_is_chosen() -> None:
    ours, theirs = await shake(replace(OWNER, versions=(1, 4)), replace(HOLDER, versions=(2, 7)))
    assert isinstance(ours, PeerAgreement) and isinstance(theirs, PeerAgreement)
    assert ours.version == theirs.version == 4
    closed(ours, theirs)


async def test_a_tcp_connection_is_prepared_for_the_engine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    agreements = await asyncio.gather(
        connect(ours, OWNER, server="holder", reactor=0, server_reactor=0, seconds=LONG),
        accept(theirs, HOLDER, knows=everyone, credits=CREDITS, seconds=LONG),
    )
    for agreement in agreements:
        with socket.socket(fileno=agreement.fd) as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


# ---------------------------------------------------------------------- refusals


async def test_another_cluster_is_refused_with_both_ids() -> None:
    ours, theirs = await shake(replace(OWNER, cluster=b"a-different-one-"))
    assert isinstance(ours, WrongCluster) and isinstance(theirs, WrongCluster)
    assert CLUSTER.hex() in str(ours) and b"a-different-one-".hex() in str(ours)


@pytest.mark.parametrize("side", ["client", "server"])
async def test_another_key_is_refused_by_the_side_that_notices_it_first(side: str) -> None:
    wrong = b"another key, of the right length"
    if side == "client":
        ours, theirs = await shake(replace(OWNER, key=wrong))
    else:
        ours, theirs = await shake(server=replace(HOLDER, key=wrong))
    assert isinstance(ours, WrongKey)
    assert "compare the keys" in str(ours)
    assert isinstance(theirs, HandshakeFailed)


async def test_a_client_without_the_key_is_told_so() -> None:
    async with served() as (ours, accepting):
        hello = messages.encode(make_hello(OWNER, "holder", 0, 0))
        await say(ours, hello)
        assert isinstance(await hear(ours), Challenge)
        await say(ours, messages.encode(Proof(bytes(32))))
        refused = await hear(ours)
        assert isinstance(refused, Refused) and refused.code == "key"
        with pytest.raises(WrongKey, match="owner does not have this cluster's key"):
            await accepting


@pytest.mark.parametrize(("ours", "theirs"), [((1, 2), (3, 5)), ((4, 9), (1, 3))])
async def test_incompatible_versions_are_refused_with_both_ranges(
    ours: tuple[int, int], theirs: tuple[int, int]
) -> None:
    client, server = await shake(replace(OWNER, versions=ours), replace(HOLDER, versions=theirs))
    for failure in (client, server):
        assert isinstance(failure, IncompatibleVersion)
        assert f"{ours[0]} to {ours[1]}" in str(failure) and f"{theirs[0]} to {theirs[1]}" in str(failure)


async def test_an_unknown_node_is_refused_after_it_has_proved_the_key() -> None:
    ours, theirs = await shake(knows=lambda node: node == "somebody else")
    assert isinstance(ours, UnknownNode) and isinstance(theirs, UnknownNode)
    assert "node owner is not known to node holder" in str(ours)


async def test_a_node_that_is_not_the_wanted_one_is_noticed() -> None:
    ours, _ = await shake(wanted="third")
    assert isinstance(ours, UnknownNode)
    assert "node holder answers at the address of node third" in str(ours)


async def test_a_node_with_this_node_s_name_is_refused() -> None:
    ours, _ = await shake(replace(OWNER, node="holder"))
    assert isinstance(ours, UnknownNode)
    assert "must be unique" in str(ours)


def test_a_short_key_is_refused_and_a_key_is_never_printed() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        Identity(CLUSTER, "owner", b"k" * 31)
    assert "kkk" not in repr(OWNER)


# ---------------------------------------------------------------------- attacks


@asynccontextmanager
async def served(me: Identity = HOLDER) -> AsyncIterator[tuple[socket.socket, asyncio.Task[PeerAgreement]]]:
    """A client's socket, whose other end a server reads."""
    ours, theirs = pair()
    with ours:
        yield ours, asyncio.create_task(accept(theirs, me, knows=everyone, credits=CREDITS, seconds=LONG))


async def say(connection: socket.socket, body: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, messages.framed(body))


async def hear(connection: socket.socket) -> messages.Message:
    loop = asyncio.get_running_loop()
    prefix = await loop.sock_recv(connection, 4)
    body = b""
    while len(body) < messages.length(prefix):
        body += await loop.sock_recv(connection, messages.length(prefix) - len(body))
    return messages.decode(body)


async def test_a_recorded_handshake_cannot_be_repeated() -> None:
    async with served() as (ours, accepting):
        hello = messages.encode(make_hello(OWNER, "holder", 0, 0))
        await say(ours, hello)
        challenge = await hear(ours)
        assert isinstance(challenge, Challenge)
        recorded = messages.encode(Proof(messages.proof(KEY, "client", hello, challenge.terms)))
        await say(ours, recorded)
        assert isinstance(await hear(ours), Welcome)
        os.close((await accepting).fd)
    async with served() as (ours, accepting):
        await say(ours, hello)
        assert isinstance(await hear(ours), Challenge)
        await say(ours, recorded)
        refused = await hear(ours)
        assert isinstance(refused, Refused) and refused.code == "key"
        with pytest.raises(WrongKey):
            await accepting


async def test_a_server_s_own_proof_is_no_client_s() -> None:
    async with served() as (ours, accepting):
        await say(ours, messages.encode(make_hello(OWNER, "holder", 0, 0)))
        challenge = await hear(ours)
        assert isinstance(challenge, Challenge)
        await say(ours, messages.encode(Proof(challenge.proof)))
        refused = await hear(ours)
        assert isinstance(refused, Refused) and refused.code == "key"
        with pytest.raises(WrongKey):
            await accepting


@pytest.mark.parametrize("changed", ["cluster", "node", "versions", "version", "requests", "bytes", "nonce"])
def test_no_term_can_be_changed_on_the_way(changed: str) -> None:
    hello = make_hello(OWNER, "holder", 0, 0)
    terms = make_terms(HOLDER, hello, CREDITS)
    proof = messages.proof(KEY, "server", messages.encode(hello), messages.encode(terms))
    assert check_challenge(OWNER, hello, messages.encode(hello), Challenge(messages.encode(terms), proof)) == terms
    values: dict[str, Any] = {
        "cluster": b"x" * 16, "node": "other", "versions": (1, 2), "version": 2, "requests": 65, "bytes": 9 << 20,
        "nonce": b"n" * 32,
    }  # fmt: skip
    forged = messages.encode(msgspec.structs.replace(terms, **{changed: values[changed]}))
    with pytest.raises(WrongKey):
        check_challenge(OWNER, hello, messages.encode(hello), Challenge(forged, proof))


@pytest.mark.parametrize("changed", ["node", "reactor", "server", "server_reactor", "versions", "nonce"])
def test_nothing_of_the_hello_can_be_changed_on_the_way(changed: str) -> None:
    hello = make_hello(OWNER, "holder", 0, 0)
    values: dict[str, Any] = {
        "node": "other", "reactor": 1, "server": "other", "server_reactor": 1, "versions": (1, 2), "nonce": b"n" * 32,
    }  # fmt: skip
    seen = msgspec.structs.replace(hello, **{changed: values[changed]})
    terms = messages.encode(make_terms(HOLDER, seen, CREDITS))
    proof = messages.proof(KEY, "server", messages.encode(seen), terms)
    with pytest.raises(WrongKey):
        check_challenge(OWNER, hello, messages.encode(hello), Challenge(terms, proof))


def challenged(**terms: Any) -> tuple[Hello, bytes, Challenge]:
    """A server with the key that offers these terms."""
    hello = make_hello(OWNER, "holder", 0, 0)
    offered = messages.encode(msgspec.structs.replace(make_terms(HOLDER, hello, CREDITS), **terms))
    encoded = messages.encode(hello)
    return hello, encoded, Challenge(offered, messages.proof(KEY, "server", encoded, offered))


@pytest.mark.parametrize(
    ("terms", "failure"),
    [
        ({"cluster": b"x" * 16}, WrongCluster),
        ({"node": "other"}, UnknownNode),
        ({"version": 2}, IncompatibleVersion),
        ({"version": 2, "versions": (2, 2)}, IncompatibleVersion),
        ({"bytes": 4096}, Malformed),
        ({"requests": 0}, Malformed),
    ],
)
def test_terms_that_do_not_fit_are_refused_though_they_are_proved(
    terms: dict[str, Any], failure: type[Exception]
) -> None:
    with pytest.raises(failure):
        check_challenge(OWNER, *challenged(**terms))


def test_a_nonce_that_comes_back_is_refused() -> None:
    hello = make_hello(OWNER, "holder", 0, 0)
    terms = Terms(CLUSTER, "holder", (1, 1), 1, 64, 8 << 20, hello.nonce)
    encoded, offered = messages.encode(hello), messages.encode(terms)
    with pytest.raises(HandshakeFailed, match="own nonce"):
        check_challenge(OWNER, hello, encoded, Challenge(offered, messages.proof(KEY, "server", encoded, offered)))


def test_nonces_are_new_each_time() -> None:
    hellos = [make_hello(OWNER, "holder", 0, 0) for _ in range(100)]
    assert len({hello.nonce for hello in hellos}) == 100
    assert len({make_terms(HOLDER, hellos[0], CREDITS).nonce for _ in range(100)}) == 100


# ---------------------------------------------------------------------- nonsense


@pytest.mark.parametrize(
    "sent",
    [
        (5000).to_bytes(4, "big"),
        bytes(4),
        messages.framed(b"\xc1"),
        messages.framed(msgspec.msgpack.encode({"type": "unknown"})),
        messages.framed(msgspec.msgpack.encode({"type": "hello", "node": "x"})),
        messages.framed(messages.encode(Welcome())),
        messages.framed(messages.encode(Refused("key", "no"))),
    ],
)
async def test_what_is_no_hello_is_answered_with_a_reason(sent: bytes) -> None:
    async with served() as (ours, accepting):
        await asyncio.get_running_loop().sock_sendall(ours, sent)
        refused = await hear(ours)
        assert isinstance(refused, Refused) and refused.code == "message"
        with pytest.raises(HandshakeFailed, match="does not speak the peer protocol"):
            await accepting


async def test_another_protocol_is_named() -> None:
    async with served() as (ours, accepting):
        hello = msgspec.structs.replace(make_hello(OWNER, "holder", 0, 0), protocol="something")
        await say(ours, messages.encode(hello))
        with pytest.raises(HandshakeFailed, match="'something'"):
            await accepting


async def test_a_client_that_leaves_or_says_nothing_costs_a_handshake_and_no_more() -> None:
    async with served() as (ours, accepting):
        await asyncio.get_running_loop().sock_sendall(ours, messages.framed(b"x" * 100)[:50])
        ours.close()
        with pytest.raises(HandshakeFailed, match="closed the connection"):
            await accepting
    ours, theirs = pair()
    with ours, pytest.raises(TimedOut, match=r"within 0\.01 s"):
        await accept(theirs, HOLDER, knows=everyone, credits=CREDITS, seconds=0.01)
    assert theirs.fileno() == -1


async def test_a_server_that_says_nothing_is_given_up() -> None:
    ours, theirs = pair()
    with theirs, pytest.raises(TimedOut, match="node holder did not complete"):
        await connect(ours, OWNER, server="holder", reactor=0, server_reactor=0, seconds=0.01)
    assert ours.fileno() == -1


def test_the_longest_names_fit_into_a_message() -> None:
    name = "\U0001f642" * 255
    hello = make_hello(Identity(CLUSTER, name, KEY), name, 0, 0)
    assert messages.decode(messages.framed(messages.encode(hello))[4:]) == hello


def test_the_longest_reason_fits_into_a_message() -> None:
    reason = ("\U0001f642" * 1024).encode()[:1024].decode()
    assert len(messages.framed(messages.encode(Refused("message", reason)))) < 2000
