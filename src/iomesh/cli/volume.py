"""`iomesh volume`: volumes of the daemon, from their creation to their end."""

import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.table import Table
from rich.text import Text

from iomesh.api.model import Export, Operation, RestoreVolumeResponse, Volume
from iomesh.cli import documents
from iomesh.cli.output import fields, local_time, table
from iomesh.cli.session import PointInTime, Session, Size, Span, VolumeName, asks
from iomesh.cli.snapshot import Reference, SnapshotName
from iomesh.cli.waiting import carried_out, no_wait, under_way
from iomesh.errors import InvalidArgument
from iomesh.sizes import SizeError, exact_size, parse_size, short_size, short_time
from iomesh.times import RequestedTime, exact_span

if TYPE_CHECKING:
    from iomesh.api.client import Client

AT = "A point in time: how long ago ('2 minutes ago'), or when (2026-11-27T14:05:00Z, 14:05)."

STYLES = {
    "serving": "green",
    "opening": "yellow",
    "failed": "red",
    "deleting": "yellow",
    "read-only": "red",
    "elsewhere": "dim",
}


@click.group()
def volume() -> None:
    """Create, show, grow, export, clone, restore, move and delete volumes."""


@volume.command("create")
@click.argument("name")
@click.argument("size", type=Size())
@click.option(
    "--segment-size",
    type=Size(),
    default=0,
    help="Size of a segment of its log, a power of two.  [default: chosen by the sizes of the devices]",
)
@click.option(
    "--window",
    type=Span(),
    default=0,
    help="Restore window: how far back any point in time can be restored (24h, 90m, 7d).",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 4),
    default=1,
    show_default=True,
    help="How many nodes of the cluster hold its data.",
)
@click.option("--export", "exported", is_flag=True, help="Also export it.")
@asks(Volume)
def create(
    session: Session, name: str, size: int, segment_size: int, window: int, replicas: int, exported: bool
) -> None:
    """Create the volume NAME of SIZE (10Gi, 100G, ...). It is thin: it takes space as it is written.

    A size that is not a whole number of 4096-byte blocks is rounded up to the next MiB. Repeated with the same size and
    options, the command returns the existing volume.
    """
    whole = session.whole_blocks(size)

    async def question(node: "Client") -> Volume:
        made = await node.create_volume(
            name, whole, segment_bytes=segment_size, replicas=replicas, window_seconds=window
        )
        if exported:
            await node.export_volume(name)
            made = await node.volume(name)
        return made

    made = session.ask(question)
    session.output.answer(
        made,
        *(
            [f"volume {made.name}: {exact_size(made.size_bytes)}"]
            + [uri for export in made.exports for uri in export.uris]
        ),
    )
    tell_trouble(session, made)


@volume.command("clone")
@click.argument("source", metavar="VOLUME[@SNAPSHOT]", type=SnapshotName(or_volume=True))
@click.argument("name")
@click.option("--at", type=PointInTime(), metavar="TIME", help=AT)
@click.option("--export", "exported", is_flag=True, help="Also export it.")
@asks(Volume)
def clone(session: Session, source: Reference, name: str, at: RequestedTime | None, exported: bool) -> None:
    """Create the volume NAME as a writable clone of a snapshot, without a copy: it takes space as it is written.

    With --at and without @SNAPSHOT, clone a point in time of the volume's restore window, to look before a restore.
    Parent and clone can be deleted in any order; the snapshot stays while it has clones.
    """
    point = point_in_time(source, at)

    async def question(node: "Client") -> Volume:
        made = await node.clone_volume(*source, name, **point._asdict())
        if exported:
            await node.export_volume(name)
            made = await node.volume(name)
        return made

    made = session.ask(question)
    session.output.answer(
        made,
        *(
            [f"volume {made.name}: a clone of {made.clone_of}"]
            + [uri for export in made.exports for uri in export.uris]
        ),
    )


@volume.command("flatten")
@click.argument("name", metavar="CLONE", type=VolumeName())
@no_wait
@asks(documents.ChangedVolume)
def flatten(session: Session, name: str, no_wait: bool) -> None:
    """Make a clone independent of its parent: what the two share is copied into the clone, while both are in use.

    Flattening continues when this command is interrupted, and after a restart of the node.
    """

    one = session.ask(lambda node: change(session, node, pb().FlattenVolumeRequest(name=name), no_wait=no_wait))
    left = (
        f"{short_size(one.space.inherited_bytes)} of {one.clone_of} still to copy"
        if one.clone_of
        else "independent of its parent"
    )
    session.output.answer(one, f"volume {name}: {left}", *under_way(one.operation, no_wait=no_wait))


@volume.command("list")
@asks(documents.VolumeList)
def list_(session: Session) -> None:
    """List the volumes of the cluster. What a volume uses, and who is connected to it, its owner lists."""
    found = session.ask(lambda node: node.volumes())
    rows = [
        (
            one.name,
            short_size(one.size_bytes),
            short_size(one.live_bytes),
            state(one),
            one.owner,
            replicas(one),
            sum(export.connections for export in one.exports),
            ", ".join(export.uris[0] for export in one.exports if export.uris),
        )
        for one in sorted(found, key=lambda one: one.name)
    ]
    session.output.answer(
        documents.VolumeList(volumes=found),
        table("NAME", ">SIZE", ">USED", "STATE", "OWNER", "REPLICAS", ">CLIENTS", "EXPORT", rows=rows)
        if rows
        else "no volumes",
    )
    for one in found:
        tell_trouble(session, one)


@volume.command("show")
@click.argument("name", type=VolumeName())
@asks(Volume)
def show(session: Session, name: str) -> None:
    """Show all details of one volume."""
    one = session.ask(lambda node: node.volume(name))
    if one.state in ("serving", "read-only"):
        session.output.answer(one, fields(described(one)), "", space_of(one))
    else:
        session.output.answer(one, fields(described(one)))
    tell_trouble(session, one)


@volume.command("grow")
@click.argument("name", type=VolumeName())
@click.argument("size")
@asks(Volume)
def grow(session: Session, name: str, size: str) -> None:
    """Grow the volume NAME to SIZE, or by SIZE when that begins with "+" (+10Gi)."""
    try:
        wanted = parse_size(size.removeprefix("+"))
    except SizeError as error:
        raise InvalidArgument(f"SIZE: {error}") from None

    async def question(node: "Client") -> Volume:
        more = (await node.volume(name)).size_bytes if size.startswith("+") else 0
        return await node.grow_volume(name, session.whole_blocks(more + wanted))

    grown = session.ask(question)
    session.output.answer(grown, f"volume {grown.name}: {exact_size(grown.size_bytes)}")


@volume.command("set")
@click.argument("name", type=VolumeName())
@click.option(
    "--window",
    type=Span(),
    required=True,
    help="Restore window: how far back any point in time can be restored (24h, 7d), or off.",
)
@asks(Volume)
def set_(session: Session, name: str, window: int) -> None:
    """Change the policy of the volume NAME.

    A restore window keeps all that is written within it, which takes space. When a device is full, windows become
    shorter before writes fail.
    """
    changed = session.ask(lambda node: node.set_volume(name, window_seconds=window))
    session.output.answer(changed, f"volume {changed.name}: restore window {restorable(changed)}")


@volume.command("restore")
@click.argument("name", metavar="VOLUME[@SNAPSHOT]", type=SnapshotName(or_volume=True))
@click.option("--at", type=PointInTime(), metavar="TIME", help=AT)
@click.option("--discard", is_flag=True, help="Discard the present content; otherwise it is kept as a snapshot.")
@click.option("--force", is_flag=True, help="Even while clients are connected: closes their connections.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@no_wait
@asks(documents.RestoredVolume)
def restore(
    session: Session,
    name: Reference,
    at: RequestedTime | None,
    discard: bool,
    force: bool,
    yes: bool,
    no_wait: bool,
) -> None:
    """Restore a volume to its snapshot VOLUME@SNAPSHOT in place, without a copy, in seconds whatever its size.

    With --at and without @SNAPSHOT, restore it to a point in time of its restore window; this copies what was written
    between two restore points. The present content is kept as a snapshot whose name is printed: restore that one to
    undo the restore. The volume keeps its size. Stop what uses it first: the command is refused while clients are
    connected, unless forced.
    """
    point = point_in_time(name, at)
    if discard and not yes and not session.output.as_json and sys.stdin.isatty():
        click.confirm(f"discard the current content of volume {name.volume}?", abort=True, err=True)

    async def question(node: "Client") -> Operation:
        from iomesh.api.client import restore_request

        work = restore_request(*name, **point._asdict(), discard=discard, force=force)
        return await carried_out(session.output, node, work, no_wait=no_wait)

    one = session.ask(question)
    done = one.restored or RestoreVolumeResponse()
    kept = f"previous content: {name.volume}@{done.before}" if done.before else "previous content: discarded"
    restored = msgspec.to_builtins(done.at) if done.at else name
    session.output.answer(
        documents.RestoredVolume(
            volume=name.volume, snapshot=name.snapshot, at=done.at, before=done.before, operation=one.id
        ),
        *([f"volume {name.volume}: restored to {restored}", kept] if one.restored else under_way(one.id)),
    )


@volume.command("move")
@click.argument("name", type=VolumeName())
@click.option("--to", "node", default="", metavar="NODE", help="The node.  [default: the first with a replica]")
@click.option("--force", is_flag=True, help="Even while clients are connected: closes their connections.")
@no_wait
@asks(documents.ChangedVolume)
def move(session: Session, name: str, node: str, force: bool, no_wait: bool) -> None:
    """Move the volume NAME from the node that is asked to another one with a replica of it.

    The volume is closed here and opened there, where it is exported as before; no data is copied. If that fails, it is
    opened here again.
    """
    work = pb().MoveVolumeRequest(name=name, node=node, force=force)
    moved = session.ask(lambda client: change(session, client, work, no_wait=no_wait))
    session.output.answer(
        moved, f"volume {moved.name}: owned by node {moved.owner}", *under_way(moved.operation, no_wait=no_wait)
    )


@volume.command("take-over")
@click.argument("name", type=VolumeName())
@click.option("--force", is_flag=True, help="Even though the owner runs: it is turned away, with its clients.")
@no_wait
@asks(documents.ChangedVolume)
def take_over(session: Session, name: str, force: bool, no_wait: bool) -> None:
    """Make the node that is asked the owner of the volume NAME, whose owner is down.

    Nodes do this by themselves for volumes with replicas, unless they cannot reach enough of the others. The former
    owner opens the volume no more when it is back; its devices keep replicas as before.
    """
    work = pb().TakeOverVolumeRequest(name=name, force=force)
    taken = session.ask(lambda client: change(session, client, work, no_wait=no_wait))
    session.output.answer(
        taken,
        f"volume {taken.name}: owned by node {taken.owner}, epoch {taken.epoch}",
        *under_way(taken.operation, no_wait=no_wait),
    )
    tell_trouble(session, taken)


@volume.command("delete")
@click.argument("name", type=VolumeName())
@click.option("--force", is_flag=True, help="Even while clients are connected: closes their connections.")
@click.option(
    "--snapshots", is_flag=True, help="Also delete its snapshots; otherwise a volume that has some is refused."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@no_wait
@asks(documents.DeletedVolume)
def delete(session: Session, name: str, force: bool, snapshots: bool, yes: bool, no_wait: bool) -> None:
    """Delete the volume NAME and all its data, for good."""
    if not yes and not session.output.as_json and sys.stdin.isatty():
        click.confirm(
            f"delete volume {name} and all its data{', snapshots included' if snapshots else ''}?", abort=True, err=True
        )
    work = pb().DeleteVolumeRequest(name=name, force=force, snapshots=snapshots)
    one = session.ask(lambda node: carried_out(session.output, node, work, no_wait=no_wait))
    session.output.answer(
        documents.DeletedVolume(name=name, deleted=not no_wait, operation=one.id),
        *(under_way(one.id) if no_wait else [f"volume {name}: deleted"]),
    )


@volume.command("export")
@click.argument("name", type=VolumeName())
@click.option("--read-only", is_flag=True, help="Refuse writes.")
@asks(documents.ExportedVolume)
def export(session: Session, name: str, read_only: bool) -> None:
    """Export the volume NAME over NBD, now and after every restart, and print its URIs."""
    made: Export = session.ask(lambda node: node.export_volume(name, read_only=read_only))
    session.output.answer(documents.ExportedVolume(name=name, **msgspec.structs.asdict(made)), *made.uris)


@volume.command("unexport")
@click.argument("name", type=VolumeName())
@click.option("--force", is_flag=True, help="Even while clients are connected: closes their connections.")
@asks(documents.UnexportedVolume)
def unexport(session: Session, name: str, force: bool) -> None:
    """End the export of the volume NAME; its data stays."""
    session.ask(lambda node: node.unexport_volume(name, force=force))
    session.output.answer(documents.UnexportedVolume(name=name), f"volume {name}: not exported")


@volume.command("checkpoint")
@click.argument("name", type=VolumeName())
@asks(documents.CheckpointedVolume)
def checkpoint(session: Session, name: str) -> None:
    """Write a checkpoint of the volume NAME now, so that the next recovery is short."""
    session.ask(lambda node: node.checkpoint(name))
    session.output.answer(documents.CheckpointedVolume(name=name), f"volume {name}: checkpoint written")


def pb() -> Any:
    """The messages of the API, which take a while to import."""
    from iomesh.api import iomesh_pb2

    return iomesh_pb2


async def change(session: Session, node: "Client", work: Any, *, no_wait: bool) -> documents.ChangedVolume:
    """The volume as it is then."""
    one = await carried_out(session.output, node, work, no_wait=no_wait)
    volume = await node.volume(one.volume_id or work.name)
    return documents.ChangedVolume(**msgspec.structs.asdict(volume), operation=one.id)


def point_in_time(name: Reference, at: RequestedTime | None) -> RequestedTime:
    """`at`, or an empty one if a snapshot is named. Raises InvalidArgument unless exactly one of them is given."""
    if bool(name.snapshot) == (at is not None):
        volume = name.volume
        raise InvalidArgument(
            f"{name}: write either {volume}@SNAPSHOT, or {volume} and --at TIME, such as --at '2 minutes ago'"
        )
    return at or RequestedTime()


def tell_trouble(session: Session, one: Volume) -> None:
    """Reports why the volume is not served as it should be, and what it lacks."""
    if one.reason:
        session.output.warn(f"volume {one.name} is {one.state.value}: {one.reason}")
    for warning in one.warnings:
        session.output.warn(f"volume {one.name}: {warning}")


def state(one: Volume) -> Text:
    return Text(one.state.value, style=STYLES.get(one.state.value, ""))


def replicas(one: Volume) -> str:
    """How many of the wanted replicas there are."""
    wanted = one.policy.replicas
    return f"{len(one.replica_nodes)} of {wanted}" if one.replica_nodes else str(wanted)


def exported_by(one: Volume) -> str:
    forwards = f"; clients now on {', '.join(one.forwarding_nodes)} as well" if one.forwarding_nodes else ""
    return f"node{'' if len(one.export_nodes) == 1 else 's'} {', '.join(one.export_nodes)}{forwards}"


def rebuilding(one: Volume) -> str:
    known = one.redundancy
    missing = f"{short_size(known.exposed_bytes)} of copies of {known.exposed_segments} segments are missing"
    if known.reason:
        return f"{missing}: {known.reason}"
    if not known.bytes_per_second:
        return missing
    left = short_time(known.eta_seconds * 1e9)
    return f"{missing}, {short_size(known.bytes_per_second)} made in a second, {left} left"


def flattening(one: Volume) -> str:
    done = f"{short_size(one.flattening.done_bytes)} of {short_size(one.flattening.total_bytes)} copied"
    return f"{done}; waits: {one.flattening.reason}" if one.flattening.reason else done


def space_of(one: Volume) -> Table:
    """The volume's space by use."""
    it = one.space
    times = f", {it.amplification:.2f} times what lives" if it.amplification else ""
    rows = [
        ("mapped", it.mapped_bytes, "what the volume holds"),
        ("  exclusive", it.exclusive_bytes, "it alone"),
        ("  shared", it.shared_bytes, "with snapshots of it"),
        ("  inherited", it.inherited_bytes, f"from {one.clone_of}, in the logs of others"),
        ("physical", it.physical_bytes, f"on devices{times}"),
        ("  volume", it.exclusive_bytes + it.shared_bytes, "exclusive and shared"),
        ("  snapshots", it.snapshots_bytes, "what only they hold"),
        ("  pinned", it.pinned_bytes, "what only the restore window holds"),
        ("  map", it.map_bytes, "its nodes, of snapshots too"),
        ("  log", it.log_bytes, "headers and footers"),
        ("  ahead", it.ahead_bytes, "of open segments, not written yet"),
        ("  dead", it.dead_bytes, "comes back when it is cleaned"),
    ]
    shown = [(name, short_size(size), words) for name, size, words in rows if one.clone_of or name != "  inherited"]
    return table("space", ">bytes", "", rows=shown)


def restorable(one: Volume) -> str:
    since = f", reaches back to {local_time(one.window_from)}" if one.window_from else ""
    return f"{exact_span(one.policy.window_seconds)}{since}" if one.policy.window_seconds else "off"


def described(one: Volume) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("name", one.name),
        ("id", one.id),
        ("size", exact_size(one.size_bytes)),
        ("state", state(one)),
        ("replicas", replicas(one) + (f": {', '.join(one.replica_nodes)}" if one.replica_nodes else "")),
        ("owner", f"{one.owner}, epoch {one.epoch}"),
        ("created", local_time(one.created_at)),
        (
            "log",
            f"{one.segments} segments of {exact_size(one.segment_bytes)}; "
            f"{short_size(one.log_bytes_since_checkpoint)} written since the checkpoint",
        ),
        ("snapshots", one.snapshots),
        ("restore window", restorable(one)),
        ("newest record", one.sequence),
        ("reactor", one.reactor),
        ("last recovery", f"{short_time(one.recovery_seconds * 1e9)}, {short_size(one.recovery_bytes)} read"),
    ]
    if one.clone_of:
        rows.insert(4, ("clone of", one.clone_of))
    if one.redundancy.exposed_bytes:
        rows.insert(5, ("rebuild", rebuilding(one)))
    if one.flattening.running:
        rows.insert(4, ("flattening", flattening(one)))
    if one.reason:
        rows.insert(4, ("reason", one.reason))
    if one.export_nodes:
        rows.append(("exported by", exported_by(one)))
    for export in one.exports:
        rows.append((export.protocol, "\n".join(export.uris)))
        rows.append(("", f"{export.connections} clients" + (", read-only" if export.read_only else "")))
    return rows
