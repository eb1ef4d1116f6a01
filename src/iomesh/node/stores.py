"""The node's devices with their stores: which are open, which are missing, how much space they have.

A device is open under one name only, and never together with a copy of it (duplicates.py).

The metadata service has a record of every device that was ever attached, so a missing device is noticed. A volume is
opened only when all of the node's stores are open: a log that lacks its newest segments looks exactly like a shorter
log.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from iomesh.api.model import Device, DeviceState, Scrub
from iomesh.engine import engine as compiled
from iomesh.errors import Conflict, Damaged, Foreign, InUse, IomeshError, NoSpace, NotFound, Unavailable, Unsupported
from iomesh.metadata import Delete, Metadata
from iomesh.metadata.nodes import decode_node, node_key
from iomesh.metadata.numbers import keep_device_number, take_device_number
from iomesh.metadata.records import DeviceRecord, UnreadableDevice, decode, device_key, list_devices, put_device
from iomesh.node import claims
from iomesh.node.contents import read_superblocks
from iomesh.node.devices import OpenDevice, open_device
from iomesh.node.duplicates import identity_at, refuse_copies, refuse_duplicate, refuse_duplicates
from iomesh.node.engine import NodeEngine
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import answered, until_answered
from iomesh.node.supervisor import in_thread
from iomesh.node.tenure import has_ended
from iomesh.policies.cleaning import DeviceSpace
from iomesh.times import time_of

log = logger("stores")
FULL_BELOW = (
    "the storage under the device has no space: writes go to other devices, or wait and are refused; they continue by "
    "themselves once there is space"
)
_TIER_NAMES = {number: name for name, number in compiled.TIERS.items()}


@dataclass
class ScrubProgress:
    """The scrub progress of a device. scrub.Kept is the part that survives a restart."""

    running: bool = False
    reached: tuple[bytes, int] = (b"", 0)  # volume and segment of the newest one that this pass has verified; none yet
    pass_bytes: int = 0  # to be read by the current pass, or the last one
    done_bytes: int = 0  # of pass_bytes
    ended_ns: int = 0  # end of the last complete pass, Unix time; 0: none yet
    verified_bytes: int = 0  # by all passes since the daemon started, and found intact
    damaged: dict[tuple[bytes, int], int] = field(default_factory=dict)  # blocks, by volume and segment

    @property
    def damaged_blocks(self) -> int:
        return sum(self.damaged.values())

    def begin(self, pass_bytes: int, done_bytes: int) -> None:
        self.running, self.pass_bytes, self.done_bytes = True, pass_bytes, done_bytes

    def end(self, now_ns: int) -> None:
        self.running, self.ended_ns, self.reached = False, now_ns, (b"", 0)


@dataclass
class NodeStore:
    number: int  # the engine's
    device: OpenDevice
    record: DeviceRecord
    cluster: uuid.UUID
    created_ns: int
    scrub: ScrubProgress = field(default_factory=ScrubProgress)


class Stores:
    def __init__(self, engine: NodeEngine, metadata: Metadata, node: str, cluster: uuid.UUID) -> None:
        self._engine = engine
        self._metadata = metadata
        self._node = node
        self._cluster = cluster
        self._open: dict[uuid.UUID, NodeStore] = {}
        self._missing: dict[uuid.UUID, tuple[DeviceRecord, str]] = {}
        self._starting = True  # until `open_all` has ended
        self._changing = asyncio.Lock()  # held while a device is added or removed; no volume is opened meanwhile
        # Every device that the engine may use. A device is closed only after the engine has answered that it does not
        # use it, or has been stopped: the number of a descriptor closed earlier is soon reused for another file, and
        # the engine would write to that.
        self._held: list[OpenDevice] = []
        self._claimed: list[OpenDevice] = []  # those of them that carry our claim (claims.py)

    async def open_all(self, paths: Iterable[str]) -> None:
        """Opens the devices at `paths`, which must be present, and those attached before, which may be missing."""
        paths = list(paths)
        devices, unreadable = await until_answered(lambda: list_devices(self._metadata))
        records = [record for record, _ in devices if record.node == self._node]
        await in_thread(lambda: refuse_duplicates(paths))
        await in_thread(lambda: refuse_copies(paths, {record.id: record.path for record in records}))
        for path in paths:
            await self._attach(path)
        for each in unreadable:
            self._take_note(each)
        for record in records:
            if record.id in self._open:
                continue
            try:
                await self._attach(record.path, expected=record.id)
            except IomeshError as error:
                self._missing[record.id] = record, error.message
                log.error(
                    "device missing", device=str(record.id), label=record.label, path=record.path, reason=error.message
                )
        self._starting = False

    def _take_note(self, unreadable: UnreadableDevice) -> None:
        """Handles a device whose record cannot be read. If the device is open, nothing is wrong, and the record stays
        as it is. If not, it counts as missing unless it belongs to another node: without it, a log may lack its newest
        segments."""
        identity, seen = unreadable.id, unreadable.seen
        is_open = identity in self._open
        log.error(
            "device record not readable",
            device=str(identity or ""),
            path=seen.path,
            is_open=is_open,
            reason=unreadable.reason,
        )
        if identity is None or is_open or (seen.node and seen.node != self._node):
            return
        record = DeviceRecord(id=identity, node=self._node, path=seen.path, tier="", label=seen.label, size_bytes=0)
        self._missing[identity] = record, unreadable.reason

    async def open_at(self, path: str) -> Device | None:
        """The open device at `path`; None if it is not one of this node's."""
        for store in list(self._open.values()):
            if await _same_file(store.device.path, path):
                return self._describe(store)
        return None

    async def add(self, path: str, check: Callable[[], None]) -> Device:
        """check: raises an error if no device can be added now. Nothing that it checks changes until the device is
        added."""
        async with self._changing:
            if held := await self.open_at(path):
                return held
            await self._refuse_other_name(path)
            check()
            return self._describe(await self._attach(path))

    async def _refuse_other_name(self, path: str) -> None:
        """Raises InUse if `path` is another name of an open device, AlreadyExists if it is a copy of one."""
        identity = await in_thread(lambda: identity_at(path))
        if identity in self._open:
            await self._refuse_duplicate(identity, path)
        missing = {each: record.path for each, (record, _) in self._missing.items()}
        await in_thread(lambda: refuse_copies([path], missing))

    async def _refuse_duplicate(self, identity: uuid.UUID, path: str) -> None:
        device = self._open[identity].device
        await in_thread(lambda: refuse_duplicate(device, identity, path))

    def refuse_while_changing(self) -> None:
        """Raises Unavailable while a device is added or removed: a volume is opened with all devices, and none that is
        being removed."""
        if self._changing.locked():
            raise Unavailable(
                "a device of this node is being added or removed, and no volume is opened meanwhile: try again shortly"
            )

    async def remove(self, words: str) -> None:
        """Removes the record of a missing device, or closes an open device without segments."""
        async with self._changing:
            device = await self.find(words)
            identity = uuid.UUID(device.id)
            if identity in self._open:
                if device.replicas:
                    raise InUse(
                        f"device {words} holds {device.replicas} segment replicas: delete the volumes on it first"
                    )
                store = self._open[identity]
                try:
                    await self._engine.close_store(store.number)
                except InUse:
                    raise InUse(f"device {words} cannot be removed while a volume is open") from None
                del self._open[identity]
                await self._drop(store.device)
                self._missing[identity] = store.record, "it was being removed"  # until its record is gone too
            await answered(self._metadata.commit(Delete(device_key(identity), None)))
            self._missing.pop(identity, None)
            log.info("device removed", device=device.id, path=device.path)

    async def close_all(self) -> None:
        """Closes all devices. A device that the engine still uses, because a volume is open on it, is left to
        `release`."""
        for identity, store in list(self._open.items()):
            try:
                await self._engine.close_store(store.number)
            except InUse:  # the node stops while a volume is being opened
                log.info(
                    "device in use: it is closed after the engine has stopped",
                    device=str(identity),
                    path=store.device.path,
                )
            except IomeshError as error:
                log.error("device not closed", device=str(identity), path=store.device.path, reason=error.message)
            else:
                del self._open[identity]
                await self._drop(store.device)

    async def release(self) -> None:
        """Releases the devices as they are, after the engine has been stopped."""
        self._open.clear()
        for device in list(self._held):
            await self._drop(device)

    async def _drop(self, device: OpenDevice) -> None:
        """Closes the device after clearing its claim. A claim that could not be cleared is not live once this process
        has ended."""
        self._held.remove(device)
        claimed = device in self._claimed
        if claimed:
            self._claimed.remove(device)
        await in_thread(lambda: _close(device, claimed=claimed))

    @property
    def numbers(self) -> set[int]:
        """Of the open devices, in the cluster."""
        return {store.record.number for store in self.online() if store.record.number}

    def online(self) -> list[NodeStore]:
        return list(self._open.values())

    def spaces(self) -> list[DeviceSpace]:
        """The space of each open store."""
        return [self._space(store) for store in self._open.values()]

    def _space(self, store: NodeStore) -> DeviceSpace:
        told = self._engine.store_space(store.number)
        slab_blocks = told["slab_bytes"] // compiled.BLOCK_BYTES
        return DeviceSpace(*(told[name] * slab_blocks for name in ("slabs", "free_slabs", "reserve_slabs")))

    def stalled(self, number: int) -> None:
        """The engine's store of this number did not answer a request in time."""
        for store in self._open.values():
            if store.number == number:
                log.error(
                    "device does not answer: nothing new is written there until the node is restarted",
                    device=str(store.record.id),
                    path=store.device.path,
                )

    def full_below(self, number: int, *, full: bool) -> None:
        for store in self._open.values():
            if store.number != number:
                continue
            if full:
                log.error(
                    "no space under the device: writes go elsewhere, or wait and are refused; make space there",
                    device=str(store.record.id),
                    path=store.device.path,
                )
            else:
                log.info("space under the device again", device=str(store.record.id), path=store.device.path)

    @property
    def problems(self) -> list[str]:
        """Why devices that are open do not work."""
        found = []
        for device in self.list():
            if device.state == DeviceState.FAILED:
                found.append(f"device {device.label or device.path} has failed: {device.reason}")
            elif device.state == DeviceState.ONLINE and device.reason:
                found.append(f"device {device.label or device.path}: {device.reason}")
        return found

    def list(self) -> list[Device]:
        online = [self._describe(store) for store in self._open.values()]
        return sorted(
            online + [_describe_missing(*missing) for missing in self._missing.values()], key=lambda device: device.path
        )

    async def find(self, words: str) -> Device:
        """Finds a device by UUID, label or path."""
        devices = self.list()
        for device in devices:
            if words in (device.id, device.path) or (
                device.state != DeviceState.MISSING and await _same_file(device.path, words)
            ):
                return device
        labelled = [device for device in devices if device.label and device.label == words]
        if len(labelled) > 1:
            raise NotFound(f"{len(labelled)} devices are labelled {words!r}: name one by its UUID or path")
        if not labelled:
            known = ", ".join(device.path for device in devices) or "none"
            raise NotFound(f"there is no device {words!r} on this node; it has {known}")
        return labelled[0]

    @property
    def missing(self) -> str:
        """Describes what is missing; empty if nothing is."""
        return "; ".join(
            f"device {record.label or record.id} is missing ({reason})" for record, reason in self._missing.values()
        )

    @property
    def largest_bytes(self) -> int:
        """The size of the largest open device; 0 if there is none."""
        return max((store.device.size_bytes for store in self._open.values()), default=0)

    @property
    def volatile_cache(self) -> bool:
        return any(store.device.volatile_cache for store in self._open.values())

    async def _attach(self, path: str, expected: uuid.UUID | None = None) -> NodeStore:
        device = await in_thread(lambda: open_device(path), discard=OpenDevice.close)
        self._held.append(device)
        try:
            await self._asked(lambda: self._refuse_other_node(path))
            if await in_thread(lambda: self._claim(device)):
                self._claimed.append(device)
            store = await self._open_store(device)
        except IomeshError:  # the engine has answered that it does not use it; any other error proves nothing
            await self._drop(device)
            raise
        try:
            if store.record.id in self._open:
                await self._refuse_duplicate(store.record.id, path)
            if expected is not None and store.record.id != expected:
                raise Foreign(f"{path} is device {store.record.id} now, not {expected}")
            # Before anything is written to the device: a device without a record would not be noticed when it is
            # missing.
            await self._asked(lambda: self._register(store))
            await self._engine.number_device(store.number, store.record.number)
        except IomeshError:
            await self._engine.close_store(store.number)
            await self._drop(device)
            raise
        self._open[store.record.id] = store
        self._missing.pop(store.record.id, None)
        return store

    async def _asked(self, call: Callable[[], Awaitable[None]]) -> None:
        """A call that asks the metadata service: a start waits for its answer."""
        await (until_answered(call) if self._starting else answered(call()))

    async def _refuse_other_node(self, path: str) -> None:
        """Before anything is written: raises InUse for a device that a node which runs has, of which this one is a
        copy, or another path."""
        identity = await in_thread(lambda: identity_at(path))
        entry = await self._metadata.get(device_key(identity)) if identity is not None else None
        try:
            record = decode(DeviceRecord, entry).record if entry is not None else None
        except IomeshError:  # it is reported when it is registered
            return
        if record is None or record.node == self._node:
            return
        running = await self._metadata.get(node_key(record.node))
        if running is None or has_ended(node := decode_node(running)):
            log.warning("device moves from another node", device=str(record.id), path=path, node=record.node)
            return
        raise InUse(
            f"{path} is device {record.label or record.id}, which node {record.node} has as {record.path} "
            f"({node.host}), and a device belongs to one node: stop that node's daemon first to use it here; a copy "
            f"becomes a device of its own, and empty, with `iomesh device format --new-identity {path}`"
        )

    async def _register(self, store: NodeStore) -> None:
        """Gives the device a number if it has none, and writes its record. Skipped when the stored record is already
        equal, so that a start works with a metadata service that cannot be written. A record of another format belongs
        to another version of iomesh and stays; one that cannot be decoded at all is replaced."""
        entry, number, stays = await self._metadata.get(device_key(store.record.id)), store.record.number, False
        try:
            if entry is not None:  # it has a number if a crash kept that from the superblock
                kept = decode(DeviceRecord, entry).record.number
                number = number or kept
        except Unsupported:
            stays = True
        except Damaged as error:
            log.warning("device record replaced", device=str(store.record.id), reason=error.message)
        if number:
            await keep_device_number(self._metadata, number)
        else:
            number = await take_device_number(self._metadata)
        store.record = msgspec.structs.replace(store.record, number=number)
        put = put_device(store.record, entry.version if entry is not None else 0)
        if not stays and (entry is None or entry.value != put.value):
            try:
                await self._metadata.commit(put)
            except Conflict:
                raise Conflict(
                    f"{store.record.path}: device {store.record.label or store.record.id} was attached to another node "
                    "at the same time, so one of the two is a copy: keep the one that you want to use, and detach the "
                    "other"
                ) from None

    def _claim(self, device: OpenDevice) -> bool:
        """Claims the device before anything is written to it: another process may have it open under a name that only
        the device itself reveals. Returns whether there is a claim to clear."""
        claims.refuse_claimed(device)
        superblock, _ = read_superblocks(device.path)
        if superblock is None or superblock.cluster != self._cluster:
            return False  # the engine refuses it and reports the reason
        try:
            claims.take(device, superblock.device, self._node)
        except NoSpace as error:  # a sparse file: it is still readable, and the kernel's locks apply
            log.warning("device not claimed", path=device.path, reason=error.message)
        return True

    async def _open_store(self, device: OpenDevice) -> NodeStore:
        try:
            opened = await self._engine.open_store(
                device.descriptor, cluster=self._cluster, volatile_cache=device.volatile_cache
            )
        except IomeshError as error:
            raise type(error)(f"{device.path}: {error.message}{self._remedy(error)}") from None
        for repair in opened["repaired"]:
            log.warning("device repaired", path=device.path, what=repair)
        record = DeviceRecord(
            id=uuid.UUID(bytes=opened["device"]),
            node=self._node,
            path=absolute(device.path),
            tier=_TIER_NAMES.get(opened["tier"], "ssd"),
            label=opened["label"],
            size_bytes=opened["device_bytes"],
            number=opened["number"],
        )
        log.info(
            "device open",
            device=str(record.id),
            path=device.path,
            tier=record.tier,
            volatile_cache=device.volatile_cache,
        )
        return NodeStore(opened["store"], device, record, uuid.UUID(bytes=opened["cluster"]), opened["created_ns"])

    def _remedy(self, error: IomeshError) -> str:
        if not isinstance(error, Foreign):
            return ""
        return (
            f" (this node is of cluster {self._cluster}; `iomesh device format` makes a device ready for it, and "
            "erases what is there)"
        )

    def _describe(self, store: NodeStore) -> Device:
        space = self._engine.store_space(store.number)
        failed = bool(space.get("failed", 0))
        return Device(
            node=self._node,
            id=str(store.record.id),
            number=store.record.number,
            path=store.record.path,
            tier=store.record.tier,
            label=store.record.label,
            size_bytes=store.record.size_bytes,
            free_bytes=space["free_slabs"] * space["slab_bytes"],
            reserve_bytes=space["reserve_slabs"] * space["slab_bytes"],
            replicas=space["replicas"],
            volatile_cache=store.device.volatile_cache,
            state=DeviceState.FAILED if failed else DeviceState.ONLINE,
            reason=_why_failed(space) if failed else FULL_BELOW if space["full_below"] else "",
            created_at=time_of(store.created_ns),
            cluster=str(store.cluster),
            scrub=Scrub(
                running=store.scrub.running,
                done_bytes=store.scrub.done_bytes,
                pass_bytes=store.scrub.pass_bytes,
                ended_at=time_of(store.scrub.ended_ns) if store.scrub.ended_ns else None,
                verified_bytes=store.scrub.verified_bytes,
                damaged_blocks=store.scrub.damaged_blocks,
            ),
        )


def _close(device: OpenDevice, *, claimed: bool) -> None:
    try:
        if claimed:
            claims.clear(device)
    except IomeshError as error:
        log.warning("claim not released", path=device.path, reason=error.message)
    finally:
        device.close()


def _why_failed(space: Mapping[str, int]) -> str:
    if space["stalled"]:
        return (
            "it did not answer a request in time: nothing new is written there until the node is restarted; check the "
            "device and what it is connected by"
        )
    if space["flush_failed"]:
        return (
            "a flush of it failed, and unflushed data may be lost: nothing new is written to it until the node is "
            "restarted; check the device, and replace it if this happens again"
        )
    return "a write to it failed: see the log"


def _describe_missing(record: DeviceRecord, reason: str) -> Device:
    return Device(
        node=record.node,
        id=str(record.id),
        number=record.number,
        path=record.path,
        tier=record.tier,
        label=record.label,
        size_bytes=record.size_bytes,
        state=DeviceState.MISSING,
        reason=reason,
    )


def absolute(path: str) -> str:
    """Symbolic links are kept: those under /dev/disk/by-id identify a device for longer than their targets."""
    return str(Path(path).absolute())


async def _same_file(path: str, other: str) -> bool:
    try:
        return await in_thread(lambda: Path(path).samefile(other))
    except OSError:
        return False
