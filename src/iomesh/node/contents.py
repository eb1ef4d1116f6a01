"""What a device holds, found out without writing to it, so that no foreign data is overwritten by mistake.

libblkid knows filesystems, partition tables, RAID, LVM and encryption; iomesh's own superblock is read with the
engine's code.
"""

from __future__ import annotations

import os
import uuid
from typing import NamedTuple

from iomesh.engine import engine
from iomesh.node._blkid import ffi, lib

_SUPERBLOCKS_AT = (0, 128 * 1024)  # docs/formats.md, the device
_AMBIVALENT = -2


class Superblock(NamedTuple):
    cluster: uuid.UUID
    device: uuid.UUID
    device_bytes: int
    created_ns: int
    tier: int
    label: str
    number: int  # in its cluster; 0: none yet


class Contents(NamedTuple):
    """`foreign`: describes data that is not iomesh's, empty if none was found. `damaged`: an iomesh device without a
    valid superblock."""

    superblock: Superblock | None
    foreign: str
    damaged: str


def identify(path: str) -> Contents:
    """Raises OSError. Reads through the page cache: libblkid does not read in aligned blocks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        superblock, damaged = _superblock(descriptor)
        return Contents(superblock, "" if superblock else _foreign(descriptor), damaged)
    finally:
        os.close(descriptor)


def read_superblocks(path: str) -> tuple[Superblock | None, str]:
    """The first valid superblock, or None and what is wrong with those that exist. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _superblock(descriptor)
    finally:
        os.close(descriptor)


def _superblock(descriptor: int) -> tuple[Superblock | None, str]:
    fault = ""
    for offset in _SUPERBLOCKS_AT:
        data = os.pread(descriptor, engine.BLOCK_BYTES, offset)
        if len(data) < engine.BLOCK_BYTES:
            continue
        fields = engine.read_superblock(data)
        if fields["valid"]:
            return Superblock(
                cluster=_uuid(fields["cluster"]),
                device=_uuid(fields["device"]),
                device_bytes=fields["device_bytes"],
                created_ns=fields["created_ns"],
                tier=fields["tier"],
                label=_text(fields["label"]),
                number=fields["number"],
            ), ""
        if data.startswith(b"IOMSBLK"):
            fault = str(fields["fault"])
    return None, fault


def _foreign(descriptor: int) -> str:
    probe = lib.blkid_new_probe()
    if probe == ffi.NULL:
        raise MemoryError("blkid_new_probe")
    try:
        if lib.blkid_probe_set_device(probe, descriptor, 0, 0):
            return ""  # an empty file
        lib.blkid_probe_enable_superblocks(probe, 1)
        lib.blkid_probe_set_superblocks_flags(
            probe,
            lib.BLKID_SUBLKS_TYPE
            | lib.BLKID_SUBLKS_USAGE
            | lib.BLKID_SUBLKS_LABEL
            | lib.BLKID_SUBLKS_UUID
            | lib.BLKID_SUBLKS_MAGIC,
        )
        lib.blkid_probe_enable_partitions(probe, 1)
        found = lib.blkid_do_safeprobe(probe)
        if found == _AMBIVALENT:
            return "signatures of more than one filesystem"
        return _describe(_values(probe)) if found == 0 else ""
    finally:
        lib.blkid_free_probe(probe)


def _values(probe: object) -> dict[str, str]:
    values = {}
    name, data, size = ffi.new("const char **"), ffi.new("const char **"), ffi.new("size_t *")
    for number in range(lib.blkid_probe_numof_values(probe)):
        if lib.blkid_probe_get_value(probe, number, name, data, size) == 0:
            values[ffi.string(name[0]).decode()] = (
                ffi.buffer(data[0], size[0])[:].rstrip(b"\0").decode(errors="replace")
            )
    return values


def _describe(values: dict[str, str]) -> str:
    if kind := values.get("TYPE"):
        usage = {"filesystem": "filesystem", "raid": "array member", "crypto": "encrypted volume"}.get(
            values.get("USAGE", ""), "signature"
        )
        label = f" labelled {values['LABEL']!r}" if values.get("LABEL") else ""
        return f"a {kind} {usage}{label}"
    if table := values.get("PTTYPE"):
        return f"a {table} partition table"
    return ""


def _uuid(value: object) -> uuid.UUID:
    return uuid.UUID(bytes=bytes(value)) if isinstance(value, bytes | bytearray) else uuid.UUID(str(value))


def _text(value: object) -> str:
    return value.rstrip(b"\0").decode(errors="replace") if isinstance(value, bytes) else str(value)
