"""What lies below a block device as far as the kernel reports it: the file or the device of a loop device.

The kernel lets a file and its loop device be opened side by side, each with a lock of its own. So a process that opens
a loop device also locks what is below it: a shared lock on the whole file (a process that opens the file itself takes
it exclusively), and a lock on the bytes that the loop device covers, which keeps out another loop device over the same
bytes. Partitions, device mapper and arrays need no lock: the kernel gives exclusive access to them and to the devices
below them to one holder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import NamedTuple

LOOP_GET_STATUS64 = 0x4C05  # linux/loop.h
_LOOP_INFO = struct.Struct("=QQQQQIIII64s64s32s2Q")  # loop_info64
_FLOCK = struct.Struct("hhqqi4x")  # flock of fcntl.h
_SECTOR_BYTES = 512


class LockTaken(OSError):
    """The lock of `path` is held by another descriptor, of this process or another one."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.path = path


class Loop(NamedTuple):
    """The target of a loop device, or of a partition of one."""

    path: str  # of the file or block device below
    offset: int  # in it, in bytes


def lock_file(path: str, descriptor: int, *, exclusive: bool) -> None:
    """Takes the file's lock until the descriptor is closed. Raises LockTaken."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockTaken(path) from None


def hold_below(status: os.stat_result, size_bytes: int) -> list[int]:
    """Holds what is below a block device of `size_bytes` bytes until the returned descriptors are closed. Raises
    LockTaken, and OSError (EBUSY) when a block device below is held already."""
    loop = loop_of(status)
    if loop is None:
        return []
    below = Path(loop.path).stat()
    block_device = stat.S_ISBLK(below.st_mode)
    descriptor = os.open(loop.path, os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if block_device else 0))
    held = [descriptor]
    try:
        lock_file(loop.path, descriptor, exclusive=False)
        if block_device:
            held += hold_below(below, loop.offset + size_bytes)
        else:
            _lock_range(loop.path, descriptor, loop.offset, size_bytes)
    except BaseException:
        for each in held:
            os.close(each)
        raise
    return held


def loop_of(status: os.stat_result) -> Loop | None:
    """None if it is not a loop device, or if the file below it has no path here (it was deleted, or is in another mount
    namespace)."""
    if not stat.S_ISBLK(status.st_mode):
        return None
    device = Path(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}").resolve()
    partition = (device / "partition").exists()
    disk = device.parent if partition else device
    try:
        path = (disk / "loop" / "backing_file").read_text().rstrip("\n")
        offset = int((disk / "loop" / "offset").read_text())
        offset += int((device / "start").read_text()) * _SECTOR_BYTES if partition else 0
        below = Path(path).stat()
    except OSError:
        return None
    return Loop(path, offset) if _is_below(Path("/dev", disk.name), below) else None


def loops_over(status: os.stat_result) -> list[str]:
    """The loop devices on top of a file or block device."""
    found = []
    for backing_file in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        device = Path("/dev", backing_file.parents[1].name)
        if _is_below(device, status):
            found.append(str(device))
    return found


def other_names(path: str) -> list[str]:
    """Names, besides `path`, of loop devices that lead to the same bytes or part of them."""
    try:
        status = Path(path).stat()
        loop = loop_of(status)
        names = loops_over(status) + ([loop.path, *loops_over(Path(loop.path).stat())] if loop else [])
    except OSError:
        return []
    return sorted({name for name in names if not _same_file(name, path)})


def _is_below(device: Path, status: os.stat_result) -> bool:
    """Whether the loop device is on top of what has this status. The kernel's data counts: a path may lead elsewhere by
    now."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        info = fcntl.ioctl(descriptor, LOOP_GET_STATUS64, bytes(_LOOP_INFO.size))
    except OSError:  # it has no file, or no longer
        return False
    finally:
        os.close(descriptor)
    number, inode, own_number = _LOOP_INFO.unpack(info)[:3]
    if stat.S_ISBLK(status.st_mode):
        return bool(own_number == status.st_rdev)
    return bool((number, inode) == (status.st_dev, status.st_ino))


def _lock_range(path: str, descriptor: int, offset: int, size_bytes: int) -> None:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, size_bytes, 0))
    except BlockingIOError:
        raise LockTaken(path) from None


def _same_file(path: str, other: str) -> bool:
    try:
        return Path(path).samefile(other)
    except OSError:
        return False
