"""Attaches with nbdfuse and a loop device, where the kernel has no NBD client:

    the daemon's NBD socket ── nbdkit (plugin nbd, filter retry) ── nbdfuse ── a file ── loop device

nbdkit reconnects when the daemon restarts: requests wait meanwhile, and fail after `retry_seconds`. It and nbdfuse form
one session of processes of their own, which ends when the file system of nbdfuse is unmounted. Whether they live is
seen from a lock on a file that they inherit, so no process id has to be remembered.

The export is asked for with room to grow (docs/nbd.md), because nbdfuse learns the size once; the loop device has the
volume's size.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shlex
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from iomesh.csi import commands, hooks
from iomesh.csi.attach import loop
from iomesh.csi.attach.record import Attachment, Records
from iomesh.csi.commands import Failed
from iomesh.csi.mounts import mount_at, unmount_all
from iomesh.errors import Unavailable, Unsupported
from iomesh.node.logs import logger

log = logger("attach")

CONNECTIONS = 4
LOOK_SECONDS = 0.02
START_SECONDS = 60.0  # until nbdfuse has connected
END_SECONDS = 30.0  # until the processes have ended by themselves
FILE = "disk"
GROWABLE = "+"  # behind an export's name


class FuseAttacher:
    name = "nbdfuse"

    def __init__(self, records: Records, *, retry_seconds: int) -> None:
        self._records = records
        self._retry_seconds = retry_seconds

    def lacking(self) -> str:
        for needed in (Path("/dev/fuse"), Path(loop.CONTROL)):
            if not needed.exists():
                return f"{needed} is missing: load the kernel's module, and run the driver privileged"
        try:
            for program in ("nbdkit", "nbdfuse", "mount", "umount"):
                commands.find(program)
        except Unsupported as error:
            return error.message
        return ""

    def device(self, volume_id: str) -> Path | None:
        found = loop.find(self._device_name(volume_id), self._file(volume_id))
        if found is not None:
            return found
        # The device of a driver that was in another mount namespace, and whose processes ended with it.
        try:
            recorded = Path((self._folder(volume_id) / "device").read_text())
        except FileNotFoundError:
            return None
        return recorded if loop.backing_file(recorded) == f"/{FILE}" and loop.is_dead(recorded) else None

    def present(self, volume_id: str) -> bool:
        return self._alive(volume_id) or self._remains(volume_id)

    def failed(self, volume_id: str) -> bool:
        return self._remains(volume_id) and not self._alive(volume_id)

    async def attach(self, attachment: Attachment, uri: str, size_bytes: int) -> Path:
        identity = attachment.volume_id
        if await asyncio.to_thread(self.failed, identity):
            log.warning("attached again: its server has ended", volume=attachment.volume)
            await self.detach(identity)
        device = await asyncio.to_thread(self.device, identity)
        if device is None:
            await asyncio.to_thread(self._start, attachment, uri)
            hooks.passed("stage: server started")
            await self._until_there(attachment)
            hooks.passed("stage: file there")
            device = await asyncio.to_thread(self._create_device, attachment, size_bytes)
        else:
            await self.resize(identity, size_bytes)
        return device

    async def resize(self, volume_id: str, size_bytes: int) -> Path:
        device = await asyncio.to_thread(self.device, volume_id)
        if device is None:
            raise Unavailable(f"volume {volume_id} has no device on this node any more: stage it again")
        if loop.size_bytes(device) != size_bytes:
            await asyncio.to_thread(loop.resize, device, self._device_name(volume_id), size_bytes)
        return device

    async def detach(self, volume_id: str) -> None:
        while (device := await asyncio.to_thread(self.device, volume_id)) is not None:
            # First the record: another volume may have the device's number next.
            await asyncio.to_thread((self._folder(volume_id) / "device").unlink, missing_ok=True)
            await asyncio.to_thread(loop.remove, device)
            await self._until_free(volume_id)
        hooks.passed("unstage: device gone")
        point = str(self._mount_point(volume_id))
        try:
            await unmount_all(point)
        except Failed:
            if await asyncio.to_thread(self._alive, volume_id):
                raise
            await unmount_all(point, lazily=True)  # its process has ended
        await self._until_ended(volume_id)
        hooks.passed("unstage: server gone")

    def _remains(self, volume_id: str) -> bool:
        return self.device(volume_id) is not None or mount_at(str(self._mount_point(volume_id))) is not None

    def _folder(self, volume_id: str) -> Path:
        return self._records.folder(volume_id)

    def _device_name(self, volume_id: str) -> str:
        return f"iomesh:{self._records.instance}:{volume_id}"

    def _mount_point(self, volume_id: str) -> Path:
        return self._folder(volume_id) / "fuse"

    def _file(self, volume_id: str) -> Path:
        return self._mount_point(volume_id) / FILE

    def _alive(self, volume_id: str) -> bool:
        """Whether a process of it holds the lock."""
        try:
            lock = os.open(self._folder(volume_id) / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def _start(self, attachment: Attachment, uri: str) -> None:
        """Unless they run already, because the driver was killed behind this step."""
        folder = self._folder(attachment.volume_id)
        point = self._mount_point(attachment.volume_id)
        point.mkdir(exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            (folder / "nbd.sock").unlink(missing_ok=True)
            fuse = [commands.find("nbdfuse"), "-C", str(CONNECTIONS), *(["-r"] if attachment.read_only else [])]
            server = [
                *(commands.find("nbdkit"), "--foreground", "--unix", str(folder / "nbd.sock")),
                *("--pidfile", str(folder / "nbdkit.pid"), *(["--readonly"] if attachment.read_only else [])),
                *("--filter=retry", "nbd", f"uri={growable(uri)}"),
                *(f"retries={self._retry_seconds}", "retry-delay=1", "retry-exponential=no"),
                *("--run", f'exec {shlex.join(fuse)} {shlex.quote(str(self._file(attachment.volume_id)))} "$uri"'),
            ]
            with (folder / "log").open("ab") as output:
                subprocess.Popen(
                    server,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    pass_fds=(lock,),
                    start_new_session=True,
                )
        finally:
            os.close(lock)

    def _create_device(self, attachment: Attachment, size_bytes: int) -> Path:
        identity = attachment.volume_id
        name = self._device_name(identity)
        device = loop.create(self._file(identity), name, size_bytes, read_only=attachment.read_only)
        (self._folder(identity) / "device").write_text(str(device))
        return device

    async def _until_there(self, attachment: Attachment) -> None:
        """Until nbdfuse shows its file. Raises Unavailable, and ends the processes, if it does not."""
        identity = attachment.volume_id
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                while not await asyncio.to_thread(_is_file, self._file(identity)):
                    if not await asyncio.to_thread(self._alive, identity):
                        break
                    await asyncio.sleep(LOOK_SECONDS)
                else:
                    return
        reason = self._last_words(identity) or f"it has not connected within {START_SECONDS:g} s"
        await self.detach(identity)
        raise Unavailable(f"volume {attachment.volume} cannot be attached: nbdfuse: {reason}")

    async def _until_free(self, volume_id: str) -> None:
        """Until the kernel has released a detached device; while something uses it, it stays."""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                while await asyncio.to_thread(self.device, volume_id) is not None:  # noqa: ASYNC110 (the kernel's)
                    await asyncio.sleep(LOOK_SECONDS)
                return
        raise Unavailable(f"the device of volume {volume_id} is still in use on this node: end what uses it")

    async def _until_ended(self, volume_id: str) -> None:
        """They end by themselves when the file system is unmounted; what does not in time is killed."""
        for final in (False, True):
            with suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    while await asyncio.to_thread(self._alive, volume_id):  # noqa: ASYNC110 (of other processes)
                        await asyncio.sleep(LOOK_SECONDS)
                    return
            if not final:
                log.warning("killed: it did not end", volume=volume_id)
                await asyncio.to_thread(kill_holders, self._folder(volume_id) / "lock")
        raise Unavailable(f"the server of volume {volume_id} on this node does not end, even by SIGKILL: try again")

    def _last_words(self, volume_id: str) -> str:
        try:
            lines = (self._folder(volume_id) / "log").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return lines[-1] if lines else ""


def growable(uri: str) -> str:
    """The URI of the same export with room to grow."""
    path, mark, query = uri.partition("?")
    return path + GROWABLE + mark + query


def kill_holders(lock: Path) -> None:
    """SIGKILL to every process that has this file open."""
    target = str(lock)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if any(str(each.readlink()) == target for each in (entry / "fd").iterdir()):
                os.kill(int(entry.name), signal.SIGKILL)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the process behind it has ended
        return False
