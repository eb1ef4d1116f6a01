"""One device under two names, or a device beside its copy, is refused with both names, before anything is written to
either.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from iomesh.errors import AlreadyExists, InUse
from iomesh.node.offline import format_device, inspect_device
from support.daemon import Daemon
from support.names import bind_mount, device_mapper, device_node, loop_device, overlay
from support.trial import iomesh_command

MIB = 1 << 20
Alias = Callable[[Daemon, str], AbstractContextManager[str]]


def _link(daemon: Daemon, path: str, make: Callable[[Path], None]) -> AbstractContextManager[str]:
    other = daemon.directory / "other-name"
    make(other)
    return nullcontext(str(other))


ALIASES: dict[str, Alias] = {
    "its loop device": lambda daemon, path: loop_device(path),
    "a symbolic link": lambda daemon, path: _link(daemon, path, lambda other: other.symlink_to(path)),
    "a hard link": lambda daemon, path: _link(daemon, path, lambda other: other.hardlink_to(path)),
    "a bind mount": lambda daemon, path: bind_mount(path, daemon.directory / "bound"),
    "an overlay": lambda daemon, path: overlay(path),
}


@pytest.fixture(params=ALIASES)
def alias(request: pytest.FixtureRequest) -> Alias:
    return ALIASES[request.param]


def second_daemon(daemon: Daemon, *devices: str) -> Daemon:
    """A daemon of the same cluster, with its own name, state and sockets."""
    second = copy.copy(daemon)
    second.process, second.name, second.devices = None, "node-b", list(devices)
    second.settings = {"state_dir": f"{daemon.directory}/second", "run_dir": f"{daemon.directory}/second/run"}
    return second


def iomesh(*words: str) -> tuple[int, str]:
    done = subprocess.run([iomesh_command(), *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.removeprefix("iomesh: ").strip()


async def copied(daemon: Daemon) -> str:
    path = daemon.devices[0]
    return str(shutil.copy(path, f"{path}.copy"))


async def test_two_names_of_one_device_are_refused_at_the_start(daemon: Daemon, alias: Alias) -> None:
    path = daemon.devices[0]
    before = Path(path).read_bytes()
    with alias(daemon, path) as other:
        for names in ([path, other], [other, path]):
            daemon.devices = names
            code, message = daemon.refuse()
            assert code == 5
            assert f"{names[0]} and {names[1]} are one device ({inspect_device(path).id}) under two names" in message
    assert Path(path).read_bytes() == before
    daemon.devices = [path]
    daemon.start()


async def test_a_running_daemon_keeps_its_device_from_a_second_one_under_another_name(
    node: Daemon, alias: Alias
) -> None:
    path = node.devices[0]
    async with node.client() as client:
        await client.create_volume("db", 16 * MIB)
        with alias(node, path) as other:
            code, message = second_daemon(node, other).refuse()
            assert code == 5
            assert other in message
            assert node.process is not None and f"process {node.process.pid}" in message
            with pytest.raises(InUse, match=other):
                await format_device(other, cluster=node.cluster, force=True)
            with pytest.raises(InUse, match=other):
                await format_device(other, cluster=None, new_identity=True)
            assert inspect_device(other).id == inspect_device(path).id, "looking is allowed"
        assert (await client.status()).ready
    assert node.stop() == 0
    node.start()
    async with node.client() as client:
        assert [volume.state.value for volume in await client.volumes()] == ["serving"]


@pytest.mark.parametrize("opened_as_loop", [True, False])
async def test_a_second_daemon_is_refused_with_the_name_that_is_open(daemon: Daemon, opened_as_loop: bool) -> None:
    path = daemon.devices[0]
    with loop_device(path) as loop:
        opened, other = (loop, path) if opened_as_loop else (path, loop)
        daemon.devices = [opened]
        daemon.start()
        code, message = second_daemon(daemon, other).refuse()
        assert (code, opened in message, other in message) == (5, True, True), message
        daemon.kill()
        daemon.start()  # the claim of a killed daemon does not block it
        assert daemon.stop() == 0


async def test_another_node_of_a_block_device_is_the_block_device(daemon: Daemon) -> None:
    with loop_device(daemon.devices[0]) as loop, device_node(loop, daemon.directory / "node") as other:
        daemon.devices = [loop, other]
        code, message = daemon.refuse()
        assert (code, f"{loop} and {other} are one device" in message) == (5, True), message
        daemon.devices = [loop]
        daemon.start()
        assert second_daemon(daemon, other).refuse()[0] == 5
        assert daemon.stop() == 0


async def test_a_mapped_device_and_what_it_lies_on_are_one(daemon: Daemon) -> None:
    with loop_device(daemon.devices[0]) as loop, device_mapper(loop, "iomesh-test") as mapped:
        daemon.devices = [mapped]
        daemon.start()
        assert second_daemon(daemon, loop).refuse()[0] == 5
        assert second_daemon(daemon, str(daemon.directory / "device.img")).refuse()[0] == 5
        assert daemon.stop() == 0


async def test_a_running_daemon_is_given_no_second_name(node: Daemon, alias: Alias) -> None:
    path = node.devices[0]
    with alias(node, path) as other:
        async with node.client() as client:
            if Path(other).samefile(path):  # a link is reported as the device that it names
                assert (await client.add_device(other)).path == path
            else:
                with pytest.raises(InUse, match=f"{path} and {other} are one device .* under two names"):
                    await client.add_device(other)
            assert [device.path for device in await client.devices()] == [path]


async def test_a_device_and_its_copy_are_refused_at_the_start(daemon: Daemon) -> None:
    path, other = daemon.devices[0], await copied(daemon)
    daemon.devices.append(other)
    code, message = daemon.refuse()
    assert code == 4
    assert f"{path} and {other} are both device {inspect_device(path).id}" in message
    assert "one is a copy of the other" in message and "`iomesh device format --new-identity PATH`" in message
    assert iomesh("device", "format", "--new-identity", other) == (0, "")
    fresh, original = inspect_device(other), inspect_device(path)
    assert fresh.id != original.id and fresh.cluster == original.cluster and fresh.tier == original.tier
    daemon.start()
    async with daemon.client() as client:
        assert {device.id for device in await client.devices()} == {fresh.id, original.id}


async def test_a_copy_does_not_take_the_place_of_the_original(daemon: Daemon) -> None:
    path = daemon.devices[0]
    daemon.start()
    other = await copied(daemon)  # copied while it is open, with its claim
    async with daemon.client() as client:
        await client.create_volume("db", 16 * MIB)
        with pytest.raises(AlreadyExists, match=f"{path} and {other} are both device"):
            await client.add_device(other)
    assert daemon.stop() == 0
    daemon.devices = [other]
    for _ in range(2):  # a refusal must not leave anything that lets the next start pass
        code, message = daemon.refuse()
        assert (code, f"{other} and {path} are both device" in message) == (4, True), message
    daemon.devices = [path]
    daemon.start()
    async with daemon.client() as client:
        assert [volume.state.value for volume in await client.volumes()] == ["serving"]


async def test_a_moved_device_is_not_taken_for_a_copy(daemon: Daemon) -> None:
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", 16 * MIB)
    assert daemon.stop() == 0
    moved = daemon.directory / "moved.img"
    Path(daemon.devices[0]).rename(moved)
    with loop_device(str(moved)) as loop:
        for names in (
            [str(moved)],
            [loop],
            [str(moved)],
        ):  # both names exist: another name of the last known one is correct
            daemon.devices = names
            daemon.start()
            async with daemon.client() as client:
                assert [volume.state.value for volume in await client.volumes()] == ["serving"]
                assert [device.path for device in await client.devices()] == names
            assert daemon.stop() == 0


async def test_a_copy_made_of_a_running_device_is_formatted_while_it_runs(node: Daemon) -> None:
    other = await copied(node)
    assert iomesh("device", "format", other, "--cluster", "new")[0] == 6
    assert iomesh("device", "format", "--new-identity", other, "--label", "second") == (0, "")
    assert inspect_device(other).label == "second"
    async with node.client() as client:
        assert (await client.add_device(other)).label == "second"


async def test_what_is_no_copy_gets_no_new_identity(daemon: Daemon) -> None:
    empty = daemon.directory / "empty.img"
    with empty.open("wb") as file:
        file.truncate(64 * MIB)
    code, message = iomesh("device", "format", "--new-identity", str(empty))
    assert (code, "is not an iomesh device" in message) == (6, True), message
    code, message = iomesh("device", "format", "--new-identity", "--force", str(empty))
    assert (code, "leave out --force" in message) == (2, True), message
    assert not any(empty.read_bytes())


async def test_a_claim_is_given_up_with_the_device(daemon: Daemon) -> None:
    def claimed() -> bytes:
        return Path(daemon.devices[0]).read_bytes()[64 << 10 : 72 << 10]

    assert not any(claimed())
    daemon.start()
    assert claimed().startswith(b"IOMCLM\0\0") and b"node-a" in claimed() and daemon.devices[0].encode() in claimed()
    assert daemon.stop() == 0
    assert not any(claimed())
    daemon.start()
    daemon.kill()
    assert any(claimed())
    await format_device(daemon.devices[0], cluster=daemon.cluster, force=True)
    assert not any(claimed())
