"""`iomesh trial up` as a list of named steps. A failure ends the daemons and removes the directory: nothing half done
is left."""

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from rich.progress import Progress, TaskID

from iomesh.api.client import Client
from iomesh.cli.files import Allocation, make_device_file, require_direct_io
from iomesh.cli.joining import join
from iomesh.cli.output import Output
from iomesh.cli.trial import daemon
from iomesh.cli.trial.installation import Installation, TrialNode


@dataclass(frozen=True)
class Plan:
    """The requested trial."""

    device_size: int
    allocation: Allocation
    tier: str
    volume: str
    volume_size: int
    segment_size: int
    replicas: int
    rebuild_delay: float  # seconds
    engine: dict[str, Any]  # engine settings given as options
    start_seconds: float


def bring_up(trial: Installation, plan: Plan, output: Output) -> None:
    steps: list[tuple[str, Callable[[Installation, Plan, Output], None]]] = [
        ("making the devices", make_devices),
        ("formatting the devices", format_devices),
        ("writing the configuration", write_configuration),
        ("making the cluster", make_cluster),
        ("starting the daemons", start_daemons),
        ("creating the volume", create_volume),
    ]
    try:
        for name, step in steps:
            with output.step(name):
                step(trial, plan, output)
    except BaseException:
        undo(trial)
        raise


def undo(trial: Installation) -> None:
    daemon.kill(trial.nodes)
    trial.remove()


def make_devices(trial: Installation, plan: Plan, output: Output) -> None:
    with output.bytes_progress() as progress:
        for node in trial.nodes:
            folder = node.path / "devices"
            folder.mkdir(parents=True)
            require_direct_io(folder)
            for number, path in enumerate(node.devices):
                task = progress.add_task(
                    f"writing device {number} of node {node.name}",
                    total=plan.device_size,
                    visible=plan.allocation is Allocation.PREWRITTEN,
                )
                make_device_file(path, plan.device_size, plan.allocation, partial(_show, progress, task))


def _show(progress: Progress, task: TaskID, done: int) -> None:
    progress.update(task, completed=done)


def format_devices(trial: Installation, plan: Plan, output: Output) -> None:
    from iomesh.node.offline import format_device

    cluster = uuid.UUID(trial.cluster)
    for node in trial.nodes:
        for number, path in enumerate(node.devices):
            label = f"{node.name}-{number}"
            asyncio.run(format_device(str(path), cluster=cluster, tier=plan.tier, label=label, force=False))


def write_configuration(trial: Installation, plan: Plan, output: Output) -> None:
    for node in trial.nodes:
        write_node_configuration(trial, node, plan)


def write_node_configuration(trial: Installation, node: TrialNode, plan: Plan) -> None:
    settings: dict[str, dict[str, Any]] = {
        "": {
            "name": node.name,
            "state_dir": str(node.path),
            "run_dir": str(node.path),
            "cluster": trial.cluster,
            "devices": [str(path) for path in node.devices],
        },
        "engine": plan.engine,
        "metadata": {"path": str(trial.metadata)},
        "metrics": {"listen": "127.0.0.1:0"},
    }
    if len(trial.nodes) > 1:
        settings["control"] = {"listen": "127.0.0.1:0"}
        settings["rebuild"] = {"delay_seconds": plan.rebuild_delay}
        settings["peers"] = {"listen": "127.0.0.1:0", "cut_file": str(node.cut_file)}
    lines = ["# Written by `iomesh trial up`."]
    for name, values in settings.items():
        lines += [f"\n[{name}]"] if name else []
        # This JSON is also valid TOML.
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    node.config.write_text("\n".join(lines) + "\n")


def make_cluster(trial: Installation, plan: Plan, output: Output) -> None:
    """As `iomesh cluster init` does on the first node, and, once that runs, `join` on each other. A single node needs
    none."""
    from iomesh.certificates.files import FOLDER, new_identity, write_identity

    first, *others = trial.nodes
    if not others:
        return
    write_identity(first.path / FOLDER, new_identity(uuid.UUID(trial.cluster), first.name))
    daemon.start_and_wait([first], plan.start_seconds, output)

    async def join_all() -> None:
        async with Client(first.control) as client:
            for node in others:
                token = (await client.create_join_token()).token
                await join(token, node.name, node.path / FOLDER, version=version("iomesh"))

    asyncio.run(join_all())


def start_daemons(trial: Installation, plan: Plan, output: Output) -> None:
    daemon.start_and_wait([node for node in trial.nodes if not node.alive], plan.start_seconds, output)


def create_volume(trial: Installation, plan: Plan, output: Output) -> None:
    async def conversation() -> None:
        async with Client(trial.nodes[0].control) as node:
            await node.create_volume(
                plan.volume, plan.volume_size, segment_bytes=plan.segment_size, replicas=plan.replicas
            )
            await node.export_volume(plan.volume)

    asyncio.run(conversation())
    trial.volume, trial.volume_bytes = plan.volume, plan.volume_size
    trial.save()
