"""Which node is to answer a call: the owner of its volume, the node that the request names, or the asked one."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from iomesh.errors import InvalidArgument, NotFound, Unavailable
from iomesh.metadata.records import get_volume
from iomesh.metadata.volumes import find_volume
from iomesh.node.limits import is_id
from iomesh.node.metadata_calls import answered

if TYPE_CHECKING:
    from iomesh.node.node import Node

VOLUME_OF = {  # the field that names the volume
    "CloneVolume": "volume",
    "FlattenVolume": "name",
    "GetVolume": "name",
    "GrowVolume": "name",
    "SetVolume": "name",
    "MoveVolume": "name",
    "TakeOverVolume": "name",
    "DeleteVolume": "name",
    "ExportVolume": "name",
    "UnexportVolume": "name",
    "CreateSnapshots": "volumes",
    "ListSnapshots": "volume",
    "GetSnapshot": "volume",
    "DeleteSnapshot": "volume",
    "ExportSnapshot": "volume",
    "UnexportSnapshot": "volume",
    "RestoreVolume": "volume",
    "DiffSnapshots": "volume",
    "Checkpoint": "name",
}
BY_NODE = {  # the node that is to answer is in the request
    "GetStatus",
    "GetCounters",
    "ListDevices",
    "GetDevice",
    "AddDevice",
    "RemoveDevice",
    "TakeOverVolume",
}


class Routing:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def resolve(self, method: str, request: Any) -> None:
        """Replaces the ids of volumes in a request by their names. Raises NotFound."""
        field = VOLUME_OF.get(method)
        if field is None:
            return
        if field == "volumes":
            names = [await self._name_of(each) for each in request.volumes]
            del request.volumes[:]
            request.volumes.extend(names)
        else:
            setattr(request, field, await self._name_of(getattr(request, field)))

    def node_for(self, method: str, request: Any) -> str:
        """The other node that is to answer; empty: this one. Raises InvalidArgument, Unavailable."""
        if method in BY_NODE:
            return "" if request.node == self._node.name else str(request.node)
        if method == "CreateVolume":
            return self._node_to_create_on(request)
        field = VOLUME_OF.get(method)
        if field is None:
            return ""
        names = list(request.volumes) if field == "volumes" else [str(getattr(request, field))]
        owners = {self._owner_of(name) for name in names if name}
        if len(owners) > 1:
            each = ", ".join(f"{name} of node {self._owner_of(name) or self._node.name}" for name in names)
            raise InvalidArgument(
                f"the volumes belong to several nodes ({each}), so no instant is common to them: name volumes of one "
                "node, or move them there first"
            )
        return owners.pop() if owners else ""

    async def owner_now(self, method: str, request: Any) -> str:
        """The other node that owns the volume which a call names, or is to create, as the metadata service has it now;
        empty: this one, or there is none. Raises MetadataUnavailable: then nobody knows."""
        field = "name" if method == "CreateVolume" else VOLUME_OF.get(method)
        names = [] if field is None else request.volumes if field == "volumes" else [getattr(request, field)]
        owners = set()
        for name in filter(None, names):
            found = await answered(find_volume(self._node.metadata, name))
            if found is None or found.log is None:
                return ""
            owners.add(found.log.record.owner)
        owner = owners.pop() if len(owners) == 1 else ""
        creates_beside_lost = method == "CreateVolume" and owner and self._node.cluster_view.is_lost(owner)
        return "" if owner == self._node.name or creates_beside_lost else owner

    def about(self, method: str, request: Message) -> str:
        """For people: why another node is to answer."""
        field = VOLUME_OF.get(method)
        if field is None or method in BY_NODE:
            return ""
        names = request.volumes if field == "volumes" else [getattr(request, field)]  # type: ignore[attr-defined]
        return f", which owns volume {', '.join(names)},"

    async def _name_of(self, words: str) -> str:
        if not is_id(words):
            return words
        identity = uuid.UUID(words)
        if (own := self._node.registry.by_id(identity)) is not None:
            return own.record.name
        stored = self._node.cluster_view.volume(identity)
        if stored is not None:
            return stored.volume.record.name
        found = await answered(get_volume(self._node.metadata, identity))  # created a moment ago, by another node?
        if found is None:
            raise NotFound(f"there is no volume with the id {words}: `iomesh volume list --json` shows all ids")
        return found.record.name

    def _owner_of(self, name: str) -> str:
        """Empty: this node, or the volume does not exist."""
        registry = self._node.registry
        if registry.get(name) is not None:
            return ""
        stored = registry.owned_elsewhere(name)
        return stored.log.record.owner if stored is not None else ""

    def _node_to_create_on(self, request: Any) -> str:
        me, view = self._node.name, self._node.cluster_view
        owner = self._owner_of(request.name)
        if owner and view.is_lost(owner):
            return ""  # which refuses the name
        if owner or self._node.registry.get(request.name) is not None:
            return owner  # which compares the request with what there is
        if request.node or self._node.stores.largest_bytes:
            return "" if request.node == me else str(request.node)
        space: dict[str, int] = {}
        for device in view.devices():
            if device.node != me and not view.is_lost(device.node):
                space[device.node] = space.get(device.node, 0) + device.size_bytes
        return max(sorted(space), key=space.__getitem__, default="")


def refuse_second_hop(node: Node, method: str, other: str, by: str) -> None:
    """A call that was forwarded to this node, and is another one's: what the nodes know of the owner differs."""
    if other:
        raise Unavailable(
            f"{method} was forwarded by node {by} to node {node.name}, and is to be answered by node {other}: the "
            "volume has just moved; try again"
        )
