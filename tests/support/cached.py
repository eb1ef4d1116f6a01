"""A device with a volatile write cache that can be lost, and with injected flush errors.

Our own NBD server serves a trial's device file, and nbdfuse replaces the file: the daemon opens what looks like the
same file. Its writes stay in the server's memory until a flush succeeds. The server is a separate process, so the
kernel never waits for the test's process.
"""

import asyncio
import contextlib
import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from support.run import end, eventually, run, tool

BLOCK = 4096
READ, WRITE, DISCONNECT, FLUSH = range(4)
FLAGS = 0b101  # NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH
OPTION_EXPORT_NAME, OPTION_ABORT, OPTION_GO = 1, 2, 7
REPLY_ACK, REPLY_INFO, REPLY_UNSUPPORTED = 1, 3, 0x80000001

# Effect of a failed flush on unflushed writes:
KEEPS = "keeps"  # no effect: the next flush may make them stable
DROPS = "drops"  # they are lost
FORGETS = "forgets"  # reads still return them, but no flush makes them stable


class CachedDevice:
    """Replaces `device` (of a trial that is not running) until `remove`."""

    def __init__(self, device: Path, room: Path) -> None:
        if os.geteuid() != 0 or not Path("/dev/fuse").exists():
            pytest.skip("needs root and /dev/fuse: nbdfuse mounts")
        self.device = device
        self.folder = room / f"cached-{device.stem}"
        self.folder.mkdir()
        self._backing = self.folder / "backing"
        self._mount = self.folder / "fuse"
        self._mount.mkdir()
        device.rename(self._backing)
        device.symlink_to(self._mount / "disk")
        self._server: subprocess.Popen[bytes] | None = None
        self._fuse: subprocess.Popen[bytes] | None = None
        self.switch_on()

    def fail_flushes(self, how: str, *, most: int = 0) -> None:
        """Flushes fail from now on; most: after this many they succeed (0: no limit)."""
        waiting = self._trigger.with_suffix(".new")
        waiting.write_text(f"{how} {most or 1 << 60}")
        waiting.rename(self._trigger)

    def heal(self) -> None:
        self._trigger.unlink(missing_ok=True)

    @property
    def failures(self) -> int:
        """Number of failed flushes so far."""
        log = self.folder / "failures"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def switch_on(self) -> None:
        socket = self.folder / "socket"
        socket.unlink(missing_ok=True)
        self._server = subprocess.Popen(
            [sys.executable, __file__, self._backing, socket, self.folder],
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"PYTHONPATH": "."},
        )
        eventually(socket.exists, what="the device's server listens")
        self._fuse = subprocess.Popen(
            [tool("nbdfuse", "nbdfuse"), self._mount / "disk", f"nbd+unix:///?socket={socket}"]
        )
        eventually((self._mount / "disk").exists, what="nbdfuse makes a file of the device")

    def cut_power(self) -> None:
        """Drops unflushed writes and reconnects the device; the daemon must not run."""
        self._end()
        self.switch_on()

    def remove(self) -> None:
        """Restores the plain file; the daemon must not run."""
        self._end()
        if self._backing.exists():
            self.device.unlink(missing_ok=True)
            self._backing.rename(self.device)

    def _end(self) -> None:
        if run(["umount", self._mount], succeeds=False).returncode != 0:
            run(["umount", "-l", self._mount], succeeds=False)
        for process in (self._fuse, self._server):
            if process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=10 if process is self._fuse else 0)
                end(process.pid)
                process.wait()
        self._fuse = self._server = None

    @property
    def _trigger(self) -> Path:
        return self.folder / "fail-flush"


class _Server:
    def __init__(self, backing: str, folder: str) -> None:
        self._file = os.open(backing, os.O_RDWR)
        self._size = os.fstat(self._file).st_size
        self._folder = Path(folder)
        self._cache: dict[int, bytes] = {}  # by block: written, not flushed
        self._forgotten: dict[int, bytes] = {}  # by block: written, lost to every later flush

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            if await self._negotiate(reader, writer):
                while await self._answer(reader, writer):
                    await writer.drain()
        writer.close()

    async def _negotiate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 1))
        await reader.readexactly(4)
        while True:
            _, option, length = struct.unpack(">QII", await reader.readexactly(16))
            await reader.readexactly(length)
            if option == OPTION_EXPORT_NAME:
                writer.write(struct.pack(">QH", self._size, FLAGS) + bytes(124))
                return True
            if option == OPTION_GO:
                info = struct.pack(">HQH", 0, self._size, FLAGS)
                writer.write(_option_reply(option, REPLY_INFO, info) + _option_reply(option, REPLY_ACK))
                return True
            writer.write(_option_reply(option, REPLY_ACK if option == OPTION_ABORT else REPLY_UNSUPPORTED))
            await writer.drain()
            if option == OPTION_ABORT:
                return False

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", await reader.readexactly(28))
        error, data = 0, b""
        if command == READ:
            data = self._read(offset, length)
        elif command == WRITE:
            self._write(offset, await reader.readexactly(length))
        elif command == FLUSH:
            error = self._flush()
        else:
            return False
        writer.write(struct.pack(">IIQ", 0x67446698, error, cookie) + data)
        return True

    def _read(self, offset: int, length: int) -> bytes:
        data = bytearray(os.pread(self._file, length, offset))
        for block in range(offset // BLOCK, (offset + length) // BLOCK):
            cached = self._cache.get(block) or self._forgotten.get(block)
            if cached is not None:
                data[block * BLOCK - offset : (block + 1) * BLOCK - offset] = cached
        return bytes(data)

    def _write(self, offset: int, data: bytes) -> None:
        assert offset % BLOCK == len(data) % BLOCK == 0, "iomesh writes whole blocks, past the kernel's cache"
        for at in range(0, len(data), BLOCK):
            self._cache[(offset + at) // BLOCK] = data[at : at + BLOCK]

    def _flush(self) -> int:
        trigger = self._folder / "fail-flush"
        with contextlib.suppress(FileNotFoundError):
            how, left = trigger.read_text().split()
            if int(left) > 0:
                trigger.write_text(f"{how} {int(left) - 1}")
                if how == FORGETS:
                    self._forgotten.update(self._cache)
                if how != KEEPS:
                    self._cache.clear()
                with (self._folder / "failures").open("a") as log:
                    log.write(f"{how}\n")
                return errno.EIO
        for block, data in self._cache.items():
            os.pwrite(self._file, data, block * BLOCK)
            self._forgotten.pop(block, None)
        self._cache.clear()
        return 0


def _option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


async def _main(backing: str, socket: str, folder: str) -> None:
    bound = Path(f"{socket}.new")  # a socket exists before it listens
    bound.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(_Server(backing, folder).serve, bound, limit=1 << 26)
    bound.rename(socket)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
