"""Limits of a volume: its name, its size, its replicas, and the segment size of its log."""

from __future__ import annotations

import re
import uuid

from iomesh.engine import engine as compiled
from iomesh.errors import InvalidArgument
from iomesh.sizes import exact_size

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_SNAPSHOT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)  # what fits into its entry on the device
REPLICAS_MAX = 4
LARGEST_DEVICE_SHARE = (
    512  # a segment is at most this part of the largest device, so that a trial behaves like an installation
)


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is not a valid volume name: use letters, digits, dots, dashes and underscores, at most 128 "
            "characters, no dash first"
        )
    _refuse_id(name, "volume")


def is_id(words: str) -> bool:
    """Whether these are a UUID as it is written here: an id, not a name."""
    try:
        return str(uuid.UUID(words)) == words
    except ValueError:
        return False


def _refuse_id(name: str, what: str) -> None:
    if is_id(name):
        raise InvalidArgument(f"{name} is not a valid {what} name: it would be taken for an id; add a letter")


def check_snapshot_name(name: str) -> None:
    _refuse_id(name, "snapshot")
    if not _SNAPSHOT_NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is not a valid snapshot name: use letters, digits, dots, dashes and underscores, at most 63 "
            "characters, no dash first"
        )


def check_size(size_bytes: int) -> None:
    most = compiled.VOLUME_BYTES_MAX
    if size_bytes <= 0:
        raise InvalidArgument(f"a volume of {size_bytes} bytes is too small: at least {compiled.BLOCK_BYTES}")
    if size_bytes > most:
        raise InvalidArgument(f"a volume of {exact_size(size_bytes)} is too large: at most {exact_size(most)}")
    if size_bytes % compiled.BLOCK_BYTES:
        above = size_bytes + -size_bytes % compiled.BLOCK_BYTES
        raise InvalidArgument(
            f"a volume of {size_bytes} bytes is not a multiple of {compiled.BLOCK_BYTES}: the next valid size is "
            f"{above}"
        )


def check_replicas(replicas: int) -> None:
    if not 1 <= replicas <= REPLICAS_MAX:
        raise InvalidArgument(f"a volume of {replicas} replicas: choose 1 to {REPLICAS_MAX}")


def choose_segment_bytes(asked: int, largest_device_bytes: int) -> int:
    """The largest size of the volume's segments; segments on a smaller device are smaller. The requested size, if
    valid; for 0, the largest power of two that suits the node's largest device."""
    least, most = compiled.SEGMENT_BYTES_MIN, compiled.SEGMENT_BYTES_MAX
    if not asked:
        share = max(largest_device_bytes // LARGEST_DEVICE_SHARE, 1)
        return min(max(1 << share.bit_length() - 1, least), most)
    if asked & (asked - 1) or not least <= asked <= most:
        raise InvalidArgument(
            f"segments of {asked} bytes: use a power of two from {exact_size(least)} to {exact_size(most)}"
        )
    return asked
