"""`iomesh trial up|status|env|start|stop|kill|pause|resume|cut|heal|down`."""

import shlex
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from click.shell_completion import CompletionItem

from iomesh.cli import documents
from iomesh.cli.files import Allocation
from iomesh.cli.output import fields
from iomesh.cli.session import Seconds, Session, Size, answers
from iomesh.cli.trial.installation import NODES_MAX, Installation, State, TrialNode, default_directory
from iomesh.errors import InUse, InvalidArgument, IomeshError, NotFound, Unavailable
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


class NodeName(click.ParamType[str]):
    """The name of a node of the trial, completed from its directory."""

    name = "node"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            names = Installation.load(ctx.params.get("directory") or default_directory()).names
        except IomeshError:
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def one_or_all(command: Command) -> Command:
    return click.argument("name", metavar="[NODE]", required=False, type=NodeName())(command)


@click.group()
def trial() -> None:
    """Run a throw-away installation on this machine: one daemon or several, each with devices that are files, and a
    volume served over NBD."""


@trial.command("up")
@in_directory
@click.option(
    "--nodes",
    type=click.IntRange(1, NODES_MAX),
    default=1,
    show_default=True,
    help="How many nodes, each a daemon with its own devices.",
)
@click.option(
    "--devices", type=click.IntRange(1, 64), default=1, show_default=True, help="How many devices each node has."
)
@click.option(
    "--device-size", type=Size(), default="16Gi", show_default=True, help="Size of each; sparse unless prewritten."
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 4),
    default=1,
    show_default=True,
    help="How many of the nodes hold the volume's data.",
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
@click.option(
    "--rebuild-delay",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Seconds after which a node that does not answer is lost: its copies are made elsewhere.",
)
@answers(documents.Trial)
def up(
    session: Session,
    directory: Path,
    nodes: int,
    replicas: int,
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
    rebuild_delay: float,
) -> None:
    """Set up a trial and print the NBD URI of its volume."""
    from iomesh.cli.trial.bring_up import Plan, bring_up

    if replicas > nodes:
        raise InvalidArgument(
            f"--replicas: a volume with {replicas} replicas needs {replicas} nodes, and there are to be {nodes}: "
            f"add --nodes {replicas}, or choose fewer replicas"
        )
    allocation = Allocation.PREWRITTEN if prewrite else Allocation.PREALLOCATED if preallocate else Allocation.SPARSE
    engine = {
        "map_cache_bytes": map_cache,
        "reactors": reactors,
        "mode": mode,
        "poll_microseconds": poll_us,
        "checkpoint_bytes": checkpoint_bytes,
    }
    plan = Plan(
        device_size=session.whole_blocks(device_size),
        allocation=allocation,
        tier=tier,
        volume=volume_name,
        volume_size=session.whole_blocks(size),
        segment_size=segment_size,
        replicas=replicas,
        rebuild_delay=rebuild_delay,
        engine={name: value for name, value in engine.items() if value is not None},
        start_seconds=START_SECONDS,
    )
    made = Installation.create(directory, str(uuid.uuid4()), nodes=nodes, devices=devices)
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
    """Show a trial: its directory, nodes and volumes, and which node serves each volume at present."""
    say(session, Installation.load(directory))


@trial.command("env")
@in_directory
@answers(documents.TrialEnvironment)
def env(session: Session, directory: Path) -> None:
    """Print the environment in which commands ask the trial's daemon, for a shell: eval "$(iomesh trial env)".

    IOMESH_TRIAL_URI is the present NBD URI of the trial's volume, IOMESH_ADDRESS the address of the daemon that serves
    it.
    """
    from iomesh.cli.trial.served import volumes_of

    there = complete(directory)
    volume = volumes_of(there)[0]
    if volume.owner is None or volume.uri is None:
        missing = "served by no node" if volume.owner is None else "not exported"
        raise Unavailable(
            f"volume {volume.name} of the trial in {there.directory} is {missing} at present: "
            f"`iomesh trial status{option(there)}` shows its nodes, `iomesh trial start{option(there)}` starts those "
            "that are stopped"
        )
    environment = {"IOMESH_ADDRESS": there.node(volume.owner).control, "IOMESH_TRIAL_URI": volume.uri}
    session.output.answer(
        documents.TrialEnvironment(environment=environment),
        *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
    )


@trial.command("start")
@one_or_all
@in_directory
@click.option(
    "--timeout",
    type=Seconds(min=0.1),
    default=START_SECONDS,
    show_default=True,
    help="Seconds until the volumes must be served.",
)
@answers(documents.StartedTrial)
def start(session: Session, name: str | None, directory: Path, timeout: float) -> None:
    """Start the daemon of NODE, or all that are stopped, and wait until they serve their volumes."""
    from iomesh.cli.trial import daemon

    there = complete(directory)
    stopped = those(there, name, {"stopped"}, "start")
    began = time.monotonic()
    with session.output.step(f"starting {names(stopped)}"):
        served = daemon.start_and_wait(stopped, timeout, session.output)
    seconds = time.monotonic() - began
    recovered = [
        documents.Recovered(volume=one.name, seconds=one.recovery_seconds, bytes=one.recovery_bytes) for one in served
    ]
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
@one_or_all
@in_directory
@answers(documents.Trial)
def stop(session: Session, name: str | None, directory: Path) -> None:
    """Stop the daemon of NODE, or all, cleanly, and keep everything."""
    from iomesh.cli.trial import daemon

    there = Installation.load(directory)
    asked = chosen(there, name)
    with session.output.step(f"stopping {names(asked)}"):
        late = daemon.stop(asked, STOP_SECONDS)
    if late:
        raise Unavailable(
            "\n".join(
                f"the daemon {node.name} (process {node.pid}) did not end within {STOP_SECONDS:g} s of SIGTERM: "
                f"see {node.log}, or kill it with `iomesh trial kill {node.name}{option(there)}`"
                for node in late
            )
        )
    say(session, there)


@trial.command("kill")
@one_or_all
@in_directory
@answers(documents.Trial)
def kill(session: Session, name: str | None, directory: Path) -> None:
    """Kill the daemon of NODE, or all (SIGKILL), as a crash would end it."""
    from iomesh.cli.trial import daemon

    there = Installation.load(directory)
    daemon.kill(those(there, name, {"running", "cut", "paused"}, "kill"))
    say(session, there)


@trial.command("pause")
@one_or_all
@in_directory
@answers(documents.Trial)
def pause(session: Session, name: str | None, directory: Path) -> None:
    """Pause the daemon of NODE, or all (SIGSTOP): its connections stay, and it does not answer until `resume`."""
    from iomesh.cli.trial import daemon

    there = Installation.load(directory)
    for node in those(there, name, {"running", "cut"}, "pause"):
        daemon.pause(node, there.metadata)
    say(session, there)


@trial.command("resume")
@one_or_all
@in_directory
@answers(documents.Trial)
def resume(session: Session, name: str | None, directory: Path) -> None:
    """Let a paused daemon run again (SIGCONT)."""
    from iomesh.cli.trial import daemon

    there = Installation.load(directory)
    for node in those(there, name, {"paused"}, "resume"):
        daemon.resume(node)
    say(session, there)


@trial.command("cut")
@click.argument("name", metavar="NODE", type=NodeName())
@in_directory
@answers(documents.Trial)
def cut(session: Session, name: str, directory: Path) -> None:
    """Cut NODE off from the other nodes until `heal`: as if the network between them had failed.

    The node is silent for the others, and they for it. It still reaches the metadata, and its clients reach it.
    """
    there = Installation.load(directory)
    if len(there.nodes) == 1:
        raise InvalidArgument(f"the trial in {there.directory} has one node: there is nothing to cut it off from")
    for node in those(there, name, {"running"}, "cut off"):
        node.cut_file.touch()
    say(session, there)


@trial.command("heal")
@one_or_all
@in_directory
@answers(documents.Trial)
def heal(session: Session, name: str | None, directory: Path) -> None:
    """Let a node that was cut off, or all, reach the others again."""
    there = Installation.load(directory)
    for node in those(there, name, {"cut"}, "heal"):
        node.cut_file.unlink()
    say(session, there)


@trial.command("down")
@in_directory
@answers(documents.RemovedTrial)
def down(session: Session, directory: Path) -> None:
    """Stop all daemons cleanly and remove the trial's directory with all its data."""
    from iomesh.cli.trial import daemon

    there = Installation.load(directory)
    with session.output.step(f"stopping {names(there.nodes)}"):
        late = daemon.stop(there.nodes, STOP_SECONDS)
    for node in late:
        session.output.warn(
            f"the daemon {node.name} (process {node.pid}) did not end within {STOP_SECONDS:g} s of SIGTERM and was "
            "killed"
        )
    daemon.kill(late)
    there.remove()
    session.output.answer(
        documents.RemovedTrial(directory=there.directory), f"the trial in {there.directory} was removed"
    )


def complete(directory: Path) -> Installation:
    """Raises NotFound if `trial up` did not come to its end."""
    there = Installation.load(directory)
    if not there.volume:
        raise NotFound(
            f"the trial in {there.directory} was not set up completely: remove it with "
            f"`iomesh trial down{option(there)}`"
        )
    return there


def chosen(there: Installation, name: str | None) -> list[TrialNode]:
    return [there.node(name)] if name else there.nodes


def those(there: Installation, name: str | None, states: set[State], verb: str) -> list[TrialNode]:
    """The chosen nodes that are in one of these states. Raises NotFound if there are none, InUse if all are running."""
    asked = chosen(there, name)
    found = [node for node in asked if node.state in states]
    if not found:
        said = ", ".join(f"{node.name} is {node.state}{f' (process {node.pid})' if node.pid else ''}" for node in asked)
        remedies = f"`iomesh trial status{option(there)}` shows it"
        if any(not node.alive for node in asked):
            remedies += f", `iomesh trial start{option(there)}` starts what is stopped"
        if any(node.state == "paused" for node in asked):
            remedies += f", `iomesh trial resume{option(there)}` continues what is paused"
        message = f"nothing to {verb} in the trial in {there.directory}: {said}; {remedies}"
        raise InUse(message) if all(node.alive for node in asked) else NotFound(message)
    return found


def names(nodes: list[TrialNode]) -> str:
    return ", ".join(node.name for node in nodes)


def document(there: Installation) -> documents.Trial:
    from iomesh.cli.trial.served import volumes_of

    return documents.Trial(
        directory=there.directory,
        nodes=[
            documents.ListedTrialNode(
                name=node.name,
                pid=node.pid,
                state=node.state,
                control=node.control,
                config=str(node.config),
                log=str(node.log),
                devices=[str(path) for path in node.devices],
            )
            for node in there.nodes
        ],
        volumes=volumes_of(there),
        cluster=there.cluster,
    )


def say(session: Session, there: Installation, told: documents.Trial | None = None) -> None:
    """Prints the answer of every command: the current trial."""
    told = told or document(there)
    rows: list[tuple[str, object]] = [("directory", told.directory)]
    rows += [
        (
            f"node {node.name}",
            f"{node.state}, process {node.pid}, control {node.control}" if node.pid else node.state,
        )
        for node in told.nodes
    ]
    rows += [
        (
            f"volume {volume.name}",
            f"{exact_size(volume.size)}, "
            + (f"served by {volume.owner}, {volume.uri or 'not exported'}" if volume.owner else "served by no node"),
        )
        for volume in told.volumes
    ]
    session.output.answer(told, fields(rows))


def option(there: Installation) -> str:
    """The option that makes another command use this trial."""
    return "" if there.path == default_directory().absolute() else f" --dir {shlex.quote(str(there.directory))}"
