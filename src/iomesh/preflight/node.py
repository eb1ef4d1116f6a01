"""The checks, in the order in which a daemon would meet what they are about."""

from __future__ import annotations

import asyncio
import platform
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iomesh.certificates.files import Identity
from iomesh.errors import Damaged, Foreign, InUse, IomeshError, NotFound
from iomesh.node.clock import read_clock
from iomesh.node.config import Config, load_config
from iomesh.node.devices import open_device
from iomesh.node.duplicates import refuse_duplicates
from iomesh.node.engine import NodeEngine
from iomesh.node.metadata_kinds import metadata_place, open_metadata
from iomesh.node.node import lock_directory, read_certificates
from iomesh.node.offline import inspect_device
from iomesh.operator.disks import Surveyed, survey
from iomesh.preflight.driver import check_driver
from iomesh.preflight.findings import Check, DiskCheck, NodeCheck, State, failed, ok, skipped, warning
from iomesh.preflight.limits import check_limits
from iomesh.preflight.places import why_unusable
from iomesh.preflight.ports import check_ports

METADATA_SECONDS = 10.0
OLDEST_KERNEL = (6, 1)
RUNS = "a daemon runs here and has it"


async def check_node(
    file: Path | None, settings: Mapping[str, Any], *, driver: bool, least_disk_bytes: int
) -> NodeCheck:
    """file, settings: the daemon's configuration, as for load_config. driver: check what the CSI driver needs, too.
    least_disk_bytes: smaller disks are not discovered."""
    checks, config = _configuration(file, settings)
    certificates, identity = _certificates(config)
    cluster = config.cluster or (identity.cluster if identity else None)
    surveyed = await asyncio.to_thread(lambda: survey(cluster, least_bytes=least_disk_bytes))
    state_directory = _state_directory(config)
    runs = state_directory.state is State.SKIPPED
    checks += [certificates, *await _engine(config), *check_limits(config.engine), _clock(), state_directory]
    checks += await asyncio.to_thread(lambda: check_ports(config, runs=runs))
    checks += [await asyncio.to_thread(lambda: _devices(config, cluster, runs=runs)), _disks(config, surveyed)]
    checks += [await _metadata(config), *(await asyncio.to_thread(check_driver) if driver else [])]
    return NodeCheck(
        node=config.name,
        ready=all(each.state is not State.FAILED for each in checks),
        checks=checks,
        disks=[
            DiskCheck(path=disk.path, size_bytes=disk.size_bytes, usable=not reason, reason=reason)
            for disk, reason in surveyed
        ],
    )


def _configuration(file: Path | None, settings: Mapping[str, Any]) -> tuple[list[Check], Config]:
    """If it cannot be used, the rest is checked with the default one."""
    checks = []
    try:
        config = load_config(file, settings)
        checks += [ok("configuration", "valid")]
    except IomeshError as error:
        checks += [failed("configuration", error.message)]
        try:
            config = load_config(Path("/dev/null"), {})
        except IomeshError:  # the machine's name is no node's
            return checks, load_config(Path("/dev/null"), {"name": "unnamed"})
    if config.name.split(".")[0] == "localhost":
        checks += [warning("name", f"{config.name} is the name of many machines: set `name`, or the host's name")]
    elif config.name != platform.node():
        checks += [ok("name", f"{config.name}; the machine is {platform.node()}")]
    else:
        checks += [ok("name", config.name)]
    return checks, config


def _certificates(config: Config) -> tuple[Check, Identity | None]:
    try:
        identity = read_certificates(config)
    except IomeshError as error:
        return failed("certificates", error.message), None
    if identity is None:
        return ok("certificates", f"none in {config.certificates}: a node on its own needs none"), None
    return ok("certificates", f"of node {identity.node} in cluster {identity.cluster}"), identity


async def _engine(config: Config) -> list[Check]:
    """Starts the engine as the daemon does, and stops it."""
    kernel = f"Linux {platform.release()}"
    try:
        engine = NodeEngine(config.engine, lambda event: None)
        await engine.start()
        await engine.stop()
    except IomeshError as error:
        return [failed("io_uring", f"{kernel}: {error.message}{_why_hidden(platform.release(), error)}")]
    works = ok("io_uring", f"{kernel}: the engine runs with {config.engine.reactors} reactor(s)")
    return [works, *(warning("io_uring", text) for text in engine.warnings)]


def _why_hidden(release: str, error: IomeshError) -> str:
    """Of an io_uring that a new kernel does not seem to have: container runtimes answer as an old kernel would."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if "Linux 6.1" not in error.message or found is None or (int(found[1]), int(found[2])) < OLDEST_KERNEL:
        return ""
    return (
        ". This kernel is new enough: where it has io_uring, the seccomp profile of the container hides it (run it "
        "privileged, or allow io_uring_setup)"
    )


def _clock() -> Check:
    try:
        clock = read_clock()
    except OSError as error:
        return warning("clock", f"it is not known whether it is synchronised: {error.strerror}")
    if clock.synchronised:
        return ok("clock", f"synchronised, within {clock.error_seconds:.3g} s")
    return warning(
        "clock",
        "no time service keeps it, as the kernel says: run one, such as chrony; times of snapshots and restores are by "
        "this clock",
    )


def _state_directory(config: Config) -> Check:
    """SKIPPED: a daemon runs with it."""
    path = Path(config.state_dir).absolute()
    if not path.exists():
        if why := why_unusable(path):
            return failed("state_dir", f"state_dir: {path} cannot be made: {why}")
        return ok("state_dir", f"{path} does not exist yet: the daemon makes it")
    try:
        lock_directory(config.state_dir).close()
    except InUse:
        return skipped("state_dir", f"{path}: {RUNS}")
    except IomeshError as error:
        return failed("state_dir", error.message)
    return ok("state_dir", f"{path} is writable")


def _devices(config: Config, cluster: uuid.UUID | None, *, runs: bool) -> Check:
    """Those of the configuration."""
    if not config.devices:
        return ok("devices", "none is configured: `iomesh device add` adds one to the running daemon")
    if runs:
        return skipped("devices", f"{', '.join(config.devices)}: {RUNS}")
    clusters = {cluster} if cluster else set()
    try:
        for path in config.devices:
            open_device(path).close()
        refuse_duplicates(config.devices)
        for path in config.devices:
            clusters.add(uuid.UUID(inspect_device(path).cluster))
            if len(clusters) > 1:
                raise Foreign(
                    f"devices: {path} belongs to another cluster than the node or the devices before it: name only "
                    "those of one cluster"
                )
    except (NotFound, Damaged) as error:
        return failed("devices", f"{error.message}: correct `devices`, or format it with `iomesh device format`")
    except IomeshError as error:
        return failed("devices", error.message)
    return ok("devices", f"{len(config.devices)}, all of one cluster")


def _disks(config: Config, surveyed: list[Surveyed]) -> Check:
    usable = sum(not each.reason for each in surveyed)
    if usable or config.devices:
        return ok("disks", f"{usable} of {len(surveyed)} could be used")
    return warning(
        "disks",
        f"none of {len(surveyed)} could be used, and no device is configured: add an empty disk, or erase one that is "
        "not needed (`wipefs --all`)",
    )


async def _metadata(config: Config) -> Check:
    place = metadata_place(config.metadata)
    if config.metadata.kind != "etcd":  # a file is made if it is missing; in Kubernetes only the daemon has the right
        return skipped("metadata", f"{place}: the daemon finds out")
    try:
        async with asyncio.timeout(METADATA_SECONDS):
            await (await open_metadata(config.metadata)).close()
    except TimeoutError:
        return failed(
            "metadata", f"{place} does not answer within {METADATA_SECONDS:g} s: start it, or correct [metadata]"
        )
    except IomeshError as error:
        return failed("metadata", f"{error.message}: start it, or correct [metadata]")
    return ok("metadata", f"{place} answers")
