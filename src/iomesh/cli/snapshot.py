"""`iomesh snapshot`: volumes as of one point in time. A snapshot is named VOLUME@SNAPSHOT, which is also the name of
its export."""

from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec
from click.shell_completion import CompletionItem

from iomesh.api.model import ChangedRange, Snapshot
from iomesh.cli import documents
from iomesh.cli.output import fields, local_time, table
from iomesh.cli.session import Session, VolumeName, asks, names
from iomesh.cli.waiting import carried_out, no_wait, under_way
from iomesh.errors import InvalidArgument
from iomesh.sizes import exact_size, short_size

if TYPE_CHECKING:
    from iomesh.api.client import Client


class Reference(NamedTuple):
    volume: str
    snapshot: str

    def __str__(self) -> str:
        return f"{self.volume}@{self.snapshot}" if self.snapshot else self.volume


class SnapshotName(click.ParamType[Reference]):
    """VOLUME@SNAPSHOT, completed from the daemon. or_volume: also VOLUME, where another option gives the point in
    time."""

    name = "volume@snapshot"

    def __init__(self, *, or_volume: bool = False) -> None:
        self.or_volume = or_volume

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Reference:
        if isinstance(value, Reference):
            return value
        volume, at, name = str(value).partition("@")
        if not volume or (not name and (at or not self.or_volume)):
            raise InvalidArgument(f"{value!r} does not name a snapshot: write VOLUME@SNAPSHOT, such as db@monday")
        return Reference(volume, name)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        async def question(node: "Client") -> list[Reference]:
            return [Reference(one.volume, one.name) for one in await node.snapshots()]

        volumes = VolumeName().shell_complete(ctx, param, incomplete) if self.or_volume else []
        return volumes + [CompletionItem(str(one)) for one in names(ctx, question) if str(one).startswith(incomplete)]


class NewSnapshotName(SnapshotName):
    """VOLUME@SNAPSHOT of a snapshot to be created: the volume is completed."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if "@" in incomplete:
            return []
        return [CompletionItem(f"{one.value}@") for one in VolumeName().shell_complete(ctx, param, incomplete)]


@click.group()
def snapshot() -> None:
    """Create, show, export and delete snapshots."""


@snapshot.command("create")
@click.argument("wanted", type=NewSnapshotName(), nargs=-1, required=True, metavar="VOLUME@SNAPSHOT...")
@asks(documents.SnapshotList)
def create(session: Session, wanted: tuple[Reference, ...]) -> None:
    """Create the snapshot SNAPSHOT of VOLUME as it is now, without a copy: it takes space only as the volume changes.

    Several snapshots in one command have one name and are of one instant (db@before wal@before): if a write is in one
    of them, every write to the other volumes that was acknowledged before it is in theirs. Repeated, the command
    returns the existing snapshots.
    """
    different = sorted({one.snapshot for one in wanted})
    if len(different) > 1:
        raise InvalidArgument(
            f"snapshots of one instant have one name, not {' and '.join(different)}: use one command for each name"
        )
    made = session.ask(lambda node: node.create_snapshots([one.volume for one in wanted], different[0]))
    lines = [
        f"snapshot {one.volume}@{one.name}: {exact_size(one.size_bytes)}, {local_time(one.created_at)}" for one in made
    ]
    session.output.answer(documents.SnapshotList(snapshots=made), *lines)


@snapshot.command("list")
@click.argument("volume", type=VolumeName(), required=False, default="")
@click.option("--all", "hidden", is_flag=True, help="Include deleted snapshots that a clone or the volume still needs.")
@asks(documents.SnapshotList)
def list_(session: Session, volume: str, hidden: bool) -> None:
    """List the snapshots of VOLUME, or of every volume, the oldest first."""
    found = session.ask(lambda node: node.snapshots(volume, hidden=hidden))
    rows = [
        (
            f"{one.volume}@{one.name}" + (" (deleted)" if one.hidden or one.deleting else ""),
            local_time(one.created_at),
            short_size(one.size_bytes),
            short_size(one.mapped_bytes),
            short_size(one.new_bytes),
            ", ".join(export.uris[0] for export in one.exports if export.uris),
        )
        for one in found
    ]
    session.output.answer(
        documents.SnapshotList(snapshots=found),
        table("SNAPSHOT", "CREATED", ">SIZE", ">MAPPED", ">NEW", "EXPORT", rows=rows) if rows else "no snapshots",
    )


@snapshot.command("show")
@click.argument("name", type=SnapshotName())
@asks(Snapshot)
def show(session: Session, name: Reference) -> None:
    """Show all details of one snapshot."""
    one = session.ask(lambda node: node.snapshot(*name))
    session.output.answer(one, fields(described(one)))


@snapshot.command("delete")
@click.argument("name", type=SnapshotName())
@click.option("--force", is_flag=True, help="Even while clients are connected to its export: closes their connections.")
@no_wait
@asks(documents.DeletedSnapshot)
def delete(session: Session, name: Reference, force: bool, no_wait: bool) -> None:
    """Delete a snapshot.

    The space that only this snapshot held is freed within seconds. A snapshot that is still needed, by a clone for
    example, is hidden until it is not.
    """
    from iomesh.api.iomesh_pb2 import DeleteSnapshotRequest

    work = DeleteSnapshotRequest(volume=name.volume, snapshot=name.snapshot, force=force)
    one = session.ask(lambda node: carried_out(session.output, node, work, no_wait=no_wait))
    hidden = one.deleted is not None and one.deleted.hidden
    words = "deleted; it stays hidden while it is still needed" if hidden else "deleted"
    session.output.answer(
        documents.DeletedSnapshot(
            volume=name.volume, name=name.snapshot, deleted=not no_wait, hidden=hidden, operation=one.id
        ),
        *(under_way(one.id) if no_wait else [f"snapshot {name}: {words}"]),
    )


@snapshot.command("export")
@click.argument("name", type=SnapshotName())
@asks(documents.ExportedSnapshot)
def export(session: Session, name: Reference) -> None:
    """Export a snapshot over NBD, read-only, now and after every restart, and print its URIs."""
    export = session.ask(lambda node: node.export_snapshot(*name))
    session.output.answer(
        documents.ExportedSnapshot(volume=name.volume, name=name.snapshot, **msgspec.structs.asdict(export)),
        *export.uris,
    )


@snapshot.command("unexport")
@click.argument("name", type=SnapshotName())
@click.option("--force", is_flag=True, help="Even while clients are connected: closes their connections.")
@asks(documents.UnexportedSnapshot)
def unexport(session: Session, name: Reference, force: bool) -> None:
    """End the export of a snapshot."""
    session.ask(lambda node: node.unexport_snapshot(*name, force=force))
    session.output.answer(
        documents.UnexportedSnapshot(volume=name.volume, name=name.snapshot), f"snapshot {name}: not exported"
    )


@snapshot.command("diff")
@click.argument("older", type=SnapshotName(), metavar="VOLUME@A")
@click.argument("newer", type=SnapshotName(), required=False, metavar="[VOLUME@B]")
@asks(documents.ChangedRanges)
def diff(session: Session, older: Reference, newer: Reference | None) -> None:
    """List the ranges that were written or trimmed between two snapshots, or from a snapshot until now.

    Only the parts of the maps that differ are read. "Until now" includes every write acknowledged before, and possibly
    some of those in progress.
    """
    if newer is not None and newer.volume != older.volume:
        raise InvalidArgument(f"{older} and {newer} belong to different volumes: name two snapshots of one volume")
    found = session.ask(lambda node: all_changes(node, older, newer.snapshot if newer else ""))
    rows = [(one.offset, one.length, "zero" if one.zero else "data") for one in found]
    session.output.answer(
        documents.ChangedRanges(
            volume=older.volume, of=older.snapshot, to=newer.snapshot if newer else "", ranges=found
        ),
        table(">OFFSET", ">LENGTH", "NOW", rows=rows) if rows else "nothing differs",
    )


async def all_changes(node: "Client", older: Reference, newer: str) -> list[ChangedRange]:
    """The changes from all parts of the answer; ranges that meet at the border of two parts are merged."""
    found: list[ChangedRange] = []
    offset = 0
    while True:
        piece = await node.diff_snapshots(older.volume, older.snapshot, newer, offset=offset)
        for one in piece.ranges:
            last = found[-1] if found else None
            if last is not None and last.offset + last.length == one.offset and last.zero == one.zero:
                found[-1] = msgspec.structs.replace(last, length=last.length + one.length)
            else:
                found.append(one)
        offset = piece.next
        if not offset:
            return found


def described(one: Snapshot) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("name", f"{one.volume}@{one.name}"),
        ("id", one.id),
        ("created", local_time(one.created_at)),
        ("size", exact_size(one.size_bytes)),
        (
            "mapped",
            f"{short_size(one.mapped_bytes)}, of which {short_size(one.new_bytes)} are new since the snapshot before",
        ),
        ("last record", one.sequence),
        ("parent", one.parent or "-"),
        ("clones", one.clones),
    ]
    for export in one.exports:
        rows.append((export.protocol, "\n".join(export.uris)))
        rows.append(("", f"{export.connections} clients, read-only"))
    return rows
