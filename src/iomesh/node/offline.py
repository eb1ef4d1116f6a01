"""Operations on a device without a daemon: formatting it, and reading whose it is."""

from __future__ import annotations

import asyncio
import time
import uuid

from iomesh.api.model import Device
from iomesh.engine import engine as compiled
from iomesh.errors import Damaged, Foreign, InvalidArgument, IomeshError, NotFound, PermissionDenied
from iomesh.node import claims
from iomesh.node.config import EngineConfig
from iomesh.node.contents import Superblock, identify, read_superblocks
from iomesh.node.devices import OpenDevice, open_device
from iomesh.node.engine import NodeEngine
from iomesh.sizes import exact_size
from iomesh.times import time_of

LABEL_BYTES_MAX = 63
_TIER_NAMES = {number: name for name, number in compiled.TIERS.items()}
# Enough for one device at rest; none of it is kept.
_ENGINE = EngineConfig(mode="sleep", map_cache_bytes=8 << 20, register_buffers=False)


async def format_device(
    path: str,
    *,
    cluster: uuid.UUID | None,
    tier: str | None = None,
    label: str = "",
    force: bool = False,
    new_identity: bool = False,
) -> Device:
    """Writes an empty store. Without `force`, a device with recognizable contents is refused; a device in use always
    is. new_identity: it is a copy of an iomesh device; it keeps its cluster and tier, unless others are given, and
    nothing else."""
    if len(label.encode()) > LABEL_BYTES_MAX:
        raise InvalidArgument(f"the label {label!r} is too long: at most {LABEL_BYTES_MAX} bytes")
    if not label.isprintable():
        raise InvalidArgument(f"the label {label!r} has a character that cannot be printed: leave it out")
    if tier is not None and tier not in compiled.TIERS:
        raise InvalidArgument(f"there is no tier {tier!r}: it is one of {', '.join(compiled.TIERS)}")
    device = await asyncio.to_thread(open_device, path)
    try:
        if device.size_bytes < compiled.DEVICE_BYTES_MIN:
            raise InvalidArgument(
                f"{path} is too small: it has {exact_size(device.size_bytes)}, a device needs "
                f"{exact_size(compiled.DEVICE_BYTES_MIN)}"
            )
        await asyncio.to_thread(claims.refuse_claimed, device)
        if new_identity:
            before = superblock_at(path)
            cluster, tier = cluster or before.cluster, tier or _TIER_NAMES.get(before.tier)
        elif not force:
            refuse_contents(path)
        if cluster is None:
            raise InvalidArgument(f"{path}: the cluster is missing: name it with --cluster")
        identity = uuid.uuid4()
        tier = tier or device.tier
        await asyncio.to_thread(claims.clear, device)
        await _write(device, cluster=cluster, identity=identity, tier=tier, label=label)
        return Device(
            id=str(identity),
            path=path,
            tier=tier,
            label=label,
            size_bytes=device.size_bytes,
            volatile_cache=device.volatile_cache,
            created_at=time_of(time.time_ns()),
            cluster=str(cluster),
        )
    finally:
        device.close()


def refuse_contents(path: str) -> None:
    """Raises Foreign, naming the contents, unless the device has no recognizable contents."""
    contents = identify(path)
    advice = "`--force` formats it all the same, and what it holds is lost"
    if contents.superblock is not None:
        superblock = contents.superblock
        name = f"{superblock.label!r} ({superblock.device})" if superblock.label else str(superblock.device)
        raise Foreign(f"{path} is device {name} of iomesh cluster {superblock.cluster}: {advice}")
    if contents.damaged:
        raise Foreign(f"{path} is an iomesh device whose superblocks are damaged ({contents.damaged}): {advice}")
    if contents.foreign:
        raise Foreign(f"{path} holds {contents.foreign}: {advice}")


def superblock_at(path: str) -> Superblock:
    """Raises NotFound, PermissionDenied, Damaged, Foreign."""
    try:
        superblock, fault = read_superblocks(path)
    except PermissionError:
        raise PermissionDenied(f"{path} is not readable: run as root") from None
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from None
    if superblock is not None:
        return superblock
    if fault:
        raise Damaged(f"{path}: neither superblock is valid: {fault}")
    foreign = identify(path).foreign
    raise Foreign(
        f"{path} is not an iomesh device"
        + (f": it holds {foreign}" if foreign else f": `iomesh device format {path}` makes it one")
    )


def inspect_device(path: str) -> Device:
    """The superblock's contents; reads nothing else and holds nothing, so it also works on a device in use."""
    superblock = superblock_at(path)
    return Device(
        id=str(superblock.device),
        path=path,
        tier=_TIER_NAMES.get(superblock.tier, "unknown"),
        label=superblock.label,
        size_bytes=superblock.device_bytes,
        created_at=time_of(superblock.created_ns),
        cluster=str(superblock.cluster),
        number=superblock.number,
    )


async def _write(device: OpenDevice, *, cluster: uuid.UUID, identity: uuid.UUID, tier: str, label: str) -> None:
    engine = NodeEngine(_ENGINE, lambda event: None)
    await engine.start()
    try:
        await engine.format_store(
            device.descriptor, cluster=cluster, device=identity, size_bytes=device.size_bytes, tier=tier, label=label
        )
    except IomeshError as error:
        raise type(error)(f"{device.path}: {error.message}") from None
    finally:
        await engine.stop()
