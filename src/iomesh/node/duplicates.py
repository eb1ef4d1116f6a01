"""Two paths with one identity: one device under two names, or a device and its copy. Using either would lose data; the
messages name the case.

Nothing but the probe block is written (claims.py), and only if two paths do have one identity.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Mapping

from iomesh.errors import AlreadyExists, InUse, IomeshError
from iomesh.node.claims import Storage, compare
from iomesh.node.contents import read_superblocks
from iomesh.node.devices import OpenDevice, open_device


def identity_at(path: str) -> uuid.UUID | None:
    """The identity of the device at `path`; None if none can be read."""
    try:
        superblock, _ = read_superblocks(path)
    except OSError:
        return None
    return None if superblock is None else superblock.device


def refuse_duplicates(paths: Iterable[str]) -> None:
    """Raises InUse for one device under two names, AlreadyExists for a device and its copy. Opens the devices briefly:
    not to be called in an event loop."""
    names: dict[uuid.UUID, list[str]] = {}
    for path in paths:
        if identity := identity_at(path):
            names.setdefault(identity, []).append(path)
    for identity, group in names.items():
        for first, other in itertools.combinations(group, 2):
            device = open_device(first)
            try:
                verdict = compare(device, other)
            finally:
                device.close()
            raise duplicate(first, other, identity, verdict)


def refuse_copies(paths: Iterable[str], seen: Mapping[uuid.UUID, str]) -> None:
    """Raises AlreadyExists if a device at one of the paths is a copy of the device last seen at the path in `seen` for
    this identity. Another name of that device is allowed. Opens the devices briefly: not to be called in an event
    loop."""
    for path in paths:
        identity = identity_at(path)
        before = seen.get(identity) if identity else None
        if identity is None or before is None or identity_at(before) != identity:
            continue
        device = open_device(path)
        try:
            verdict = compare(device, before)
        finally:
            device.close()
        if verdict is not Storage.SAME:
            raise duplicate(path, before, identity, verdict)


def refuse_duplicate(device: OpenDevice, identity: uuid.UUID, path: str) -> None:
    """The same for `path`, which has the identity of an open device. Raises in every case."""
    raise duplicate(device.path, path, identity, compare(device, path))


def duplicate(path: str, other: str, identity: uuid.UUID, verdict: Storage) -> IomeshError:
    match verdict:
        case Storage.SAME:
            return InUse(f"{path} and {other} are one device ({identity}) under two names: use one of them")
        case Storage.OTHER:
            return AlreadyExists(
                f"{path} and {other} are both device {identity}, on different storage: one is a copy of the other. "
                "Detach the outdated one, or format it as an empty device with its own identity: "
                "`iomesh device format --new-identity PATH`"
            )
        case Storage.UNKNOWN:
            return InUse(
                f"{path} and {other} are both device {identity}; whether they are one device or copies is unknown, "
                f"because {other} cannot be read with direct I/O: detach one of them"
            )
