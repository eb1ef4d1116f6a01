"""What the controller does with volumes: creates, clones, grows, lists and deletes them.

A clone of a volume is made from a snapshot that only serves that purpose ("csi-clone-…"). It is deleted with the clone,
and never seen in a list. One that a crash left behind is deleted with the next deletion of a volume.
"""

from __future__ import annotations

from dataclasses import dataclass

from iomesh.api.client import Client
from iomesh.api.model import Volume, VolumeState
from iomesh.csi import capabilities, hooks, parameters, placement
from iomesh.csi import csi_pb2 as pb
from iomesh.csi.cluster import Cluster, look_up, until_known
from iomesh.csi.errors import OutOfRange
from iomesh.csi.filesystems import BYTES_MIN, DEFAULT
from iomesh.csi.locks import Locks
from iomesh.csi.names import CLONE_PREFIX, clone_source_name, is_uuid, parse_snapshot_id, volume_name
from iomesh.csi.paging import page
from iomesh.csi.parameters import Parameters
from iomesh.csi.placement import Topology
from iomesh.errors import AlreadyExists, Conflict, InUse, InvalidArgument, NotFound, Unavailable
from iomesh.node.logs import logger
from iomesh.sizes import exact_size

log = logger("volumes")


@dataclass(frozen=True)
class Source:
    """What a new volume begins with."""

    volume: Volume
    snapshot: str  # its name
    size_bytes: int
    make: bool  # the snapshot is made for this clone alone

    @property
    def name(self) -> str:
        """As the clone's `clone_of` has it."""
        return f"{self.volume.name}@{self.snapshot}"


class Volumes:
    def __init__(self, cluster: Cluster, locks: Locks, topology: Topology) -> None:
        self._cluster = cluster
        self._locks = locks
        self._topology = topology
        self._cloning: set[str] = set()  # snapshots that clones are being made from

    async def create(self, request: pb.CreateVolumeRequest) -> pb.CreateVolumeResponse:
        name = volume_name(request.name)
        capabilities.check(request.volume_capabilities)
        given = parameters.parse(request.parameters, request.mutable_parameters, list(request.volume_capabilities))
        with self._locks.hold("CreateVolume", name):
            if request.HasField("volume_content_source"):
                source = await self._source(request)
                volume = await self._clone(name, request, source, given)
            else:
                volume = await self._make(name, request, given)
        answer = describe(volume, given.context)
        if request.HasField("volume_content_source"):
            answer.content_source.CopyFrom(request.volume_content_source)
        return pb.CreateVolumeResponse(volume=answer)

    async def delete(self, volume_id: str) -> None:
        """Also if it is not there. Raises InUse (FAILED_PRECONDITION) while it is attached or has snapshots."""
        if not is_uuid(volume_id):
            return
        with self._locks.hold("DeleteVolume", volume_id):
            volume = await self._cluster.find(volume_id)
            if volume is None:
                await self._sweep()
                return
            async with self._cluster.connect() as node:
                await _delete(node, volume)
            hooks.passed("delete: volume gone")
            if volume.clone_of:
                await self._delete_source(volume.clone_of)
            log.info("volume deleted", volume=volume.name, id=volume_id)

    async def expand(self, request: pb.ControllerExpandVolumeRequest) -> int:
        """Returns the size. Shrinks nothing."""
        with self._locks.hold("ControllerExpandVolume", request.volume_id):
            volume = await self._cluster.get(request.volume_id)
            if not request.capacity_range.required_bytes:
                raise InvalidArgument(f"volume {volume.name}: the request has no required_bytes, the size to grow to")
            size = placement.choose_size(request.capacity_range, name=volume.name)
            if volume.size_bytes >= request.capacity_range.required_bytes:
                if not placement.within(volume.size_bytes, request.capacity_range):
                    raise OutOfRange(f"volume {volume.name} has {exact_size(volume.size_bytes)}: volumes never shrink")
                return volume.size_bytes
            nodes, _ = await self._cluster.nodes()
            placement.refuse_too_large(nodes, size, volume.policy.replicas, volume.name)
            async with self._cluster.connect() as node:
                grown = await node.grow_volume(volume.id, size)
            hooks.passed("expand: volume grown")
            return grown.size_bytes

    async def modify(self, volume_id: str, window_seconds: int | None) -> None:
        with self._locks.hold("ControllerModifyVolume", volume_id):
            volume = await self._cluster.get(volume_id)
            if window_seconds is not None:
                async with self._cluster.connect() as node:
                    await node.set_volume(volume.id, window_seconds=window_seconds)

    async def listed(self, *, most: int, token: str) -> tuple[list[Volume], str]:
        return page(
            visible(await self._cluster.volumes()), lambda volume: volume.id, most=most, token=token, valid=is_uuid
        )

    async def capacity(self, request: pb.GetCapacityRequest) -> pb.GetCapacityResponse:
        given = parameters.parse(request.parameters, {}, list(request.volume_capabilities))
        if any(capabilities.unsupported(each) for each in request.volume_capabilities):
            return pb.GetCapacityResponse(available_capacity=0)
        (nodes, _), replicas = await self._cluster.nodes(), given.replicas or 1
        answer = pb.GetCapacityResponse(
            available_capacity=placement.room(nodes, self._topology.node(request.accessible_topology), replicas)
        )
        answer.maximum_volume_size.value = placement.largest(nodes, replicas)
        return answer

    # creation

    async def _make(self, name: str, request: pb.CreateVolumeRequest, given: Parameters) -> Volume:
        if (existing := await self._cluster.named(name)) is not None:
            return self._same(existing, request, given, None)
        least = max((_least(each, given) for each in request.volume_capabilities), default=0)
        size = placement.choose_size(request.capacity_range, least=least, name=name)
        replicas = given.replicas or 1
        nodes, silent = await self._cluster.nodes()
        wanted = self._topology.nodes(request.accessibility_requirements)
        owner = placement.choose(nodes, silent, wanted, replicas=replicas, name=name)
        placement.refuse_too_large(nodes, size, replicas, name)
        async with self._cluster.connect() as node:
            volume = await node.create_volume(
                name, size, replicas=replicas, window_seconds=given.window_seconds or 0, node=owner
            )
            await until_known(node, volume.id, there=True)
        hooks.passed("create: volume made")
        log.info("volume created", volume=name, id=volume.id, size_bytes=size, node=owner)
        return volume

    async def _source(self, request: pb.CreateVolumeRequest) -> Source:
        """Raises NotFound."""
        content = request.volume_content_source
        if content.WhichOneof("type") == "snapshot":
            wanted = content.snapshot.snapshot_id
            identity = parse_snapshot_id(wanted)
            found = await self._cluster.find_snapshot(identity) if identity is not None else None
            if found is None:
                raise NotFound(f"there is no snapshot with the id {wanted!r} to create volume {request.name} from")
            volume, snapshot = found
            return Source(volume, snapshot.name, snapshot.size_bytes, make=False)
        if content.WhichOneof("type") == "volume":
            volume = await self._cluster.get(content.volume.volume_id)
            return Source(volume, clone_source_name(request.name), volume.size_bytes, make=True)
        raise InvalidArgument(f"volume {request.name}: its content source is neither a snapshot nor a volume")

    async def _clone(self, name: str, request: pb.CreateVolumeRequest, source: Source, given: Parameters) -> Volume:
        if (existing := await self._cluster.named(name)) is not None:
            self._same(existing, request, given, source)
        replicas = source.volume.policy.replicas
        if given.replicas not in (None, replicas):
            raise InvalidArgument(
                f"volume {name} is to have {given.replicas} replicas, and what it is made from, {source.volume.name}, "
                f"has {replicas}: a clone has those of its source; use a StorageClass with {parameters.REPLICAS} "
                f"{replicas}"
            )
        size = placement.choose_size(request.capacity_range, least=source.size_bytes, name=name)
        self._cloning.add(source.snapshot)
        try:
            async with self._cluster.connect() as node:
                return await self._clone_there(node, name, source, size, given)
        finally:
            self._cloning.discard(source.snapshot)

    async def _clone_there(self, node: Client, name: str, source: Source, size: int, given: Parameters) -> Volume:
        if source.make:
            await node.create_snapshots([source.volume.id], source.snapshot)
            hooks.passed("create: source snapshot made")
        volume = await node.clone_volume(source.volume.id, source.snapshot, name)
        hooks.passed("create: clone made")
        await until_known(node, volume.id, there=True)
        if volume.size_bytes < size:
            volume = await node.grow_volume(volume.id, size)
        if given.window_seconds:
            volume = await node.set_volume(volume.id, window_seconds=given.window_seconds)
        hooks.passed("create: clone grown")
        log.info("volume cloned", volume=name, id=volume.id, source=source.name)
        return volume

    def _same(
        self, existing: Volume, request: pb.CreateVolumeRequest, given: Parameters, source: Source | None
    ) -> Volume:
        """The answer to a repeated request. Raises AlreadyExists if the volume is not the one that is asked for."""
        if existing.state is VolumeState.DELETING:
            raise Conflict(f"a volume {existing.name} is being deleted: repeat the call once it is gone")
        wrong = []
        if existing.clone_of != (source.name if source else ""):
            wrong.append(f"made from {existing.clone_of or 'nothing'}")
        elif source is None and not placement.within(existing.size_bytes, request.capacity_range):
            wrong.append(exact_size(existing.size_bytes))
        if given.replicas not in (None, existing.policy.replicas):
            wrong.append(f"{existing.policy.replicas} replica(s)")
        if wrong:
            raise AlreadyExists(f"a volume {existing.name} exists and is another one: {', '.join(wrong)}")
        return existing

    # deletion

    async def _delete_source(self, clone_of: str) -> None:
        """The snapshot that a deleted clone was made from, if it served that purpose alone."""
        name, _, snapshot = clone_of.partition("@")
        if not snapshot.startswith(CLONE_PREFIX):
            return
        async with self._cluster.connect() as node:
            await _delete_if_unused(node, name, snapshot)  # if the source was deleted, it went with its last clone

    async def _sweep(self) -> None:
        """Deletes the snapshots that clones were made from which are gone, or were never made."""
        for volume, snapshot in await self._cluster.all_snapshots(complete=False):
            if snapshot.name.startswith(CLONE_PREFIX) and not snapshot.clones and snapshot.name not in self._cloning:
                async with self._cluster.connect() as node:
                    await _delete_if_unused(node, volume.id, snapshot.name)


async def _delete(node: Client, volume: Volume) -> None:
    """With the snapshots that clones were made from, but not with a user's."""
    try:
        try:
            await node.delete_volume(volume.id)
        except InUse:
            snapshots = [each.name for each in await node.snapshots(volume.id)]
            if not snapshots or not all(name.startswith(CLONE_PREFIX) for name in snapshots):
                raise
            await node.delete_volume(volume.id, snapshots=True)
    except NotFound:
        if await look_up(node, volume.id) is not None:
            raise Unavailable(f"volume {volume.name} has just moved: repeat the call") from None
    await until_known(node, volume.id, there=False)


async def _delete_if_unused(node: Client, volume: str, snapshot: str) -> None:
    try:
        await node.delete_snapshot(volume, snapshot)
    except (NotFound, InUse):  # gone, or another clone was made from it
        return
    hooks.passed("delete: source snapshot gone")


def _least(capability: pb.VolumeCapability, given: Parameters) -> int:
    """What the file system needs that is going to be made."""
    if capability.WhichOneof("access_type") == "block":
        return 0
    return BYTES_MIN[capability.mount.fs_type or given.fs_type or DEFAULT]


def visible(volumes: list[Volume]) -> list[Volume]:
    """Without those that are being deleted, or whose record cannot be read."""
    return [each for each in volumes if each.state is not VolumeState.DELETING and is_uuid(each.id) and each.size_bytes]


def describe(volume: Volume, context: dict[str, str] | None = None) -> pb.Volume:
    return pb.Volume(capacity_bytes=volume.size_bytes, volume_id=volume.id, volume_context=context or {})
