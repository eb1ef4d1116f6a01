"""NBD's handshake, from the client's side of a socket pair: every option, and invalid input."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from iomesh.exports.nbd_handshake import Agreement, Handshake, HandshakeEnded, NbdExport

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT = (
    1,
    2,
    3,
    5,
    6,
    7,
    8,
    9,
    10,
)
EXTENDED_HEADERS = 11
ACK, SERVER, INFORMATION, META_CONTEXT = 1, 2, 3, 4
UNSUPPORTED, INVALID, UNKNOWN, TOO_BIG = (2**31 + kind for kind in (1, 3, 6, 9))
FLAGS_PLAIN, FLAGS_STRUCTURED = 0x0501, 0x0581


@dataclass
class Volume:
    name: str
    size_bytes: int
    read_only: bool = False
    volatile_cache: bool = False
    comparable: tuple[str, ...] = ()

    async def attach(self, fd: int, *, structured: bool, context_id: int | None, since: str | None) -> None:
        raise AssertionError("a handshake attaches nothing")


def flags(export: NbdExport, structured: bool) -> int:
    return (FLAGS_STRUCTURED if structured else FLAGS_PLAIN) | (2 if export.read_only else 0)


class Client:
    def __init__(self, end: socket.socket, servers_end: socket.socket, server: asyncio.Task[Agreement]) -> None:
        self.socket = end
        self.servers_end = servers_end
        self.server = server

    async def receive(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            arrived = await asyncio.get_running_loop().sock_recv(self.socket, count - len(received))
            assert arrived, f"the server hung up after {received!r}"
            received += arrived
        return received

    async def greet(self, client_flags: int = 3) -> None:
        assert await self.receive(18) == b"NBDMAGICIHAVEOPT\x00\x03"
        await self.send(struct.pack(">I", client_flags))

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Sends one and returns the replies, up to the last."""
        await self.send(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)
        replies = []
        while True:
            magic, answered, kind, length = struct.unpack(">QIII", await self.receive(20))
            assert (magic, answered) == (0x3E889045565A9, option)
            replies.append((kind, await self.receive(length)))
            if kind == ACK or kind & 2**31:
                return replies

    async def hung_up(self) -> bool:
        return await asyncio.get_running_loop().sock_recv(self.socket, 1) == b""

    async def agreement(self) -> Agreement:
        return await asyncio.wait_for(asyncio.shield(self.server), 120)

    async def why_it_ended(self) -> str:
        with pytest.raises(HandshakeEnded) as ended:
            await self.agreement()
        return str(ended.value)


@pytest.fixture
def exports() -> dict[str, NbdExport]:
    return {"books": Volume("books", 1 << 30), "bücher": Volume("bücher", 5 << 40, read_only=True)}


@pytest.fixture
async def client(exports: dict[str, NbdExport]) -> AsyncIterator[Client]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        server = asyncio.get_running_loop().create_task(Handshake(theirs, exports, flags).run())
        yield Client(ours, theirs, server)
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)


def info(name: bytes, *requests: int) -> bytes:
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(requests)}H", len(requests), *requests)


def meta(name: bytes, *queries: bytes) -> bytes:
    return (
        struct.pack(">I", len(name))
        + name
        + struct.pack(">I", len(queries))
        + b"".join(struct.pack(">I", len(query)) + query for query in queries)
    )


def error_kinds(replies: list[tuple[int, bytes]]) -> list[int]:
    return [kind for kind, _ in replies]


async def test_go_selects_an_export_and_returns_its_size_and_flags(client: Client) -> None:
    await client.greet()
    assert await client.option(GO, info(b"books")) == [
        (INFORMATION, struct.pack(">HQH", 0, 1 << 30, FLAGS_PLAIN)),
        (ACK, b""),
    ]
    agreed = await client.agreement()
    assert (agreed.export.name, agreed.structured, agreed.context_id) == ("books", False, None)


async def test_info_returns_what_is_requested_and_the_handshake_continues(client: Client) -> None:
    await client.greet()
    replies = await client.option(INFO, info("bücher".encode(), 1, 2, 3, 77))
    assert replies == [
        (INFORMATION, struct.pack(">HQH", 0, 5 << 40, FLAGS_PLAIN | 2)),
        (INFORMATION, b"\0\1" + "bücher".encode()),
        (INFORMATION, b"\0\2" + "iomesh volume bücher".encode()),
        (INFORMATION, struct.pack(">HIII", 3, 1, 4096, 32 << 20)),
        (ACK, b""),
    ]
    assert error_kinds(await client.option(GO, info(b"books"))) == [INFORMATION, ACK]


async def test_a_size_that_grew_is_what_the_next_client_hears(client: Client, exports: dict[str, NbdExport]) -> None:
    await client.greet()
    await client.option(INFO, info(b"books"))
    volume = exports["books"]
    assert isinstance(volume, Volume)
    volume.size_bytes = 2 << 30
    assert (await client.option(INFO, info(b"books")))[0] == (INFORMATION, struct.pack(">HQH", 0, 2 << 30, FLAGS_PLAIN))


async def test_export_name_sends_the_zero_padding_unless_the_client_declines_it(client: Client) -> None:
    await client.greet(client_flags=1)
    await client.send(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 5) + b"books")
    assert await client.receive(134) == struct.pack(">QH", 1 << 30, FLAGS_PLAIN) + bytes(124)
    assert (await client.agreement()).export.name == "books"


async def test_export_name_without_zeroes(client: Client) -> None:
    await client.greet()
    await client.send(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 5) + b"books")
    assert await client.receive(10) == struct.pack(">QH", 1 << 30, FLAGS_PLAIN)
    await client.agreement()


async def test_an_old_client_that_sets_no_flags_is_served(client: Client) -> None:
    await client.greet(client_flags=0)
    await client.send(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 5) + b"books")
    assert len(await client.receive(134)) == 134
    await client.agreement()


async def test_the_empty_name_is_the_only_export(client: Client, exports: dict[str, NbdExport]) -> None:
    await client.greet()
    [(kind, message)] = await client.option(GO, info(b""))
    assert kind == UNKNOWN
    assert b"name one" in message
    del exports["bücher"]
    assert error_kinds(await client.option(GO, info(b""))) == [INFORMATION, ACK]
    assert (await client.agreement()).export.name == "books"


async def test_list_names_every_export(client: Client) -> None:
    await client.greet()
    names = [b"books", "bücher".encode()]
    assert await client.option(LIST) == [*((SERVER, struct.pack(">I", len(name)) + name) for name in names), (ACK, b"")]


async def test_abort_is_acknowledged_and_ends_it(client: Client) -> None:
    await client.greet()
    assert await client.option(ABORT, b"goodbye") == [(ACK, b"")]
    assert await client.why_it_ended() == "it left"


async def test_structured_replies_are_agreed_and_change_the_flags(client: Client) -> None:
    await client.greet()
    assert await client.option(STRUCTURED_REPLY) == [(ACK, b"")]
    assert (await client.option(GO, info(b"books")))[0] == (
        INFORMATION,
        struct.pack(">HQH", 0, 1 << 30, FLAGS_STRUCTURED),
    )
    assert (await client.agreement()).structured


async def test_contexts_are_listed_and_chosen(client: Client) -> None:
    await client.greet()
    await client.option(STRUCTURED_REPLY)
    listed = [(META_CONTEXT, b"\0\0\0\0base:allocation"), (ACK, b"")]
    assert await client.option(LIST_META_CONTEXT, meta(b"books")) == listed
    assert await client.option(LIST_META_CONTEXT, meta(b"books", b"base:")) == listed
    assert await client.option(LIST_META_CONTEXT, meta(b"books", b"base:allocation", b"qemu:")) == listed
    assert await client.option(LIST_META_CONTEXT, meta(b"books", b"qemu:dirty-bitmap:x", b"base:other")) == [(ACK, b"")]
    assert await client.option(SET_META_CONTEXT, meta(b"books", b"base:allocation")) == [
        (META_CONTEXT, b"\0\0\0\1base:allocation"),
        (ACK, b""),
    ]
    await client.option(GO, info(b"books"))
    assert (await client.agreement()).context_id == 1


@pytest.mark.parametrize("queries", [(), (b"base:",), (b"base:nothing",), (b"x-other:y",)])
async def test_choosing_selects_only_what_is_named_in_full(client: Client, queries: tuple[bytes, ...]) -> None:
    await client.greet()
    await client.option(STRUCTURED_REPLY)
    await client.option(SET_META_CONTEXT, meta(b"books", b"base:allocation"))
    assert await client.option(SET_META_CONTEXT, meta(b"books", *queries)) == [(ACK, b"")]
    await client.option(GO, info(b"books"))
    assert (await client.agreement()).context_id is None


async def test_a_snapshot_reports_what_changed_since_an_older_one(
    client: Client, exports: dict[str, NbdExport]
) -> None:
    exports["books@friday"] = Volume("books@friday", 1 << 30, read_only=True, comparable=("monday", "tuesday"))
    since = b"iomesh:changed-since:"
    await client.greet()
    await client.option(STRUCTURED_REPLY)
    listed = [(META_CONTEXT, bytes(4) + since + b"monday"), (META_CONTEXT, bytes(4) + since + b"tuesday")]
    assert await client.option(LIST_META_CONTEXT, meta(b"books@friday")) == [
        *listed,
        (META_CONTEXT, b"\0\0\0\0base:allocation"),
        (ACK, b""),
    ]
    assert await client.option(LIST_META_CONTEXT, meta(b"books@friday", b"iomesh:")) == [*listed, (ACK, b"")]
    assert await client.option(LIST_META_CONTEXT, meta(b"books@friday", since)) == [*listed, (ACK, b"")]
    assert await client.option(LIST_META_CONTEXT, meta(b"books@friday", since + b"tuesday")) == [listed[1], (ACK, b"")]
    assert await client.option(SET_META_CONTEXT, meta(b"books@friday", since + b"sunday")) == [(ACK, b"")]
    assert await client.option(SET_META_CONTEXT, meta(b"books@friday", b"base:allocation", since + b"tuesday")) == [
        (META_CONTEXT, b"\0\0\0\2" + since + b"tuesday"),
        (ACK, b""),
    ]
    await client.option(GO, info(b"books@friday"))
    agreed = await client.agreement()
    assert (agreed.context_id, agreed.since) == (2, "tuesday")


async def test_a_context_counts_for_the_export_it_was_chosen_for(client: Client) -> None:
    await client.greet()
    await client.option(STRUCTURED_REPLY)
    await client.option(SET_META_CONTEXT, meta(b"books", b"base:allocation"))
    await client.option(GO, info("bücher".encode()))
    assert (await client.agreement()).context_id is None


async def test_a_choice_that_failed_leaves_none(client: Client) -> None:
    await client.greet()
    await client.option(STRUCTURED_REPLY)
    await client.option(SET_META_CONTEXT, meta(b"books", b"base:allocation"))
    assert error_kinds(await client.option(SET_META_CONTEXT, meta(b"books", b"base:allocation")[:-1])) == [INVALID]
    await client.option(GO, info(b"books"))
    assert (await client.agreement()).context_id is None


@pytest.mark.parametrize(
    ("option", "data", "kind", "word"),
    [
        (STARTTLS, b"", UNSUPPORTED, "encrypt"),
        (EXTENDED_HEADERS, b"", UNSUPPORTED, "option 11"),
        (4, b"anything", UNSUPPORTED, "option 4"),
        (2**32 - 1, b"", UNSUPPORTED, "option 4294967295"),
        (LIST, b"x", INVALID, "no data"),
        (STRUCTURED_REPLY, b"x", INVALID, "no data"),
        (LIST_META_CONTEXT, meta(b"books"), INVALID, "structured"),
        (SET_META_CONTEXT, meta(b"books"), INVALID, "structured"),
        (GO, b"", INVALID, "the length of the export's name"),
        (GO, b"\0\0\0\6books", INVALID, "ends within the export's name"),
        (GO, info(b"books")[:-1], INVALID, "number of information requests"),
        (GO, info(b"books") + b"\0", INVALID, "1 bytes too many"),
        (GO, struct.pack(">I5sH", 5, b"books", 9) + b"\0\3", INVALID, "information requests"),
        (GO, info(b"b\xffoks"), INVALID, "UTF-8"),
        (GO, info(b"books\0"), INVALID, "zero byte"),
        (GO, info(b"x" * 4097), INVALID, "4097 bytes"),
        (GO, info(b"nobody"), UNKNOWN, "'nobody'"),
        (INFO, info(b"nobody"), UNKNOWN, "'nobody'"),
    ],
)
async def test_a_refused_option_names_the_reason_and_the_next_one_is_answered(
    client: Client, option: int, data: bytes, kind: int, word: str
) -> None:
    await client.greet()
    [(answered, message)] = await client.option(option, data)
    assert (answered, word in message.decode()) == (kind, True), message
    assert error_kinds(await client.option(GO, info(b"books"))) == [INFORMATION, ACK]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (meta(b"nobody", b"base:allocation"), UNKNOWN),
        (meta(b"books", *[b"x"] * 65), TOO_BIG),
        (meta(b"books")[:-4] + struct.pack(">I", 2**32 - 1), TOO_BIG),
        (meta(b"books", b"base:allocation") + b"x", INVALID),
        (meta(b"books", b"x" * 4097), INVALID),
    ],
)
async def test_a_context_query_that_is_refused(client: Client, data: bytes, kind: int) -> None:
    await client.greet()
    await client.option(STRUCTURED_REPLY)
    assert error_kinds(await client.option(LIST_META_CONTEXT, data)) == [kind]
    assert error_kinds(await client.option(SET_META_CONTEXT, data)) == [kind]


@pytest.mark.parametrize("client_flags", [4, 1 << 31, 0xFFFFFFFF])
async def test_flags_that_do_not_exist_end_it(client: Client, client_flags: int) -> None:
    await client.greet(client_flags)
    assert "flags" in await client.why_it_ended()


async def test_a_wrong_magic_ends_it(client: Client) -> None:
    await client.greet()
    await client.send(b"IHAVEOPS" + struct.pack(">II", LIST, 0))
    assert "IHAVEOPS" in await client.why_it_ended()


async def test_an_option_without_measure_ends_it(client: Client) -> None:
    await client.greet()
    await client.send(b"IHAVEOPT" + struct.pack(">II", LIST, 2**32 - 1))
    assert "4294967295 bytes" in await client.why_it_ended()


@pytest.mark.parametrize("name", [b"nobody", b"\xff", b"x" * 5000])
async def test_export_name_of_what_is_not_there_ends_it(client: Client, name: bytes) -> None:
    await client.greet()
    await client.send(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, len(name)) + name)
    await client.why_it_ended()


@pytest.mark.parametrize("heard", [b"", b"\0\0", b"\0\0\0\3IHAV", b"\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\xffbook"])
async def test_a_client_that_leaves_in_the_middle_ends_it(client: Client, heard: bytes) -> None:
    assert len(await client.receive(18)) == 18
    await client.send(heard)
    client.socket.shutdown(socket.SHUT_WR)
    assert await client.why_it_ended() == "it hung up"


async def test_a_client_that_asks_for_ever_is_left(client: Client) -> None:
    await client.greet()
    for _ in range(1023):
        await client.option(STRUCTURED_REPLY)
    await client.option(STRUCTURED_REPLY)
    assert "1024 options" in await client.why_it_ended()


async def test_what_is_sent_ahead_stays_in_the_socket_for_the_next_phase(client: Client) -> None:
    ahead = b"\x25\x60\x95\x13" + b"a request, sent without waiting"
    data = info(b"books")
    await client.send(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", GO, len(data)) + data + ahead)
    await client.agreement()
    assert client.servers_end.recv(1000) == ahead


async def test_each_byte_on_its_own_is_understood(client: Client) -> None:
    assert len(await client.receive(18)) == 18
    data = info(b"books", 3)
    for byte in struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", GO, len(data)) + data:
        await client.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await client.agreement()).export.name == "books"
