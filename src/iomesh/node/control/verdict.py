"""The state of the cluster in one word, with the reasons: what every node that runs says of itself and its volumes,
and what the metadata service has of the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.messages import to_struct
from iomesh.api.model import (
    ClusterStatus,
    Device,
    DeviceState,
    MembershipState,
    Node,
    NodeState,
    Reason,
    Status,
    Verdict,
    Volume,
    VolumeState,
)
from iomesh.errors import IomeshError
from iomesh.node.control.forwarding import Forwarding
from iomesh.sizes import short_size

if TYPE_CHECKING:
    from iomesh.node.node import Node as ThisNode

ANSWER_SECONDS = 3.0  # for each node: one that hangs must not keep the others' answers back
LITTLE_SPACE = 0.05  # of a node's capacity: less is a reason

UNAVAILABLE, DEGRADED, HEALTHY = Verdict.UNAVAILABLE, Verdict.DEGRADED, Verdict.HEALTHY


@dataclass(frozen=True)
class Told:
    """What a node says of itself. reason: why it says nothing."""

    node: Node
    status: Status | None = None
    devices: list[Device] = field(default_factory=list)
    volumes: list[Volume] = field(default_factory=list)  # that it owns
    reason: str = ""


async def cluster_status(node: ThisNode, members: list[Node], forwarding: Forwarding) -> ClusterStatus:
    told = await asyncio.gather(
        *(_own(node, each) if each.name == node.name else _ask(each, forwarding) for each in members)
    )
    reasons = list(reasons_of(told, node.volumes.list_all()))
    verdicts = {reason.verdict for reason in reasons}
    statuses = [each.status for each in told if each.status is not None]
    return ClusterStatus(
        cluster=str(node.cluster.id),
        verdict=UNAVAILABLE if UNAVAILABLE in verdicts else DEGRADED if verdicts else HEALTHY,
        reasons=sorted(reasons, key=lambda reason: reason.verdict is not UNAVAILABLE),
        nodes=members,
        volumes=len(node.volumes.list_all()),
        capacity_bytes=sum(status.capacity_bytes for status in statuses),
        free_bytes=sum(status.free_bytes for status in statuses),
    )


async def _own(node: ThisNode, member: Node) -> Told:
    return Told(member, node.status(), node.stores.list(), node.volumes.list())


async def _ask(member: Node, forwarding: Forwarding) -> Told:
    if member.state is not MembershipState.RUNNING:
        return Told(member, reason="it does not run")
    try:
        status, devices, volumes = await asyncio.gather(
            forwarding.call(member.name, "GetStatus", pb.GetStatusRequest(), ANSWER_SECONDS),
            forwarding.call(member.name, "ListDevices", pb.ListDevicesRequest(), ANSWER_SECONDS),
            _volumes(member.name, forwarding),
        )
    except IomeshError as error:
        return Told(member, reason=error.message)
    assert isinstance(status, pb.Status) and isinstance(devices, pb.ListDevicesResponse)
    return Told(
        member,
        to_struct(Status, status),
        [to_struct(Device, device) for device in devices.devices],
        [volume for volume in volumes if volume.owner == member.name],
    )


async def _volumes(node: str, forwarding: Forwarding) -> list[Volume]:
    found, request = list[Volume](), pb.ListVolumesRequest()
    while True:
        answer = await forwarding.call(node, "ListVolumes", request, ANSWER_SECONDS)
        assert isinstance(answer, pb.ListVolumesResponse)
        found += [to_struct(Volume, volume) for volume in answer.volumes]
        request.page_token = answer.next_page_token
        if not answer.next_page_token:
            return found


def reasons_of(told: Iterable[Told], stored: Iterable[Volume]) -> Iterator[Reason]:
    """stored: all volumes, as the node that is asked has them."""
    known: dict[str, Volume] = {}
    silent: dict[str, str] = {}
    for each in told:
        if each.status is None:
            silent[each.node.name] = each.reason
            yield _of_silent(each)
            continue
        own = {volume.id: volume for volume in each.volumes}
        known |= own
        yield from _of_node(each.node.name, each.status, each.devices, list(own.values()))
    for volume in stored:
        yield from _of_volume(known.get(volume.id, volume), silent)


def _of_silent(told: Told) -> Reason:
    name = told.node.name
    if told.node.state is MembershipState.RUNNING:
        return Reason(DEGRADED, "node-silent", node=name, message=f"node {name} does not answer: {told.reason}")
    message = f"node {name} is down, and has {told.node.devices} device(s): start its daemon"
    return Reason(DEGRADED, "node-down", node=name, message=message)


def _of_node(name: str, status: Status, devices: list[Device], volumes: list[Volume]) -> Iterator[Reason]:
    if status.state in (NodeState.STARTING, NodeState.STOPPING):
        yield Reason(DEGRADED, "node-changing", node=name, message=f"node {name} is {status.state.value}")
    failed = {f"volume {volume.name} has failed: {volume.reason}" for volume in volumes}  # as the node words it
    for problem in status.problems:
        if problem not in failed:
            yield Reason(DEGRADED, "node-problem", node=name, message=f"node {name}: {problem}")
    for device in devices:
        if device.state is not DeviceState.ONLINE:
            why = f": {device.reason}" if device.reason else ""
            message = f"device {device.path} of node {name} is {device.state.value}{why}"
            yield Reason(DEGRADED, "device-failed", node=name, message=message)
        if device.scrub.damaged_blocks:
            message = f"device {device.path} of node {name} has {device.scrub.damaged_blocks} damaged block(s)"
            yield Reason(DEGRADED, "device-damaged", node=name, message=message)
    if status.capacity_bytes and status.free_bytes < LITTLE_SPACE * status.capacity_bytes:
        message = (
            f"node {name} has {short_size(status.free_bytes)} of {short_size(status.capacity_bytes)} left: add a "
            "device, or delete something"
        )
        yield Reason(DEGRADED, "space", node=name, message=message)


def _of_volume(volume: Volume, silent: dict[str, str]) -> Iterator[Reason]:
    """silent: the nodes that say nothing, and why."""
    name, owner = volume.name, volume.owner
    if volume.state is VolumeState.FAILED:
        message = f"volume {name} has failed: {volume.reason}"
        yield Reason(UNAVAILABLE, "volume-not-served", node=owner, volume=name, message=message)
    elif volume.state is VolumeState.ELSEWHERE and (owner in silent or volume.reason):
        why = volume.reason or f"its owner, node {owner}, does not answer"
        yield Reason(
            UNAVAILABLE, "volume-not-served", node=owner, volume=name, message=f"volume {name} is not served: {why}"
        )
    if volume.redundancy.exposed_bytes:
        yield Reason(DEGRADED, "volume-exposed", node=owner, volume=name, message=_exposed(volume))
    wanted, present = volume.policy.replicas, [node for node in volume.replica_nodes if node not in silent]
    if wanted > 1 and volume.replica_nodes and len(present) < wanted:
        message = f"volume {name} has {len(present)} of {wanted} replicas, on {', '.join(present) or 'no running node'}"
        yield Reason(DEGRADED, "volume-replicas", node=owner, volume=name, message=message)


def _exposed(volume: Volume) -> str:
    """Degraded always means: it is being rebuilt, or why it is not."""
    known = volume.redundancy
    missing = f"volume {volume.name} lacks {short_size(known.exposed_bytes)} of its {volume.policy.replicas} copies"
    if known.reason:
        return f"{missing}: {known.reason}"
    done = f"rebuilding, {short_size(known.rebuilt_bytes)} made"
    return f"{missing}: {done}, about {known.eta_seconds:.0f} s left" if known.eta_seconds else f"{missing}: {done}"
