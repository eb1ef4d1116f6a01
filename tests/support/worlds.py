"""Simulated worlds with one device, created and driven from Python."""

import math

from iomesh.engine.simulation.world import World
from iomesh.engine.views.world import Ask, WorldView

BLOCK = 4096
SECTOR = 512
MEBIBYTE = 1 << 20
SECOND = 1_000_000_000


def filled(byte: int, blocks: int = 1) -> bytes:
    return bytes([byte]) * (blocks * BLOCK)


def made(
    seed: int = 1, *, volatile_cache: bool = True, size: int = 64 * MEBIBYTE, **options: int
) -> tuple[World, WorldView, int]:
    world = World(seed)
    device = world.make_device(size, volatile_cache=volatile_cache, **options)
    view = WorldView(world)
    assert view.add_device(device) == device
    return world, view, device


def finished(view: WorldView, *asks: Ask) -> list[int]:
    view.settle()
    return [ask.result for ask in asks]


def torn(contents: bytes) -> list[int]:
    """The fill byte of each sector; fails if a sector is mixed."""
    sectors = [contents[at : at + SECTOR] for at in range(0, len(contents), SECTOR)]
    for sector in sectors:
        assert len(set(sector)) == 1, "a sector is written whole or not at all"
    return [sector[0] for sector in sectors]


def about(count: int, expected: float) -> bool:
    """Within five standard deviations of a binomial draw: a failing seed is no accident."""
    return abs(count - expected) < 5 * math.sqrt(expected) + 1
