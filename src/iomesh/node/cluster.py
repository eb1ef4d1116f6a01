"""The cluster as the metadata service has it: its nodes, devices and volumes, followed with watches.

What is here may be a moment old, and stays as it is while the metadata service does not answer. So it starts an action,
but never permits it: that is done by a read, or by the compare-and-swap that the action begins with.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from iomesh.errors import IomeshError
from iomesh.metadata import Entry, Metadata
from iomesh.metadata.nodes import NODES, NodeRecord, decode_node
from iomesh.metadata.records import (
    DEVICES,
    LOGS,
    MEMBERS,
    OPERATIONS,
    VOLUMES,
    DeviceRecord,
    LogRecord,
    MemberRecord,
    OperationRecord,
    Versioned,
    VolumeRecord,
    decode,
    log_key,
    member_key,
    volume_key,
)
from iomesh.node.logs import logger
from iomesh.node.mirror import Mirror
from iomesh.node.supervisor import SupervisedTask, Supervisor
from iomesh.node.tenure import has_ended

log = logger("cluster")

DecodedT = TypeVar("DecodedT")


class StoredVolume(NamedTuple):
    """A volume with its log, as they are stored."""

    volume: Versioned[VolumeRecord]
    log: Versioned[LogRecord]


class Cluster:
    """`start` returns once all is known; `changed` is set after every change."""

    def __init__(self, metadata: Metadata, supervisor: Supervisor) -> None:
        self.changed = asyncio.Event()
        self.on_nodes: list[Callable[[], None]] = []
        self.on_devices: list[Callable[[], None]] = []
        self.on_change: list[Callable[[], None]] = []  # of anything
        self._supervisor = supervisor
        self._nodes = _Records(metadata, NODES, decode_node, self._nodes_changed)
        self._devices = _Records(metadata, DEVICES, _decode_device, self._devices_changed)
        self._volumes = _Records(metadata, VOLUMES, _decode_volume, self._changed)
        self._logs = _Records(metadata, LOGS, _decode_log, self._changed)
        self._operations = _Records(metadata, OPERATIONS, _decode_operation, self._operations_changed)
        self._members = _Records(metadata, MEMBERS, _decode_member, self._nodes_changed)
        self._following: list[SupervisedTask] = []

    async def start(self) -> None:
        """Returns once the metadata service has listed everything."""
        followed: dict[str, _Records[Any]] = {
            "follow nodes": self._nodes,
            "follow devices": self._devices,
            "follow volumes": self._volumes,
            "follow logs": self._logs,
            "follow operations": self._operations,
            "follow members": self._members,
        }
        for records in followed.values():
            await records.mirror.load()
        self._following = [self._supervisor.start(name, records.mirror.follow) for name, records in followed.items()]

    async def stop(self) -> None:
        for task in self._following:
            await task.stop()

    @property
    def nodes(self) -> dict[str, NodeRecord]:
        """By name; without those that were removed from the cluster, whatever they do."""
        return {record.name: record for record in self._nodes.by_key.values() if not self.is_removed(record.name)}

    @property
    def running(self) -> dict[str, NodeRecord]:
        """The nodes that are not lost, by name."""
        return {name: record for name, record in self.nodes.items() if not has_ended(record)}

    def devices(self) -> Iterator[DeviceRecord]:
        return iter(self._devices.by_key.values())

    def operations(self) -> Iterator[Versioned[OperationRecord]]:
        return iter(self._operations.by_key.values())

    def node_of(self, device: int) -> str:
        """The node with the device of this number in the cluster; empty: none is known."""
        return next((each.node for each in self.devices() if each.number == device), "")

    def volumes(self) -> Iterator[StoredVolume]:
        """Those whose two records are there and can be read."""
        for volume in self._volumes.by_key.values():
            if (its_log := self.log(volume.record.id)) is not None:
                yield StoredVolume(volume, its_log)

    def volume(self, identity: uuid.UUID) -> StoredVolume | None:
        volume, its_log = self._volumes.by_key.get(volume_key(identity)), self.log(identity)
        return None if volume is None or its_log is None else StoredVolume(volume, its_log)

    def log(self, volume: uuid.UUID) -> Versioned[LogRecord] | None:
        return self._logs.by_key.get(log_key(volume))

    def is_lost(self, node: str) -> bool:
        """No daemon runs under the name: its record is gone, or names a process of this machine that has ended."""
        record = self._nodes.by_key.get(NODES + node)
        return record is None or has_ended(record) or self.is_removed(node)

    def is_removed(self, node: str) -> bool:
        """And no other has joined under its name."""
        member = self._members.by_key.get(member_key(node))
        return member is not None and member.removed_ns != 0

    def is_draining(self, node: str) -> bool:
        member = self._members.by_key.get(member_key(node))
        return member is not None and member.draining

    def drained_devices(self) -> set[int]:
        """Numbers of the devices of nodes that are drained."""
        return {device.number for device in self.devices() if device.number and self.is_draining(device.node)}

    def refuses(self, node: str, key: str) -> bool:
        """Whether a certificate of this public key is not that of the node any more. key: as in MemberRecord."""
        member = self._members.by_key.get(member_key(node))
        return member is not None and (member.removed_ns != 0 or member.key not in ("", key))

    def _changed(self) -> None:
        self.changed.set()
        for call in self.on_change:
            call()

    def _nodes_changed(self) -> None:
        self._changed()
        for call in self.on_nodes:
            call()

    def _devices_changed(self) -> None:
        for call in self.on_devices:
            call()
        for call in self.on_change:
            call()

    def _operations_changed(self) -> None:
        for call in self.on_change:
            call()


class _Records(Generic[DecodedT]):
    """Records under a prefix, decoded. An unreadable one is left out, and reported once for each version."""

    def __init__(
        self, metadata: Metadata, prefix: str, decode: Callable[[Entry], DecodedT], changed: Callable[[], None]
    ) -> None:
        self.mirror = Mirror(metadata, prefix, self._decode_all)
        self.by_key: dict[str, DecodedT] = {}
        self._versions: dict[str, int] = {}
        self._decode = decode
        self._changed = changed

    def _decode_all(self) -> None:
        entries = self.mirror.entries
        for key in self._versions.keys() - entries.keys():
            del self._versions[key]
            self.by_key.pop(key, None)
        for key, entry in entries.items():
            if self._versions.get(key) == entry.version:
                continue
            self._versions[key] = entry.version
            self.by_key.pop(key, None)
            try:
                self.by_key[key] = self._decode(entry)
            except IomeshError as error:
                log.warning("record not readable", name=key, reason=error.message)
        self._changed()


def _decode_device(entry: Entry) -> DeviceRecord:
    return decode(DeviceRecord, entry).record


def _decode_volume(entry: Entry) -> Versioned[VolumeRecord]:
    return decode(VolumeRecord, entry)


def _decode_member(entry: Entry) -> MemberRecord:
    return decode(MemberRecord, entry).record


def _decode_operation(entry: Entry) -> Versioned[OperationRecord]:
    return decode(OperationRecord, entry)


def _decode_log(entry: Entry) -> Versioned[LogRecord]:
    return decode(LogRecord, entry)
