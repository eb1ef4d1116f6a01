"""Generic netlink, as much of it as the kernel's NBD client needs (linux/genetlink.h, linux/nbd-netlink.h).

The client's family exists only in the initial network namespace, and needs CAP_SYS_ADMIN. A device that was connected
by netlink keeps its sockets itself: no process has to stay for it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Self

FAMILY = "nbd"
_GROUP = "nbd_mc_group"

# struct nlmsghdr: length, type, flags, sequence, port; struct genlmsghdr: command, version, reserved
_HEADER, _COMMAND, _ATTRIBUTE, _ERROR = (struct.Struct(form) for form in ("=IHHII", "=BBH", "=HH", "=i"))
_REQUEST, _ACK = 1, 4
_MESSAGE_ERROR = 2
_NETLINK_GENERIC, _SOL_NETLINK, _ADD_MEMBERSHIP = 16, 270, 1
_CONTROL, _GET_FAMILY = 0x10, 3
_FAMILY_ID, _FAMILY_NAME, _FAMILY_GROUPS, _GROUP_NAME, _GROUP_ID = 1, 2, 7, 1, 2
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_BYTES_MAX = 1 << 16

_CONNECT, _DISCONNECT, _RECONFIGURE, _LINK_DEAD = 1, 2, 3, 4
_INDEX, _SIZE, _BLOCK_SIZE, _FLAGS, _SOCKETS, _DEAD_TIMEOUT, _BACKEND = 1, 2, 3, 5, 7, 8, 10
_SOCKET_ITEM, _SOCKET_FD = 1, 1

Attributes = dict[int, bytes]


class NbdFamily:
    """The kernel's NBD client. Raises FileNotFoundError if the kernel has none, or shows none to this network
    namespace. Its methods raise OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
        try:
            self._socket.bind((0, 0))
            (found,) = self._call(_CONTROL, _GET_FAMILY, _text(_FAMILY_NAME, FAMILY))
            self._family = int.from_bytes(found[_FAMILY_ID], "little")
            groups = (_parsed(each) for each in _parsed(found[_FAMILY_GROUPS]).values())
            self._group = next(
                int.from_bytes(each[_GROUP_ID], "little") for each in groups if each[_GROUP_NAME] == _z(_GROUP)
            )
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def connect(
        self,
        connection: socket.socket,
        *,
        backend: str,
        size_bytes: int,
        block_bytes: int,
        flags: int,
        dead_seconds: int,
    ) -> int:
        """Makes a device of a socket in the transmission phase, and returns its number. Without a timeout of requests:
        a connection ends when its socket does, not because an answer is late."""
        answers = self._call(
            self._family,
            _CONNECT,
            _number(_SIZE, size_bytes),
            _number(_BLOCK_SIZE, block_bytes),
            _number(_FLAGS, flags),
            _number(_DEAD_TIMEOUT, dead_seconds),
            _text(_BACKEND, backend),
            _sockets(connection),
        )
        return next(int.from_bytes(each[_INDEX], "little") for each in answers if _INDEX in each)

    def reconnect(self, index: int, backend: str, connection: socket.socket) -> None:
        """Replaces a socket that has ended; if none has, the new one is left alone."""
        self._call(self._family, _RECONFIGURE, _index(index), _text(_BACKEND, backend), _sockets(connection))

    def resize(self, index: int, backend: str, size_bytes: int) -> None:
        self._call(self._family, _RECONFIGURE, _index(index), _text(_BACKEND, backend), _number(_SIZE, size_bytes))

    def disconnect(self, index: int) -> None:
        """At once, also while the device is used: its requests fail."""
        self._call(self._family, _DISCONNECT, _index(index))

    def listen(self) -> socket.socket:
        """From now on `ended` returns the devices whose connection ends. The socket can be waited for."""
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, self._group)
        self._socket.setblocking(False)
        return self._socket

    def ended(self) -> list[int] | None:
        """The numbers of devices whose connections have ended, without waiting; None: some of them were lost."""
        found: list[int] = []
        while True:
            try:
                answer = self._socket.recv(_BYTES_MAX)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return None
                raise
            for kind, body in _messages(answer):
                if kind == self._family and body[0] == _LINK_DEAD:
                    found.append(int.from_bytes(_parsed(body[_COMMAND.size :])[_INDEX], "little"))

    def _call(self, kind: int, command: int, *attributes: bytes) -> list[Attributes]:
        body = _COMMAND.pack(command, 1, 0) + b"".join(attributes)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK, 0, 0) + body)
        answers: list[Attributes] = []
        while True:
            for found, content in _messages(self._socket.recv(_BYTES_MAX)):
                if found != _MESSAGE_ERROR:
                    answers.append(_parsed(content[_COMMAND.size :]))
                    continue
                number = -_ERROR.unpack_from(content)[0]
                if number:
                    raise OSError(number, os.strerror(number))
                return answers


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and content of each."""
    while data:
        length, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _parsed(data: bytes) -> Attributes:
    found: Attributes = {}
    while data:
        length, kind = _ATTRIBUTE.unpack_from(data)
        found[kind & _TYPE_MASK] = data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]
    return found


def _attribute(kind: int, content: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(content)
    return _ATTRIBUTE.pack(length, kind) + content + bytes(_aligned(length) - length)


def _index(index: int) -> bytes:
    return _attribute(_INDEX, struct.pack("=I", index))


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=Q", value))


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, _z(text))


def _sockets(connection: socket.socket) -> bytes:
    item = _attribute(_SOCKET_FD, struct.pack("=I", connection.fileno()))
    return _attribute(_SOCKETS, _attribute(_SOCKET_ITEM, item))


def _z(text: str) -> bytes:
    return text.encode() + b"\0"


def _aligned(length: int) -> int:
    return (length + 3) & ~3
