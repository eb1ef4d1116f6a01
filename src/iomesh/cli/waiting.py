"""How a command waits for an operation: with a bar, and never longer than its user likes."""

import asyncio
import uuid
from typing import TYPE_CHECKING

import click
from google.protobuf.message import Message

from iomesh.api.model import Operation, OperationState
from iomesh.cli.output import Output
from iomesh.errors import from_wire

if TYPE_CHECKING:
    from iomesh.api.client import Client

POLL_SECONDS = 0.3  # between two looks at the progress

no_wait = click.option("--no-wait", is_flag=True, help="Do not wait until it is done: `iomesh operation wait` does.")


async def carried_out(output: Output, node: "Client", work: Message, *, no_wait: bool) -> Operation:
    """work: as for Client.start_operation. Raises the error of an operation that fails."""
    begun = await node.start_operation(work, str(uuid.uuid4()))
    return begun if no_wait else checked(await waited(output, node, begun))


async def waited(output: Output, node: "Client", one: Operation, timeout_seconds: float | None = None) -> Operation:
    """The operation when it has ended, or when the timeout is over."""
    loop, said = asyncio.get_running_loop(), ""
    end = None if timeout_seconds is None else loop.time() + timeout_seconds
    try:
        with output.bytes_progress() as progress:
            bar = progress.add_task(f"{one.kind} {one.subject}", total=None)
            while True:
                left = POLL_SECONDS if end is None else min(POLL_SECONDS, max(0.0, end - loop.time()))
                one = await node.wait_operation(one.id, left)
                if one.state is not OperationState.RUNNING or (end is not None and loop.time() >= end):
                    return one
                progress.update(bar, completed=one.done_bytes, total=one.total_bytes or None)
                if one.waits_for not in ("", said):
                    said = one.waits_for
                    output.warn(f"{one.kind} {one.subject}: {said}")
    except (asyncio.CancelledError, KeyboardInterrupt):
        output.note(f"it goes on: `iomesh operation wait {one.id}` waits for it")
        raise


def checked(one: Operation) -> Operation:
    """Raises its error."""
    if one.error is not None:
        raise from_wire(one.error.kind, "", one.error.message)
    return one


def under_way(operation: str, *, no_wait: bool = True) -> list[str]:
    return [f"it goes on: `iomesh operation wait {operation}`"] if no_wait else []
