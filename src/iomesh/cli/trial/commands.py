"""`iomesh trial up|status|env|crash|start|stop|down`."""

import shlex
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from iomesh.cli import documents
from iomesh.cli.files import Allocation
from iomesh.cli.output import fields
from iomesh.cli.session import Session, Size, answers
from iomesh.cli.trial.installation import Installation, default_directory
from iomesh.errors import InUse, NotFound, Unavailable
from iomesh.sizes import exact_size, short_size, short_time

Command = TypeVar("Command", bound=Callable[..., Any])

START_SECONDS = 120.0
STOP_SECONDS = 60.0


def in_directory(command: Command) -> Command:
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        default=default_directory,
        metavar="D",
        help="Directory of the trial.  [default: $XDG_STATE_HOME/iomesh/trial]",
    )(command)


@click.group()
def trial() -> None:
    """Run a throw-away installation on this machine: devices that are files, a daemon, a volume served over NBD."""


@trial.command("up")
@in_directory
@click.option("--devices", type=click.IntRange(1, 64), default=1, show_default=True, help="How many devices.")
@click.option(
    "--device-size", type=Size(), default="16Gi", show_default=True, help="Size of each; sparse unless prewritten."
)
@click.option("--size", type=Size(), default="8Gi", show_default=True, help="Size of the volume.")
@click.option("--volume", "volume_name", default="trial", show_default=True, help="Name of the volume.")
@click.option(
    "--tier",
    type=click.Choice(["nvme", "ssd", "hdd"]),
    default="nvme",
    show_default=True,
    help="Storage tier of the devices.",
)
@click.option("--preallocate", is_flag=True, help="Reserve the devices' space at once.")
@click.option(
    "--prewrite", is_flag=True, help="Write the devices from end to end, so that benchmarks measure the disk below."
)
@click.option(
    "--segment-size",
    type=Size(),
    default=0,
    help="Bytes of one segment of the volume's log; by default chosen by the daemon.",
)
@click.option("--map-cache", type=Size(), help="Bytes of the node's map cache.")
@click.option("--reactors", type=click.IntRange(1, 256), help="Reactors, each a thread.")
@click.option("--mode", type=click.Choice(["adaptive", "busy", "sleep"]), help="How a reactor waits.")
@click.option(
    "--poll-us", type=click.IntRange(0, 1_000_000), help="Microseconds that an adaptive reactor polls after work."
)
@click.option("--checkpoint-bytes", type=Size(), help="Bytes of log between two checkpoints.")
@answers(documents.Trial)
def up(
    session: Session,
    directory: Path,
    devices: int,
    device_size: int,
    size: int,
    volume_name: str,
    tier: str,
    preallocate: bool,
    prewrite: bool,
    segment_size: int,
    map_cache: int | None,
    reactors: int | None,
    mode: str | None,
    poll_us: int | None,
    checkpoint_bytes: int | None,
) -> None:
    """Set up a trial and print the NBD URI of its volume."""
    from iomesh.cli.trial.bring_up import Plan, bring_up

    allocation = Allocation.PREWRITTEN if prewrite else Allocation.PREALLOCATED if preallocate else Allocation.SPARSE
    engine = {
        "map_cache_bytes": map_cache,
        "reactors": reactors,
        "mode": mode,
        "poll_microseconds": poll_us,
        "checkpoint_bytes": checkpoint_bytes,
    }
    plan = Plan(
        devices=devices,
        device_size=session.whole_blocks(device_size),
        allocation=allocation,
        tier=tier,
        volume=volume_name,
        volume_size=session.whole_blocks(size),
        segment_size=segment_size,
        engine={name: value for name, value in engine.items() if value is not None},
        start_seconds=START_SECONDS,
    )
    made = Installation.create(directory, str(uuid.uuid4()))
    bring_up(made, plan, session.output)
    say(session, made)
    session.output.note(
        f'eval "$(iomesh trial env{option(made)})" makes the other commands use it, '
        f"`iomesh trial down{option(made)}` ends it"
    )


@trial.command("status")
@in_directory
@answers(documents.Trial)
def status(session: Session, directory: Path) -> None:
    """Show a trial: its directory, daemon and volumes."""
    say(session, Installation.load(directory))


@trial.command("env")
@in_directory
@answers(documents.TrialEnvironment)
def env(session: Session, directory: Path) -> None:
    """Print the environment in which commands ask the trial's daemon, for a shell: eval "$(iomesh trial env)".

    IOMESH_ADDRESS is the daemon's address, IOMESH_TRIAL_URI the NBD URI of the first volume.
    """
    there = Installation.load(directory)
    if not there.volumes:
        raise NotFound(
            f"the trial in {there.directory} was not set up completely: remove it with "
            f"`iomesh trial down{option(there)}`"
        )
    environment = {"IOMESH_ADDRESS": there.nodes[0].control, "IOMESH_TRIAL_URI": there.volumes[0].uri}
    session.output.answer(
        documents.TrialEnvironment(environment=environment),
        *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
    )


@trial.command("crash")
@in_directory
@answers(documents.Trial)
def crash(session: Session, directory: Path) -> None:
    """Kill the daemon (SIGKILL), as a crash would end it."""
    from iomesh.cli.trial import daemon

    there = Installation.load(directory)
    if not there.running:
        raise NotFound(
            f"the daemon of the trial in {there.directory} is not running: start it with "
            f"`iomesh trial start{option(there)}`"
        )
    for node in there.nodes:
        daemon.kill(node)
    say(session, there)


@trial.command("start")
@in_directory
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=START_SECONDS,
    show_default=True,
    help="Seconds until the volumes must be served.",
)
@answers(documents.StartedTrial)
def start(session: Session, directory: Path, timeout: float) -> None:
    """Start the daemon again and wait until the volumes are served."""
    from iomesh.cli.trial import daemon

    there = Installation.load(directory)
    if there.running:
        raise InUse(
            f"the trial in {there.directory} is already running (process {there.nodes[0].pid}): "
            f"`iomesh trial status{option(there)}` shows it"
        )
    if not there.volumes:
        raise NotFound(
            f"the trial in {there.directory} was not set up completely: remove it with "
            f"`iomesh trial down{option(there)}`"
        )
    recovered: list[documents.Recovered] = []
    began = time.monotonic()
    for node in there.nodes:
        with session.output.step(f"starting {node.name}"):
            daemon.start(there, node)
            for served in daemon.wait_until_serving(there, node, [volume.name for volume in there.volumes], timeout):
                one = documents.Recovered(
                    volume=served.name, seconds=served.recovery_seconds, bytes=served.recovery_bytes
                )
                recovered.append(one)
    seconds = time.monotonic() - began
    started = documents.StartedTrial(
        **msgspec.structs.asdict(document(there)), start_seconds=round(seconds, 4), recovered=recovered
    )
    say(session, there, started)
    for one in recovered:
        session.output.note(
            f"served after {seconds:.2f} s; recovery of {one.volume}: {short_time(one.seconds * 1e9)}, "
            f"{short_size(one.bytes)} of log read"
        )


@trial.command("stop")
@in_directory
@answers(documents.Trial)
def stop(session: Session, directory: Path) -> None:
    """Stop the daemon cleanly and keep everything."""
    from iomesh.cli.trial import daemon

    there = Installation.load(directory)
    for node in there.nodes:
        with session.output.step(f"stopping {node.name}"):
            if not daemon.stop(node, STOP_SECONDS):
                raise Unavailable(
                    f"the daemon {node.name} (process {node.pid}) did not end within {STOP_SECONDS:g} s of SIGTERM: "
                    f"see {there.log}, or kill it with `iomesh trial crash{option(there)}`"
                )
    say(session, there)


@trial.command("down")
@in_directory
@answers(documents.RemovedTrial)
def down(session: Session, directory: Path) -> None:
    """Stop the daemon cleanly and remove the trial's directory with all its data."""
    from iomesh.cli.trial import daemon

    there = Installation.load(directory)
    for node in there.nodes:
        with session.output.step(f"stopping {node.name}"):
            if not daemon.stop(node, STOP_SECONDS):
                session.output.warn(
                    f"the daemon {node.name} (process {node.pid}) did not end within {STOP_SECONDS:g} s of SIGTERM and "
                    "was killed"
                )
                daemon.kill(node)
    there.remove()
    session.output.answer(
        documents.RemovedTrial(directory=there.directory), f"the trial in {there.directory} was removed"
    )


def document(there: Installation) -> documents.Trial:
    return documents.Trial(
        directory=there.directory,
        nodes=[
            documents.ListedTrialNode(name=node.name, pid=node.pid if node.alive else None, control=node.control)
            for node in there.nodes
        ],
        volumes=[
            documents.ListedTrialVolume(name=volume.name, size=volume.size, uri=volume.uri) for volume in there.volumes
        ],
        cluster=there.cluster,
        devices=there.devices,
        log=str(there.log),
    )


def say(session: Session, there: Installation, told: documents.Trial | None = None) -> None:
    """Prints the answer of every command: the current trial."""
    rows: list[tuple[str, object]] = [("directory", there.directory), ("devices", len(there.devices))]
    rows += [
        (node.name, f"process {node.pid}, control {node.control}" if node.alive else "not running")
        for node in there.nodes
    ]
    rows += [(volume.name, f"{exact_size(volume.size)}, {volume.uri}") for volume in there.volumes]
    rows.append(("log", there.log))
    session.output.answer(told or document(there), fields(rows))


def option(there: Installation) -> str:
    """The option that makes another command use this trial."""
    return "" if there.path == default_directory().absolute() else f" --dir {there.directory}"
