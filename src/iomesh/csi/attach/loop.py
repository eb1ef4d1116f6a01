"""Loop devices, by the kernel's own calls (linux/loop.h).

A device carries the volume's id as its name, so it is found again by any process on the machine, in whatever mount
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
_PREFIX = "iomesh:"
_ATTEMPTS = 100  # another process may take the free device first


def create(file: Path, volume_id: str, size_bytes: int, *, read_only: bool) -> Path:
    """Makes a device of the first `size_bytes` of a file."""
    backing = os.open(file, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        flags = _DIRECT_IO | (_READ_ONLY if read_only else 0)
        config = struct.pack("=II", backing, 0) + _info(volume_id, size_bytes, flags) + _RESERVED
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


def find(volume_id: str) -> Path | None:
    """The device of this volume."""
    wanted = (_PREFIX + volume_id).encode()
    for folder in Path("/sys/block").glob("loop*/loop"):
        device = Path("/dev") / folder.parent.name
        try:
            with _opened(device, os.O_RDONLY) as descriptor:
                answer = fcntl.ioctl(descriptor, _GET_STATUS64, bytes(_INFO.size))
        except OSError:
            continue  # detached meanwhile
        if _INFO.unpack(answer)[9].rstrip(b"\0") == wanted:
            return device
    return None


def resize(device: Path, volume_id: str, size_bytes: int) -> None:
    """Also while it is mounted."""
    with _opened(device) as descriptor:
        flags = _INFO.unpack(fcntl.ioctl(descriptor, _GET_STATUS64, bytes(_INFO.size)))[8]
        try:
            fcntl.ioctl(descriptor, _SET_STATUS64, _info(volume_id, size_bytes, flags))
        except OSError as error:
            raise DeviceFailed(f"{device} cannot be resized: {error.strerror}") from None


def size_bytes(device: Path) -> int:
    return int((Path("/sys/block") / device.name / "size").read_text()) * 512


def number(device: Path) -> str:
    """ "major:minor"."""
    return (Path("/sys/block") / device.name / "dev").read_text().strip()


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


def _info(volume_id: str, size_bytes: int, flags: int) -> bytes:
    name = (_PREFIX + volume_id).encode()
    return _INFO.pack(0, 0, 0, 0, size_bytes, 0, 0, 0, flags, name, b"", b"", 0, 0)
