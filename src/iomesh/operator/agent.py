"""The agent of one node: beside its daemon, in the same pod. Each round it

1. shows the daemon as a StorageNode, and the volumes that it owns as Volumes;
2. looks for disks, and shows each as a Device;
3. formats and adds those that the IOMeshCluster asks for.

A disk with data on it is formatted only if the cluster names its path and the Device has the annotation
`iomesh.dev/erase` with the same path: it has to be told twice. A device that was removed from the daemon stays removed.
A round that fails is repeated; the daemon does not notice.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from iomesh.api.client import Client
from iomesh.api.model import Device, DeviceState, NodeState, Status, Volume, VolumeState
from iomesh.errors import IomeshError
from iomesh.metadata.kubernetes_api import Object
from iomesh.node.logs import logger
from iomesh.node.offline import format_device
from iomesh.node.supervisor import in_thread
from iomesh.operator.disks import Contents, Disk, Holds, find_disks, find_named, look_at
from iomesh.operator.objects import Objects, condition, conditions_of, nested, now, object_name
from iomesh.sizes import parse_size

log = logger("agent")
ROUND_SECONDS = 5.0
HEARTBEAT_SECONDS = 30.0  # a StorageNode that is unchanged is written as often, to show that its agent runs
ANSWER_SECONDS = 30.0
ERASE = "iomesh.dev/erase"
NODE_LABEL = "iomesh.dev/node"
LEAST_DISK = "10Gi"
ATTACH_STATUS = "attach.json"  # beside the control socket (`iomesh csi serve --attach-status`)
TAKEN = ("Online", "Missing", "Failed", "Removed")  # states of a device that the daemon has had


class Wanted(NamedTuple):
    """What the IOMeshCluster says about this node's disks."""

    discover: bool
    least_bytes: int
    paths: list[str]


class Agent:
    def __init__(self, objects: Objects, node: str, control: str) -> None:
        self._objects = objects
        self._node = node
        self._control = control
        self._written = float("-inf")  # when the StorageNode was, by the event loop's clock
        self._reasons: dict[str, str] = {}

    async def run(self) -> None:
        """Rounds, endlessly."""
        while True:
            try:
                await self.round()
                self._reasons.clear()
            except IomeshError as error:
                if self._reasons.get("round") != error.message:
                    log.warning("round failed; it is repeated", reason=error.message)
                self._reasons["round"] = error.message
            await asyncio.sleep(ROUND_SECONDS)

    async def round(self) -> None:
        node = await self._objects.ensure("storagenodes", self._node, {})
        try:
            async with Client(self._control, timeout_seconds=ANSWER_SECONDS) as daemon:
                status, devices = await daemon.status(), []
                if status.state in (NodeState.READY, NodeState.DEGRADED):
                    devices = await daemon.devices()
                    await self._show_volumes(await daemon.volumes())
                    await self._care_for_devices(daemon, status, devices)
        except IomeshError as error:
            await self._show_silence(node, error.message)
            raise
        await self._show_node(node, status)

    async def _show_node(self, node: Object, status: Status) -> None:
        ready = status.state in (NodeState.READY, NodeState.DEGRADED)
        before, generation = conditions_of(node), node["metadata"].get("generation", 0)
        reason = {NodeState.DEGRADED: "Degraded", NodeState.READY: "Serving"}.get(status.state, "Starting")
        problems = "; ".join(status.problems or ([status.step] if not ready else []))
        shown: Object = {
            "state": str(status.state).capitalize(),
            "version": status.version,
            "cluster": status.cluster,
            "devices": status.devices,
            "volumes": status.volumes,
            "capacityBytes": status.capacity_bytes,
            "freeBytes": status.free_bytes,
            "problems": status.problems,
            "warnings": status.warnings,
            "conditions": [condition(before, "Ready", ready, reason, problems, generation)],
        } | await in_thread(lambda: attach_status(Path(self._control).parent / ATTACH_STATUS))
        await self._write_node(node, shown)
        if status.problems:
            await self._objects.event(node, "Warning", "Degraded", "; ".join(status.problems))

    async def _show_silence(self, node: Object, reason: str) -> None:
        shown = dict(node.get("status") or {}) | {"state": "NoAnswer"}
        shown["conditions"] = [condition(conditions_of(node), "Ready", False, "NoAnswer", reason)]
        await self._write_node(node, shown)
        await self._objects.event(node, "Warning", "NoAnswer", reason)

    async def _write_node(self, node: Object, shown: Object) -> None:
        clock = asyncio.get_running_loop().time()
        shown["heartbeat"] = nested(node, "status", "heartbeat", default="")
        if not shown["heartbeat"] or clock - self._written >= HEARTBEAT_SECONDS:
            shown["heartbeat"] = now()
            self._written = clock
        await self._objects.set_status("storagenodes", node, shown)

    async def _show_volumes(self, volumes: list[Volume]) -> None:
        """Those that this node owns, and away with its own that are no more."""
        there = {each["metadata"]["name"]: each for each in await self._objects.list("volumes")}
        for volume in volumes:
            if volume.owner == self._node and volume.state is not VolumeState.ELSEWHERE:
                found = there.get(volume.id) or await self._objects.ensure("volumes", volume.id, {})
                await self._objects.set_status("volumes", found, _volume_status(found, volume))
        known = {volume.id for volume in volumes}
        for name, found in there.items():
            if name not in known and nested(found, "status", "owner") == self._node:
                await self._objects.delete("volumes", found)

    async def _care_for_devices(self, daemon: Client, status: Status, devices: list[Device]) -> None:
        cluster = next(iter(await self._objects.list("iomeshclusters")), None)
        wanted = wanted_on(self._node, cluster)
        if cluster is not None:
            await self._tell_absent_disks(cluster)
        disks = await in_thread(
            lambda: find_disks(wanted.paths, discover=wanted.discover, least_bytes=wanted.least_bytes)
        )
        there = {each["spec"]["path"]: each for each in await self._objects.list("devices", {NODE_LABEL: self._node})}
        attached = {device.path: device for device in devices}
        for disk in disks:
            device = attached.pop(disk.path, None)
            if device is None:
                await self._care_for_disk(daemon, status, disk, there.get(disk.path))
            else:
                await self._show_device(there.get(disk.path), device)
        for path, device in attached.items():  # missing, or added by hand under another name
            await self._show_device(there.get(path), device)

    async def _tell_absent_disks(self, cluster: Object) -> None:
        """Those that are named for this node alone: a path for all nodes need not be on each of them."""
        absent = await in_thread(lambda: [path for path in paths_of(self._node, cluster) if not find_named(path)])
        if absent:
            text = (
                f"spec.devices.nodes names {', '.join(absent)} for node {self._node}, which has no such disk: attach "
                "it, or write one of those that `lsblk --paths` shows there"
            )
            await self._objects.event(cluster, "Warning", "NoSuchDisk", text)

    async def _care_for_disk(self, daemon: Client, status: Status, disk: Disk, found: Object | None) -> None:
        """A disk that the daemon does not use."""
        found = found or await self._create(disk.path)
        cluster = uuid.UUID(status.cluster)
        contents = await in_thread(lambda: look_at(disk.path, cluster))
        was, erase = nested(found, "status", "state"), nested(found, "metadata", "annotations", ERASE)
        if contents.holds is Holds.IOMESH and was in TAKEN:
            text = "it was removed from the node; `iomesh device add` in the node's pod adds it again"
            await self._show_disk(found, disk, contents, "Removed", text)
            return
        if contents.holds is Holds.FOREIGN and disk.named and erase != disk.path:
            text = (
                f"{disk.path} holds {contents.what}: to erase that, run `kubectl annotate device.iomesh.dev "
                f"{found['metadata']['name']} {ERASE}={disk.path}`"
            )
            await self._show_disk(found, disk, contents, "Refused", text)
            await self._objects.event(found, "Warning", "HoldsData", text)
            return
        if contents.holds in (Holds.BUSY, Holds.UNREADABLE) or (contents.holds is Holds.FOREIGN and not disk.named):
            await self._show_disk(found, disk, contents, "Unused", f"{disk.path}: {contents.what}")
            return
        try:
            if contents.holds is not Holds.IOMESH:
                log.info("formatting a disk", path=disk.path, held=contents.what)
                await format_device(disk.path, cluster=cluster, force=contents.holds is Holds.FOREIGN)
            device = await daemon.add_device(disk.path)
        except IomeshError as error:
            await self._show_disk(found, disk, contents, "Failed to add", error.message)
            await self._objects.event(found, "Warning", "NotAdded", error.message)
            return
        await self._show_device(found, device)
        await self._objects.event(found, "Normal", "Added", f"{disk.path} is device {device.id} of node {self._node}")

    async def _show_device(self, found: Object | None, device: Device) -> None:
        found = found or await self._create(device.path)
        online = device.state is DeviceState.ONLINE
        shown: Object = {
            "state": str(device.state).capitalize(),
            "id": device.id,
            "number": device.number,
            "tier": device.tier,
            "sizeBytes": device.size_bytes,
            "freeBytes": device.free_bytes,
            "damagedBlocks": device.scrub.damaged_blocks,
            "holds": str(Holds.IOMESH),
            "conditions": [
                condition(conditions_of(found), "Ready", online, str(device.state).capitalize(), device.reason)
            ],
        }
        await self._objects.set_status("devices", found, shown)
        if not online:
            await self._objects.event(found, "Warning", str(device.state).capitalize(), device.reason)

    async def _show_disk(self, found: Object, disk: Disk, contents: Contents, state: str, message: str) -> None:
        shown: Object = {
            "state": state,
            "sizeBytes": disk.size_bytes,
            "holds": str(contents.holds),
            "contents": contents.what,
            "model": disk.model,
            "conditions": [condition(conditions_of(found), "Ready", False, state.replace(" ", ""), message)],
        }
        await self._objects.set_status("devices", found, shown)

    async def _create(self, path: str) -> Object:
        name = object_name(f"{self._node}-{path.removeprefix('/dev/')}")
        return await self._objects.ensure("devices", name, {"node": self._node, "path": path}, {NODE_LABEL: self._node})


def attach_status(file: Path) -> Object:
    """How the node's CSI driver attaches volumes, as it says itself; nothing: no driver has run here."""
    try:
        said = json.loads(file.read_bytes())
        return {"attach": str(said["attach"]), "attachReason": str(said["reason"])}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"attach": "", "attachReason": f"{file} cannot be read: {error}"}


def wanted_on(node: str, cluster: Object | None) -> Wanted:
    """Without an IOMeshCluster no disk is looked for."""
    devices: Mapping[str, object] = nested(cluster, "spec", "devices", default={})
    paths = list(nested(devices, "paths", default=[]))
    paths += paths_of(node, cluster)
    least = parse_size(str(nested(devices, "minimumSize", default=LEAST_DISK)))
    return Wanted(cluster is not None and bool(nested(devices, "discover", default=False)), least, paths)


def paths_of(node: str, cluster: Object | None) -> list[str]:
    """Those that are named for this node alone."""
    named = nested(cluster, "spec", "devices", "nodes", default=[])
    return [path for each in named if each["name"] == node for path in each["paths"]]


def _volume_status(found: Object, volume: Volume) -> Object:
    serving = volume.state is VolumeState.SERVING
    missing = len(volume.replica_nodes) < volume.policy.replicas and volume.policy.replicas > 1
    before, state = conditions_of(found), str(volume.state).capitalize()
    return {
        "name": volume.name,
        "state": state,
        "owner": volume.owner,
        "sizeBytes": volume.size_bytes,
        "usedBytes": volume.space.physical_bytes,
        "replicas": volume.policy.replicas,
        "replicaNodes": volume.replica_nodes,
        "snapshots": volume.snapshots,
        "cloneOf": volume.clone_of,
        "warnings": volume.warnings,
        "conditions": [
            condition(before, "Ready", serving, state.replace("-", ""), volume.reason),
            condition(
                before, "FullyReplicated", not missing, "ReplicasMissing" if missing else "AllReplicas",
                "; ".join(volume.warnings),
            ),
        ],
    }  # fmt: skip
