"""`iomesh status`: one verdict on the cluster, and the node that is asked, with its devices and volumes. The exit code
says how all are."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import click
from rich.text import Text

from iomesh.api.model import (
    ClusterStatus,
    Device,
    DeviceState,
    NodeState,
    Status,
    Verdict,
    Volume,
    VolumeState,
)
from iomesh.cli import device, volume
from iomesh.cli.documents import Health, NodeStatus
from iomesh.cli.output import fields, local_time, table
from iomesh.cli.session import Session, asks
from iomesh.errors import Unavailable
from iomesh.sizes import short_size

if TYPE_CHECKING:
    from iomesh.api.client import Client

# The exit code reports the health; an error of the command itself (9: no daemon answers) has a lower code. The worst
# state comes last.
EXIT_CODES: dict[Health, int] = {"ready": 0, "starting": 20, "stopping": 20, "degraded": 21, "failed": 22}
VERDICT_CODES = {Verdict.HEALTHY: 0, Verdict.DEGRADED: 21, Verdict.UNAVAILABLE: 22}
VERDICT_STYLES = {Verdict.HEALTHY: "green", Verdict.DEGRADED: "yellow", Verdict.UNAVAILABLE: "red"}
STYLES: dict[Health, str] = {
    "ready": "green",
    "starting": "yellow",
    "stopping": "yellow",
    "degraded": "yellow",
    "failed": "red",
}


@click.command()
@asks(NodeStatus)
def status(session: Session) -> None:
    """Show whether the cluster is healthy, degraded or unavailable, with the reasons, and the state of the node that is
    asked: the daemon, its devices, its volumes, and warnings.

    The exit code is 0 when all is well, 20 while the daemon or a volume starts or stops, 21 when something is degraded
    (a node is down, a volume has fewer replicas than it should have or cannot be written, a background task is down, a
    device is missing, has failed or holds damaged blocks, space is short), 22 when a volume is not served, and 9 when
    no daemon answers. The highest of 20 to 22 that applies counts.
    """

    async def question(node: "Client") -> tuple[ClusterStatus | None, Status, list[Device], list[Volume]]:
        status = await node.status()
        try:
            owned = [one for one in await node.volumes() if one.state != VolumeState.ELSEWHERE]
            devices = await node.devices()
        except Unavailable:
            if status.state not in (NodeState.STARTING, NodeState.STOPPING):
                raise
            return None, status, [], []  # the node does not know them yet, or no longer
        try:
            return await node.cluster_status(), status, devices, owned
        except Unavailable:
            if status.state not in (NodeState.STARTING, NodeState.STOPPING):
                raise
            return None, status, devices, owned

    cluster, node, devices, volumes = session.ask(question)
    problems = problems_of(node, devices, volumes)
    health = worst(node, problems)
    used = node.capacity_bytes - node.free_bytes
    rows: list[tuple[str, object]] = [
        *cluster_rows(cluster, problems),
        ("node", Text.assemble(node.node, "  ", (health, STYLES[health]))),
        *start_rows(node),
        *[("problem", words) for words in problems],
        (
            "version",
            f"{node.version}, process {node.process_id}, {node.reactors} reactors, since {local_time(node.started_at)}",
        ),
        *([("cluster", node.cluster)] if cluster is None else []),
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
    if cluster is not None and len(cluster.nodes) > 1:
        renderables += [
            "",
            table(
                "NODE",
                "STATE",
                ">DEVICES",
                "CONTROL",
                rows=[(one.name, one.state.value, one.devices, one.control_address or "-") for one in cluster.nodes],
            ),
        ]
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
                ">REACTOR",
                "EXPORT",
                rows=[
                    (
                        one.name,
                        short_size(one.size_bytes),
                        short_size(one.live_bytes),
                        volume.state(one),
                        one.reactor if one.state in (VolumeState.SERVING, VolumeState.READ_ONLY) else "-",
                        ", ".join(uri for export in one.exports for uri in export.uris[:1]),
                    )
                    for one in sorted(volumes, key=lambda one: one.name)
                ],
            ),
        ]
    session.output.answer(
        NodeStatus(
            cluster=cluster, health=health, problems=list(problems), node=node, devices=devices, volumes=volumes
        ),
        *renderables,  # type: ignore[arg-type]
    )
    for warning in node.warnings:
        session.output.warn(warning)
    code = max(EXIT_CODES[health], VERDICT_CODES.get(cluster.verdict, 0) if cluster is not None else 0)
    if code:
        raise click.exceptions.Exit(code)


def cluster_rows(cluster: ClusterStatus | None, problems: Collection[str]) -> list[tuple[str, object]]:
    """The verdict, and its reasons but for the problems of the asked node, which are listed as its own."""
    if cluster is None:
        return []
    style = VERDICT_STYLES.get(cluster.verdict, "")
    told = [reason for reason in cluster.reasons if not any(problem in reason.message for problem in problems)]
    return [
        ("cluster", Text.assemble(cluster.cluster, "  ", (cluster.verdict.value, style))),
        *[("reason", reason.message) for reason in told],
    ]


def start_rows(node: Status) -> list[tuple[str, object]]:
    """The progress of the node's start; empty once it has started."""
    if node.state != NodeState.STARTING:
        return []
    progress = f", {node.progress}" if node.progress else ""
    return [("step", f"{node.step} ({node.steps_done + 1} of {node.steps}){progress}")]


def problems_of(node: Status, devices: list[Device], volumes: list[Volume]) -> dict[str, Health]:
    """The problems in words, each with the health that it implies for the node. Those reported by the node come
    first."""
    found: dict[str, Health] = dict.fromkeys(node.problems, "degraded")
    for one in devices:
        if one.state != DeviceState.ONLINE:
            found[f"device {one.path} is {one.state.value}" + (f": {one.reason}" if one.reason else "")] = "degraded"
        if one.scrub.damaged_blocks:
            found[f"device {one.path} has {one.scrub.damaged_blocks} damaged block(s)"] = "degraded"
    for each in volumes:
        if each.state == VolumeState.FAILED:
            found[f"volume {each.name} has failed: {each.reason}"] = "failed"  # in the node's words
        elif each.state == VolumeState.OPENING and node.state != NodeState.STARTING:
            found[f"volume {each.name} is being opened"] = "starting"
    return found


def worst(node: Status, problems: dict[str, Health]) -> Health:
    own: dict[NodeState, Health] = {
        NodeState.STARTING: "starting",
        NodeState.STOPPING: "stopping",
        NodeState.DEGRADED: "degraded",
    }
    return max([own.get(node.state, "ready"), *problems.values()], key=EXIT_CODES.__getitem__)
