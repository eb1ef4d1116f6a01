"""`iomesh status`: the node, its devices and volumes on one page."""

from typing import TYPE_CHECKING

import click
from rich.text import Text

from iomesh.api.model import NodeState
from iomesh.cli import device, volume
from iomesh.cli.output import fields, moment, table
from iomesh.cli.session import Session, asks
from iomesh.errors import Unavailable
from iomesh.sizes import short_size

if TYPE_CHECKING:
    from iomesh.api.client import Client
    from iomesh.api.model import Device, Status, Volume

COLORS = {NodeState.READY: "green", NodeState.DEGRADED: "red"}


@click.command()
@asks
def status(session: Session) -> None:
    """Show how the node is: the daemon, its devices, its volumes, and what it goes on without."""

    async def question(node: "Client") -> "tuple[Status, list[Device], list[Volume]]":
        status = await node.status()
        try:
            return status, await node.devices(), await node.volumes()
        except Unavailable:
            if status.state not in (NodeState.STARTING, NodeState.STOPPING):
                raise
            return status, [], []  # it does not know them yet, or any more

    node, devices, volumes = session.ask(question)
    used = node.capacity_bytes - node.free_bytes
    rows: list[tuple[str, object]] = [
        ("node", Text.assemble(node.node, "  ", (node.state.value, COLORS.get(node.state, "yellow")))),
        *start_rows(node),
        *[("problem", problem) for problem in node.problems],
        ("version", f"{node.version}, process {node.process_id}, {node.reactors} reactors, since {moment(node.started_ns)}"),
        ("cluster", node.cluster),
        (
            "capacity",
            f"{short_size(node.capacity_bytes)}, {short_size(used)} used ({used / node.capacity_bytes:.0%})"
            if node.capacity_bytes
            else "none: no device",
        ),
        ("control", node.control_address),
        ("nbd", ", ".join(node.nbd_addresses) or "off"),
        ("metrics", node.metrics_address or "off"),
    ]
    renderables: list[object] = [fields(rows)]
    if devices:
        renderables += ["", table(*device.COLUMNS, rows=[device.row(one) for one in devices])]
    if volumes:
        renderables += [
            "",
            table(
                "VOLUME",
                ">SIZE",
                ">USED",
                "STATE",
                "EXPORT",
                rows=[
                    (
                        one.name,
                        short_size(one.size_bytes),
                        short_size(one.live_bytes),
                        volume.state(one),
                        ", ".join(uri for door in one.exports for uri in door.uris[:1]),
                    )
                    for one in sorted(volumes, key=lambda one: one.name)
                ],
            ),
        ]
    session.output.answer({"node": node, "devices": devices, "volumes": volumes}, *renderables)  # type: ignore[arg-type]
    for warning in node.warnings:
        session.output.warn(warning)


def start_rows(node: "Status") -> list[tuple[str, object]]:
    """How far the start of the node is; empty once it has started."""
    if node.state != NodeState.STARTING:
        return []
    progress = f", {node.progress}" if node.progress else ""
    return [("step", f"{node.step} ({node.steps_done + 1} of {node.steps}){progress}")]
