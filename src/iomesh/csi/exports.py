"""How a node reaches a volume: the one place that knows which daemon serves it to this node."""

from __future__ import annotations

from iomesh.api.model import Export, Volume
from iomesh.csi.cluster import Cluster
from iomesh.errors import InUse, IomeshError, NotFound, Unavailable
from iomesh.node.logs import logger

log = logger("exports")

UNIX = "nbd+unix://"


async def export(cluster: Cluster, volume: Volume, *, alone: bool) -> str:
    """Exports the volume and returns its NBD URI. alone: raises InUse (FAILED_PRECONDITION) if a client is connected to
    it, most likely another node: two nodes that write one file system destroy it."""
    async with cluster.connect() as node:
        given = await node.export_volume(volume.id)
    if alone and given.connections:
        raise InUse(
            f"volume {volume.name} is attached already, with {given.connections} connection(s), and may be used by one "
            "node at a time: it is free once its other node has detached it or is down"
        )
    return _nearest(given, local=volume.owner == await cluster.own_node())


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


def _nearest(export_: Export, *, local: bool) -> str:
    """A socket of this machine, if the daemon is on it; else TCP, if it listens there."""
    if not export_.uris:
        raise IomeshError("the daemon names no address of its export")
    fitting = [each for each in export_.uris if each.startswith(UNIX) == local]
    return (fitting or export_.uris)[0]
