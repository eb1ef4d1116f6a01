"""`iomesh trial up` as a list of named steps. A failure ends the daemon and removes the directory: nothing half done is
left."""

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.progress import Progress, TaskID

from iomesh.api.client import Client
from iomesh.cli.files import Allocation, make_device_file, require_direct_io
from iomesh.cli.output import Output
from iomesh.cli.trial import daemon
from iomesh.cli.trial.installation import Installation, TrialNode, TrialVolume

NODE = "node-0"


@dataclass(frozen=True)
class Plan:
    """The requested trial."""

    devices: int
    device_size: int
    allocation: Allocation
    tier: str
    volume: str
    volume_size: int
    segment_size: int
    engine: dict[str, Any]  # engine settings given as options
    start_seconds: float


def bring_up(trial: Installation, plan: Plan, output: Output) -> None:
    steps: list[tuple[str, Callable[[Installation, Plan, Output], None]]] = [
        ("making the devices", make_devices),
        ("formatting the devices", format_devices),
        ("writing the configuration", write_configuration),
        ("starting the daemon", start_daemon),
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
    for node in trial.nodes:
        daemon.kill(node)
    trial.remove()


def make_devices(trial: Installation, plan: Plan, output: Output) -> None:
    folder = trial.path / "devices"
    folder.mkdir()
    require_direct_io(folder)
    with output.bytes_progress() as progress:
        for number in range(plan.devices):
            path = folder / f"{number}.img"
            task = progress.add_task(
                f"writing device {number}", total=plan.device_size, visible=plan.allocation is Allocation.PREWRITTEN
            )
            make_device_file(path, plan.device_size, plan.allocation, partial(_show, progress, task))
            trial.devices.append(str(path))
    trial.save()


def _show(progress: Progress, task: TaskID, done: int) -> None:
    progress.update(task, completed=done)


def format_devices(trial: Installation, plan: Plan, output: Output) -> None:
    from iomesh.node.offline import format_device

    cluster = uuid.UUID(trial.cluster)
    for number, path in enumerate(trial.devices):
        asyncio.run(format_device(path, cluster=cluster, tier=plan.tier, label=f"trial-{number}", force=False))


def write_configuration(trial: Installation, plan: Plan, output: Output) -> None:
    settings: dict[str, dict[str, Any]] = {
        "": {
            "name": NODE,
            "state_dir": trial.directory,
            "run_dir": trial.directory,
            "cluster": trial.cluster,
            "devices": trial.devices,
        },
        "engine": plan.engine,
        "metrics": {"listen": "127.0.0.1:0"},
    }
    lines = ["# Written by `iomesh trial up`."]
    for name, values in settings.items():
        lines += [f"\n[{name}]"] if name else []
        # This JSON is also valid TOML.
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    trial.config.write_text("\n".join(lines) + "\n")


def start_daemon(trial: Installation, plan: Plan, output: Output) -> None:
    node = TrialNode(name=NODE, control=str(trial.path / "control.sock"))
    trial.nodes.append(node)
    daemon.start(trial, node)
    daemon.wait_until_serving(trial, node, [], plan.start_seconds)


def create_volume(trial: Installation, plan: Plan, output: Output) -> None:
    async def conversation() -> str:
        async with Client(trial.nodes[0].control) as node:
            await node.create_volume(plan.volume, plan.volume_size, segment_bytes=plan.segment_size)
            return (await node.export_volume(plan.volume)).uris[0]

    uri = asyncio.run(conversation())
    trial.volumes.append(TrialVolume(name=plan.volume, size=plan.volume_size, uri=uri))
    trial.save()
