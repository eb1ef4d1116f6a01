"""The engine for asyncio: a command returns an awaitable, an event of the engine becomes a call.

`collect()` reads the answers to the engine's tickets whenever its eventfd is readable. Everything runs in the event
loop's thread, so a ticket's future exists before its answer can be read.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from numpy import uint32, uint64, void
from numpy.typing import NDArray

from iomesh.engine import engine as compiled
from iomesh.engine.engine import Event, Pointer
from iomesh.errors import ConfigError, IomeshError, NotFound, Unavailable, Unsupported, from_errno
from iomesh.metadata import MetadataUnavailable
from iomesh.metadata.records import FragmentRecord, VolumeRecord, minimum_replicas
from iomesh.node.config import EngineConfig
from iomesh.node.logs import logger
from iomesh.node.reactors import SAMPLE_SECONDS, ReactorLoads
from iomesh.node.supervisor import in_thread

log = logger("engine")

LOOK_SECONDS = 0.25
PEERS_SECONDS = 3.0  # how long opening a volume waits for other nodes that it may do without
LOOK_PEERS_SECONDS = 0.02
UNANSWERED_SECONDS = 5.0  # how long a command that needs a checkpoint waits for an unresponsive metadata service


class Outcome(enum.Enum):
    """The outcome of an update of a checkpoint pointer."""

    REFUSED = compiled.POINTER_REFUSED  # another epoch or version is stored: the right to the volume is lost
    DONE = compiled.POINTER_DONE
    # The metadata service does not answer: the update is repeated, and the volume stays served.
    UNKNOWN = compiled.POINTER_UNKNOWN


class NodesUnavailable(Unavailable):
    """Other nodes do not answer, and what they have is needed."""


class _Unanswered(NamedTuple):
    since: float  # monotonic
    reason: str


class ServedConnection(NamedTuple):
    """Of another node, as a client of this one."""

    ticket: int
    ended: asyncio.Future[dict[str, Any]]


class NodeEngine:
    """Between `start` and `stop` it belongs to the running event loop."""

    def __init__(self, config: EngineConfig, on_event: Callable[[Event], None]) -> None:
        """Raises Unsupported, with what is needed, where the engine cannot run; ConfigError for a setting out of
        bounds."""
        self.reactors = config.reactors
        self._on_event = on_event
        self._pending: dict[int, tuple[str, asyncio.Future[Any]]] = {}
        self._unanswered: dict[uuid.UUID, _Unanswered] = {}
        self._left: list[tuple[set[uuid.UUID], asyncio.Future[Any]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loads = ReactorLoads(config.reactors)
        self._sampling: asyncio.TimerHandle | None = None
        try:
            self._engine = compiled.Engine(
                reactors=config.reactors,
                mode=config.mode,
                poll_microseconds=config.poll_microseconds,
                map_cache_bytes=config.map_cache_bytes,
                checkpoint_bytes=config.checkpoint_bytes,
                iopoll=config.iopoll,
                register_buffers=config.register_buffers,
                request_timeout_seconds=config.request_timeout_seconds,
                space_below_wait_seconds=config.space_below_wait_seconds,
            )
        except ValueError as error:
            raise ConfigError(f"[engine]: {error}") from None
        except compiled.EngineError as error:
            raise Unsupported(str(error)) from None

    @property
    def warnings(self) -> list[str]:
        return list(self._engine.warnings)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await in_thread(self._engine.start)
        except compiled.EngineError as error:
            raise Unsupported(str(error)) from None
        self._loop.add_reader(self._engine.fileno(), self._collect)
        self._sample_again()

    async def stop(self) -> None:
        """Ends the reactors as a crash would: pending calls get ESHUTDOWN."""
        if self._loop is None:
            return
        if self._sampling is not None:
            self._sampling.cancel()
        self._loop.remove_reader(self._engine.fileno())
        await in_thread(self._engine.stop)  # joins the reactors' threads
        self._loop = None
        for what, future in self._pending.values():
            if not future.done():
                future.set_exception(from_errno(errno.ESHUTDOWN, f"{what}: the engine has been stopped"))
        self._pending.clear()

    # reactors

    def _sample(self) -> None:
        self._loads.sample(time.monotonic(), [busy / 1e9 for busy in self._engine.busy_ns()])

    def _sample_again(self) -> None:
        assert self._loop is not None, "the engine is not running"
        self._sample()
        self._sampling = self._loop.call_later(SAMPLE_SECONDS, self._sample_again)

    def _choose_reactor(self) -> int:
        """For a volume that is opened now."""
        self._sample()
        reactor = self._loads.choose(self._engine.volumes_by_reactor())
        self._loads.opened(time.monotonic(), reactor)
        return reactor

    def _reactor_for(self, volume: uuid.UUID) -> int:
        """That of its clients, so that they can use it without a connection between."""
        try:
            return int(self._engine.forwarded_state(volume.bytes)["reactor"])
        except KeyError:
            return self._choose_reactor()

    def reactor_loads(self) -> list[float]:
        """As the next volume that is opened finds them (reactors.py)."""
        return self._loads.loads()

    # stores

    async def format_store(
        self, descriptor: int, *, cluster: uuid.UUID, device: uuid.UUID, size_bytes: int, tier: str, label: str
    ) -> None:
        ticket = self._engine.format_store(
            descriptor,
            cluster=cluster.bytes,
            device=device.bytes,
            device_bytes=size_bytes,
            tier=compiled.TIERS[tier],
            label=label,
        )
        await self._answer(ticket, "format")

    async def open_store(self, descriptor: int, *, cluster: uuid.UUID | None, volatile_cache: bool) -> dict[str, Any]:
        ticket = self._engine.open_store(
            descriptor, cluster=cluster.bytes if cluster else None, volatile_cache=volatile_cache
        )
        opened: dict[str, Any] = await self._answer(ticket, "open")
        return opened

    async def number_device(self, store: int, number: int) -> None:
        """Gives the device its number in the cluster, for good."""
        await self._answer(self._engine.number_device(store, number), "number the device")

    async def close_store(self, store: int) -> None:
        await self._answer(self._engine.close_store(store), "close")

    async def sealed(self, store: int) -> NDArray[void]:
        """The sealed segments to scrub, as rows of compiled.SEALED_ROW."""
        rows: NDArray[void] = await self._answer(self._engine.sealed(store), "list the sealed segments")
        return rows

    async def scrub(self, store: int, volume: uuid.UUID, segment: int, *, bytes_per_second: int) -> dict[str, Any]:
        ticket = self._engine.scrub(store, volume.bytes, segment, bytes_per_second=bytes_per_second)
        told: dict[str, Any] = await self._answer(ticket, "scrub")
        return told

    def store_space(self, store: int) -> dict[str, int]:
        return self._engine.store_space(store)

    # volumes

    async def open_volume(
        self,
        volume: uuid.UUID,
        *,
        size_bytes: int,
        epoch: int,
        segment_bytes: int,
        checkpoint: Pointer | None,
        first_segment: int,
        promised: int,
        clone_of: tuple[uuid.UUID, uuid.UUID] | None = None,
        name: str,
        window_seconds: int,
        replicas: int,
        fragments: list[FragmentRecord],
        first_fragment: int,
    ) -> dict[str, Any]:
        """On the reactor with the least load, or, for a clone, on its parent's. name, window_seconds and replicas are
        written to the device with each checkpoint, as a description of the volume. Segments are numbered from
        first_segment to `promised`, see checkpoint_moved."""
        ticket = self._engine.open_volume(
            volume.bytes,
            size_bytes=size_bytes,
            epoch=epoch,
            segment_bytes=segment_bytes,
            checkpoint=checkpoint,
            first_segment=first_segment,
            promised=promised,
            clone_of=(clone_of[0].bytes, clone_of[1].bytes) if clone_of else None,
            name=name.encode(),
            window_seconds=window_seconds,
            replicas=replicas,
            minimum=minimum_replicas(replicas),
            fragments=[(each.number, each.first, each.devices) for each in fragments],
            first_fragment=first_fragment,
            reactor=None if clone_of else self._reactor_for(volume),
        )
        opened: dict[str, Any] = await self._answer(ticket, "open the volume")
        return opened

    def fragment_agreed(self, volume: uuid.UUID, number: int, outcome: Outcome) -> None:
        """The outcome of the update that an event "fragment" asks for."""
        self._engine.fragment_agreed(volume.bytes, number, outcome.value)

    async def await_peers(self, devices: set[int], nodes: int, seconds: float = PEERS_SECONDS) -> None:
        """Returns once these devices of other nodes, or if there are none the devices of so many nodes, can be used; or
        after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            reachable = self.reachable()
            if devices <= {device for each in reachable.values() for device in each} and (
                devices or len(reachable) >= nodes
            ):
                return
            await asyncio.sleep(LOOK_PEERS_SECONDS)

    def reachable(self) -> dict[str, list[int]]:
        """The other nodes that every reactor has a working connection to, with their devices' numbers."""
        found = {each["node"]: each["devices"] for each in self.peers()}
        for each in self.peers():
            if not each["attached"]:
                found.pop(each["node"], None)
        return found

    def readies(self, reactor: int) -> dict[str, int]:
        """How often each other node became reachable for this reactor; only those that are."""
        return {
            each["node"]: each["readies"] for each in self.peers() if each["attached"] and each["reactor"] == reactor
        }

    def tend_members(self, volume: uuid.UUID) -> None:
        """Gives up members of the volume's replica set that do not answer, and takes those in that are back, while
        nothing is written."""
        self._engine.tend_members(volume.bytes)

    async def reconcile(self, volume: uuid.UUID, node: str) -> int:
        """Counts what a node that is back has of the volume's segments, and removes there what it does not need.
        Returns how many copies stay there, uncounted, until the next checkpoint."""
        left: int = await self._answer(self._engine.reconcile(volume.bytes, node), f"compare the copies on node {node}")
        return left

    async def close_volume(self, volume: uuid.UUID, *, checkpoint: bool) -> None:
        try:
            await self._answer(self._engine.close_volume(volume.bytes, checkpoint=checkpoint), "close the volume")
        finally:
            self._unanswered.pop(volume, None)

    async def checkpoint(self, volume: uuid.UUID, *, renew: bool = False) -> None:
        """renew: also if nothing has changed since the last one."""
        await self._checkpointed([volume], self._engine.checkpoint(volume.bytes, renew=renew), "write a checkpoint")

    def checkpoint_moved(
        self, volume: uuid.UUID, sequence: int, outcome: Outcome, reason: str = "", *, promised: int = 0
    ) -> None:
        """reason: of Outcome.UNKNOWN, for callers that wait for a checkpoint of this volume. promised: of Outcome.DONE,
        the highest segment number that the engine may give. sequence 0: no pointer was moved."""
        if outcome is Outcome.UNKNOWN:
            since = self._unanswered[volume].since if volume in self._unanswered else time.monotonic()
            self._unanswered[volume] = _Unanswered(since, reason)
        else:
            self._unanswered.pop(volume, None)
        self._engine.checkpoint_moved(volume.bytes, sequence, outcome.value, promised)

    def refuse_pending(self, volumes: Iterable[uuid.UUID]) -> None:
        """Raises MetadataUnavailable while a command of one of these volumes is still running after its caller got an
        unknown outcome: repeating it could carry it out twice."""
        self._left = [(wanted, future) for wanted, future in self._left if not future.done()]
        if any(wanted & set(volumes) for wanted, _ in self._left):
            raise MetadataUnavailable(
                "an earlier command of this volume waits for the metadata service, and may still take effect: "
                "repeat this one later"
            )

    async def grow_volume(self, volume: uuid.UUID, size_bytes: int) -> None:
        await self._answer(self._engine.grow_volume(volume.bytes, size_bytes), "grow the volume")

    async def describe_volume(self, record: VolumeRecord) -> None:
        """The next checkpoint describes the volume as its record does now."""
        await self._answer(
            self._engine.describe_volume(
                record.id.bytes,
                name=record.name.encode(),
                window_seconds=record.policy.window_seconds,
                replicas=record.policy.replicas,
            ),
            "describe the volume",
        )

    async def erase_volume(self, volume: uuid.UUID) -> int:
        """Returns how many segments it had."""
        return int((await self._answer(self._engine.erase_volume(volume.bytes), "erase the volume"))["segments"])

    async def erase_copies(self, volume: uuid.UUID, epoch: int) -> int:
        """Of a volume that is not open, on all other nodes with devices. Returns how many replicas there were. Raises
        Unavailable if a node cannot be reached."""
        erased = 0
        for node in sorted({each["node"] for each in self.peers() if each["devices"]}):
            try:
                ticket = self._engine.erase_copies(volume.bytes, node, epoch=epoch)
                erased += int((await self._answer(ticket, f"erase the copies on node {node}"))["segments"])
            except IomeshError as error:
                raise Unavailable(
                    f"what node {node} has of the volume cannot be erased ({error.message}): it is erased when that "
                    "node is back"
                ) from error
        return erased

    # These raise NotFound for a volume that is not open; it may have been closed concurrently.

    def volume_state(self, volume: uuid.UUID) -> dict[str, Any]:
        with _not_open(volume):
            return self._engine.volume_state(volume.bytes)

    def counters(self, volume: uuid.UUID) -> NDArray[uint64]:
        with _not_open(volume):
            return self._engine.counters(volume.bytes)

    def histograms(self, volume: uuid.UUID) -> NDArray[uint64]:
        with _not_open(volume):
            return self._engine.histograms(volume.bytes)

    def reactor_state(self, reactor: int) -> dict[str, Any]:
        return self._engine.reactor_state(reactor)

    # cleaning

    async def repair_blocks(self, volume: uuid.UUID, segment: int, blocks: list[tuple[int, int, bool]]) -> int:
        """blocks: as scrub told them. Returns how many of them copies had intact."""
        ticket = self._engine.repair_blocks(volume.bytes, segment, blocks)
        repaired: int = await self._answer(ticket, "repair damaged blocks")
        return repaired

    async def refetch(self, store: int, volume: uuid.UUID, segment: int, *, source: int) -> None:
        """Replaces a damaged replica by that of another node's device."""
        ticket = self._engine.refetch(store, volume.bytes, segment, source=source)
        await self._answer(ticket, f"get segment {segment} from device {source}")

    async def copies(self, volume: uuid.UUID) -> NDArray[void]:
        """The segments without as many working copies as are wanted, as rows of compiled.COPIES_ROW."""
        rows: NDArray[void] = await self._answer(self._engine.copies(volume.bytes), "list the copies")
        return rows

    async def rebuild_copy(
        self, volume: uuid.UUID, segment: int, *, device: int, source: int, bytes_per_second: int
    ) -> None:
        """Returns once the copy counts. bytes_per_second 0: no limit."""
        rate = min(max(bytes_per_second >> 10, 1), 2**32 - 1) if bytes_per_second else 0
        ticket = self._engine.rebuild_copy(volume.bytes, segment, device=device, source=source, rate=rate)
        await self._answer(ticket, f"copy segment {segment} from device {source} to device {device}")

    async def drop_copy(self, volume: uuid.UUID, segment: int, *, device: int) -> None:
        ticket = self._engine.drop_copy(volume.bytes, segment, device=device)
        await self._answer(ticket, f"drop the copy of segment {segment} on device {device}")

    async def segments(self, volume: uuid.UUID) -> NDArray[void]:
        table: NDArray[void] = await self._answer(self._engine.segments(volume.bytes), "list the segments")
        return table

    async def space(self, volume: uuid.UUID) -> dict[str, int]:
        space: dict[str, int] = await self._answer(self._engine.space(volume.bytes), "measure the volume")
        return space

    async def clean(self, volume: uuid.UUID, segments: NDArray[uint32], *, bytes_per_second: int) -> dict[str, int]:
        ticket = self._engine.clean(volume.bytes, segments, bytes_per_second=bytes_per_second)
        told: dict[str, int] = await self._answer(ticket, "clean the volume")
        return told

    def hurry_cleaning(self) -> None:
        self._engine.hurry_cleaning()

    async def expect_space(self, volume: uuid.UUID, milliseconds: int) -> None:
        await self._answer(self._engine.expect_space(volume.bytes, milliseconds), "let writes wait for space")

    # snapshots

    async def create_snapshots(
        self, snapshots: list[tuple[uuid.UUID, uuid.UUID, str]], *, mark: bool = False, urgent: bool = False
    ) -> None:
        """(volume, snapshot's id, name) each, all at one instant. urgent: even without space."""
        wanted = [(volume.bytes, snapshot.bytes, name) for volume, snapshot, name in snapshots]
        involved = [volume for volume, _, _ in snapshots]
        self.refuse_pending(involved)
        await self._checkpointed(
            involved, self._engine.create_snapshots(wanted, mark=mark, urgent=urgent), "make a snapshot"
        )

    async def log_clock(self, volume: uuid.UUID) -> dict[str, int]:
        """The current time in the volume's log, and the wall clock's (docs/decisions/0020-log-time.md)."""
        clock: dict[str, int] = await self._answer(self._engine.log_clock(volume.bytes), "read the clock of the log")
        return clock

    async def list_snapshots(self, volume: uuid.UUID) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = await self._answer(
            self._engine.list_snapshots(volume.bytes), "list the snapshots"
        )
        return listed

    async def delete_snapshot(self, volume: uuid.UUID, snapshot: uuid.UUID) -> bool:
        """Returns whether it stays, hidden."""
        self.refuse_pending([volume])
        ticket = self._engine.delete_snapshot(volume.bytes, snapshot.bytes)
        return bool((await self._checkpointed([volume], ticket, "delete the snapshot"))["hidden"])

    async def open_snapshot(self, volume: uuid.UUID, snapshot: uuid.UUID) -> None:
        await self._answer(self._engine.open_snapshot(volume.bytes, snapshot.bytes), "open the snapshot")

    async def close_snapshot(self, snapshot: uuid.UUID) -> None:
        await self._answer(self._engine.close_snapshot(snapshot.bytes), "close the snapshot")

    async def restore_volume(
        self,
        volume: uuid.UUID,
        snapshot: uuid.UUID,
        *,
        before: uuid.UUID,
        name: str,
        discard: bool,
        force: bool,
        mark: tuple[uuid.UUID, str] | None = None,
        unsettled: bool = False,
    ) -> None:
        self.refuse_pending([volume])
        ticket = self._engine.restore_volume(
            volume.bytes,
            snapshot.bytes,
            before=before.bytes,
            name=name,
            discard=discard,
            force=force,
            mark=(mark[0].bytes, mark[1]) if mark else None,
            unsettled=unsettled,
        )
        await self._checkpointed([volume], ticket, "restore the volume")

    async def roll_forward(
        self, volume: uuid.UUID, source: uuid.UUID, mark: uuid.UUID, *, until_ns: int
    ) -> dict[str, int]:
        ticket = self._engine.roll_forward(volume.bytes, source.bytes, mark.bytes, until_ns=until_ns)
        told: dict[str, int] = await self._answer(ticket, "follow the log")
        return told

    async def unmark_snapshot(self, volume: uuid.UUID, mark: uuid.UUID) -> None:
        self.refuse_pending([volume])
        await self._checkpointed(
            [volume], self._engine.unmark_snapshot(volume.bytes, mark.bytes), "unmark the snapshot"
        )

    async def diff_snapshots(
        self, volume: uuid.UUID, older: uuid.UUID, newer: uuid.UUID | None, *, offset: int, most: int
    ) -> dict[str, Any]:
        ticket = self._engine.diff_snapshots(
            volume.bytes, older.bytes, newer.bytes if newer else None, offset=offset, most=most
        )
        found: dict[str, Any] = await self._checkpointed([volume], ticket, "compare the snapshots")
        return found

    # flattening

    async def copy_inherited(self, volume: uuid.UUID, *, bytes_per_second: int) -> None:
        await self._answer(
            self._engine.copy_inherited(volume.bytes, bytes_per_second=bytes_per_second), "copy what the clone inherits"
        )

    async def check_detached(self, volume: uuid.UUID) -> None:
        self.refuse_pending([volume])
        await self._checkpointed(
            [volume], self._engine.check_detached(volume.bytes), "look whether the clone inherits anything"
        )

    async def cut_off(self, volume: uuid.UUID) -> None:
        await self._answer(self._engine.cut_off(volume.bytes), "flatten the clone")

    # exports

    async def serve_nbd(
        self,
        volume: uuid.UUID,
        descriptor: int,
        *,
        structured: bool,
        context_id: int | None,
        read_only: bool,
        since: uuid.UUID | None = None,
    ) -> dict[str, Any]:
        """Passes a connected socket to the engine; returns when the connection has ended."""
        ticket = self._engine.serve_nbd(
            volume.bytes,
            descriptor,
            structured=structured,
            context_id=context_id,
            since=None if since is None else since.bytes,
            read_only=read_only,
        )
        ended: dict[str, Any] = await self._answer(ticket, "serve a connection")
        return ended

    # volumes of other nodes

    def forward_volume(self, volume: uuid.UUID, *, size_bytes: int, reactor: int | None = None) -> None:
        """Clients may use it, by default on the reactor with the least load; their requests wait for a connection to
        its owner."""
        chosen = self._choose_reactor() if reactor is None else reactor
        self._engine.forward_volume(volume.bytes, size_bytes=size_bytes, reactor=chosen)

    async def serve_forwarded(
        self, volume: uuid.UUID, descriptor: int, *, structured: bool, context_id: int | None, read_only: bool
    ) -> dict[str, Any]:
        """As serve_nbd, of a volume of another node."""
        ticket = self._engine.serve_forwarded(
            volume.bytes, descriptor, structured=structured, context_id=context_id, read_only=read_only
        )
        ended: dict[str, Any] = await self._answer(ticket, "serve a connection")
        return ended

    def attach_forwarded(
        self, volume: uuid.UUID, descriptor: int, *, requests: int, bytes_: int
    ) -> asyncio.Future[dict[str, Any]]:
        """Passes a connection to the owner to the engine, which closes it; done when it has ended."""
        ticket = self._engine.attach_forwarded(volume.bytes, descriptor, requests=requests, bytes=bytes_)
        return self._answer(ticket, "use the connection to a volume's owner")

    def detach_forwarded(self, volume: uuid.UUID) -> None:
        self._engine.detach_forwarded(volume.bytes)

    def grow_forwarded(self, volume: uuid.UUID, size_bytes: int) -> None:
        self._engine.grow_forwarded(volume.bytes, size_bytes)

    async def follow_owner(self, volume: uuid.UUID, *, here: bool, seconds: float) -> None:
        """The volume's clients go on with the forwarded volume, or with this node's own (`here`), within this time.
        Then clients with open requests are ended; here: they stay. Raises IomeshError if the two are on different
        reactors."""
        ticket = self._engine.follow_owner(volume.bytes, here=here, milliseconds=int(seconds * 1000))
        await self._answer(ticket, "let clients follow their volume")

    async def close_forwarded(self, volume: uuid.UUID) -> None:
        """It has no clients."""
        await self._answer(self._engine.close_forwarded(volume.bytes), "close a forwarded volume")

    def forwarded_state(self, volume: uuid.UUID) -> dict[str, Any]:
        with _not_open(volume):
            return self._engine.forwarded_state(volume.bytes)

    def serve_volume(self, volume: uuid.UUID, descriptor: int) -> ServedConnection:
        """Passes a connection of another node, for the I/O of this volume, to the engine, which closes it."""
        ticket = self._engine.serve_volume(volume.bytes, descriptor)
        return ServedConnection(ticket, self._answer(ticket, "serve a volume to another node"))

    # other nodes

    def serve_peer(self, descriptor: int, *, reactor: int) -> ServedConnection:
        """Passes a connection of another node to the engine, which closes it."""
        ticket = self._engine.serve_peer(descriptor, reactor=reactor)
        return ServedConnection(ticket, self._answer(ticket, "serve another node"))

    def end_served_peer(self, connection: ServedConnection) -> None:
        """Its requests under way are answered first."""
        self._engine.end_served_peer(connection.ticket)

    def attach_peer(
        self, node: str, descriptor: int, *, reactor: int, requests: int, bytes_: int
    ) -> asyncio.Future[dict[str, Any]]:
        """Passes a connection to another node to the engine, which closes it; done when the connection has ended.
        requests, bytes_: the credits that the node gives."""
        ticket = self._engine.attach_peer(node, descriptor, reactor=reactor, requests=requests, bytes=bytes_)
        return self._answer(ticket, f"use the connection to node {node}")

    def detach_peer(self, node: str, *, reactor: int) -> None:
        self._engine.detach_peer(node, reactor=reactor)

    def drain_devices(self, numbers: Iterable[int]) -> None:
        """These devices, and no others, get no new segments where others can take them."""
        self._engine.drain_devices(sorted(numbers))

    def know_devices(self, node: str, numbers: Iterable[int]) -> None:
        """The numbers in the cluster of another node's devices; replaces what was known."""
        self._engine.know_devices(node, numbers)

    def peers(self) -> list[dict[str, Any]]:
        """`node`, `reactor`, `attached`, `calls` and `devices` of each connection to another node there has been."""
        return self._engine.peers()

    async def _checkpointed(self, volumes: list[uuid.UUID], ticket: int, what: str) -> Any:
        """The answer to a command that needs a checkpoint of these volumes. Raises MetadataUnavailable if the metadata
        service has not answered for UNANSWERED_SECONDS; the command may still be carried out once it does."""
        future = self._answer(ticket, what)
        while not (await asyncio.wait({future}, timeout=LOOK_SECONDS))[0]:
            missed = [self._unanswered[volume] for volume in volumes if volume in self._unanswered]
            if missed and time.monotonic() - min(each.since for each in missed) > UNANSWERED_SECONDS:
                self._left.append((set(volumes), future))
                # Retrieves the exception: the future has no other reader.
                future.add_done_callback(asyncio.Future.exception)
                raise MetadataUnavailable(
                    f"cannot {what} now: the metadata service does not answer ({missed[0].reason}); the command may "
                    "still take effect"
                )
        try:
            return future.result()
        except MetadataUnavailable as error:
            reasons = [self._unanswered[volume].reason for volume in volumes if volume in self._unanswered]
            raise MetadataUnavailable(f"{error.message} ({reasons[0]})" if reasons else error.message) from None

    def _answer(self, ticket: int, what: str) -> asyncio.Future[Any]:
        assert self._loop is not None, "the engine is not running"
        future: asyncio.Future[Any] = self._loop.create_future()
        self._pending[ticket] = what, future
        return future

    def _collect(self) -> None:
        for happened in self._engine.collect():
            if isinstance(happened, Event):
                self._handle(happened)
                continue
            what, future = self._pending.pop(happened.ticket)
            if future.done():  # the caller was cancelled
                continue
            if happened.error:
                future.set_exception(_error(happened.error, happened.reason, what))
            else:
                future.set_result(happened.value)

    def _handle(self, event: Event) -> None:
        """A failing handler does not keep other answers of the same batch from their callers."""
        try:
            self._on_event(event)
        except Exception:
            log.exception(
                "an event was not handled", kind=event.kind, volume=event.volume.hex() if event.volume else None
            )


@contextmanager
def _not_open(volume: uuid.UUID) -> Iterator[None]:
    try:
        yield
    except KeyError:
        raise NotFound(f"volume {volume} is not open") from None


def _error(number: int, reason: str, what: str) -> IomeshError:
    if number == errno.EHOSTUNREACH and reason == os.strerror(number):
        return MetadataUnavailable(f"cannot {what} now: the metadata service does not answer")
    if number == errno.EHOSTUNREACH:
        return NodesUnavailable(f"cannot {what} now: {reason}")
    if number == errno.ESTALE:
        return from_errno(number, f"cannot {what}: another node has taken the volume over")
    return from_errno(number, f"cannot {what}: {reason}" if reason == os.strerror(number) else reason)


def counters_by_name(values: NDArray[uint64]) -> dict[str, int]:
    return dict(zip(compiled.COUNTER_NAMES, values.tolist(), strict=True))
