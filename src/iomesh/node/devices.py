"""Block devices and files as the engine needs them: open for direct I/O, held exclusively, with the kernel's data about
them.

A device is held twice: O_EXCL keeps out mounts, arrays and other programs that open the block device exclusively, and a
lock (flock) keeps out a second daemon; a file has only the lock. The storage below a loop device is held as well
(backing.py). The kernel releases all of it when the process ends. Names that the kernel does not connect are found by
what is written on the device (claims.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from iomesh.errors import (
    DeviceFailed,
    InUse,
    InvalidArgument,
    IomeshError,
    NotFound,
    PermissionDenied,
    Unsupported,
    from_errno,
)
from iomesh.node.backing import LockTaken, hold_below, lock_file, other_names

BLKGETSIZE64 = 0x80081272  # linux/fs.h
BLKSSZGET = 0x1268
BLOCK_BYTES = 4096
# How long to wait for a device that is held: udev locks a block device while it probes it.
HELD_SECONDS = 3.0
# How long to wait when the holder is dead. The kernel tears a ring down after its process has ended, and closes the
# ring's files in one queue for the whole machine, behind, among others, the discards of large deleted files: seconds on
# a busy machine.
HELD_BY_DEAD_SECONDS = 45.0
HELD_PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class OpenDevice:
    path: str
    descriptor: int
    size_bytes: int
    block_device: bool
    volatile_cache: bool
    tier: str  # the detected tier: nvme, ssd or hdd; a different one in the superblock takes precedence
    held: tuple[int, ...] = ()  # descriptors that hold the storage below it

    def close(self) -> None:
        for descriptor in (self.descriptor, *self.held):
            os.close(descriptor)


def open_device(path: str) -> OpenDevice:
    """Opens for reading and writing, and holds the device until closed. Waits a little if it is held: not to be called
    in an event loop. Raises NotFound, InUse, PermissionDenied, InvalidArgument, Unsupported."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise _error(path, error) from None
    block_device = stat.S_ISBLK(status.st_mode)
    if not block_device and not stat.S_ISREG(status.st_mode):
        raise InvalidArgument(f"{path} is neither a block device nor a file")
    flags = os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC | (os.O_EXCL if block_device else 0)
    descriptor, *held = _hold(path, flags)
    try:
        size_bytes = _block_device_bytes(path, descriptor) if block_device else status.st_size
        queue = _queue(status) if block_device else None
        return OpenDevice(
            path=path,
            descriptor=descriptor,
            size_bytes=size_bytes - size_bytes % BLOCK_BYTES,
            block_device=block_device,
            volatile_cache=_volatile_cache(queue),
            tier=_tier(queue),
            held=tuple(held),
        )
    except BaseException:
        for each in (descriptor, *held):
            os.close(each)
        raise


def _hold(path: str, flags: int) -> list[int]:
    """The device's descriptor, then those that hold the storage below it."""
    began, limit_seconds = time.monotonic(), HELD_SECONDS
    while True:
        try:
            return _open_and_lock(path, flags)
        except LockTaken as taken:
            holder = _lock_holder(taken.path)
            if holder is not None and not _lives(holder):
                limit_seconds = HELD_BY_DEAD_SECONDS
                held = InUse(f"{path} is still held by process {holder}, which has ended: try again shortly")
            else:
                if holder is not None:  # else it may have been released just now: the previous holder still counts
                    limit_seconds = HELD_SECONDS
                held = InUse(_held_words(path, taken.path, holder))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise _error(path, error) from None
            held = InUse(f"{path} is in use: {_holder(path)}")
        if time.monotonic() >= began + limit_seconds:
            raise held
        time.sleep(HELD_PAUSE_SECONDS)


def _open_and_lock(path: str, flags: int) -> list[int]:
    descriptor = os.open(path, flags)
    try:
        lock_file(path, descriptor, exclusive=True)
        return [descriptor, *hold_below(os.fstat(descriptor), os.lseek(descriptor, 0, os.SEEK_END))]
    except BaseException:
        os.close(descriptor)
        raise


def _held_words(path: str, locked: str, holder: int | None) -> str:
    """locked: the path whose lock is taken, `path` or something below it."""
    which = f"process {holder} has its lock" if holder is not None else "its lock is taken"
    if locked != path:
        which = f"it lies on {locked}, and " + which.replace("its lock", "that one's lock")
    names = [name for name in other_names(path) if name != locked]
    also = f"; {path} is also {', '.join(names)}" if names else ""
    return f"{path} is held by another iomesh process ({which}{also}): stop that one first"


def _lock_holder(path: str) -> int | None:
    """The process that took the lock, alive or not; None where the kernel does not report it (it is in another
    container)."""
    status = Path(path).stat()
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in _read(Path("/proc/locks")).splitlines():
        _, kind, *_, process, which, _, _ = line.split()
        if kind == "FLOCK" and which == file and int(process) > 0:
            return int(process)
    return None


def _lives(process: int) -> bool:
    stat = _read(Path(f"/proc/{process}/stat"))
    return bool(stat) and stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _block_device_bytes(path: str, descriptor: int) -> int:
    logical = struct.unpack("i", fcntl.ioctl(descriptor, BLKSSZGET, bytes(4)))[0]
    if logical > BLOCK_BYTES:
        raise Unsupported(f"{path} has sectors of {logical} bytes; iomesh needs {BLOCK_BYTES} or less")
    return int(struct.unpack("Q", fcntl.ioctl(descriptor, BLKGETSIZE64, bytes(8)))[0])


def _queue(status: os.stat_result) -> Path | None:
    """The block queue in sysfs; for a partition, its disk's."""
    device = Path(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}").resolve()
    return next((queue for queue in (device / "queue", device.parent / "queue") if queue.is_dir()), None)


def _volatile_cache(queue: Path | None) -> bool:
    """Whether a power cut may lose completed writes. For a file that depends on everything below it, which is unknown:
    yes."""
    return queue is None or _read(queue / "write_cache") != "write through"


def _tier(queue: Path | None) -> str:
    if queue is None:
        return "ssd"
    if queue.parent.name.startswith("nvme"):
        return "nvme"
    return "hdd" if _read(queue / "rotational") == "1" else "ssd"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _error(path: str, error: OSError) -> IomeshError:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR | errno.ENXIO | errno.ENODEV:
            return NotFound(f"{path}: there is no such device or file")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PermissionDenied(
                f"{path} cannot be opened for writing ({error.strerror}): run as root, or give this user access"
            )
        case errno.EINVAL:
            return Unsupported(
                f"{path} cannot be opened with direct I/O: put the file on a filesystem that supports it (ext4, XFS, "
                "btrfs)"
            )
        case errno.EIO:
            return DeviceFailed(f"{path} cannot be opened: {error.strerror}")
    return from_errno(error.errno or errno.EIO, f"{path}: {error.strerror}")


def _holder(path: str) -> str:
    """Describes the holder of a block device, as far as the kernel reports it."""
    number = Path(path).stat().st_rdev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    names = {device.name, *(part.name for part in device.glob("*/partition") for part in [part.parent])}
    for line in _read(Path("/proc/self/mounts")).splitlines():
        source, target = line.split(" ")[:2]
        if source.startswith("/dev/") and Path(source).resolve().name in names:
            return f"mounted at {target}; unmount it first"
    for line in _read(Path("/proc/swaps")).splitlines()[1:]:
        if Path(line.split()[0]).resolve().name in names:
            return "used as swap; swapoff it first"
    holders = [holder.name for name in names for holder in Path("/sys/class/block", name, "holders").glob("*")]
    return (
        f"part of {', '.join(holders)}" if holders else "another program holds it exclusively (another iomesh daemon?)"
    )
