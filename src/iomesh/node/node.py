"""One node: its parts in the order in which they are started, each with its shutdown.

Bring-up is a list of named steps. If one fails, the steps before it are undone in reverse, and the daemon ends with the
error; a stop undoes all of them the same way. Health, metrics and the control API are served from the first steps on:
until the last step they report the progress of the start, and the state of each device and volume once it is known.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from iomesh.api.model import (
    BackgroundTask,
    Bucket,
    Counters,
    Device,
    DeviceState,
    Latency,
    NodeState,
    ReactorCounters,
    Status,
    VolumeCounters,
)
from iomesh.certificates.authority import fingerprint
from iomesh.certificates.files import Identity as Certificates
from iomesh.certificates.files import has_identity, read_identity
from iomesh.engine import engine as compiled
from iomesh.errors import Foreign, InUse, IomeshError, PermissionDenied
from iomesh.metadata import Metadata
from iomesh.metadata.records import ClusterRecord, get_or_create_cluster
from iomesh.node import health, metrics
from iomesh.node.certificate_renewal import Renewal
from iomesh.node.cleaning import Cleaning
from iomesh.node.cluster import Cluster
from iomesh.node.config import Config
from iomesh.node.control import ControlServer
from iomesh.node.control.joining import register_member
from iomesh.node.deleting import Deleting
from iomesh.node.devices import OpenDevice, open_device
from iomesh.node.duplicates import refuse_duplicates
from iomesh.node.engine import NodeEngine, counters_by_name
from iomesh.node.exports import Exports
from iomesh.node.flattening import Flattener
from iomesh.node.forwarding import Forwarding
from iomesh.node.hooks import Hooks
from iomesh.node.http import JSON, HttpServer
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import until_answered
from iomesh.node.metadata_kinds import metadata_place, open_metadata
from iomesh.node.notify import notify
from iomesh.node.offline import inspect_device
from iomesh.node.peers import Peers, PeerSockets
from iomesh.node.peers.key import read_key
from iomesh.node.rebuild import Rebuilding
from iomesh.node.scrub import ScrubPasses
from iomesh.node.snapshots import Snapshots
from iomesh.node.stores import Stores, absolute
from iomesh.node.supervisor import Supervisor, in_thread
from iomesh.node.tenure import Tenure
from iomesh.node.volume import Registry
from iomesh.node.volumes import Parts, Volumes
from iomesh.node.windows import Windows
from iomesh.peers.handshake import Identity
from iomesh.times import time_of

log = logger("node")

VERSION = installed_version("iomesh")  # reads a file


STEP_DOWN_SECONDS = (
    120.0  # for one step of a stop; after that the state is as after a crash, and the next start recovers
)


class Step(NamedTuple):
    name: str
    up: Callable[[], Awaitable[None]]
    down: Callable[[], Awaitable[None]]


class Node:
    """`up`, then `down`: once."""

    supervisor: Supervisor
    registry: Registry
    metadata: Metadata
    cluster: ClusterRecord
    engine: NodeEngine
    tenure: Tenure
    cluster_view: Cluster
    stores: Stores
    volumes: Volumes
    snapshots: Snapshots
    windows: Windows
    exports: Exports
    cleaning: Cleaning
    scrub: ScrubPasses
    flattening: Flattener
    rebuilding: Rebuilding
    deleting: Deleting
    peers: Peers | None  # None: this node has no connections to others

    def __init__(self, config: Config) -> None:
        self.config = config
        self.name = config.name
        self.phase = NodeState.STARTING
        self.started_ns = time.time_ns()
        self.assembled = False  # the engine runs, and the parts that use it exist
        self._hooks = Hooks()
        self._step = ""
        self._steps_done = 0
        self._waits_for = ""  # why the metadata could not be opened yet
        self._state_lock: IO[bytes] | None = None
        self._peer_sockets = PeerSockets(config.peers)
        self._key = b""  # of the cluster
        self.certificates: Certificates | None = None  # of this node; None: it has none
        self._cluster_of_devices: uuid.UUID | None = None
        self._cluster: uuid.UUID | None = None
        self._control = ControlServer(config, self)
        self._renewal = Renewal(self, self._control.use)
        self._metrics = metrics.registry(self)
        self._http = HttpServer(
            {"/metrics": self._metrics_page, "/healthz": self._health_page, "/readyz": self._ready_page}
        )
        self._done: list[Step] = []
        self.stuck = False  # a step of the stop did not end in time
        self.steps = [
            Step("lock the state directory", self._lock_state, self._unlock_state),
            Step("read the certificates", self._read_certificates, _nothing),
            Step("serve health and metrics", self._serve_http, self._http.close),
            Step("serve the control API", self._control.start, self._control.stop),
            Step("probe the devices", self._look_at_devices, _nothing),
            Step("open the metadata", self._open_metadata, self._close_metadata),
            Step("bind the address for other nodes", self._bind_peers, self._unbind_peers),
            Step("claim the node's name", self._take_name, self._give_up_name),
            Step("start the engine", self._start_engine, self._stop_engine),
            Step("open the devices", self._open_devices, self._close_devices),
            Step("follow the cluster", self._follow_cluster, self._leave_cluster),
            Step("connect to other nodes", self._start_peers, self._stop_peers),
            Step("listen for exports", self._listen, self._stop_listening),
            Step("recover the volumes", self._open_volumes, self._close_volumes),
            Step("follow owners", self._follow_owners, self._leave_owners),
            Step("maintain restore windows", self._start_windows, self._stop_windows),
            Step("clean", self._start_cleaning, self._stop_cleaning),
            Step("rebuild", self._start_rebuilding, self._stop_rebuilding),
            Step("flatten clones", self._start_flattening, self._stop_flattening),
            Step("continue deletions", self._start_deleting, self._stop_deleting),
            Step("renew the certificate", self._start_renewal, self._stop_renewal),
            Step("continue operations", self._start_operations, self._stop_operations),
            Step("scrub", self._start_scrub, self._stop_scrub),
            Step("report ready", self._report_ready, self._report_stopping),
        ]

    @property
    def serving(self) -> bool:
        """The start is complete and no stop has begun: all commands are accepted."""
        return self.phase == NodeState.READY

    async def up(self) -> None:
        """Raises the IomeshError of the step that failed, after undoing the others."""
        for done, step in enumerate(self.steps):
            self._step, self._steps_done = step.name, done
            await in_thread(functools.partial(notify, f"STATUS={step.name}"))
            log.debug("step", step=step.name)
            try:
                await self._hooks.hold(step.name)
                await step.up()
            except BaseException:
                await self.down()
                raise
            self._done.append(step)

    async def down(self) -> None:
        """Undoes every step, even if others fail."""
        self.phase = NodeState.STOPPING
        while self._done:
            step = self._done.pop()
            log.debug("undo step", step=step.name)
            try:
                async with asyncio.timeout(STEP_DOWN_SECONDS):
                    await step.down()
            except TimeoutError:
                self.stuck = True
                log.error("stop step failed", step=step.name, reason=f"it has not ended within {STEP_DOWN_SECONDS:g} s")
            except Exception as error:
                log.error(
                    "stop step failed",
                    step=step.name,
                    reason=str(error) or type(error).__name__,
                    exc_info=not isinstance(error, IomeshError),
                )

    # commands of users that span several parts

    async def add_device(self, path: str) -> Device:
        def check() -> None:
            if self.volumes.open_in_engine:
                raise InUse(
                    f"{path} cannot be added while a volume is open: name it under `devices` in the "
                    "configuration, and restart the node"
                )

        device = await self.stores.add(path, check)
        await self.volumes.retry()
        await self.flattening.start()
        return device

    def status(self) -> Status:
        assembled = self.assembled
        devices = [device for device in self.stores.list() if device.state != DeviceState.MISSING] if assembled else []
        tasks = self.tasks()
        problems = health.problems(self.volumes_health(), tasks) if self.serving else []
        state = NodeState.DEGRADED if problems else self.phase
        return Status(
            node=self.name,
            cluster=str(self._cluster or ""),
            version=VERSION,
            process_id=os.getpid(),
            started_at=time_of(self.started_ns),
            ready=state == NodeState.READY,
            reactors=self.config.engine.reactors,
            control_address=self.config.control.socket,
            metrics_address=self._http.address,
            nbd_addresses=self.exports.addresses if assembled else [],
            capacity_bytes=sum(device.size_bytes for device in devices),
            free_bytes=sum(device.free_bytes for device in devices),
            volumes=len(self.volumes.list()) if assembled else 0,
            devices=len(devices),
            warnings=[
                *self.engine.warnings,
                *self.stores.problems,
                *health.warnings(self.volumes_health()),
                *filter(None, [self.tenure.problem, self._renewal.problem]),
                *(self.peers.problems if self.peers is not None else []),
                *(self.forwarding.problems if self.forwarding is not None else []),
            ]
            if assembled
            else [],
            state=state,
            step=self._step if state == NodeState.STARTING else "",
            steps_done=self._steps_done,
            steps=len(self.steps),
            progress=self._progress() if state == NodeState.STARTING else "",
            problems=problems,
            tasks=tasks,
        )

    def _progress(self) -> str:
        if not self.assembled:
            return self._waits_for
        return self.volumes.progress

    def tasks(self) -> list[BackgroundTask]:
        return health.background_tasks(self.supervisor) if self.assembled else []

    def failed_jobs(self) -> Mapping[str, int]:
        return self.supervisor.failed_jobs if self.assembled else {}

    def volumes_health(self) -> list[health.VolumeHealth]:
        return health.volumes_health(self.registry, self.engine) if self.assembled else []

    def counters(self) -> Counters:
        bounds = compiled.histogram_bounds().tolist()
        volumes = []
        for name, identity in self.volumes.serving():
            latencies = {}
            for which, counts in zip(compiled.HISTOGRAM_NAMES, self.engine.histograms(identity).tolist(), strict=True):
                latencies[which] = Latency(
                    [Bucket(upper, count) for upper, count in zip(bounds, counts, strict=True) if count]
                )
            counters = counters_by_name(self.engine.counters(identity))
            volumes.append(
                VolumeCounters(
                    volume=name, counters=counters, latencies=latencies, connections=self.exports.connections(name)
                )
            )
        reactors = [
            ReactorCounters(
                reactor=reactor, counters={key: int(value) for key, value in state.items() if isinstance(value, int)}
            )
            for reactor in range(self.engine.reactors)
            for state in [self.engine.reactor_state(reactor)]
        ]
        return Counters(
            monotonic_ns=time.monotonic_ns(), volumes=volumes, reactors=reactors, devices=self.stores.list()
        )

    def _metrics_page(self) -> tuple[HTTPStatus, str, bytes]:
        return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._metrics)

    def _health_page(self) -> tuple[HTTPStatus, str, bytes]:
        """An answer is enough: it shows that the node is live."""
        return HTTPStatus.OK, JSON, self._health()[1]

    def _ready_page(self) -> tuple[HTTPStatus, str, bytes]:
        ready, body = self._health()
        return HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, JSON, body

    def _health(self) -> tuple[bool, bytes]:
        status = self.status()
        return status.ready, msgspec.json.encode(health.detail(status, self.volumes_health())) + b"\n"

    # steps

    async def _lock_state(self) -> None:
        self._state_lock = await in_thread(lambda: lock_directory(self.config.state_dir))

    async def _unlock_state(self) -> None:
        if self._state_lock is not None:
            self._state_lock.close()

    async def _read_certificates(self) -> None:
        self.certificates = await in_thread(lambda: read_certificates(self.config))
        if self.certificates is not None:
            await self._renewal.look()

    async def _look_at_devices(self) -> None:
        """Before anything is written: a node that is refused because a device is missing or held leaves nothing behind.
        If no cluster is configured, the devices determine it: a new metadata service must not become that of another
        cluster."""
        for path in self.config.devices:
            (await in_thread(functools.partial(open_device, path), discard=OpenDevice.close)).close()
        await in_thread(functools.partial(refuse_duplicates, self.config.devices))
        if self.config.cluster is None and self.certificates is None:
            found = {
                path: (await in_thread(functools.partial(inspect_device, path))).cluster for path in self.config.devices
            }
            if len(set(found.values())) > 1:
                each = ", ".join(f"{path} of {cluster}" for path, cluster in found.items())
                raise Foreign(
                    f"devices: they belong to several clusters ({each}): name only those of this node's cluster"
                )
            self._cluster_of_devices = next((uuid.UUID(cluster) for cluster in found.values()), None)

    async def _open_metadata(self) -> None:
        def waits(reason: str) -> None:
            self._waits_for = reason

        await until_answered(self._open_metadata_once, waits)

    async def _open_metadata_once(self) -> None:
        self.metadata = await open_metadata(self.config.metadata)
        try:
            wanted = self.config.cluster or (self.certificates.cluster if self.certificates else None)
            self.cluster = await get_or_create_cluster(self.metadata, wanted or self._cluster_of_devices)
            if self.certificates is not None and self.certificates.cluster != self.cluster.id:
                raise Foreign(
                    f"this node has joined cluster {self.certificates.cluster} ({self.config.certificates}), and "
                    f"{self.config.metadata.path} is the metadata of cluster {self.cluster.id}: configure that of its "
                    "cluster"
                )
            if self.config.cluster not in (None, self.cluster.id):
                place = metadata_place(self.config.metadata)
                raise Foreign(f"cluster: the configuration says {self.config.cluster}, {place} is of {self.cluster.id}")
        except BaseException:
            await self.metadata.close()
            raise
        self._cluster, self._waits_for = self.cluster.id, ""

    async def _close_metadata(self) -> None:
        await self.metadata.close()

    async def _bind_peers(self) -> None:
        """Before the name is claimed: the node's record has the address."""
        if self.config.peers.listen:
            self._key = await in_thread(lambda: read_key(self.config.peers.key_file))
            await self._peer_sockets.bind()

    async def _unbind_peers(self) -> None:
        self._peer_sockets.close()

    async def _take_name(self) -> None:
        assert self._state_lock is not None
        self.tenure = Tenure(
            self.metadata,
            self.name,
            state_identity(self._state_lock),
            absolute(self.config.state_dir),
            peer_address=self._peer_sockets.address,
            control_address=self._control.address,
            version=VERSION,
            reactors=self.config.engine.reactors,
            lease_seconds=self.config.lease_seconds,
        )
        await self.tenure.take()
        if self.certificates is not None:
            try:
                await register_member(self.metadata, self.name, fingerprint(self.certificates.certificate.certificate))
            except BaseException:
                await self.tenure.give_up()
                raise

    async def _give_up_name(self) -> None:
        await self.tenure.give_up()

    async def _start_engine(self) -> None:
        self.engine = await in_thread(
            lambda: NodeEngine(self.config.engine, lambda event: self.volumes.events.on_event(event))
        )
        self.stores = Stores(self.engine, self.metadata, self.name, self.cluster.id)
        self.supervisor = Supervisor(self._hooks)
        self.exports = Exports(self.config.nbd, self.engine, self.supervisor)
        self.tenure.start(self.supervisor)
        self.cluster_view = Cluster(self.metadata, self.supervisor)
        self.registry = registry = Registry(self.cluster_view, self.name)
        self.forwarding, self.peers = None, None
        if self.config.peers.listen:
            me = Identity(self.cluster.id.bytes, self.name, self._key)
            self.forwarding = forwarding = Forwarding(
                self.engine, self.cluster_view, self.exports, registry, me, self.supervisor
            )
            self.peers = Peers(
                self.engine,
                self.cluster_view,
                me,
                self._peer_sockets,
                self.supervisor,
                lambda volume: forwarding.serves(uuid.UUID(bytes=volume)),
                self.config.peers.cut_file,
            )
            forwarding.dial = self.peers.dial
            self.exports.forwarding_nodes = self.peers.forwarding_nodes
        self.snapshots = Snapshots(self.engine, self.metadata, self.exports, registry)
        self.windows = Windows(self.engine, self.metadata, self.exports, registry, self.snapshots, self.supervisor)
        self.volumes = Volumes(
            Parts(
                self.engine,
                self.metadata,
                self.stores,
                self.exports,
                registry,
                self.snapshots,
                self.windows,
                self.supervisor,
                self._hooks,
                self.cluster_view,
                self.tenure,
                self.forwarding,
                self.name,
            )
        )
        self.cleaning = Cleaning(
            self.config.cleaning, self.engine, self.stores, registry, self.windows, self.supervisor
        )
        self.volumes.events.on_no_space = self.cleaning.hurry
        self.volumes.events.on_tight = self.cleaning.wake
        self.rebuilding = Rebuilding(
            self.config.rebuild, self.engine, self.cluster_view, self.name, registry, self.supervisor
        )
        self.flattening = Flattener(
            self.config.cleaning,
            self.engine,
            self.metadata,
            registry,
            self.volumes,
            self.snapshots,
            self.windows,
            self.supervisor,
        )
        self.deleting = Deleting(self.volumes, registry, self.supervisor)
        self.scrub = ScrubPasses(
            self.config.scrub,
            self.engine,
            self.stores,
            registry,
            self.cluster_view,
            Path(self.config.state_dir) / "scrub",
            self.supervisor,
        )
        await self.engine.start()
        self.assembled = True
        for warning in self.engine.warnings:
            log.warning("engine", warning=warning)

    async def _stop_engine(self) -> None:
        await self.supervisor.close()
        self.assembled = False
        await self.engine.stop()
        await self.stores.release()

    async def _open_devices(self) -> None:
        await self.stores.open_all(self.config.devices)

    async def _close_devices(self) -> None:
        await self.stores.close_all()

    async def _follow_cluster(self) -> None:
        self.cluster_view.on_change += [self._control.watching.wake, self._control.operations.wake]
        await self.cluster_view.start()

    async def _leave_cluster(self) -> None:
        await self.cluster_view.stop()

    async def _start_peers(self) -> None:
        if self.peers is not None:
            self.peers.start()

    async def _stop_peers(self) -> None:
        if self.peers is not None:
            await self.peers.stop()

    async def _listen(self) -> None:
        await self.exports.listen()

    async def _stop_listening(self) -> None:
        await self.exports.close()

    async def _open_volumes(self) -> None:
        try:
            await self.volumes.open_all()
        except BaseException:  # a stop during the start: open volumes are closed as in any stop
            await self.volumes.close_all()
            raise

    async def _close_volumes(self) -> None:
        await self.volumes.close_all()

    async def _follow_owners(self) -> None:
        self.volumes.follow_owners()
        if self.forwarding is not None:
            self.forwarding.start()

    async def _leave_owners(self) -> None:
        if self.forwarding is not None:
            await self.forwarding.stop()
        await self.volumes.leave_owners()

    async def _start_windows(self) -> None:
        await self.windows.start()

    async def _stop_windows(self) -> None:
        await self.windows.stop()

    async def _start_cleaning(self) -> None:
        await self.cleaning.start()

    async def _stop_cleaning(self) -> None:
        await self.cleaning.stop()

    async def _start_flattening(self) -> None:
        await self.flattening.start()

    async def _stop_flattening(self) -> None:
        await self.flattening.stop()

    async def _start_deleting(self) -> None:
        await self.deleting.start()

    async def _stop_deleting(self) -> None:
        await self.deleting.stop()

    async def _start_renewal(self) -> None:
        self._renewal.start(self.supervisor)

    async def _stop_renewal(self) -> None:
        await self._renewal.stop()

    async def _start_rebuilding(self) -> None:
        await self.rebuilding.start()

    async def _stop_rebuilding(self) -> None:
        await self.rebuilding.stop()

    async def _start_operations(self) -> None:
        await self._control.operations.start()

    async def _stop_operations(self) -> None:
        await self._control.operations.stop()

    async def _start_scrub(self) -> None:
        await self.scrub.start()

    async def _stop_scrub(self) -> None:
        await self.scrub.stop()

    async def _serve_http(self) -> None:
        if self.config.metrics.listen:
            await self._http.listen(self.config.metrics.listen)
            log.info("serving health and metrics", address=self._http.address)

    async def _report_ready(self) -> None:
        self.phase, self._step, self._steps_done = NodeState.READY, "", len(self.steps)
        await self._control.report(serving=True)
        await in_thread(functools.partial(notify, "READY=1", f"STATUS=serving {len(self.volumes.list())} volume(s)"))
        log.info(
            "ready",
            node=self.name,
            cluster=str(self.cluster.id),
            control=self.config.control.socket,
            metrics=self._http.address,
        )

    async def _report_stopping(self) -> None:
        self.phase = NodeState.STOPPING
        await self._control.report(serving=False)
        self._control.watching.end()
        self._control.operations.end()
        await in_thread(functools.partial(notify, "STOPPING=1", "STATUS=closing volumes"))
        log.info("stopping")
        await self._control.drain()


async def _nothing() -> None:
    """The shutdown of a step without one."""


def state_identity(lock: IO[bytes]) -> uuid.UUID:
    """The identity of the state directory, stored in its lock file, which the caller holds; created if missing."""
    lock.seek(0)
    try:
        return uuid.UUID(lock.read().decode().strip())
    except ValueError:
        identity = uuid.uuid4()
        lock.truncate(0)
        lock.write(f"{identity}\n".encode())
        lock.flush()
        return identity


def read_certificates(config: Config) -> Certificates | None:
    """This node's; None: it has none. Raises Foreign if they are of another node or cluster than the configuration."""
    folder = Path(config.certificates)
    if not has_identity(folder):
        return None
    found = read_identity(folder)
    if found.node != config.name:
        raise Foreign(
            f"name: this is node {config.name}, and the certificate in {folder} is that of node {found.node}: give "
            "the node that name, or let it join the cluster under this one"
        )
    if config.cluster not in (None, found.cluster):
        raise Foreign(
            f"cluster: the configuration says {config.cluster}, and the certificates in {folder} are of "
            f"cluster {found.cluster}"
        )
    return found


def lock_directory(path: str) -> IO[bytes]:
    """The directory, created if missing, and locked by this process until the file is closed."""
    try:
        Path(path).mkdir(mode=0o750, parents=True, exist_ok=True)
        lock = Path(path, "lock").open("a+b")  # noqa: SIM115 (open as long as the daemon runs)
    except OSError as error:
        raise PermissionDenied(
            f"state_dir: {path} is not writable ({error.strerror}): run as root, or set another one"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InUse(
            f"state_dir: another iomesh daemon is running with {path}: stop it, or set another state_dir"
        ) from None
    return lock
