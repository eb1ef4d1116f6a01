"""How a node reaches a volume: through its own daemon, which owns the volume or forwards requests to the owner."""

from __future__ import annotations

import asyncio

from iomesh.api.client import Client
from iomesh.api.model import Volume, VolumeState
from iomesh.csi.attach import nbd_client
from iomesh.csi.cluster import Cluster
from iomesh.errors import InUse, IomeshError, NotFound, Unavailable
from iomesh.node.logs import logger

log = logger("exports")

OPEN_SECONDS = 60.0  # of a volume that was moved; a second or two, while the leases of its former owner last
GROW_SECONDS = 30.0  # usually a twentieth of one
LOOK_SECONDS = 0.05


async def export(cluster: Cluster, volume: Volume, *, alone: bool) -> str:
    """Exports the volume and returns the NBD URI of this machine's daemon. alone: raises InUse (FAILED_PRECONDITION) if
    a client is connected to it, most likely another node: two nodes that write one file system destroy it. And this
    node becomes the owner, if it keeps a replica."""
    async with cluster.own() as node:
        if alone:
            volume = await node.volume(volume.id)
            _refuse_connections(volume)
            await _bring_here(node, volume)
        return (await node.export_volume(volume.id)).uris[0]


async def until_grown(cluster: Cluster, volume: Volume) -> None:
    """Until this machine's daemon serves a volume that is attached here with the size that its owner has given it: it
    refuses requests behind the size that it knows."""
    async with cluster.own() as node:
        uri = (await node.export_volume(volume.id)).uris[0]
    await _until_size(uri, volume)


async def withdraw(cluster: Cluster, volume_id: str) -> None:
    """Ends the export, unless other nodes use it. A daemon that does not answer keeps it: it does no harm, and goes
    with the volume, or when the volume is unstaged the next time."""
    try:
        async with cluster.connect() as node:
            await node.unexport_volume(volume_id)
    except (InUse, NotFound) as error:  # another node uses it; it is gone
        log.info("stays exported", volume=volume_id, reason=error.message)
    except Unavailable as error:
        log.warning("not unexported", volume=volume_id, reason=error.message)


async def _until_size(uri: str, volume: Volume) -> None:
    try:
        async with asyncio.timeout(GROW_SECONDS):
            while await nbd_client.size_bytes(uri) < volume.size_bytes:  # noqa: ASYNC110 (of a daemon)
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise Unavailable(f"this node's daemon has not heard yet that volume {volume.name} has grown") from None


def _refuse_connections(volume: Volume) -> None:
    if volume.state is VolumeState.ELSEWHERE:  # its owner did not answer
        raise Unavailable(f"who uses volume {volume.name} is not known: {volume.reason}")
    connections = sum(each.connections for each in volume.exports)
    if connections:
        raise InUse(
            f"volume {volume.name} is attached already, with {connections} connection(s), and may be used by one node "
            "at a time: it is free once its other node has detached it or is down"
        )


async def _bring_here(node: Client, volume: Volume) -> None:
    """So that reads do not cross the network. What cannot be moved, such as a clone, is used from afar."""
    here = (await node.status()).node
    if volume.owner == here or here not in volume.replica_nodes or volume.clone_of:
        return
    try:
        await node.move_volume(volume.id, here)
        log.info("moved to its pod", volume=volume.name, node=here, owner=volume.owner)
        async with asyncio.timeout(OPEN_SECONDS):
            while (await node.volume(volume.id)).state is not VolumeState.SERVING:  # noqa: ASYNC110 (of a daemon)
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise Unavailable(f"volume {volume.name} was moved to node {here} and is not open there yet") from None
    except IomeshError as error:
        log.info("not moved to its pod", volume=volume.name, node=here, owner=volume.owner, reason=error.message)
