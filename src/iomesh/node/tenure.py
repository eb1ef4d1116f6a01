"""The node's name in the metadata service: only one daemon at a time runs under it.

`take` writes `nodes/<name>` under a lease before any volume is opened, a task renews the lease from `start` on, and
`give_up` ends it. The record of another daemon either refuses this one or has expired:

- it has our state directory, whose lock we hold, and is of this boot: that daemon was killed;
- its process is of this boot and PID namespace and does not run any more;
- otherwise only its lease decides (it is of another machine, or of an earlier boot), and `take` waits for as long as a
  lease lasts.

A lease that expires while the metadata service does not answer is taken again. Likewise, a daemon that finds the record
of an earlier one with its own state directory continues when that record cannot be replaced: no other daemon has the
name, and the task takes it later. If another daemon has the name by then, this one reports it and continues: its
devices are still its own, and no record of a volume that another daemon changed is written (volume.py).

Other nodes take over the replicated volumes of a node whose lease has expired or whose process has ended
(volumes/ownership.py). So a lease is short.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import platform
import time
import uuid

from iomesh.errors import Conflict, InUse, IomeshError, NotFound
from iomesh.metadata import Metadata, MetadataUnavailable
from iomesh.metadata.nodes import NodeRecord, decode_node, node_key, put_node
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import answered, until_answered
from iomesh.node.processes import Process, boot_id, this_process
from iomesh.node.supervisor import SupervisedTask, Supervisor
from iomesh.times import SECOND_NS, exact_time

log = logger("tenure")
LEASE_SECONDS = 4.0
RENEWALS = 4  # attempts within one lease: a metadata service may be unavailable for most of it
LOOK_SECONDS = 0.2  # between two checks whether another daemon's lease has expired


class Tenure:
    def __init__(
        self,
        metadata: Metadata,
        name: str,
        state: uuid.UUID,
        state_dir: str,
        *,
        peer_address: str = "",
        control_address: str = "",
        version: str = "",
        reactors: int = 1,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """state: the identity of the state directory, whose lock the caller holds. peer_address: bound already, so that
        the record is complete from the first moment on."""
        process = this_process()
        self._metadata = metadata
        self._lease_seconds = lease_seconds
        self.renewals = RENEWALS
        self.lease = 0  # of the metadata service
        self._acquired = self._renewed = -math.inf  # since boot, as leases count
        self.problem = ""  # describes what users should know; empty: the name is ours
        self.record = NodeRecord(
            name=name,
            incarnation=uuid.uuid4(),
            state=state,
            boot=boot_id(),
            process=process.number,
            process_namespace=process.namespace,
            process_started=process.started,
            host=platform.node(),
            state_dir=state_dir,
            started_ns=time.time_ns(),
            peer_address=peer_address,
            control_address=control_address,
            version=version,
            reactors=reactors,
        )

    async def take(self) -> None:
        """Raises InUse if another daemon has the name, and the errors of the metadata service."""
        began = time.monotonic()
        while True:
            entry = await until_answered(lambda: self._metadata.get(node_key(self.record.name)))
            other = decode_node(entry) if entry else None
            if entry and other and not self._is_over(other):
                lasts = time.monotonic() - began < self._lease_seconds + LOOK_SECONDS
                if self._runs(other) or not lasts:
                    raise InUse(_taken(other))
                log.debug("waiting for a lease to expire", node=other.name, host=other.host, process=other.process)
                await asyncio.sleep(LOOK_SECONDS)
            elif other and other.state == self.record.state:
                if await self._replace(entry.version if entry else 0):
                    break
            elif await until_answered(functools.partial(self._put, entry.version if entry else 0)):
                break

    def start(self, supervisor: Supervisor) -> None:
        """Renews the lease until the supervisor is closed."""
        supervisor.start("node name", self._renew)

    async def give_up(self) -> None:
        if self.lease:
            try:
                await self._metadata.revoke(self.lease)
            except IomeshError as error:  # it expires by itself
                log.warning("node's lease not released", reason=error.message)

    @property
    def is_settled(self) -> bool:
        """The lease is in force, and has been for as long as it lasts. So every other daemon that runs has had the time
        to acquire its own: also after an outage of the metadata service, and when all daemons start together."""
        now = _since_boot()
        return now - self._renewed < self._lease_seconds <= now - self._acquired

    async def _put(self, version: int) -> bool:
        """Whether the name is ours now; otherwise another daemon was faster."""
        asked = _since_boot()
        lease = await self._metadata.grant(self._lease_seconds)
        try:
            await self._metadata.commit(put_node(self.record, version, lease))
        except Conflict:
            await self._metadata.revoke(lease)
            return False
        self.lease, self._acquired, self._renewed = lease, asked, asked
        return True

    async def _replace(self, version: int) -> bool:
        """Replaces the record left by a daemon with our state directory. True: the name is ours, though maybe not
        recorded yet."""
        try:
            return await answered(self._put(version))
        except MetadataUnavailable as error:
            self._report(f"the node's lease cannot be acquired: {error.message}")
            return True

    async def _renew(self, task: SupervisedTask) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / self.renewals)
            try:
                await self._keep()
            except IomeshError as error:  # an unresponsive metadata service stops no volume
                self._report(f"the node's lease cannot be renewed: {error.message}")
            task.progress()

    async def _keep(self) -> None:
        with contextlib.suppress(NotFound):  # it has expired
            asked = _since_boot()
            await self._metadata.renew(self.lease)
            self._renewed, self.problem = asked, ""
            return
        entry = await self._metadata.get(node_key(self.record.name))
        other = decode_node(entry) if entry else None
        taken_over = other is not None and not self.lease and self._is_over(other)
        if other is not None and other.incarnation != self.record.incarnation and not taken_over:
            self._report(_taken(other))
        elif await self._put(entry.version if entry else 0):
            log.warning("node's lease was lost and is acquired again", node=self.record.name)
            self.problem = ""

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            log.error("node's name not kept", reason=problem)

    def _is_over(self, other: NodeRecord) -> bool:
        return has_ended(other) or (other.boot == self.record.boot and other.state == self.record.state)

    def _runs(self, other: NodeRecord) -> bool:
        return other.boot == self.record.boot and _process_of(other).runs is True


def _since_boot() -> float:
    """Seconds; goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def has_ended(record: NodeRecord) -> bool:
    """Whether the daemon ran in this boot and PID namespace, and has ended. False: only its lease decides."""
    return record.boot == boot_id() and _process_of(record).runs is False


def _process_of(record: NodeRecord) -> Process:
    return Process(record.process, record.process_namespace, record.process_started)


def _taken(other: NodeRecord) -> str:
    return (
        f"name: a daemon runs as node {other.name} already, with the same metadata: process {other.process} on "
        f"{other.host}, state_dir {other.state_dir}, since {exact_time(other.started_ns // SECOND_NS * SECOND_NS)}. "
        "Stop that one, or give this one another name"
    )
