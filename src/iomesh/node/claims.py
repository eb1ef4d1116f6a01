"""Detects several names of one device that the kernel does not connect: two paths of a disk, a file seen through an
overlay. They are told apart by what is written on the device itself (docs/formats.md, "Claim and probe").

- A probe decides whether two paths lead to one device: random bytes written through one path can be read through the
  other, or not. If two paths have one identity but are not one device, they are a device and its copy.
- A claim on the device names the process that has it open, so that another process knows which path to probe.
"""

from __future__ import annotations

import enum
import errno
import mmap
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iomesh.engine import engine
from iomesh.errors import DeviceFailed, InUse, from_errno
from iomesh.node.devices import OpenDevice
from iomesh.node.processes import Process, boot_id, this_process

CLAIM_OFFSET = 64 * 1024
PROBE_OFFSET = 68 * 1024
PROBE_ATTEMPTS = 3  # two processes that probe one device at the same time overwrite each other's bytes
_BLOCK = engine.BLOCK_BYTES
_ZEROS = bytes(_BLOCK)


class Storage(enum.Enum):
    """What a path leads to, compared with an open device."""

    SAME = "same"
    OTHER = "other"
    UNKNOWN = "unknown"  # it cannot be read


def compare(device: OpenDevice, path: str) -> Storage:
    """Whether `path` leads to the device. Writes to the device's probe block, so it must be an iomesh device. Raises
    DeviceFailed."""
    try:
        if Path(path).samefile(f"/proc/self/fd/{device.descriptor}"):
            return Storage.SAME
        other = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return Storage.UNKNOWN
    try:
        with _buffer() as buffer:
            for _ in range(PROBE_ATTEMPTS):
                nonce = os.urandom(_BLOCK)
                _write(device, PROBE_OFFSET, nonce)
                try:
                    read = os.preadv(other, [buffer], PROBE_OFFSET)
                except OSError:
                    return Storage.UNKNOWN
                if read == _BLOCK and buffer[:] == nonce:
                    return Storage.SAME
            return Storage.OTHER
    finally:
        os.close(other)
        _write(device, PROBE_OFFSET, _ZEROS)


def refuse_claimed(device: OpenDevice) -> None:
    """Raises InUse when another process has the device open under a name that the kernel does not connect with this
    one; DeviceFailed."""
    claim = _read_claim(device)
    if not claim["valid"] or not _is_live(claim) or claim["process"] == os.getpid():
        return
    holder = f"process {claim['process']} (node {claim['node']}) has open as {claim['path']}"
    match compare(device, f"/proc/{claim['process']}/root{claim['path']}"):
        case Storage.SAME:
            raise InUse(f"{device.path} is the device that {holder}: stop that process first")
        case Storage.UNKNOWN:
            raise InUse(
                f"{device.path} is the device that {holder}, or a copy of it, which is unknown because "
                f"{claim['path']} cannot be read: stop that process first"
            )
        case Storage.OTHER:
            return  # a copy, made while the original was open


def take(device: OpenDevice, identity: uuid.UUID, node: str) -> None:
    """Writes this process's claim. Raises DeviceFailed, NoSpace (a sparse file on a full filesystem)."""
    process = this_process()
    block = engine.make_claim(
        device=identity.bytes,
        boot=boot_id().bytes,
        process_namespace=process.namespace,
        process_started=process.started,
        process=process.number,
        node=node,
        path=str(Path(device.path).absolute()),
    )
    _write(device, CLAIM_OFFSET, block)


def clear(device: OpenDevice) -> None:
    """Overwrites claim and probe with zeros. Raises DeviceFailed."""
    _write(device, CLAIM_OFFSET, _ZEROS)
    _write(device, PROBE_OFFSET, _ZEROS)


def _is_live(claim: dict[str, Any]) -> bool:
    """Whether the claiming process runs. In another PID namespace that is unknown; only the kernel's locks keep such a
    process out."""
    process = Process(claim["process"], claim["process_namespace"], claim["process_started"])
    return claim["boot"] == boot_id().bytes and process.runs is True


def _read_claim(device: OpenDevice) -> dict[str, Any]:
    with _buffer() as buffer:
        try:
            read = os.preadv(device.descriptor, [buffer], CLAIM_OFFSET)
        except OSError as error:
            raise DeviceFailed(f"{device.path} cannot be read: {error.strerror}") from None
        return engine.read_claim(buffer[:]) if read == _BLOCK else {"valid": False}


def _write(device: OpenDevice, offset: int, block: bytes) -> None:
    with _buffer() as buffer:
        buffer[:] = block
        try:
            os.pwritev(device.descriptor, [buffer], offset)
        except OSError as error:
            raise from_errno(error.errno or errno.EIO, f"{device.path} cannot be written: {error.strerror}") from None


@contextmanager
def _buffer() -> Iterator[mmap.mmap]:
    """One block, aligned for direct I/O."""
    with mmap.mmap(-1, _BLOCK) as buffer:
        yield buffer
