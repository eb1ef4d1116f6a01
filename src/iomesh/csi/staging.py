"""What a node does with a volume: attaches it and mounts it once (stage), mounts it for each pod (publish), and back.

Every method can be repeated after a crash between any two of its steps. What is there is read from the system: devices
by the volume's id, mounts by the device's number. One file for each volume (attach.record) says that something has been
begun.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from iomesh.api.model import Volume
from iomesh.csi import exports, filesystems, hooks
from iomesh.csi.attach.block import number as number_of
from iomesh.csi.attach.block import size_bytes as size_of
from iomesh.csi.attach.methods import Methods
from iomesh.csi.attach.record import Attachment, Records
from iomesh.csi.cluster import Cluster
from iomesh.csi.commands import Failed
from iomesh.csi.mounts import Mount, bind, make_read_only, mount, mount_at, mounts, real, unmount_all
from iomesh.errors import AlreadyExists, Foreign, InUse, NotFound, Unsupported
from iomesh.node.logs import logger

log = logger("staging")


@dataclass(frozen=True)
class Use:
    """How a volume is to be used on this node."""

    block: bool
    fs_type: str = ""  # empty: what is on it, or the default
    flags: tuple[str, ...] = ()  # of mount
    read_only: bool = False
    one_node: bool = True
    one_pod: bool = False


class Staging:
    def __init__(self, cluster: Cluster, records: Records, attacher: Methods) -> None:
        self._cluster = cluster
        self._records = records
        self._attacher = attacher

    # stage

    async def stage(self, volume_id: str, staging: str, use: Use) -> None:
        volume = await self._cluster.get(volume_id)
        device = await self._attach(volume, staging, use)
        if use.block:
            return
        kind = await self._file_system(volume, device, use)
        staged = await asyncio.to_thread(mount_at, staging)
        if staged is None:
            if not use.read_only:
                await filesystems.grow_unmounted(kind, device)
            await self._mount(volume, device, staging, kind, use)
        elif staged.device != number_of(device):
            raise AlreadyExists(f"{staging} has another file system mounted, {staged.source}: unmount it")
        elif staged.read_only != use.read_only:
            raise AlreadyExists(
                f"volume {volume.name} is staged {'read-only' if staged.read_only else 'read-write'} on this node"
            )
        hooks.passed("stage: mounted")
        if not use.read_only:
            await filesystems.grow(kind, device, staging)
        hooks.passed("stage: grown")

    async def _attach(self, volume: Volume, staging: str, use: Use) -> Path:
        if lacking := await asyncio.to_thread(self._attacher.lacking):
            raise Unsupported(f"this node cannot attach a volume: {lacking}")
        known = await asyncio.to_thread(self._records.get, volume.id)
        if known is not None and known.read_only != use.read_only and await self._is_attached(volume.id):
            raise AlreadyExists(
                f"volume {volume.name} is attached {'read-only' if known.read_only else 'read-write'} to this node"
            )
        method = await asyncio.to_thread(self._attacher.of, volume.id)
        attachment = Attachment(volume_id=volume.id, volume=volume.name, read_only=use.read_only, method=method.name)
        await asyncio.to_thread(self._records.put, attachment)
        hooks.passed("stage: recorded")
        if await asyncio.to_thread(self._attacher.failed, volume.id):
            await self._unmount_dead(volume.id, staging)
        alone = use.one_node and not await asyncio.to_thread(self._attacher.present, volume.id)
        uri = await exports.export(self._cluster, volume, alone=alone)
        hooks.passed("stage: exported")
        device = await self._attacher.attach(attachment, uri, volume.size_bytes)
        hooks.passed("stage: device there")
        return device

    async def _is_attached(self, volume_id: str) -> bool:
        return await asyncio.to_thread(self._attacher.device, volume_id) is not None

    async def _unmount_dead(self, volume_id: str, staging: str) -> None:
        """Mounts of a device that will never answer again would keep it."""
        device = await asyncio.to_thread(self._attacher.device, volume_id)
        if device is None:
            return
        for each in await asyncio.to_thread(_mounts_of, device):
            log.warning("unmounted: its device has failed", volume=volume_id, path=each.point)
            await unmount_all(each.point, lazily=True)

    async def _file_system(self, volume: Volume, device: Path, use: Use) -> str:
        """The kind of file system on the device, which is made if there is none."""
        found = await filesystems.found_on(device)
        if found:
            if use.fs_type not in ("", found):
                raise Foreign(
                    f"volume {volume.name} holds {found}, and {use.fs_type} is asked for: correct the fsType of its "
                    "StorageClass or PersistentVolume"
                )
            return found
        if use.read_only:
            raise Foreign(f"volume {volume.name} is empty: mount it read-write once, so that it gets a file system")
        kind = use.fs_type or filesystems.DEFAULT
        await filesystems.make(kind, device)
        log.info("formatted", volume=volume.name, kind=kind)
        hooks.passed("stage: formatted")
        return kind

    async def _mount(self, volume: Volume, device: Path, staging: str, kind: str, use: Use) -> None:
        await asyncio.to_thread(lambda: Path(staging).mkdir(mode=0o750, parents=True, exist_ok=True))
        options = filesystems.mount_options(kind, list(use.flags), read_only=use.read_only)
        try:
            await mount(str(device), staging, kind=kind, options=options)
        except Failed as error:
            if use.read_only:
                raise Foreign(
                    f"volume {volume.name} cannot be mounted read-only, most likely because it was not unmounted "
                    f"cleanly: mount it read-write once ({error.message})"
                ) from None
            raise

    # unstage

    async def unstage(self, volume_id: str, staging: str) -> None:
        device = await asyncio.to_thread(self._attacher.device, volume_id)
        if device is not None:
            others = [each.point for each in await self._publications(device, staging)]
            if others:
                raise InUse(f"volume {volume_id} is still published at {', '.join(others)}: unpublish it first")
            staged = await asyncio.to_thread(mount_at, staging)
            if staged is not None and staged.device == number_of(device):
                failed = await asyncio.to_thread(self._attacher.failed, volume_id)
                await unmount_all(staging, lazily=failed)
            hooks.passed("unstage: unmounted")
        if await asyncio.to_thread(self._records.get, volume_id) is None:
            return
        await self._attacher.detach(volume_id)
        await exports.withdraw(self._cluster, volume_id)
        hooks.passed("unstage: unexported")
        await asyncio.to_thread(self._records.remove, volume_id)

    # publish

    async def publish(self, volume_id: str, staging: str, target: str, use: Use, *, read_only: bool) -> None:
        device = await self._staged_device(volume_id)
        published = await self._publications(device, staging)
        target = real(target)
        if use.one_pod and (others := [each.point for each in published if each.point != target]):
            raise InUse(
                f"volume {volume_id} is published at {', '.join(others)}, and its access mode, ReadWriteOncePod, "
                "allows one pod"
            )
        source = str(device) if use.block else staging
        if not use.block:
            staged = await asyncio.to_thread(mount_at, staging)
            if staged is None or staged.device != number_of(device):
                raise InUse(f"volume {volume_id} is not mounted at {staging}: stage it first")
        present = await asyncio.to_thread(mount_at, target)
        if present is None:
            await asyncio.to_thread(_make_target, Path(target), block=use.block)
            hooks.passed("publish: target made")
            await bind(source, target)
        elif present not in published:
            raise AlreadyExists(f"{target} has something else mounted, {present.source}: unmount it")
        elif present.read_only and not (read_only or use.read_only):
            raise AlreadyExists(f"volume {volume_id} is published read-only at {target}")
        hooks.passed("publish: mounted")
        if read_only and not use.read_only:
            await make_read_only(target, [])
        hooks.passed("publish: read-only")

    async def unpublish(self, volume_id: str, target: str) -> None:
        target = real(target)
        await unmount_all(target)
        hooks.passed("unpublish: unmounted")
        await asyncio.to_thread(_remove_target, Path(target))
        hooks.passed("unpublish: target removed")

    # what is there

    async def usage(self, volume_id: str, path: str) -> tuple[os.statvfs_result | None, int]:
        """Of a file system, and the size of the device. None: it is used as a block device. Raises NotFound unless the
        volume is mounted there."""
        device = await asyncio.to_thread(self._attacher.device, volume_id)
        found = await asyncio.to_thread(mount_at, path)
        if device is None or found is None or found not in await asyncio.to_thread(_mounts_of, device):
            raise NotFound(f"volume {volume_id} is not mounted at {path}")
        block = found.device != number_of(device)
        return None if block else await asyncio.to_thread(os.statvfs, path), size_of(device)

    async def expand(self, volume_id: str, path: str, *, block: bool) -> int:
        """To the volume's present size, which is returned. Raises NotFound."""
        device = await asyncio.to_thread(self._attacher.device, volume_id)
        found = await asyncio.to_thread(mount_at, path)
        mounted = [] if device is None else await asyncio.to_thread(_mounts_of, device)
        if device is None or (found not in mounted and not (block and await asyncio.to_thread(os.path.exists, path))):
            raise NotFound(f"volume {volume_id} is not mounted at {path}")
        volume = await self._cluster.get(volume_id)
        await exports.until_grown(self._cluster, volume)
        await self._attacher.resize(volume_id, volume.size_bytes)
        hooks.passed("expand: device grown")
        if found is not None and found.device == number_of(device):
            # A pod's own mount may be read-only; that of the stage is not, unless all are.
            writable = next((each for each in mounted if each.device == found.device and not each.read_only), None)
            if writable is not None:
                await filesystems.grow(writable.kind, device, writable.point)
        hooks.passed("expand: file system grown")
        return volume.size_bytes

    async def _staged_device(self, volume_id: str) -> Path:
        device = await asyncio.to_thread(self._attacher.device, volume_id)
        if device is None:
            await self._cluster.get(volume_id)  # NotFound is the better answer
            raise InUse(f"volume {volume_id} is not staged on this node: stage it first")
        return device

    async def _publications(self, device: Path, staging: str) -> list[Mount]:
        path = real(staging)
        return [each for each in await asyncio.to_thread(_mounts_of, device) if each.point != path]


def _mounts_of(device: Path) -> list[Mount]:
    """Of its file system, and of the device itself, as pods have it that use it as a block device."""
    number, node = number_of(device), f"/{device.name}"
    return [
        each for each in mounts() if each.device == number or (each.root == node and each.kind in ("devtmpfs", "tmpfs"))
    ]


def _make_target(target: Path, *, block: bool) -> None:
    if block:
        target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        target.touch(mode=0o640)
    else:
        target.mkdir(mode=0o750, parents=True, exist_ok=True)


def _remove_target(target: Path) -> None:
    try:
        target.rmdir() if target.is_dir() else target.unlink()
    except FileNotFoundError:
        return
