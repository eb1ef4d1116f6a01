"""The cluster, as the driver sees it through the control API of any of its nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from iomesh.api.client import Client, Credentials
from iomesh.api.model import MembershipState, Snapshot, Status, Volume, VolumeState
from iomesh.csi.names import SnapshotId
from iomesh.errors import IomeshError, NotFound, Unavailable

ANSWER_SECONDS = 10.0  # of a node that is asked how it is
CALL_SECONDS = 110.0  # of all other calls; the sidecars' default is 2 minutes
LAG_SECONDS = 0.5  # a node learns of another one's new volume within this time, usually in a tenth of it
LOOK_SECONDS = 0.01


class Cluster:
    def __init__(self, addresses: Sequence[str], certificates: str = "") -> None:
        """addresses: of control APIs. The first is that of this machine's daemon, if there is one; the others are asked
        if it does not answer. certificates: a directory, which is read anew for each connection; empty: none."""
        self._addresses = addresses
        self._certificates = certificates

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        """A client of the first daemon that is ready. Raises Unavailable."""
        silent = []
        for address in self._addresses:
            try:
                async with self._client(address, ANSWER_SECONDS) as asked:
                    status = await asked.status()
            except Unavailable as error:
                silent.append(error.message)
                continue
            if status.step:
                silent.append(f"node {status.node} is {status.state.value} ({status.step})")
                continue
            async with self._client(address, CALL_SECONDS) as node:
                yield node
            return
        raise Unavailable("; ".join(silent))

    def own(self) -> Client:
        """A client of this machine's daemon, to be used with `async with`."""
        return self._client(self._addresses[0], CALL_SECONDS)

    async def own_node(self) -> str:
        """The name of this machine's node. Raises Unavailable if its daemon does not answer."""
        async with self._client(self._addresses[0], ANSWER_SECONDS) as node:
            return (await node.status()).node

    def _client(self, address: str, seconds: float) -> Client:
        credentials = Credentials.read(self._certificates) if self._certificates and "/" not in address else None
        return Client(address, timeout_seconds=seconds, credentials=credentials)

    async def nodes(self) -> tuple[list[Status], list[str]]:
        """Those that have devices and answer; and why others do not."""
        async with self.connect() as client:
            members = [each for each in await client.nodes() if each.devices]
            running = [each.name for each in members if each.state is MembershipState.RUNNING]
            answers = await asyncio.gather(*map(client.status, running), return_exceptions=True)
        silent = [f"node {each.name} does not run" for each in members if each.name not in running]
        found = []
        for answer in answers:
            if isinstance(answer, Status):
                found.append(answer)
            elif isinstance(answer, IomeshError):
                silent.append(answer.message)
            else:
                raise answer
        return found, silent

    async def volumes(self) -> list[Volume]:
        async with self.connect() as node:
            return await node.volumes()

    async def find(self, volume_id: str) -> Volume | None:
        async with self.connect() as node:
            return await look_up(node, volume_id)

    async def named(self, name: str) -> Volume | None:
        """None: it may have been made a moment ago, which creating it finds out."""
        async with self.connect() as node:
            try:
                return await node.volume(name)
            except NotFound:
                return None

    async def get(self, volume_id: str) -> Volume:
        """Raises NotFound."""
        found = await self.find(volume_id)
        if found is None:
            raise NotFound(f"there is no volume with the id {volume_id!r}")
        return found

    async def snapshots(self, volume: Volume) -> list[Snapshot]:
        async with self.connect() as node:
            return await node.snapshots(volume.id)

    async def all_snapshots(self, *, complete: bool = True) -> list[tuple[Volume, Snapshot]]:
        """Of all volumes. complete: raises Unavailable if the owner of a volume does not run, because its snapshots are
        not known then."""
        async with self.connect() as node:
            volumes = {each.name: each for each in await node.volumes()}
            lost = [each for each in volumes.values() if each.state is VolumeState.ELSEWHERE and each.reason]
            if lost and complete:
                raise Unavailable(
                    f"the snapshots of {', '.join(each.name for each in lost)} are not known: {lost[0].reason}"
                )
            return [(volumes[each.volume], each) for each in await node.snapshots() if each.volume in volumes]

    async def find_snapshot(self, identity: SnapshotId) -> tuple[Volume, Snapshot] | None:
        volume = await self.find(identity.volume)
        if volume is None:
            return None
        found = await self.snapshots(volume)
        return next(((volume, each) for each in found if each.id == identity.snapshot), None)


async def look_up(node: Client, volume_id: str) -> Volume | None:
    """The volume of this id. That there is none counts only when it is still so a moment later: the node that is asked
    may not have heard of it."""
    for pause in (0.0, LAG_SECONDS):
        await asyncio.sleep(pause)
        try:
            return await node.volume(volume_id)
        except NotFound:
            continue
    return None


async def until_known(node: Client, volume_id: str, *, there: bool) -> None:
    """Until the node has heard that another one has made or deleted the volume, so that a list that is asked for next
    shows it; not longer than it may take."""
    try:
        async with asyncio.timeout(LAG_SECONDS):
            while any(each.id == volume_id for each in await node.volumes()) != there:  # noqa: ASYNC110 (of a daemon)
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        return
