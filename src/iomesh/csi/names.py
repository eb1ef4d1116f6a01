"""Names and ids, of CSI and of iomesh.

- A volume's id is its UUID. Its name is the one that CSI chose, if that is a valid name of a volume (such as
  "pvc-<uuid>"), else "csi-" and the start of the SHA-256 of that name.
- A snapshot's id is "<UUID of its volume>@<its UUID>". Its name follows the same rule, within the 63 characters that a
  snapshot's name may have.
- Snapshots that the driver makes for itself have reserved names: "csi-clone-…" is what a clone of a volume was made
  from, "csi-group-…" is one of a group.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import NamedTuple

from iomesh.errors import InvalidArgument

_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_SNAPSHOT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_OWN = "csi-"  # no name of CSI is taken as it is if it begins so
CLONE_PREFIX = "csi-clone-"
GROUP_PREFIX = "csi-group-"
NAME_BYTES_MAX = 128  # CSI's limit


class SnapshotId(NamedTuple):
    volume: str  # UUIDs
    snapshot: str

    def __str__(self) -> str:
        return f"{self.volume}@{self.snapshot}"


def volume_name(name: str) -> str:
    """Of the volume that CSI calls `name`."""
    return _name(name, _VOLUME_NAME)


def snapshot_name(name: str) -> str:
    return _name(name, _SNAPSHOT_NAME)


def clone_source_name(name: str) -> str:
    """Of the snapshot from which the volume that CSI calls `name` is cloned."""
    return CLONE_PREFIX + _digest(name)


def group_snapshot_name(name: str) -> str:
    """Of each snapshot of a group."""
    return GROUP_PREFIX + _digest(name)


def is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def parse_snapshot_id(text: str) -> SnapshotId | None:
    """None: no snapshot of this driver has such an id."""
    volume, _, snapshot = text.partition("@")
    return SnapshotId(volume, snapshot) if is_uuid(volume) and is_uuid(snapshot) else None


def _name(name: str, valid: re.Pattern[str]) -> str:
    if not name:
        raise InvalidArgument("the request has no name: it is the key by which a repeated request is recognized")
    if len(name.encode()) > NAME_BYTES_MAX:
        raise InvalidArgument(f"the name has {len(name.encode())} bytes: CSI allows {NAME_BYTES_MAX}")
    return name if valid.fullmatch(name) and not name.startswith(_OWN) else _OWN + _digest(name)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:40]
