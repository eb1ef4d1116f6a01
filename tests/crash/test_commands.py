"""SIGKILL between a command and its completion: afterwards each command is applied completely or not at all, and a
retry succeeds.

Rounds of commands (create, grow, delete, export, unexport, checkpoint), up to four at once on different volumes; the
daemon is killed while they run. Answered commands must hold after the restart. An unanswered command is applied or not,
without a state in between: a volume is served with its data at its old or new size, or it is gone together with all of
its segments.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from iomesh.api.client import Client
from iomesh.api.model import Volume, VolumeState
from iomesh.errors import NotFound
from support.amount import Amount
from support.daemon import MIB, Daemon
from support.interrupted import was_answered
from support.nbd import Connection

BLOCK = 4096
NAMES = [f"volume-{number}" for number in range(6)]
SIZES = [16 * MIB * number for number in range(1, 5)]


@dataclass(frozen=True)
class State:
    """A volume's state before or after a command; None: there is no volume."""

    size: int
    exported: bool = False
    marked: int = 0  # bytes up to which the last block of every SIZES[0] was written


@dataclass(frozen=True)
class Command:
    words: str
    volume: str
    before: State | None
    after: State | None
    ask: Callable[[Client], Awaitable[object]]


def choose(draw: random.Random, name: str, before: State | None) -> Command:
    """A random command that changes this volume (or a checkpoint, which does not)."""
    if before is None:
        size = draw.choice(SIZES)
        return Command(f"create {name} {size}", name, None, State(size), lambda node: node.create_volume(name, size))
    possible = [
        Command(f"delete {name}", name, before, None, lambda node: node.delete_volume(name)),
        Command(f"checkpoint {name}", name, before, before, lambda node: node.checkpoint(name)),
    ]
    size = before.size + draw.choice(SIZES)
    grown = replace(before, size=size)
    possible += 2 * [Command(f"grow {name} to {size}", name, before, grown, lambda node: node.grow_volume(name, size))]
    turned = replace(before, exported=not before.exported)
    if before.exported:
        possible.append(Command(f"unexport {name}", name, before, turned, lambda node: node.unexport_volume(name)))
    else:
        possible += 2 * [Command(f"export {name}", name, before, turned, lambda node: node.export_volume(name))]
    return draw.choice(possible)


def mark_of(volume: Volume, end: int) -> bytes:
    return f"{volume.id} {end:020} ".encode().ljust(BLOCK, b".")


@pytest.fixture
async def node(daemon: Daemon) -> Daemon:
    daemon.start()
    return daemon


@pytest.mark.timeout(7200)
async def test_a_command_that_a_kill_cuts_short_is_done_or_not_and_can_be_repeated(
    node: Daemon, draw: random.Random, amount: Amount
) -> None:
    async with node.client() as client:
        (empty,) = await client.devices()
    held: dict[str, State | None] = dict.fromkeys(NAMES)
    took = 0.02  # seconds, of the round before: so that most kills fall in the middle
    cut_short = 0
    for round_number in itertools.count():
        if round_number >= 2 * amount.kills and cut_short > amount.kills / 2:
            break
        assert round_number < 20 * amount.kills, "hardly any kill comes in the middle: this shows nothing"
        commands = [choose(draw, name, held[name]) for name in draw.sample(NAMES, draw.randint(1, 4))]
        if round_number % 4 == 3:
            took = await run_whole(node, commands)
            answered = set(commands)
        else:
            after = draw.uniform(0, 0.7 * took)
            answered = await run_and_kill(node, commands, after)
            cut_short += len(commands) - len(answered)
            node.start()
        async with node.client() as client:
            for command in commands:
                found = await look(client, command.volume, f"`{command.words}`")
                wanted = [command.after] if command in answered else [command.before, command.after]
                assert found in wanted, (
                    f"`{command.words}` was {'' if command in answered else 'not '}answered, and left {found}"
                )
                if found != command.after or draw.random() < 0.5:
                    await repeat(client, command)
                found = await look(client, command.volume, f"`{command.words}` twice")
                assert found == command.after, f"`{command.words}`, asked again, left {found}"
                held[command.volume] = found if found is None else await mark(client, command.volume, found)
            for name in set(NAMES) - {command.volume for command in commands}:
                assert await look(client, name, "commands to others") == held[name], f"nobody touched {name}"
        print(
            f"round {round_number}: {len(answered)} of {len(commands)} answered: "
            f"{', '.join(command.words for command in commands)}"
        )
    async with node.client() as client:
        for name in NAMES:
            if held[name] is not None:
                await client.delete_volume(name)
        (left,) = await client.devices()
    assert (left.replicas, left.free_bytes) == (0, empty.free_bytes), "deleted volumes have left segments behind"


async def run_whole(node: Daemon, commands: list[Command]) -> float:
    began = time.monotonic()
    async with node.client() as client:
        await asyncio.gather(*(command.ask(client) for command in commands))
    return time.monotonic() - began


async def run_and_kill(node: Daemon, commands: list[Command], seconds: float) -> set[Command]:
    """Returns the commands that were answered."""
    answered = set()

    async def ask(client: Client, command: Command) -> None:
        if await was_answered(command.ask(client)):
            answered.add(command)

    async with node.client() as client:
        await client.status()  # connects first, so that the commands arrive at once
        tasks = [asyncio.create_task(ask(client, command)) for command in commands]
        await asyncio.sleep(seconds)
        node.kill()
        await asyncio.gather(*tasks)
    return answered


async def repeat(client: Client, command: Command) -> None:
    try:
        await command.ask(client)
    except NotFound:
        assert command.after is None, f"`{command.words}`: there is nothing to do it to"


async def look(client: Client, name: str, what: str) -> State | None:
    """The volume's state; fails the test if it is inconsistent. A volume without an export is exported meanwhile."""
    try:
        volume = await client.volume(name)
    except NotFound:
        return None
    assert volume.state == VolumeState.SERVING, f"{name} after {what} is {volume.state}: {volume.reason}"
    exported = bool(volume.exports)
    connection = await Connection.connect((await client.export_volume(name)).uris[0])
    assert connection.size == volume.size_bytes, f"{name} after {what}: its export and its record disagree on its size"
    marked = 0
    for end in range(SIZES[0], volume.size_bytes + 1, SIZES[0]):
        data = await connection.read(end - BLOCK, BLOCK)
        if data != bytes(BLOCK):
            assert data == mark_of(volume, end), f"{name} after {what}: the block before {end} holds {data[:80]!r}"
            assert marked == end - SIZES[0], f"{name} after {what}: the block before {end - SIZES[0]} is lost"
            marked = end
    await connection.close()
    if not exported:
        await client.unexport_volume(name, force=True)  # the daemon may notice the end of our connection later
    return State(volume.size_bytes, exported, marked)


async def mark(client: Client, name: str, state: State) -> State:
    """Writes into the new part of the volume."""
    if state.marked == state.size:
        return state
    volume = await client.volume(name)
    connection = await Connection.connect((await client.export_volume(name)).uris[0])
    for end in range(state.marked + SIZES[0], state.size + 1, SIZES[0]):
        await connection.write(end - BLOCK, mark_of(volume, end))
    await connection.flush()
    await connection.close()
    if not state.exported:
        await client.unexport_volume(name, force=True)
    return replace(state, marked=state.size)
