"""A minimal NBD client for what fio cannot do: poll whether a volume is served, and hold an idle connection."""

import contextlib
import socket
import struct
import time
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

NBD_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698
CLIENT_FLAGS = 3  # fixed newstyle, no zeroes
OPTION_GO = 7
REPLY_ACK, REPLY_INFO = 1, 3
INFO_EXPORT = 0
COMMAND_READ, COMMAND_WRITE, COMMAND_DISCONNECT = 0, 1, 2


class NbdError(Exception):
    """The server violates the protocol, or refuses."""


class Client:
    """A connection in the transmission phase, with simple replies."""

    def __init__(self, uri: str, *, timeout_seconds: float = 30) -> None:
        parts = urlsplit(uri)
        query = parse_qs(parts.query)
        if parts.scheme == "nbd+unix":
            self._socket = socket.socket(socket.AF_UNIX)
            address: str | tuple[str, int] = query["socket"][0]
        elif parts.scheme == "nbd":
            self._socket = socket.socket()
            address = (parts.hostname or "localhost", parts.port or 10809)
        else:
            raise NbdError(f"{uri} is not an NBD URI that is understood here: use nbd:// or nbd+unix://")
        self._socket.settimeout(timeout_seconds)
        try:
            self._socket.connect(address)
            self.size_bytes = self._go(unquote(parts.path.removeprefix("/")))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, offset: int, length: int) -> bytes:
        self._socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, COMMAND_READ, 1, offset, length))
        magic, error, _ = struct.unpack(">IIQ", self._receive(16))
        if magic != REPLY_MAGIC:
            raise NbdError(f"the reply begins with {magic:#x}")
        if error:
            raise OSError(error, f"reading {length} bytes at {offset}")
        return self._receive(length)

    def send_write(self, offset: int, data: bytes) -> None:
        """Does not wait for the answer: receive_written() does."""
        self._socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, COMMAND_WRITE, 1, offset, len(data)) + data)

    def receive_written(self) -> None:
        """Waits for the answer to one of the writes sent."""
        magic, error, _ = struct.unpack(">IIQ", self._receive(16))
        if magic != REPLY_MAGIC:
            raise NbdError(f"the reply begins with {magic:#x}")
        if error:
            raise OSError(error, "writing")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, COMMAND_DISCONNECT, 2, 0, 0))
        self._socket.close()

    def _go(self, export: str) -> int:
        magic, option_magic, _ = struct.unpack(">QQH", self._receive(18))
        if (magic, option_magic) != (NBD_MAGIC, OPTION_MAGIC):
            raise NbdError("the server does not greet as NBD's newstyle does")
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._socket.sendall(
            struct.pack(">I", CLIENT_FLAGS) + struct.pack(">QII", OPTION_MAGIC, OPTION_GO, len(data)) + data
        )
        size = None
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != OPTION_REPLY_MAGIC:
                raise NbdError(f"an option's reply begins with {magic:#x}")
            body = self._receive(length)
            if kind == REPLY_INFO and struct.unpack(">H", body[:2])[0] == INFO_EXPORT:
                size = struct.unpack(">Q", body[2:10])[0]
            elif kind == REPLY_ACK and size is not None:
                return int(size)
            elif kind != REPLY_INFO:
                raise NbdError(f"the server refuses export {export!r} ({kind:#x}): {body.decode(errors='replace')}")

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            more = self._socket.recv(length - len(data))
            if not more:
                raise NbdError("the server closed the connection")
            data += more
        return bytes(data)


def served_after(uri: str, since: float, *, timeout_seconds: float = 120) -> float:
    """Seconds from `since` (of time.monotonic) until the first block could be read."""
    while True:
        try:
            with Client(uri) as client:
                client.read(0, 4096)
                return time.monotonic() - since
        except (OSError, NbdError) as error:
            if time.monotonic() - since > timeout_seconds:
                raise TimeoutError(f"{uri} is not served after {timeout_seconds:g} s: {error}") from error
            time.sleep(0.005)
