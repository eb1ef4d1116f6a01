"""Who owns the replicated volumes: takes over those of a node that is lost, closes those that another node has taken
over, and compares the copies on nodes that are back.

- A node is lost when its record in the metadata service has expired, or names a process of this machine that has ended.
  That is read again before anything is taken over.
- A node with a device in the current fragment's replica set may take the volume over. The first does so at once, each
  further one RANK_SECONDS later. If two try, the compare-and-swap of the log's record decides.
- A clone is taken over by the node that has its parent open.
- A volume without replicas, or one that is being deleted, waits for its owner.
"""

from __future__ import annotations

import asyncio
import time
import uuid

from iomesh.api.model import VolumeState
from iomesh.errors import AlreadyExists, Conflict, IomeshError
from iomesh.metadata.nodes import decode_node, node_key
from iomesh.metadata.records import Lifecycle
from iomesh.node.cluster import StoredVolume
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import answered
from iomesh.node.supervisor import STOP_SECONDS, SupervisedTask, end_all, settle
from iomesh.node.tenure import has_ended
from iomesh.node.volume import NodeVolume
from iomesh.node.volumes.failures import Failures
from iomesh.node.volumes.opening import Opening
from iomesh.node.volumes.parts import Parts

log = logger("ownership")

LOOK_SECONDS = 0.25  # between two looks at what does not wake the task: processes that ended
RANK_SECONDS = 1.0  # by which each further member of the replica set waits longer
AGAIN_SECONDS = 1.0  # after a take-over that failed
COMPARE_SECONDS = 1.0  # between two looks for nodes that are back


class Ownership:
    def __init__(self, parts: Parts, opening: Opening, failures: Failures) -> None:
        self._engine = parts.engine
        self._metadata = parts.metadata
        self._stores = parts.stores
        self._volumes = parts.volumes
        self._supervisor = parts.supervisor
        self._cluster = parts.cluster
        self._tenure = parts.tenure
        self._node = parts.node
        self._opening = opening
        self._failures = failures
        self._due: dict[tuple[uuid.UUID, int], float] = {}  # when to take over a volume in an epoch; monotonic
        self._readies_seen = 0
        self._jobs: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._tasks: list[SupervisedTask] = []

    def start(self) -> None:
        self._tasks = [
            self._supervisor.start("follow owners", self._follow),
            self._supervisor.start("compare copies", self._compare),
        ]

    async def stop(self) -> None:
        """A take-over under way is completed, or given up after STOP_SECONDS."""
        for task in self._tasks:
            await task.stop()
        if self._jobs:
            await asyncio.wait(self._jobs.values(), timeout=STOP_SECONDS)
            await end_all(self._jobs.values())

    async def _follow(self, task: SupervisedTask) -> None:
        while True:
            self._cluster.changed.clear()
            self._close_lost()
            self._take_over_due()
            self._open_again_due()
            task.progress()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._cluster.changed.wait()
            except TimeoutError:
                pass

    # volumes that other nodes have taken over

    def _close_lost(self) -> None:
        for volume in self._volumes.values():
            stored = self._cluster.log(volume.record.id)
            if stored is None or volume.log.owner != self._node:
                continue
            if stored.record.owner != self._node and stored.record.epoch > volume.log.epoch:
                self._failures.lost(
                    volume,
                    Conflict(
                        f"volume {volume.record.name} has been taken over: node {stored.record.owner} owns it with "
                        f"epoch {stored.record.epoch}, and this node had epoch {volume.log.epoch}"
                    ),
                )

    # volumes of nodes that are lost

    def _take_over_due(self) -> None:
        due: dict[tuple[uuid.UUID, int], float] = {}
        now = time.monotonic()
        for stored in self._abandoned():
            identity, epoch = stored.log.record.id, stored.log.record.epoch
            rank = self._rank(stored)
            if rank is None:
                continue
            due[identity, epoch] = self._due.get((identity, epoch), now + rank * RANK_SECONDS)
            if due[identity, epoch] <= now and identity not in self._jobs:
                due[identity, epoch] = now + AGAIN_SECONDS
                self._start(stored)
        self._due = due

    def _abandoned(self) -> list[StoredVolume]:
        """The replicated volumes of nodes that are lost, as far as is known."""
        if not self._tenure.is_settled or self._stores.missing:
            return []
        owners = {stored.log.record.owner for stored in self._cluster.volumes()} - {self._node}
        lost = {owner for owner in owners if self._cluster.is_lost(owner)}
        return [
            stored
            for stored in (self._cluster.volumes() if lost else ())
            if stored.log.record.owner in lost
            and stored.volume.record.policy.replicas > 1
            and stored.volume.record.state != Lifecycle.DELETING
        ]

    def _rank(self, stored: StoredVolume) -> int | None:
        """How many others are to take the volume over rather than this node. None: this one may not."""
        its_log = stored.log.record
        if its_log.clone_of is not None:
            parent = self._volumes.by_id(its_log.clone_of.volume)
            return 0 if parent is not None and parent.state == VolumeState.SERVING else None
        rank = 0
        for device in its_log.fragments[-1].devices if its_log.fragments else ():
            if device in self._stores.numbers:
                return rank
            node = self._cluster.node_of(device)
            rank += node != its_log.owner and not self._cluster.is_lost(node)
        return None

    def _start(self, stored: StoredVolume) -> None:
        identity = stored.volume.record.id
        job = self._supervisor.spawn("take over volume", self._take_over(stored), volume=stored.volume.record.name)
        self._jobs[identity] = job
        job.add_done_callback(lambda _: self._jobs.pop(identity, None))

    def _open_again_due(self) -> None:
        """A volume that could not be opened may be, once a node is reached that has what this one lacks."""
        readies = sum(each["readies"] for each in self._engine.peers())
        if readies == self._readies_seen:
            return
        self._readies_seen = readies
        for volume in self._volumes.values():
            if volume.state == VolumeState.FAILED and volume.record.policy.replicas > 1 and not volume.in_engine:
                self._supervisor.spawn("open volume again", self._open_again(volume), volume=volume.record.name)

    async def _open_again(self, volume: NodeVolume) -> None:
        async with volume.changing:
            mine = volume.log.owner == self._node and self._volumes.has(volume)
            if not mine or volume.state != VolumeState.FAILED or volume.record.state == Lifecycle.DELETING:
                return
            try:
                await self._opening.open(volume)
            except IomeshError as error:
                self._failures.fail(volume, error)

    async def _take_over(self, stored: StoredVolume) -> None:
        former = stored.log.record.owner
        entry = await answered(self._metadata.get(node_key(former)))
        if entry is not None and not has_ended(decode_node(entry)):
            return
        (record, version), (its_log, log_version) = stored
        volume = NodeVolume(record, its_log, version, log_version)
        try:
            self._volumes.add(volume)
        except AlreadyExists:  # being created here, and about to be refused; or an earlier take-over
            return
        log.warning("taking a volume over: its owner is lost", volume=record.name, owner=former)
        async with volume.changing:
            try:
                await self._opening.open(volume, former=former)
            except IomeshError as error:
                self._not_taken_over(volume, error)
            except BaseException as error:
                self._not_taken_over(volume, IomeshError(f"internal error ({error!r}): see the node's log"))
                raise

    def _not_taken_over(self, volume: NodeVolume, error: IomeshError) -> None:
        if volume.log.owner == self._node:
            self._failures.fail(volume, error)
            return
        self._volumes.remove(volume)
        log.warning("volume not taken over", volume=volume.record.name, reason=error.message)

    # copies on nodes that are back

    async def _compare(self, task: SupervisedTask) -> None:
        while True:
            await settle(self._compare_copies(volume) for volume in self._volumes.values() if volume.in_engine)
            task.progress()
            await asyncio.sleep(COMPARE_SECONDS)

    async def _compare_copies(self, volume: NodeVolume) -> None:
        """Of each node that became reachable since they were compared last."""
        if volume.record.policy.replicas == 1 or volume.state != VolumeState.SERVING:
            return
        for node, readies in self._engine.readies(volume.recovery["reactor"]).items():
            if volume.readies.get(node) == readies:
                continue
            try:
                await self._engine.reconcile(volume.record.id, node)
            except IomeshError as error:  # it is lost again, or the volume is being closed
                log.info("copies not compared", volume=volume.record.name, node=node, reason=error.message)
            else:
                volume.readies[node] = readies
                log.info("copies compared", volume=volume.record.name, node=node)
