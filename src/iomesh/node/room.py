"""Whether there is space for a snapshot: no snapshot is created of a volume whose writes wait for space or are refused.

A snapshot pins space that has to be freed, and is written into the reserve that the store keeps for freeing space:
after a few of them, no more space could be freed. If space is being freed, the call waits as writes do, without holding
a volume's `changing`: a window may have to become shorter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from iomesh.engine import engine as compiled
from iomesh.errors import NoSpace
from iomesh.node.engine import NodeEngine
from iomesh.node.volume import NodeVolume

SPACE_WAIT_SECONDS = 5.0
RETRY_SECONDS = 0.05

AnswerT = TypeVar("AnswerT")


class SpaceIsComing(NoSpace):
    """The refused call is worth repeating."""


async def retry_for_space(attempt: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
    """Repeats `attempt`, which must have had no effect when it raises SpaceIsComing."""
    until = time.monotonic() + SPACE_WAIT_SECONDS
    while True:
        try:
            return await attempt()
        except SpaceIsComing as refused:
            if time.monotonic() >= until:
                raise NoSpace(refused.message) from None
        await asyncio.sleep(RETRY_SECONDS)


@contextmanager
def refuse_without_space(engine: NodeEngine, volumes: Sequence[NodeVolume], remedy: str = "") -> Iterator[None]:
    """Adds a remedy to the error when the engine refuses a snapshot of these for lack of space. remedy: one to use
    instead."""
    try:
        yield
    except NoSpace:
        states = {volume.record.name: engine.volume_state(volume.record.id) for volume in volumes}
        for name, state in states.items():
            if state["snapshots"] >= compiled.SNAPSHOTS_MAX:
                most = f"{compiled.SNAPSHOTS_MAX} snapshots, including the restore points of its window"
                raise NoSpace(f"volume {name} has {most}: delete some, or shorten the window") from None
        short = [name for name, state in states.items() if state["no_space"]]
        if all(states[name]["space_is_coming"] for name in short):  # or was freed since the refusal
            raise SpaceIsComing(refusal(short or list(states), remedy)) from None
        raise NoSpace(refusal(short, remedy)) from None


def refusal(volumes: Sequence[str], remedy: str) -> str:
    named = f"volume {volumes[0]} has" if len(volumes) == 1 else f"volumes {', '.join(volumes)} have"
    return (
        f"{named} no space left on the node's devices, and a snapshot would pin space that cleaning must free: "
        f"{remedy}delete snapshots, shorten the restore window, trim or delete something, or add a device"
    )
