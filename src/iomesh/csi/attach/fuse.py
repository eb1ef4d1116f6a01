"""Attaches with nbdfuse and a loop device, where the kernel has no NBD client:

    the daemon's NBD socket ── nbdkit (plugin nbd, filter retry) ── nbdfuse ── a file ── loop device

nbdkit reconnects when the daemon restarts: requests wait meanwhile, and fail after `retry_seconds`.

The export is asked for with room to grow (docs/nbd.md), because nbdfuse learns the size once; the loop device has the
volume's size.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from iomesh.csi import commands, hooks
from iomesh.csi.attach import block, loop, servers
from iomesh.csi.attach.record import Attachment, Records
from iomesh.csi.commands import Failed
from iomesh.csi.mounts import mount_at, unmount_all
from iomesh.errors import Unavailable, Unsupported
from iomesh.node.logs import logger

log = logger("attach")

LOOK_SECONDS = 0.02
START_SECONDS = 60.0  # until nbdfuse has connected
END_SECONDS = 30.0  # until the processes have ended by themselves


class FuseAttacher:
    name = "nbdfuse"

    def __init__(self, records: Records, *, retry_seconds: int, attach_server: Path | None = None) -> None:
        """attach_server: the socket of the process that starts nbdkit and nbdfuse; None: this one does."""
        self._records = records
        self._retry_seconds = retry_seconds
        self._attach_server = attach_server

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
        return recorded if loop.backing_file(recorded) == f"/{servers.FILE}" and loop.is_dead(recorded) else None

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
            await self._start(attachment, uri)
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
        if block.size_bytes(device) != size_bytes:
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
        return self._folder(volume_id) / servers.MOUNT_POINT

    def _file(self, volume_id: str) -> Path:
        return self._mount_point(volume_id) / servers.FILE

    def _alive(self, volume_id: str) -> bool:
        return servers.alive(self._folder(volume_id))

    async def _start(self, attachment: Attachment, uri: str) -> None:
        server = servers.Server(
            volume_id=attachment.volume_id,
            uri=uri,
            read_only=attachment.read_only,
            retry_seconds=self._retry_seconds,
        )
        if self._attach_server is not None:
            await servers.ask(self._attach_server, server)
        else:
            await asyncio.to_thread(servers.start, self._folder(attachment.volume_id), server)

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
        reason = servers.last_words(self._folder(identity)) or f"it has not connected within {START_SECONDS:g} s"
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
                await asyncio.to_thread(servers.kill, self._folder(volume_id))
        raise Unavailable(f"the server of volume {volume_id} on this node does not end, even by SIGKILL: try again")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the process behind it has ended
        return False
