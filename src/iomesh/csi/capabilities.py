"""How a volume may be used: access modes, mounted or as a block device."""

from __future__ import annotations

from collections.abc import Iterable

from iomesh.csi import csi_pb2 as pb
from iomesh.csi.filesystems import check_kind
from iomesh.errors import InvalidArgument

Mode = pb.VolumeCapability.AccessMode.Mode
_Modes = pb.VolumeCapability.AccessMode

READ_ONLY = (_Modes.SINGLE_NODE_READER_ONLY, _Modes.MULTI_NODE_READER_ONLY)
SINGLE_NODE = (
    _Modes.SINGLE_NODE_WRITER,
    _Modes.SINGLE_NODE_READER_ONLY,
    _Modes.SINGLE_NODE_SINGLE_WRITER,
    _Modes.SINGLE_NODE_MULTI_WRITER,
)
MOUNTED = (*SINGLE_NODE, _Modes.MULTI_NODE_READER_ONLY)
BLOCK = (*MOUNTED, _Modes.MULTI_NODE_SINGLE_WRITER, _Modes.MULTI_NODE_MULTI_WRITER)


def unsupported(capability: pb.VolumeCapability) -> str:
    """Why no volume has this capability; empty: every volume has."""
    mode = capability.access_mode.mode
    access = capability.WhichOneof("access_type")
    if access is None:
        return "a volume capability has neither `mount` nor `block`"
    if mode == _Modes.UNKNOWN:
        return "a volume capability has no access mode"
    name = Mode.Name(mode) if mode in Mode.values() else str(mode)
    if access == "block":
        return "" if mode in BLOCK else f"access mode {name} is not known to this driver"
    if mode not in MOUNTED:
        return (
            f"access mode {name} is for block devices alone: xfs and ext4 can be written by one node at a time; "
            "use ReadWriteOnce, or volumeMode Block"
        )
    if capability.mount.volume_mount_group:
        return "a volume mount group is not supported: the kubelet sets the group (fsGroup)"
    if capability.mount.fs_type:
        try:
            check_kind(capability.mount.fs_type)
        except InvalidArgument as error:
            return error.message
    return ""


def check(capabilities: Iterable[pb.VolumeCapability]) -> None:
    """Raises InvalidArgument for the first that is not supported, or if there is none."""
    found = list(capabilities)
    if not found:
        raise InvalidArgument("the request has no volume capability: it says how the volume is to be used")
    for capability in found:
        if reason := unsupported(capability):
            raise InvalidArgument(reason)


def reads_only(capability: pb.VolumeCapability) -> bool:
    return capability.access_mode.mode in READ_ONLY


def one_node(capability: pb.VolumeCapability) -> bool:
    """Whether the volume may be attached to one node at a time."""
    return capability.access_mode.mode in SINGLE_NODE


def one_pod(capability: pb.VolumeCapability) -> bool:
    return capability.access_mode.mode == _Modes.SINGLE_NODE_SINGLE_WRITER
