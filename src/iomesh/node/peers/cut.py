"""Cuts this node off from the others while a file exists, for trials: as if the network between them had failed.

Nothing that other nodes send arrives: a filter in the kernel drops it at each of the sockets. TCP does not end such a
connection, the node is silent, and so are the others for it. New connections are not answered. When the file is gone,
TCP sends again what was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from iomesh.node.config import address_text
from iomesh.node.logs import logger
from iomesh.node.supervisor import SupervisedTask

log = logger("peers")

LOOK_SECONDS = 0.02

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # include/uapi/asm-generic/socket.h
BPF_RET_0 = struct.pack("HBBI", 0x06, 0, 0, 0)  # struct sock_filter: accept 0 bytes of any packet


class Cut:
    def __init__(self, file: Path, addresses: Callable[[], set[str]]) -> None:
        """addresses: of this node and of the others, for connections between nodes."""
        self._file = file
        self._addresses = addresses
        self._active = False

    async def follow(self, task: SupervisedTask) -> None:
        """In a background task."""
        while True:
            before, self._active = self._active, self._file.exists()
            if before or self._active:
                for connection in _tcp_sockets():
                    if not self._addresses().isdisjoint(_ends(connection)):
                        (_attach if self._active else _detach)(connection)
            if before != self._active:
                log.warning("cut off from other nodes" if self._active else "not cut off from other nodes any more")
            task.progress()
            await asyncio.sleep(LOOK_SECONDS)

    def apply(self, connection: socket.socket) -> None:
        """To a socket that is about to connect."""
        if self._active:
            _attach(connection)


def _ends(connection: socket.socket) -> Iterator[str]:
    for name in (connection.getsockname, connection.getpeername):
        with contextlib.suppress(OSError):  # not connected
            host, port, *_ = name()
            yield address_text(host, port)


def _attach(connection: socket.socket) -> None:
    code = ctypes.create_string_buffer(BPF_RET_0)
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(code))  # struct sock_fprog
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _detach(connection: socket.socket) -> None:
    with contextlib.suppress(FileNotFoundError):  # it had none
        connection.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _tcp_sockets() -> Iterator[socket.socket]:
    """Of this process, each as a duplicate: the engine may close its own meanwhile."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            fd = os.dup(int(entry.name))
        except OSError:
            continue
        try:
            connection = socket.socket(fileno=fd)
        except OSError:  # it is none
            os.close(fd)
            continue
        with connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                yield connection
