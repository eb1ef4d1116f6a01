"""`iomesh operation`: long work of the cluster, under way or ended within a day."""

from typing import TYPE_CHECKING

import click

from iomesh.api.model import Operation
from iomesh.cli import documents
from iomesh.cli.output import fields, local_time, table
from iomesh.cli.session import Session, Span, asks
from iomesh.cli.waiting import checked, waited
from iomesh.sizes import short_size

if TYPE_CHECKING:
    from iomesh.api.client import Client


@click.group()
def operation() -> None:
    """Show long work of the cluster, such as flattening and deletions, and wait for it."""


@operation.command("list")
@asks(documents.OperationList)
def list_(session: Session) -> None:
    """List the operations that are under way, and those that ended within a day, the oldest first."""
    found = session.ask(lambda node: node.operations())
    rows = [
        (each.id, each.kind, each.subject, each.state, progress(each), local_time(each.started_at))
        for each in found
        if each.started_at is not None
    ]
    session.output.answer(
        documents.OperationList(operations=found),
        table("ID", "KIND", "SUBJECT", "STATE", "PROGRESS", "STARTED", rows=rows) if rows else "no operations",
    )


@operation.command("show")
@click.argument("identity", metavar="ID")
@asks(Operation)
def show(session: Session, identity: str) -> None:
    """Show one operation."""
    one = session.ask(lambda node: node.operation(identity))
    session.output.answer(one, fields(described(one)))


@operation.command("wait")
@click.argument("identity", metavar="ID")
@click.option("--timeout", type=Span(), metavar="SPAN", help="Wait no longer (90s, 5m).  [default: without end]")
@asks(Operation)
def wait(session: Session, identity: str, timeout: int | None) -> None:
    """Wait until an operation has ended. If it failed, this command ends as the one that began it would have."""

    async def question(node: "Client") -> Operation:
        return await waited(session.output, node, await node.operation(identity), timeout)

    one = checked(session.ask(question))
    session.output.answer(one, fields(described(one)))


def described(one: Operation) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("id", one.id),
        ("kind", one.kind),
        ("subject", one.subject),
        ("state", one.state),
        ("progress", progress(one)),
        ("waits for", one.waits_for),
        ("followed by", one.node),
        ("started", local_time(one.started_at) if one.started_at else ""),
        ("ended", local_time(one.ended_at) if one.ended_at else ""),
        ("error", one.error.message if one.error else ""),
        ("previous content", one.restored.before if one.restored else ""),
    ]
    return [(name, value) for name, value in rows if value]


def progress(one: Operation) -> str:
    return f"{short_size(one.done_bytes)} of {short_size(one.total_bytes)}" if one.total_bytes else ""
