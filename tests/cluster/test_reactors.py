"""Volumes on the reactors of a node: where they are opened, and where that is shown."""

from __future__ import annotations

import subprocess

import pytest

from support.daemon import MIB, Daemon
from support.trial import iomesh_command


@pytest.mark.parametrize("reactors", [2])
async def test_volumes_are_spread_over_the_reactors_and_each_says_where_it_is(node: Daemon) -> None:
    names = ["one", "two", "three"]
    async with node.client() as client:
        for name in names:
            await client.create_volume(name, 64 * MIB)
        places = {name: (await client.volume(name)).reactor for name in names}
        assert sorted(places.values()) == [0, 0, 1]
        await client.create_snapshots(["two"], "monday")
        await client.clone_volume("two", "monday", "copy")
        places["copy"] = (await client.volume("copy")).reactor
        assert places["copy"] == places["two"], "a clone reads its parent's log"
        volumes = {one.reactor: one.counters["volumes"] for one in (await client.counters()).reactors}
    held = {reactor: list(places.values()).count(reactor) for reactor in (0, 1)}
    assert volumes == held
    page = (await node.page("/metrics")).splitlines()
    for reactor, count in held.items():
        assert f'iomesh_reactor_volumes{{reactor="{reactor}"}} {count}.0' in page
        assert any(line.startswith(f'iomesh_reactor_load{{reactor="{reactor}"}}') for line in page)
    for name, reactor in places.items():
        assert f'iomesh_volume_reactor{{volume="{name}"}} {reactor}.0' in page
        assert f"reactor         {reactor}" in iomesh(node, "volume", "show", name)
    for line in iomesh(node, "status").splitlines():
        if line.split()[:1] and line.split()[0] in places:
            assert line.split("serving")[1].split()[0] == str(places[line.split()[0]])
    assert "2 reactors" in iomesh(node, "status")
    assert "VOLUMES" in iomesh(node, "top", "--once")


async def test_after_a_restart_the_volumes_are_spread_again(daemon: Daemon) -> None:
    daemon.settings["engine.reactors"] = 2
    daemon.start()
    async with daemon.client() as client:
        for number in range(4):
            await client.create_volume(f"volume-{number}", 64 * MIB)
    daemon.kill()
    daemon.start()
    async with daemon.client() as client:
        assert sorted(volume.reactor for volume in await client.volumes()) == [0, 0, 1, 1]


def iomesh(node: Daemon, *words: str) -> str:
    done = subprocess.run(
        [iomesh_command(), *words, "--address", node.control], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
