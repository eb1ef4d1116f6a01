"""Who owns the replicated volumes: takes over those of a node that is lost and those that are offered to this node,
closes those that another node has taken over, and compares the copies on nodes that are back.

- A node is lost when its record in the metadata service has expired, or names a process of this machine that has ended;
  for a volume also when the node's daemon is another one than opened the volume, and does not open it within
  RETURN_SECONDS. That is read again before anything is taken over.
- A node with a device in the current fragment's replica set may take the volume over. The first does so at once, each
  further one RANK_SECONDS later. If two try, the compare-and-swap of the log's record decides.
- The volume of an owner that says in the record of the log that it is isolated (isolation.py) is taken over likewise,
  by a node that reaches enough others without that owner, and has done so without interruption for ISOLATED_SECONDS.
- A clone is taken over by the node that has its parent open.
- A volume without replicas, or one that is being deleted, waits for its owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid

import msgspec

from iomesh.api.model import Volume, VolumeState
from iomesh.errors import AlreadyExists, Conflict, InUse, InvalidArgument, IomeshError, NotFound, Unavailable
from iomesh.metadata.nodes import NodeRecord, decode_node, node_key
from iomesh.metadata.records import Lifecycle, LogRecord, minimum_replicas
from iomesh.metadata.volumes import find_volume
from iomesh.node.cluster import StoredVolume
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import answered
from iomesh.node.supervisor import STOP_SECONDS, SupervisedTask, end_all, settle
from iomesh.node.tenure import has_ended
from iomesh.node.volume import NodeVolume, write_log
from iomesh.node.volumes.changes import refuse_connections
from iomesh.node.volumes.closing import Closing
from iomesh.node.volumes.failures import Failures
from iomesh.node.volumes.opening import Opening
from iomesh.node.volumes.parts import Parts
from iomesh.node.volumes.view import View

log = logger("ownership")

LOOK_SECONDS = 0.25  # between two looks at what does not wake the task: processes that ended
RANK_SECONDS = 1.0  # by which each further member of the replica set waits longer
RETURN_SECONDS = 15.0  # for a daemon that was started again to open its volumes
ISOLATED_SECONDS = 1.0  # for an owner that reaches others again to say so
GAP_SECONDS = 1.0  # without a look: this node was stopped, and what it knows is old
AGAIN_SECONDS = 1.0  # after a take-over that failed
MOVE_SECONDS = 10.0  # for the other node to take a volume that it is offered
MOVE_POLL_SECONDS = 0.02
DRAIN_SECONDS = 2.0  # between two attempts to give away the volumes of a drained node
COMPARE_SECONDS = 1.0  # between two looks for nodes that are back


class Ownership:
    def __init__(self, parts: Parts, opening: Opening, closing: Closing, failures: Failures, view: View) -> None:
        self._engine = parts.engine
        self._metadata = parts.metadata
        self._stores = parts.stores
        self._volumes = parts.volumes
        self._supervisor = parts.supervisor
        self._cluster = parts.cluster
        self._tenure = parts.tenure
        self._node = parts.node
        self._exports = parts.exports
        self._forwarding = parts.forwarding
        self._snapshots = parts.snapshots
        self._opening = opening
        self._closing = closing
        self._failures = failures
        self._view = view
        self._due: dict[tuple[uuid.UUID, int], float] = {}  # when to take over a volume in an epoch; monotonic
        self._looked = 0.0  # when _due was brought up to date
        self._readies_seen = 0
        self._jobs: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._tasks: list[SupervisedTask] = []

    def start(self) -> None:
        self._tasks = [
            self._supervisor.start("follow owners", self._follow),
            self._supervisor.start("compare copies", self._compare),
            self._supervisor.start("drain", self._drain),
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
            if stored is None or volume.log.owner != self._node or volume.moving:
                continue
            if stored.record.owner != self._node and stored.record.epoch > volume.log.epoch:
                self._failures.lost(
                    volume,
                    Conflict(
                        f"volume {volume.record.name} has been taken over: node {stored.record.owner} owns it with "
                        f"epoch {stored.record.epoch}, and this node had epoch {volume.log.epoch}"
                    ),
                )

    # volumes of nodes that are lost, or that are offered

    def _take_over_due(self) -> None:
        due: dict[tuple[uuid.UUID, int], float] = {}
        now = time.monotonic()
        if now - self._looked > GAP_SECONDS:
            self._due = {}
        self._looked = now
        for stored, delay in [*self._offered(), *self._abandoned(), *self._isolated()]:
            key = identity, _ = stored.log.record.id, stored.log.record.epoch
            due[key] = self._due.get(key, now + delay)
            if due[key] <= now and identity not in self._jobs:
                due[key] = now + AGAIN_SECONDS
                self._start(stored)
        self._due = due

    def _offered(self) -> list[tuple[StoredVolume, float]]:
        return [
            (stored, 0.0)
            for stored in self._cluster.volumes()
            if stored.log.record.offered_to == self._node and stored.log.record.owner != self._node
        ]

    def _abandoned(self) -> list[tuple[StoredVolume, float]]:
        """The replicated volumes of nodes that are lost, as far as is known, and for how many seconds to wait."""
        if not self._tenure.is_settled or self._stores.missing:
            return []
        running = {name: record for name, record in self._cluster.nodes.items() if not has_ended(record)}
        found = []
        for stored in self._cluster.volumes():
            (record, _), (its_log, _) = stored
            if record.policy.replicas == 1 or record.state == Lifecycle.DELETING or its_log.owner == self._node:
                continue
            owner = running.get(its_log.owner)
            if owner is not None and not has_begun_anew(owner, its_log):
                continue
            rank = self._rank(stored)
            if rank is not None:
                found.append((stored, (RETURN_SECONDS if owner else 0.0) + rank * RANK_SECONDS))
        return found

    def _isolated(self) -> list[tuple[StoredVolume, float]]:
        """The volumes whose owners reach too few nodes, and for how many seconds to wait."""
        if not self._tenure.is_settled or self._stores.missing:
            return []
        reachable = self._engine.reachable()
        found = []
        for stored in self._cluster.volumes():
            record, its_log = stored.volume.record, stored.log.record
            if not its_log.isolated or its_log.owner == self._node or record.state == Lifecycle.DELETING:
                continue
            others = sum(bool(devices) for node, devices in reachable.items() if node != its_log.owner)
            rank = self._rank(stored)
            if rank is not None and 1 + others >= minimum_replicas(record.policy.replicas):
                found.append((stored, ISOLATED_SECONDS + rank * RANK_SECONDS))
        return found

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
        """Whether or not it succeeds; what is left to do is retried."""
        former, offered = stored.log.record.owner, stored.log.record.offered_to == self._node
        isolated = stored.log.record.isolated
        if not offered and not isolated:
            running = await self._running(former)
            if running is not None and not has_begun_anew(running, stored.log.record):
                return
        volume = self._begin(stored)
        if volume is None:
            return
        log.warning(
            "taking a volume over: "
            + ("it is offered" if offered else "its owner is isolated" if isolated else "its owner is lost"),
            volume=volume.record.name,
            owner=former,
        )
        async with volume.changing:
            with contextlib.suppress(IomeshError):  # it is logged
                await self._open(volume, former)

    async def take_over(self, name: str, *, force: bool = False) -> Volume:
        """By hand. force: although the owner runs."""
        if (own := self._volumes.get(name)) is not None:
            async with own.changing:
                return self._view.describe(self._volumes.serving(name))
        stored = await answered(find_volume(self._metadata, name))
        if stored is None or stored.log is None:
            raise NotFound(f"there is no volume {name!r}: `iomesh volume list` shows all volumes")
        (record, _), (its_log, _) = found = StoredVolume(stored.volume, stored.log)
        if record.policy.replicas == 1:
            raise InvalidArgument(
                f"volume {name} has no replicas: its data is only on node {its_log.owner}, which has to be started"
            )
        running = await self._running(its_log.owner)
        if running is not None and not force:
            raise InUse(
                f"volume {name} is owned by node {its_log.owner}, which runs (process {running.process} on "
                f"{running.host}): move it there (`iomesh volume move {name} --to {self._node}`), or take it over with "
                "force if that node does not answer"
            )
        if its_log.clone_of is None and self._rank(found) is None:
            raise InvalidArgument(
                f"node {self._node} cannot take volume {name} over: it does not keep what was written last; "
                f"{', '.join(self._view.replica_nodes(its_log)) or 'no node'} does"
            )
        volume = self._begin(found)
        if volume is None:
            raise Unavailable(f"volume {name} is being taken over already: try again shortly")
        log.warning("taking a volume over: by command", volume=name, owner=its_log.owner, force=force)
        async with volume.changing:
            await self._open(volume, its_log.owner)
            return self._view.describe(volume)

    async def _running(self, node: str) -> NodeRecord | None:
        """The daemon that runs under the name, as the metadata service has it now."""
        entry = await answered(self._metadata.get(node_key(node)))
        record = decode_node(entry) if entry is not None else None
        return None if record is None or has_ended(record) else record

    def _begin(self, stored: StoredVolume) -> NodeVolume | None:
        """None: a volume of the name is being created here and about to be refused, or it is being taken over."""
        (record, version), (its_log, log_version) = stored
        volume = NodeVolume(record, its_log, version, log_version)
        try:
            self._volumes.add(volume)
        except AlreadyExists:
            return None
        return volume

    async def _open(self, volume: NodeVolume, former: str) -> None:
        try:
            await self._opening.open(volume, former=former)
        except IomeshError as error:
            self._not_taken_over(volume, error)
            raise
        except asyncio.CancelledError:
            self._not_taken_over(volume, Unavailable("the node stopped before the volume was open"))
            raise
        except BaseException as error:
            self._not_taken_over(volume, IomeshError(f"internal error ({error!r}): see the node's log"))
            raise

    def _not_taken_over(self, volume: NodeVolume, error: IomeshError) -> None:
        if volume.log.owner == self._node:
            self._failures.fail(volume, error)
            return
        self._volumes.remove(volume)
        log.warning("volume not taken over", volume=volume.record.name, reason=error.message)

    # moves

    async def move(self, name: str, node: str = "", *, force: bool = False) -> Volume:
        """Closes the volume and offers it to a node, by default the first other one of its replica set; returns once
        that one has it. Whatever fails, this node opens the volume again. force: although clients are connected."""
        async with self._volumes.holding(name) as volume:
            if node == self._node:
                return self._view.describe(volume)
            target = self._target(volume, node)
            snapshots = self._snapshots.export_names(volume)
            followed = self._forwarding is not None
            await refuse_connections(self._exports, name, "move", force, snapshots, followed=followed)
            log.info("moving a volume", volume=name, to=target)
            volume.state, volume.reason, volume.moving = (
                VolumeState.OPENING,
                f"it is being moved to node {target}",
                True,
            )
            try:
                await self._closing.close(volume, follow=True)
                await write_log(self._metadata, volume, lambda each: msgspec.structs.replace(each, offered_to=target))
                await self._await_owner(volume, target)
            except IomeshError as error:
                await self._open_after_move(volume, error)
                raise
            finally:
                volume.moving = False
            self._volumes.remove(volume)
            log.info("volume moved", volume=name, to=target)
        return await self._view.show(name)

    def _target(self, volume: NodeVolume, node: str) -> str:
        name, members = volume.record.name, self._view.replica_nodes(volume.log)
        if volume.record.policy.replicas == 1:
            raise InvalidArgument(f"volume {name} has no replicas: its data is only on this node, so it cannot move")
        family = [*self._volumes.clones(volume), *([volume.log.clone_of.name] if volume.log.clone_of else [])]
        if family:
            raise InUse(
                f"volume {name} and {', '.join(family)} share blocks and have to be on one node: flatten the clones "
                "first (`iomesh volume flatten`)"
            )
        if node and node not in members:
            raise InvalidArgument(
                f"volume {name} cannot move to node {node}, which does not keep what is written now: name one of "
                f"{', '.join(each for each in members if each != self._node) or 'its replicas, of which none is left'}"
            )
        reachable = self._engine.reachable()
        candidates = [each for each in members if each in reachable and node in ("", each)]
        if not node:  # rather not to one that gives its volumes away itself
            candidates.sort(key=self._cluster.is_draining)
        if not candidates:
            raise Unavailable(
                f"volume {name} cannot move: "
                + (f"node {node} cannot be reached" if node else "no other node with a replica can be reached")
            )
        return candidates[0]

    async def _await_owner(self, volume: NodeVolume, target: str) -> None:
        """Until the node has taken what it is offered."""
        deadline = time.monotonic() + MOVE_SECONDS
        while True:
            stored = self._cluster.log(volume.record.id)
            if stored is not None and stored.record.owner != self._node:
                return
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"volume {volume.record.name} was not moved: node {target} has not opened it within "
                    f"{MOVE_SECONDS:g} s; see that node's log"
                )
            await asyncio.sleep(MOVE_POLL_SECONDS)

    async def _open_after_move(self, volume: NodeVolume, why: IomeshError) -> None:
        """After a move that failed. The offer ends with the new epoch."""
        log.error("volume not moved; opening it here again", volume=volume.record.name, reason=why.message)
        try:
            await self._opening.open(volume)
        except IomeshError as error:
            self._failures.fail(volume, error)

    # draining

    async def _drain(self, task: SupervisedTask) -> None:
        """While this node is drained, its volumes move to other members."""
        while True:
            if self._cluster.is_draining(self._node):
                for volume in self._volumes.named():
                    await self._give_away(volume)
            task.progress()
            await asyncio.sleep(DRAIN_SECONDS)

    async def _give_away(self, volume: NodeVolume) -> None:
        if volume.record.policy.replicas == 1 or volume.state != VolumeState.SERVING or volume.moving:
            return
        members = self._view.replica_nodes(volume.log)
        if all(self._cluster.is_draining(each) for each in members if each != self._node):
            return  # until another node is a member
        try:
            await self.move(volume.record.name)
        except IomeshError as error:
            log.warning("volume not moved from a drained node", volume=volume.record.name, reason=error.message)

    # copies on nodes that are back

    async def _compare(self, task: SupervisedTask) -> None:
        while True:
            for volume in self._volumes.values():
                if volume.in_engine and volume.state == VolumeState.SERVING and volume.record.policy.replicas > 1:
                    self._engine.tend_members(volume.record.id)
            await settle(self._compare_copies(volume) for volume in self._volumes.values() if volume.in_engine)
            task.progress()
            await asyncio.sleep(COMPARE_SECONDS)

    async def _compare_copies(self, volume: NodeVolume) -> None:
        """Of each node that became reachable since they were compared last, or had some that were to stay."""
        if volume.record.policy.replicas == 1 or volume.state != VolumeState.SERVING:
            return
        for node, readies in self._engine.readies(volume.recovery["reactor"]).items():
            if volume.readies.get(node) == readies:
                continue
            try:
                left = await self._engine.reconcile(volume.record.id, node)
            except IomeshError as error:  # it is lost again, or the volume is being closed
                log.info("copies not compared", volume=volume.record.name, node=node, reason=error.message)
            else:
                if left:
                    continue  # again once a checkpoint is stored
                volume.readies[node] = readies
                log.info("copies compared", volume=volume.record.name, node=node)


def has_begun_anew(owner: NodeRecord, its_log: LogRecord) -> bool:
    """Whether the owner's daemon is another one than opened the log last."""
    return its_log.incarnation is not None and owner.incarnation != its_log.incarnation
