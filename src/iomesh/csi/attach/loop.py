"""Loop devices, by the kernel's own calls (linux/loop.h).

A device carries a name that tells whose it is, so it is found again by any process on the machine, in whatever mount
namespace: the path of its backing file would not be. Its size is set apart from the file's, so a volume grows under a
file that does not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from iomesh.errors import DeviceFailed, InUse, Unsupported

CONTROL = "/dev/loop-control"
_SET_STATUS64, _GET_STATUS64, _CLEAR_FD, _CONFIGURE, _GET_FREE = 0x4C04, 0x4C05, 0x4C01, 0x4C0A, 0x4C82
_READ_ONLY, _DIRECT_IO = 1, 16
# struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encrypt_type, encrypt_key_size, flags,
# file_name, crypt_name, encrypt_key, init
_INFO = struct.Struct("=QQQQQIIII64s64s32s2Q")
_RESERVED = bytes(64)  # at the end of struct loop_config
NAME_BYTES_MAX = 63
_ATTEMPTS = 100  # another process may take the free device first


def create(file: Path, name: str, size_bytes: int, *, read_only: bool) -> Path:
    """Makes a device of the first `size_bytes` of a file."""
    backing = os.open(file, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        flags = _DIRECT_IO | (_READ_ONLY if read_only else 0)
        config = struct.pack("=II", backing, 0) + _info(name, size_bytes, flags) + _RESERVED
        for _ in range(_ATTEMPTS):
            device = _free_device()
            with _opened(device) as descriptor:
                try:
                    fcntl.ioctl(descriptor, _CONFIGURE, config)
                except OSError as error:
                    if error.errno == errno.EBUSY:
                        continue
                    raise DeviceFailed(f"{device} cannot be made of {file}: {error.strerror}") from None
                return device
    finally:
        os.close(backing)
    raise InUse("no loop device stays free: others take each one first; repeat the call")


def find(name: str, file: Path) -> Path | None:
    """The device of this name; or, if its file does not answer any more, the one of this file."""
    wanted = name.encode()
    for folder in Path("/sys/block").glob("loop*/loop"):
        device = Path("/dev") / folder.parent.name
        try:
            with _opened(device, os.O_RDONLY) as descriptor:
                answer = fcntl.ioctl(descriptor, _GET_STATUS64, bytes(_INFO.size))
        except OSError:
            if backing_file(device) == str(file):
                return device
            continue
        if _INFO.unpack(answer)[9].rstrip(b"\0") == wanted:
            return device
    return None


def is_dead(device: Path) -> bool:
    """Whether it has a file, and that does not answer any more."""
    try:
        with _opened(device, os.O_RDONLY) as descriptor:
            fcntl.ioctl(descriptor, _GET_STATUS64, bytes(_INFO.size))
    except OSError as error:
        return error.errno not in (errno.ENXIO, errno.ENOENT)
    return False


def backing_file(device: Path) -> str:
    """Its path, or what is left of that in another mount namespace; empty: it has none."""
    try:
        return (Path("/sys/block") / device.name / "loop" / "backing_file").read_text().strip()
    except OSError:
        return ""


def resize(device: Path, name: str, size_bytes: int) -> None:
    """Also while it is mounted."""
    with _opened(device) as descriptor:
        flags = _INFO.unpack(fcntl.ioctl(descriptor, _GET_STATUS64, bytes(_INFO.size)))[8]
        try:
            fcntl.ioctl(descriptor, _SET_STATUS64, _info(name, size_bytes, flags))
        except OSError as error:
            raise DeviceFailed(f"{device} cannot be resized: {error.strerror}") from None


def remove(device: Path) -> None:
    """While it is open somewhere, it is only marked, and goes when the last one closes it."""
    try:
        with _opened(device, os.O_RDONLY) as descriptor:
            fcntl.ioctl(descriptor, _CLEAR_FD)
    except OSError as error:
        if error.errno != errno.ENXIO:  # it has no file any more
            raise DeviceFailed(f"{device} cannot be detached: {error.strerror}") from None


class _opened:  # noqa: N801 (used as a function)
    def __init__(self, device: Path, mode: int = os.O_RDWR) -> None:
        self._descriptor = os.open(device, mode | os.O_CLOEXEC)

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _free_device() -> Path:
    try:
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unsupported(
            f"{CONTROL}: {error.strerror}: this node has no loop devices; load the module loop, and run the driver "
            "privileged with the host's /dev"
        ) from None
    try:
        found = int(fcntl.ioctl(control, _GET_FREE))
    finally:
        os.close(control)
    device = Path(f"/dev/loop{found}")
    if not device.exists():
        raise Unsupported(f"{device} is missing: run the driver with the host's /dev")
    return device


def _info(name: str, size_bytes: int, flags: int) -> bytes:
    assert len(name) <= NAME_BYTES_MAX
    return _INFO.pack(0, 0, 0, 0, size_bytes, 0, 0, 0, flags, name.encode(), b"", b"", 0, 0)
