"""The disks of this node, and what is on them, found out without writing.

Whole disks alone: no partition, no loop, network or mapped device, nothing read-only or removable, nothing that another
driver holds. Other paths are looked at only if they are named.
"""

from __future__ import annotations

import enum
import errno
import glob
import os
import stat
import uuid
from pathlib import Path
from typing import NamedTuple

from iomesh.node.contents import identify
from iomesh.sizes import short_size

SYSTEM = Path("/sys/block")
BY_ID = Path("/dev/disk/by-id")
NOT_DISKS = ("loop", "ram", "zram", "nbd", "ublkb", "dm-", "md", "sr", "fd", "rbd", "drbd", "zd")
SECTOR_BYTES = 512  # sysfs counts in these, whatever the disk does
LOOKED_AT_BYTES = 1 << 20  # at each end of a disk without a known signature


class Holds(enum.StrEnum):
    """What a disk holds, as the Device's status says it."""

    NOTHING = "Empty"
    IOMESH = "IOMesh"  # of this cluster
    FOREIGN = "Data"  # a filesystem, another cluster's data, or anything unknown
    BUSY = "InUse"  # mounted, or held by another program
    UNREADABLE = "Unreadable"


class Disk(NamedTuple):
    path: str  # that stays the same, where there is one
    size_bytes: int
    rotational: bool
    model: str
    named: bool  # by the configuration; else found


class Contents(NamedTuple):
    holds: Holds
    what: str  # for people
    device: uuid.UUID | None = None


class Surveyed(NamedTuple):
    disk: Disk
    reason: str  # why it would not be taken; empty: it would


def find_disks(named: list[str], *, discover: bool, least_bytes: int) -> list[Disk]:
    """`named`: paths with wildcards, which are taken as they are."""
    disks = {}
    for pattern in named:
        for path in find_named(pattern):
            if (disk := _describe(Path(path), named=True)) is not None:
                disks[os.path.realpath(path)] = disk
    for entry in sorted(SYSTEM.iterdir()) if discover and SYSTEM.is_dir() else []:
        place = Path("/dev") / entry.name.replace("!", "/")
        if str(place) not in disks and _is_free_disk(entry):
            disk = _describe(place, named=False)
            if disk is not None and disk.size_bytes >= least_bytes:
                disks[str(place)] = disk
    return sorted(disks.values())


def survey(cluster: uuid.UUID | None, *, least_bytes: int) -> list[Surveyed]:
    """Every whole disk of this node, and why discovery would not take it."""
    found = []
    for entry in sorted(SYSTEM.iterdir()) if SYSTEM.is_dir() else []:
        disk = _describe(Path("/dev") / entry.name.replace("!", "/"), named=False)
        if entry.name.startswith(NOT_DISKS) or disk is None:
            continue
        reason = _why_not_free(entry)
        if not reason and disk.size_bytes < least_bytes:
            reason = f"it is smaller than {short_size(least_bytes)}"
        if not reason:
            contents = look_at(disk.path, cluster)
            if contents.holds is Holds.BUSY:
                reason = "it is in use"
            elif contents.holds is Holds.UNREADABLE:
                reason = f"it cannot be opened: {contents.what}"
            elif contents.holds is not Holds.NOTHING:
                reason = f"it holds {contents.what or 'a device of this cluster'}"
        found.append(Surveyed(disk, reason))
    return found


def find_named(pattern: str) -> list[str]:
    """The paths that it stands for."""
    return sorted(glob.glob(pattern))  # noqa: PTH207 - absolute patterns, as the configuration has them


def look_at(path: str, cluster: uuid.UUID | None) -> Contents:
    """cluster: this node's; None: it is not known."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        busy = error.errno == errno.EBUSY
        return Contents(Holds.BUSY if busy else Holds.UNREADABLE, os.strerror(error.errno or errno.EIO))
    try:
        found = identify(path)
        if found.superblock is not None:
            ours = found.superblock.cluster == cluster
            what = "" if ours else f"a device of iomesh cluster {found.superblock.cluster}"
            return Contents(Holds.IOMESH if ours else Holds.FOREIGN, what, found.superblock.device)
        if found.foreign or found.damaged:
            return Contents(Holds.FOREIGN, found.foreign or f"a damaged iomesh device: {found.damaged}")
        if not _is_zero_at_its_ends(descriptor):
            return Contents(Holds.FOREIGN, "data without a known signature")
    except OSError as error:
        return Contents(Holds.UNREADABLE, str(error))
    finally:
        os.close(descriptor)
    return Contents(Holds.NOTHING, "")


def _is_free_disk(entry: Path) -> bool:
    return not entry.name.startswith(NOT_DISKS) and not _why_not_free(entry)


def _why_not_free(entry: Path) -> str:
    """entry: of a disk, in sysfs. Empty: nothing uses it, as far as the kernel knows."""
    for name, reason in (("ro", "it is read-only"), ("removable", "it is removable"), ("hidden", "it is hidden")):
        if _number(entry / name):
            return reason
    if holders := sorted(each.name for each in (entry / "holders").glob("*")):
        return f"it is part of {', '.join(holders)}"
    return "it has partitions" if any(entry.glob("*/partition")) else ""


def _describe(path: Path, *, named: bool) -> Disk | None:
    try:
        mode = path.stat()
        if stat.S_ISREG(mode.st_mode):
            return Disk(str(path), mode.st_size, False, "file", named)
        if not stat.S_ISBLK(mode.st_mode):
            return None
        entry = (Path("/sys/dev/block") / f"{os.major(mode.st_rdev)}:{os.minor(mode.st_rdev)}").resolve()
        size = _number(entry / "size") * SECTOR_BYTES
    except OSError:
        return None
    lasting = str(path) if named else _lasting(path)
    return Disk(lasting, size, bool(_number(entry / "queue/rotational")), _text(entry / "device/model"), named)


def _lasting(path: Path) -> str:
    """The name that the disk keeps when it is plugged in elsewhere."""
    links = [str(link) for link in BY_ID.glob("*") if link.resolve() == path] if BY_ID.is_dir() else []
    return min(links, key=lambda link: (not Path(link).name.startswith(("nvme-eui", "wwn-")), link), default=str(path))


def _is_zero_at_its_ends(descriptor: int) -> bool:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    ends = (0, max(0, size - LOOKED_AT_BYTES))
    return not any(any(os.pread(descriptor, LOOKED_AT_BYTES, offset)) for offset in ends)


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdecimal() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
