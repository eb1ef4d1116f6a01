"""Files that stand for devices: sparse, preallocated, or written from end to end."""

import errno
import mmap
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from iomesh.errors import InvalidArgument, NoSpace, Unsupported, from_errno
from iomesh.sizes import exact_size, short_size

CHUNK = 4 << 20


class Allocation(StrEnum):
    """How much of a new file is allocated at once."""

    SPARSE = "sparse"  # nothing: space is allocated as it is written
    PREALLOCATED = "preallocated"  # its space is reserved; the filesystem still converts it at the first write
    PREWRITTEN = "prewritten"  # every byte was written: measures the device, not the filesystem


def make_device_file(
    path: Path, size: int, allocation: Allocation, progress: Callable[[int], object] = lambda done: None
) -> None:
    """Creates a file of `size` bytes; `progress` receives the bytes done so far. A failure leaves no file behind."""
    if allocation is not Allocation.SPARSE:
        free = os.statvfs(path.parent)
        if free.f_bavail * free.f_frsize < size:
            raise NoSpace(
                f"{path} needs {exact_size(size)}, {path.parent} has {short_size(free.f_bavail * free.f_frsize)} free: "
                "choose a smaller size or another directory"
            )
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if allocation is Allocation.SPARSE:
            os.ftruncate(fd, size)
        else:
            os.posix_fallocate(fd, 0, size)
        if allocation is Allocation.PREWRITTEN:
            _write_whole(path, size, progress)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno == errno.EFBIG:
            raise InvalidArgument(
                f"{path}: {exact_size(size)} exceeds the file size limit of the filesystem or of `ulimit -f`: "
                "choose a smaller size"
            ) from error
        raise from_errno(
            error.errno or errno.EIO, f"{path}: {error.strerror} while {exact_size(size)} of it were made"
        ) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    progress(size)


def require_direct_io(directory: Path) -> None:
    """Raises Unsupported when files there cannot be opened for direct I/O, as the engine does."""
    probe = directory / ".direct-io"
    try:
        os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise Unsupported(
            f"{directory} is on a filesystem without direct I/O (O_DIRECT): choose a directory on ext4, xfs or btrfs"
        ) from error
    finally:
        probe.unlink(missing_ok=True)


def _write_whole(path: Path, size: int, progress: Callable[[int], object]) -> None:
    """Writes incompressible, non-zero data with direct I/O: a thin or compressing device below must really store it."""
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, CHUNK) as chunk:  # page-aligned, as direct I/O requires
            chunk.write(os.urandom(CHUNK))
            view = memoryview(chunk)
            done = 0
            try:
                while done < size:
                    done += os.pwrite(fd, view[: min(CHUNK, size - done)], done)
                    progress(done)
            finally:
                view.release()
        os.fsync(fd)
    finally:
        os.close(fd)
