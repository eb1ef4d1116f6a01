"""Attaches with the kernel's own NBD client:

    the daemon's NBD socket ── /dev/nbdN

The handshake is done here; then the socket is the kernel's (netlink), so no process has to stay. The device carries an
identifier with the volume's id, which the kernel shows in /sys/block/nbdN/backend: any process on the machine finds it
again.

When the daemon ends, the kernel keeps requests for `retry_seconds` and tells who listens (`watch`), which connects to
the daemon as soon as it is back and gives the kernel the new socket. A driver that was away meanwhile does so at its
start, for every device. Requests that had been sent are sent again: the kernel looks every `_REPEAT_MS` whether the
socket of a request has been replaced.

There is one connection, and requests have no timeout of their own. With several of them, or with a timeout, the kernel
sends a request again that is only late, while the daemon may still carry out the first one: a later write to the same
blocks would be undone.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import msgspec

from iomesh.csi import commands, hooks
from iomesh.csi.attach import block, nbd_client
from iomesh.csi.attach.netlink import NbdFamily
from iomesh.csi.attach.record import Attachment, Records
from iomesh.errors import DeviceFailed, IomeshError, Unavailable, Unsupported
from iomesh.node.logs import logger

log = logger("attach")

BLOCK_BYTES = 4096
LOOK_SECONDS = 0.02
END_SECONDS = 30.0  # until the kernel has released a device
RETRY_SECONDS_MAX = 1.0
_REPEAT_MS = 5000
_BIND_SECONDS = 0.1  # between the news that a connection has ended and the kernel's readiness for another one


class KernelAttacher:
    name = "nbd"

    def __init__(self, records: Records, *, retry_seconds: int) -> None:
        self._records = records
        self._retry_seconds = retry_seconds
        self._reconnecting: dict[str, asyncio.Task[None]] = {}

    def lacking(self) -> str:
        """Loads the kernel's module if there is one."""
        try:
            NbdFamily().close()
            return ""
        except FileNotFoundError:
            pass
        except OSError as error:
            return f"the kernel's NBD client does not answer: {error.strerror}: run the driver privileged"
        return _load_module()

    def device(self, volume_id: str) -> Path | None:
        wanted = self._identifier(volume_id)
        for file in block.SYS_BLOCK.glob("nbd*/backend"):
            with suppress(OSError):  # disconnected meanwhile
                if file.read_text().rstrip("\n") == wanted:
                    return Path("/dev") / file.parent.name
        return None

    def present(self, volume_id: str) -> bool:
        return self.device(volume_id) is not None

    def failed(self, volume_id: str) -> bool:
        """Never: a device works again with a new connection."""
        return False

    async def attach(self, attachment: Attachment, uri: str, size_bytes: int) -> Path:
        identity = attachment.volume_id
        # First the record: the next connection is made with what it says.
        await asyncio.to_thread(self._records.put, msgspec.structs.replace(attachment, uri=uri))
        hooks.passed("stage: address recorded")
        device = await asyncio.to_thread(self.device, identity)
        if device is None:
            device = await self._connect(attachment, uri, size_bytes)
            log.info("attached", volume=attachment.volume, device=device)
        else:
            await self._reconnect(identity, uri)
        hooks.passed("stage: connected")
        await asyncio.to_thread((block.SYS_BLOCK / device.name / "queue/io_timeout").write_text, str(_REPEAT_MS))
        return await self.resize(identity, size_bytes)

    async def resize(self, volume_id: str, size_bytes: int) -> Path:
        device = await asyncio.to_thread(self.device, volume_id)
        if device is None:
            raise Unavailable(f"volume {volume_id} has no device on this node any more: stage it again")
        if block.size_bytes(device) != size_bytes:
            await asyncio.to_thread(_resize, device, self._identifier(volume_id), size_bytes)
        return device

    async def detach(self, volume_id: str) -> None:
        if task := self._reconnecting.pop(volume_id, None):
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                while (device := await asyncio.to_thread(self.device, volume_id)) is not None:
                    await asyncio.to_thread(_disconnect, device)
                    await asyncio.sleep(LOOK_SECONDS)
                hooks.passed("unstage: device gone")
                return
        raise Unavailable(f"the device of volume {volume_id} is still in use on this node: end what uses it")

    async def watch(self) -> None:
        """Reconnects what has lost its connection, for as long as the driver runs."""
        with NbdFamily() as family:
            changed, events = asyncio.Event(), family.listen()
            asyncio.get_running_loop().add_reader(events, changed.set)
            try:
                lost = None
                while True:
                    for volume_id in await asyncio.to_thread(self._attached, lost):
                        self._start_reconnecting(volume_id)
                    await changed.wait()
                    changed.clear()
                    lost = family.ended()
            finally:
                asyncio.get_running_loop().remove_reader(events)
                for task in self._reconnecting.values():
                    task.cancel()

    def _attached(self, indexes: list[int] | None) -> list[str]:
        """The volumes of these devices, or of all."""
        prefix = self._identifier("")
        found = []
        for file in block.SYS_BLOCK.glob("nbd*/backend"):
            with suppress(OSError):
                backend = file.read_text().rstrip("\n")
                if backend.startswith(prefix) and (indexes is None or _index(file.parent) in indexes):
                    found.append(backend.removeprefix(prefix))
        return found

    def _start_reconnecting(self, volume_id: str) -> None:
        task = self._reconnecting.get(volume_id)
        if task is None or task.done():
            self._reconnecting[volume_id] = asyncio.create_task(self._until_connected(volume_id))

    async def _until_connected(self, volume_id: str) -> None:
        pause, reason = _BIND_SECONDS, ""
        while True:
            await asyncio.sleep(pause)
            try:
                attachment = await asyncio.to_thread(self._records.get, volume_id)
                if attachment is None or await asyncio.to_thread(self.device, volume_id) is None:
                    return  # detached meanwhile
                await self._reconnect(volume_id, attachment.uri)
                log.info("connected", volume=attachment.volume)
                return
            except (IomeshError, OSError) as error:
                if str(error) != reason:
                    reason = str(error)
                    log.warning("not connected: requests wait", volume=volume_id, reason=reason)
            pause = min(2 * pause, RETRY_SECONDS_MAX)

    async def _connect(self, attachment: Attachment, uri: str, size_bytes: int) -> Path:
        found = await nbd_client.connect(uri)
        with found.socket:
            if found.size_bytes < size_bytes:
                raise Unavailable(
                    f"volume {attachment.volume} has {size_bytes} bytes, and this node's daemon knows of "
                    f"{found.size_bytes}: try again"
                )
            # Its next owner's devices may have volatile caches, and the kernel is told once.
            flags = found.flags | nbd_client.SEND_FLUSH | nbd_client.SEND_FUA
            if attachment.read_only:
                flags |= nbd_client.READ_ONLY
            return await asyncio.to_thread(self._make, attachment.volume_id, found.socket, size_bytes, flags)

    def _make(self, volume_id: str, connection: socket.socket, size_bytes: int, flags: int) -> Path:
        try:
            with NbdFamily() as family:
                index = family.connect(
                    connection,
                    backend=self._identifier(volume_id),
                    size_bytes=size_bytes,
                    block_bytes=BLOCK_BYTES,
                    flags=flags,
                    dead_seconds=self._retry_seconds,
                )
        except OSError as error:
            raise DeviceFailed(
                f"the kernel's NBD client refuses a device: {error.strerror}: see the kernel's log"
            ) from None
        device = Path(f"/dev/nbd{index}")
        if not device.exists():
            with NbdFamily() as family:
                family.disconnect(index)
            raise Unsupported(f"{device} is missing: run the driver with the host's /dev")
        return device

    async def _reconnect(self, volume_id: str, uri: str) -> None:
        found = await nbd_client.connect(uri)
        with found.socket:
            device = await asyncio.to_thread(self.device, volume_id)
            if device is not None:
                await asyncio.to_thread(_replace_socket, device, self._identifier(volume_id), found.socket)

    def _identifier(self, volume_id: str) -> str:
        return f"iomesh:{self._records.instance}:{volume_id}"


def _load_module() -> str:
    """Why there is no client afterwards; empty: there is one."""
    try:
        done = subprocess.run(
            [commands.find("modprobe"), "nbd"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return f"the kernel's module nbd cannot be loaded: {' '.join(done.stderr.split())}"
        NbdFamily().close()
    except Unsupported as error:
        return f"the kernel's module nbd is not loaded, and {error.message}"
    except OSError as error:
        return f"the kernel's NBD client does not answer: {error.strerror}: run the driver in the node's network"
    return ""


def _resize(device: Path, backend: str, size_bytes: int) -> None:
    try:
        with NbdFamily() as family:
            family.resize(_index(device), backend, size_bytes)
    except OSError as error:
        raise DeviceFailed(f"{device} cannot be resized: {error.strerror}") from None


def _replace_socket(device: Path, backend: str, connection: socket.socket) -> None:
    with NbdFamily() as family:
        family.reconnect(_index(device), backend, connection)


def _disconnect(device: Path) -> None:
    """Unless a file system on it is mounted, in whatever mount namespace: the kernel would not mind."""
    try:
        held = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return
        held = -1  # its connection is lost for good, or another one has disconnected it
    try:
        with NbdFamily() as family:
            family.disconnect(_index(device))
    except OSError as error:
        raise DeviceFailed(f"{device} cannot be disconnected: {error.strerror}") from None
    finally:
        if held >= 0:
            os.close(held)


def _index(device: Path) -> int:
    return int(device.name.removeprefix("nbd"))
