"""The daemons of the cluster, as the driver sees them: which volumes there are, and which daemon owns each.

A daemon knows its own volumes for certain, and those of the others from a mirror that may lag behind by a moment. So
all are asked, and the owner's word counts. What a daemon that does not answer owns is known from the others' mirrors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from iomesh.api.client import Client
from iomesh.api.model import Snapshot, Status, Volume
from iomesh.csi.names import SnapshotId
from iomesh.errors import Conflict, IomeshError, NotFound, Unavailable

ANSWER_SECONDS = 10.0  # to be told what there is
CHANGE_SECONDS = 110.0  # to make, change or delete something; the sidecars' default is 2 minutes
ATTEMPTS = 10
PAUSE_SECONDS = 0.2  # while a volume changes its owner, or the mirrors lag


@dataclass(frozen=True)
class Daemon:
    """One that answers."""

    address: str
    status: Status
    volumes: Sequence[Volume]

    @property
    def node(self) -> str:
        return self.status.node


@dataclass(frozen=True)
class View:
    """What the daemons said at about one time."""

    daemons: Sequence[Daemon]
    silent: Sequence[str] = field(default=())  # why the others did not answer

    def daemon(self, node: str) -> Daemon | None:
        return next((each for each in self.daemons if each.node == node), None)

    def volumes(self) -> list[Volume]:
        """Each once, by its owner if that answers."""
        found: dict[str, Volume] = {}
        for daemon in self.daemons:
            for volume in daemon.volumes:
                known = found.get(volume.id)
                if known is None or volume.owner == daemon.node or volume.epoch > known.epoch:
                    found[volume.id] = volume
        return [volume for volume in found.values() if not self._denied(volume)]

    def find(self, volume_id: str) -> Volume | None:
        return next((each for each in self.volumes() if each.id == volume_id), None)

    def named(self, name: str) -> Volume | None:
        return next((each for each in self.volumes() if each.name == name), None)

    def is_settled(self, volume_id: str) -> bool:
        """Whether the daemons agree about this volume: it is not there, or its owner has it, or does not answer."""
        return not any(
            each.id == volume_id and self._denied(each) for daemon in self.daemons for each in daemon.volumes
        )

    def _denied(self, volume: Volume) -> bool:
        """Whether the daemon that is said to own it does not know it."""
        owner = self.daemon(volume.owner)
        return owner is not None and not any(each.id == volume.id for each in owner.volumes)


class Cluster:
    def __init__(self, addresses: Sequence[str]) -> None:
        """addresses: of the control APIs; the first is that of this node's daemon, if there is one."""
        self._addresses = addresses

    @property
    def own_address(self) -> str:
        return self._addresses[0]

    async def own_node(self) -> str:
        """The name of this machine's node. Raises Unavailable if its daemon does not answer."""
        async with Client(self.own_address, timeout_seconds=ANSWER_SECONDS) as node:
            return (await node.status()).node

    async def look(self) -> View:
        """Raises Unavailable if no daemon answers."""
        answers = await asyncio.gather(*(self._ask(address) for address in self._addresses), return_exceptions=True)
        daemons, silent = [], []
        for answer in answers:
            if isinstance(answer, Daemon):
                daemons.append(answer)
            elif isinstance(answer, IomeshError):
                silent.append(answer.message)
            elif isinstance(answer, BaseException):
                raise answer
        if not daemons:
            raise Unavailable("; ".join(silent))
        return View(daemons, silent)

    async def settled(self, volume_id: str) -> View:
        """A view in which this volume is not just changing its owner. Raises Unavailable if it stays so."""
        for _ in range(ATTEMPTS):
            view = await self.look()
            if view.is_settled(volume_id):
                return view
            await asyncio.sleep(PAUSE_SECONDS)
        raise Unavailable(f"volume {volume_id} is changing its owner: repeat the call")

    async def find(self, volume_id: str) -> Volume | None:
        return (await self.settled(volume_id)).find(volume_id)

    async def get(self, volume_id: str) -> Volume:
        """Raises NotFound."""
        found = await self.find(volume_id)
        if found is None:
            raise NotFound(f"there is no volume with the id {volume_id!r}")
        return found

    async def owner(self, volume: Volume) -> Client:
        """A client of the daemon that owns the volume, to be used with `async with`. Raises Unavailable if it does not
        answer."""
        return self.client(await self.owner_of(volume))

    async def owner_of(self, volume: Volume) -> Daemon:
        view = await self.look()
        current = view.find(volume.id) or volume
        daemon = view.daemon(current.owner)
        if daemon is None:
            said = f" ({'; '.join(view.silent)})" if view.silent else ""
            raise Unavailable(
                f"node {current.owner}, which owns volume {current.name}, does not answer{said}: repeat the call once "
                "it runs, or once another node has taken the volume over"
            )
        return daemon

    def client(self, daemon: Daemon) -> Client:
        return Client(daemon.address, timeout_seconds=CHANGE_SECONDS)

    async def snapshots(self, volume: Volume) -> list[Snapshot]:
        async with await self.owner(volume) as node:
            return await node.snapshots(volume.name)

    async def all_snapshots(self) -> tuple[View, list[tuple[Volume, Snapshot]]]:
        """Of all volumes. Raises Unavailable if a daemon that owns some does not answer: the list would lack them."""
        view = await self.look()
        by_owner: dict[str, dict[str, Volume]] = {}
        for volume in view.volumes():
            by_owner.setdefault(volume.owner, {})[volume.name] = volume
        found = []
        for owner, volumes in by_owner.items():
            daemon = view.daemon(owner)
            if daemon is None:
                raise Unavailable(
                    f"node {owner} does not answer, and the snapshots of its volumes ({', '.join(sorted(volumes))}) "
                    "are not known without it"
                )
            async with self.client(daemon) as node:
                found += [(volumes[each.volume], each) for each in await node.snapshots() if each.volume in volumes]
        return view, found

    async def find_snapshot(self, identity: SnapshotId) -> tuple[Volume, Snapshot] | None:
        volume = await self.find(identity.volume)
        if volume is None:
            return None
        try:
            found = await self.snapshots(volume)
        except NotFound:  # it was deleted meanwhile, or moved
            raise Conflict(f"volume {volume.name} is changing: repeat the call") from None
        return next(((volume, each) for each in found if each.id == identity.snapshot), None)

    async def _ask(self, address: str) -> Daemon:
        async with Client(address, timeout_seconds=ANSWER_SECONDS) as node:
            status = await node.status()
            if not status.ready and not status.volumes and status.step:
                raise Unavailable(f"node {status.node} is starting ({status.step})")
            return Daemon(address, status, await node.volumes())
