"""`iomesh device`: devices at rest (format, show PATH) and devices of the daemon."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from iomesh.api.model import Device, Scrub
from iomesh.cli import documents
from iomesh.cli.files import Allocation, make_device_file
from iomesh.cli.output import fields, local_time, table
from iomesh.cli.session import DeviceName, Session, Size, answers, asks
from iomesh.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable
from iomesh.sizes import exact_size, short_size

COLUMNS = ("DEVICE", "TIER", "LABEL", ">SIZE", ">FREE", ">SEGMENTS", "STATE")
STYLES = {"online": "green", "missing": "yellow", "failed": "red"}
TIERS = ("nvme", "ssd", "hdd")


class Cluster(click.ParamType[uuid.UUID]):
    """The UUID of a cluster, or "new"."""

    name = "uuid|new"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> uuid.UUID:
        if isinstance(value, uuid.UUID):
            return value
        if value == "new":
            return uuid.uuid4()
        try:
            return uuid.UUID(value)
        except ValueError:
            raise InvalidArgument(
                f"--cluster: {value!r} is not a UUID: give the one that `iomesh status` shows, or `new` for a "
                "cluster's first device"
            ) from None


@click.group()
def device() -> None:
    """Format devices; attach, detach and show those of a node."""


@device.command("format")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--cluster",
    type=Cluster(),
    help="UUID of the cluster, or `new` for the first device of a cluster. Optional for a copy.",
)
@click.option("--tier", type=click.Choice(TIERS), help="Storage tier.  [default: detected]")
@click.option("--label", default="", help="Human-readable name, at most 63 bytes.")
@click.option("--size", type=Size(), help="Create PATH as a file of this size first.")
@click.option("--preallocate", is_flag=True, help="With --size: reserve the file's space.")
@click.option("--prewrite", is_flag=True, help="With --size: write the file from end to end.")
@click.option("--force", is_flag=True, help="Even if the device holds data, which is lost.")
@click.option(
    "--new-identity",
    is_flag=True,
    help="PATH is a copy of another iomesh device: make it an empty device of the same cluster with its own identity. "
    "The data on PATH is lost; the other device is not changed.",
)
@answers(Device)
def format_(
    session: Session,
    path: Path,
    cluster: uuid.UUID | None,
    tier: str | None,
    label: str,
    size: int | None,
    preallocate: bool,
    prewrite: bool,
    force: bool,
    new_identity: bool,
) -> None:
    """Write an empty store onto PATH, a block device or a file. No daemon is needed, and none may have it open."""
    if cluster is None and not new_identity:
        raise InvalidArgument(
            "--cluster is missing: give the UUID that `iomesh status` shows, or `new` for a cluster's first device"
        )
    if new_identity and (force or size is not None):
        raise InvalidArgument(
            "--new-identity is for a device that is a copy of another one: leave out --force and --size"
        )
    made = size is not None
    if size is None and (preallocate or prewrite):
        raise InvalidArgument("--preallocate and --prewrite are for a new file: give its --size too")
    if size is not None:
        size = session.whole_blocks(size)
        make(
            session,
            path,
            size,
            Allocation.PREWRITTEN if prewrite else Allocation.PREALLOCATED if preallocate else Allocation.SPARSE,
        )
    from iomesh.node.offline import format_device

    try:
        with session.output.step(f"formatting {path}"):
            formatted = asyncio.run(
                format_device(
                    str(path), cluster=cluster, tier=tier, label=label, force=force, new_identity=new_identity
                )
            )
    except BaseException:
        if made:
            path.unlink(missing_ok=True)
        raise
    session.output.answer(formatted, fields(at_rest(formatted)))


def make(session: Session, path: Path, size: int, allocation: Allocation) -> None:
    if path.exists():
        raise AlreadyExists(f"{path} exists already: leave out --size to format it, or choose another path")
    if not path.parent.is_dir():
        raise NotFound(f"{path.parent} is not a directory: create it first")
    with session.output.bytes_progress() as progress:
        task = progress.add_task(f"writing {path.name}", total=size, visible=allocation is Allocation.PREWRITTEN)
        make_device_file(path, size, allocation, lambda done: progress.update(task, completed=done))


of_node = click.option("--node", default="", metavar="NODE", help="Another node of the cluster than the one asked.")


@device.command("list")
@of_node
@asks(documents.Devices)
def list_(session: Session, node: str) -> None:
    """List the devices of the node."""
    found = session.ask(lambda client: client.devices(node))
    session.output.answer(
        documents.Devices(devices=found), table(*COLUMNS, rows=[row(one) for one in found]) if found else "no devices"
    )


@device.command("show")
@click.argument("device", type=DeviceName())
@of_node
@asks(Device)
def show(session: Session, device: str, node: str) -> None:
    """Show one device: of the node by its path, label or UUID, or one at rest by its path."""
    from iomesh.node.offline import inspect_device

    try:
        found = session.ask(lambda client: client.device(device, node))
    except (Unavailable, NotFound):
        if node or not Path(device).exists():
            raise
        found = inspect_device(device)
        session.output.answer(found, fields(at_rest(found)))
        session.output.note(f"{device} is not attached to the node; this is what its superblock says")
    else:
        session.output.answer(found, fields(described(found)))


@device.command("add")
@click.argument("path", type=click.Path(path_type=Path))
@of_node
@asks(Device)
def add(session: Session, path: Path, node: str) -> None:
    """Attach a formatted device to the node, now and after every restart."""
    added = session.ask(lambda client: client.add_device(str(path.absolute()), node))
    session.output.answer(added, fields(described(added)))


@device.command("remove")
@click.argument("device", type=DeviceName())
@of_node
@asks(documents.RemovedDevice)
def remove(session: Session, device: str, node: str) -> None:
    """Detach a device that holds no segments from the node."""
    session.ask(lambda client: client.remove_device(device, node))
    session.output.answer(documents.RemovedDevice(device=device), f"device {device}: removed")


def row(one: Device) -> tuple[object, ...]:
    return (
        one.path,
        one.tier,
        one.label or "-",
        short_size(one.size_bytes),
        short_size(one.free_bytes),
        one.replicas,
        state(one),
    )


def state(one: Device) -> Text:
    return Text(one.state.value + (f": {one.reason}" if one.reason else ""), style=STYLES.get(one.state.value, ""))


def at_rest(one: Device) -> list[tuple[str, object]]:
    """The fields of a superblock."""
    return [
        ("path", one.path),
        ("id", one.id),
        ("cluster", one.cluster),
        ("number", one.number or "-"),
        ("label", one.label or "-"),
        ("tier", one.tier),
        ("size", exact_size(one.size_bytes)),
        ("formatted", local_time(one.created_at)),
    ]


def described(one: Device) -> list[tuple[str, object]]:
    """The fields that the daemon reports for an open device."""
    return [
        *at_rest(one),
        ("free", f"{short_size(one.free_bytes)}, {short_size(one.reserve_bytes)} of it in reserve"),
        ("segments", one.replicas),
        ("volatile cache", "yes" if one.volatile_cache else "no"),
        ("scrub", scrubbed(one.scrub)),
        ("state", state(one)),
    ]


def scrubbed(scrub: Scrub) -> str:
    words = []
    if scrub.running and scrub.pass_bytes:
        words.append(f"{scrub.done_bytes / scrub.pass_bytes:.0%} of {short_size(scrub.pass_bytes)}")
    words.append(
        f"last pass ended {local_time(scrub.ended_at)}"
        if scrub.ended_at
        else "no pass has ended since the daemon was started"
    )
    plural = "s" if scrub.damaged_blocks > 1 else ""
    words.append(f"{scrub.damaged_blocks} damaged block{plural}" if scrub.damaged_blocks else "no damage is known")
    return ", ".join(words)
