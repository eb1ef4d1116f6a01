"""File systems on a device: which one is there, making one, mounting options, growing it.

A device is formatted only if it holds nothing that libblkid knows. mkfs.ext4 writes the superblock last, and mkfs.xfs
marks its own until it is complete, so a mkfs that was killed is seen, and repeated.
"""

from __future__ import annotations

from pathlib import Path

from iomesh.csi.attach.block import size_bytes as size_of
from iomesh.csi.commands import Failed, run
from iomesh.errors import Foreign, InvalidArgument, PermissionDenied

XFS, EXT4 = "xfs", "ext4"
KINDS = (XFS, EXT4)
DEFAULT = XFS  # made at once, and without filling a thin volume

# What mkfs of the kind wants at least.
BYTES_MIN = {XFS: 300 << 20, EXT4: 4 << 20}

_BLKID_NOTHING = 2
_E2FSCK_CORRECTED = 1
_XFS_MAGIC = b"XFSB"
_XFS_IN_PROGRESS = 126  # offset of sb_inprogress


async def found_on(device: Path) -> str:
    """The kind of file system; empty: nothing. Raises Foreign if the device holds something else."""
    try:
        output = await run("blkid", "--probe", "--output", "export", str(device))
    except Failed as error:
        if error.code == _BLKID_NOTHING:
            return ""
        raise
    values = dict(line.partition("=")[::2] for line in output.splitlines())
    kind = values.get("TYPE", "")
    if kind == XFS and _in_progress(device):
        return ""
    if kind in KINDS:
        return kind
    what = kind or values.get("PTTYPE", "something that is no file system")
    raise Foreign(f"the volume holds {what}, which this driver does not mount: use it as a block device")


async def make(kind: str, device: Path) -> None:
    """With sectors of 4 KiB, whatever the device says, so that it can be mounted on one that has no smaller ones."""
    if kind == XFS:
        await run("mkfs.xfs", "-q", "-f", "-K", "-s", "size=4096", str(device))
    else:
        await run("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard", str(device))


async def grow(kind: str, device: Path, mount_point: str) -> None:
    """To the size of the device, while it is mounted; does nothing if it has it."""
    if kind == XFS:
        await run("xfs_growfs", "-d", mount_point)
        return
    try:
        await run("resize2fs", str(device))
    except Failed as error:
        if "Permission denied" in error.output:
            raise PermissionDenied(
                "growing a mounted ext4 needs CAP_SYS_RESOURCE, which this driver does not have: run it privileged, or "
                "end the pods of the volume: it grows when it is staged again"
            ) from None
        raise


async def grow_unmounted(kind: str, device: Path) -> None:
    """Before it is mounted; XFS grows only while it is. Needs no privilege beyond writing the device."""
    if kind != EXT4 or await _ext4_bytes(device) >= size_of(device):
        return
    try:
        await run("e2fsck", "-f", "-p", str(device))
    except Failed as error:
        if error.code != _E2FSCK_CORRECTED:
            raise
    await run("resize2fs", str(device))


async def _ext4_bytes(device: Path) -> int:
    values = dict(line.partition(":")[::2] for line in (await run("dumpe2fs", "-h", str(device))).splitlines())
    return int(values["Block count"]) * int(values["Block size"])


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InvalidArgument(f"file system {kind!r} is not supported: use {' or '.join(KINDS)}")


def mount_options(kind: str, flags: list[str], *, read_only: bool) -> list[str]:
    """nouuid: a clone has the UUID of its source, and XFS mounts one of the two otherwise."""
    options = [*flags, *(["ro"] if read_only else []), *(["nouuid"] if kind == XFS else [])]
    return list(dict.fromkeys(options))


def _in_progress(device: Path) -> bool:
    with device.open("rb") as file:
        start = file.read(512)
    return start[:4] == _XFS_MAGIC and start[_XFS_IN_PROGRESS] != 0
