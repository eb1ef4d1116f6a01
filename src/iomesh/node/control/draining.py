"""Draining a node: it gives its volumes to others, gets no new segments, and what it has is copied elsewhere.

The wish is in the node's record `members/<name>`, so it outlives everybody who carries it out: owners have copies made
on other nodes and drop those on this one (iomesh.node.rebuild), and the node itself moves the volumes that it owns
(iomesh.node.volumes.ownership).
"""

from __future__ import annotations

import msgspec

from iomesh.errors import InUse, InvalidArgument, NotFound
from iomesh.metadata import Metadata
from iomesh.metadata.records import MemberRecord, decode, member_key, put_member
from iomesh.node.cluster import Cluster
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import answered

log = logger("draining")


async def set_draining(metadata: Metadata, cluster: Cluster, name: str, *, draining: bool) -> None:
    """Raises NotFound, and InUse if the other nodes are too few for the volumes' replicas."""
    entry = await answered(metadata.get(member_key(name)))
    found = None if entry is None else decode(MemberRecord, entry)
    if found is None or found.record.removed_ns:
        raise NotFound(f"no node {name!r} has joined this cluster: `iomesh cluster nodes` lists its nodes")
    if draining:
        check_redundancy(cluster, name)
    if found.record.draining != draining:
        record = msgspec.structs.replace(found.record, draining=draining)
        await answered(metadata.commit(put_member(record, found.version)))
        log.info("node is drained" if draining else "node is not drained any more", node=name)


def check_redundancy(cluster: Cluster, name: str) -> None:
    """Raises InUse, InvalidArgument."""
    with_devices = {device.node for device in cluster.devices()}
    left = [node for node in cluster.running if node in with_devices and node != name and not cluster.is_draining(node)]
    if not left:
        raise InvalidArgument(f"node {name} cannot be drained: no other node with devices runs")
    for stored in cluster.volumes():
        record, its_log = stored.volume.record, stored.log.record
        if record.policy.replicas == 1 and its_log.owner == name:
            raise InUse(
                f"node {name} cannot be drained: volume {record.name} has no replicas, and its data is only there: "
                "delete it, or copy it to a volume with replicas"
            )
        if record.policy.replicas > len(left):
            raise InUse(
                f"node {name} cannot be drained: volume {record.name} wants {record.policy.replicas} replicas, and "
                f"without {name} only {', '.join(left)} would be left: add a node first"
            )
