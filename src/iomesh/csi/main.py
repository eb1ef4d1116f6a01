"""`iomesh csi serve`: the driver as a process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path

import msgspec
from google.protobuf.descriptor import ServiceDescriptor

from iomesh.csi import csi_pb2 as pb
from iomesh.csi.attach.fuse import FuseAttacher
from iomesh.csi.attach.kernel import KernelAttacher
from iomesh.csi.attach.methods import Methods
from iomesh.csi.attach.record import Records
from iomesh.csi.attach.servers import AttachServer
from iomesh.csi.cluster import Cluster
from iomesh.csi.controller import Controller, GroupController
from iomesh.csi.identity import Identity
from iomesh.csi.locks import Locks
from iomesh.csi.node import Node
from iomesh.csi.placement import Topology
from iomesh.csi.registration import Registration
from iomesh.csi.server import Server
from iomesh.csi.settings import AttachServerSettings, AttachStatus, Settings
from iomesh.csi.snapshots import Snapshots
from iomesh.csi.staging import Staging
from iomesh.csi.volumes import Volumes
from iomesh.errors import IomeshError, Unavailable
from iomesh.node import logs
from iomesh.node.config import LogConfig
from iomesh.node.http import TEXT, HttpServer

log = logs.logger("csi")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
RETRY_SECONDS = 2.0
PROBE_SECONDS = 5.0


def serve(settings: Settings) -> int:
    """Returns 0 after SIGTERM or SIGINT. Raises the IomeshError that made the start fail, or the kubelet's refusal."""
    logs.configure(LogConfig(level=settings.log_level, format=settings.log_format))
    os.umask(0o077)
    asyncio.run(_serve(settings))
    return 0


def serve_attached(settings: AttachServerSettings) -> int:
    """`iomesh csi attach-server`. Returns 0 after SIGTERM or SIGINT."""
    logs.configure(LogConfig(level=settings.log_level, format=settings.log_format))
    os.umask(0o077)
    asyncio.run(AttachServer(Path(settings.state_dir)).run())
    return 0


async def _serve(settings: Settings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopping.set)
    logs.flush_repeats(loop)
    cluster = Cluster(settings.addresses, settings.certificates)
    async with AsyncExitStack() as running:
        background: list[Callable[[], Awaitable[None]]] = []
        server = Server(settings.socket, _services(settings, cluster, background))
        for work in background:
            running.callback(asyncio.create_task(_keep(work)).cancel)
        await server.start()
        running.push_async_callback(server.stop)
        if settings.health_listen:
            health = Health(cluster)
            await health.start(settings.health_listen)
            running.push_async_callback(health.stop)
            log.info("serving", health=health.address)
        log.info("serving", socket=settings.socket, mode=settings.mode, driver=settings.driver)
        refused: asyncio.Future[IomeshError] = loop.create_future()
        if settings.registration_dir:
            await _until_daemon_answers(cluster, stopping)  # the kubelet asks for the node's name at once
            endpoint = settings.registered_socket or settings.socket
            registration = Registration(Path(settings.registration_dir), settings.driver, endpoint)
            await registration.start()
            running.push_async_callback(registration.stop)
            refused = registration.refused
        stop = asyncio.ensure_future(stopping.wait())
        await asyncio.wait((stop, refused), return_when=asyncio.FIRST_COMPLETED)
        if refused.done():
            raise refused.result()
    logs.repeats.flush(all_of_them=True)
    log.info("stopped")


def _services(
    settings: Settings, cluster: Cluster, background: list[Callable[[], Awaitable[None]]]
) -> dict[ServiceDescriptor, object]:
    """What they need done all the time is added to `background`."""
    kinds, topology = pb.DESCRIPTOR.services_by_name, Topology(settings.driver)
    controller, node = settings.mode in ("controller", "both"), settings.mode in ("node", "both")
    services: dict[ServiceDescriptor, object] = {
        kinds["Identity"]: Identity(settings.driver, cluster, controller=controller)
    }
    if controller:
        locks = Locks()
        volumes, snapshots = Volumes(cluster, locks, topology), Snapshots(cluster, locks)
        services[kinds["Controller"]] = Controller(cluster, volumes, snapshots)
        services[kinds["GroupController"]] = GroupController(snapshots)
    if node:
        records = Records(Path(settings.state_dir))
        kernel = KernelAttacher(records, retry_seconds=settings.retry_seconds)
        attach_server = Path(settings.attach_server) if settings.attach_server else None
        fuse = FuseAttacher(records, retry_seconds=settings.retry_seconds, attach_server=attach_server)
        attacher = Methods(records, [kernel, fuse])
        if lacking := attacher.lacking():
            log.warning("volumes cannot be attached", reason=lacking)
        else:
            log.info("volumes are attached", method=attacher.name, **attacher.reasons)
        if settings.attach_status:
            write_status(Path(settings.attach_status), attacher)
        if attacher.name == kernel.name:
            background.append(kernel.watch)
        staging = Staging(cluster, records, attacher)
        services[kinds["Node"]] = Node(cluster, staging, attacher, topology, volumes_max=settings.volumes_max)
    return services


def write_status(file: Path, methods: Methods) -> None:
    """For the node's agent, which shows it."""
    reason = methods.lacking() or "; ".join(f"{name}: {why}" for name, why in methods.reasons.items())
    shown = AttachStatus(attach=methods.name, reason=reason)
    made = file.with_name(file.name + ".new")
    made.write_bytes(msgspec.json.encode(shown))
    made.replace(file)


async def _keep(work: Callable[[], Awaitable[None]]) -> None:
    """Starts it again whenever it fails."""
    while True:
        try:
            await work()
        except (IomeshError, OSError) as error:
            log.error("started again after an error", task=work.__qualname__, reason=str(error))
        await asyncio.sleep(RETRY_SECONDS)


async def _until_daemon_answers(cluster: Cluster, stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        try:
            await cluster.own_node()
            return
        except Unavailable as error:
            log.warning("waiting for the node's daemon", reason=error.message)
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                await stopping.wait()
        except TimeoutError:
            continue


class Health:
    """/healthz: the process answers. /readyz: a daemon answered it, too, within the last seconds."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._problem = "no daemon was asked yet"
        self._asking: asyncio.Task[None] | None = None
        self._http = HttpServer({"/healthz": self._healthz, "/readyz": self._readyz})

    async def start(self, address: str) -> None:
        await self._http.listen(address)
        self._asking = asyncio.create_task(self._ask(), name="health")

    @property
    def address(self) -> str:
        return self._http.address

    async def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        await self._http.close()

    async def _ask(self) -> None:
        while True:
            try:
                async with self._cluster.connect():
                    self._problem = ""
            except IomeshError as error:
                self._problem = error.message
            await asyncio.sleep(PROBE_SECONDS)

    def _healthz(self) -> tuple[HTTPStatus, str, bytes]:
        return HTTPStatus.OK, TEXT, b"ok\n"

    def _readyz(self) -> tuple[HTTPStatus, str, bytes]:
        if self._problem:
            return HTTPStatus.SERVICE_UNAVAILABLE, TEXT, f"{self._problem}\n".encode()
        return HTTPStatus.OK, TEXT, b"ok\n"
