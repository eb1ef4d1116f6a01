"""Random concurrent commands of all kinds, checked against a model of the registry (support/commands.py)."""

from __future__ import annotations

import datetime
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from iomesh.node.node import Node
from support.commands import State, draw_commands, explain, give, observe, view
from support.daemon import names_of_records
from support.inside import node_in

ROUNDS = 40
KEPT = [2, 5, 10, 24]  # seeds that have found a fault
OF_THE_DAY = [int(f"{datetime.datetime.now(datetime.UTC):%Y%m%d}{number}") for number in range(3)]


@pytest.mark.parametrize("number", [*KEPT, *OF_THE_DAY])
async def test_there_is_an_order_that_explains_what_commands_at_once_did(room: Path, number: int) -> None:
    draw, numbers, state = random.Random(number), itertools.count(1), State()
    for _ in range(2):
        async with node_in(room) as node:
            assert view(state) == await observe(node), "after a restart it is what it was"
            for round_number in range(ROUNDS // 2):
                state = await one_round(node, draw, numbers, state, f"seed {number}, round {round_number}")
            await stored_is_listed(node, state)
    async with node_in(room) as node:
        assert view(state) == await observe(node), "after a restart it is what it was"
        for volume in node.volumes.list():
            await node.volumes.delete(volume.name, snapshots=True)
        assert await names_of_records(node.metadata) == []
        assert (await node.metadata.list_prefix("names/")).entries == []
        assert sum(device.replicas for device in node.stores.list()) == 0


async def one_round(node: Node, draw: random.Random, numbers: Iterator[int], state: State, where: str) -> State:
    commands = draw_commands(draw, numbers)
    await give(node, commands, draw)
    seen = await observe(node)
    after = explain(state, commands, lambda reached: view(reached) == seen)
    given = "\n  ".join(map(str, sorted(commands, key=lambda command: command.began)))
    assert after is not None, (
        f"{where}: no order of these commands explains their answers and what exists now\n  {given}\n"
        f"before: {view(state)}\nnow: {seen}"
    )
    return after


async def stored_is_listed(node: Node, state: State) -> None:
    stored = await names_of_records(node.metadata)
    assert [name for name in stored if not name.startswith("deleted:")] == [name for name, _ in state.volumes]
    assert len(stored) == len(state.volumes) + len(state.hidden)
