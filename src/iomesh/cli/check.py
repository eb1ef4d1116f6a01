"""`iomesh check node`: whether this machine has what iomesh needs, before it is started."""

import asyncio
from pathlib import Path

import click
from rich.text import Text

from iomesh.cli.output import table
from iomesh.cli.session import Session, Size, answers
from iomesh.errors import InvalidArgument
from iomesh.preflight.findings import NodeCheck, State
from iomesh.sizes import short_size

STYLES = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "red", State.SKIPPED: "dim"}


@click.group()
def check() -> None:
    """Check whether this machine has what iomesh needs."""


@check.command("node")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The daemon's TOML file.  [default: /etc/iomesh/node.toml, if there]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any key of the daemon's configuration.",
)
@click.option("--driver/--no-driver", default=True, help="Also what the CSI driver needs.  [default: --driver]")
@click.option(
    "--smallest-disk",
    type=Size(),
    default="10Gi",
    show_default=True,
    help="Smaller disks are not discovered in Kubernetes.",
)
@answers(NodeCheck)
def node(session: Session, config: Path | None, settings: tuple[str, ...], driver: bool, smallest_disk: int) -> None:
    """Check kernel, limits, clock, ports, devices and programs as the daemon and the CSI driver need them; nothing is
    changed. While a daemon runs here, what it has is not checked.

    The exit code is 1 if a check has failed, and 0 if there are only warnings.
    """
    from iomesh.preflight.node import check_node

    given = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InvalidArgument(f"--set: {setting!r} is not KEY=VALUE, such as engine.reactors=2")
        given[key.strip()] = value
    found = asyncio.run(check_node(config, given, driver=driver, least_disk_bytes=smallest_disk))
    renderables = [
        table(
            "CHECK",
            "STATE",
            "",
            rows=[(each.name, Text(each.state, STYLES[each.state]), each.message) for each in found.checks],
        )
    ]
    if found.disks:
        rows = [(disk.path, short_size(disk.size_bytes), disk.reason or "it could be used") for disk in found.disks]
        renderables += ["", table("DISK", ">SIZE", "", rows=rows)]  # type: ignore[list-item]
    session.output.answer(found, *renderables)
    if not found.ready:
        raise click.exceptions.Exit(1)
