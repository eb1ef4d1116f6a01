"""Names of one device that the kernel connects: a file and its loop devices, links, mounts. Only one is opened,
once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from iomesh.errors import InUse
from iomesh.node.backing import loop_of, loops_over, other_names
from iomesh.node.devices import open_device
from support.names import bind_mount, loop_device

MIB = 1 << 20
Maker = Callable[[int], str]

HOLDER = """
import sys
from iomesh.node.devices import open_device
device = open_device(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: str) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        yield holder.pid
        holder.kill()


@pytest.fixture
def names(file_of: Maker) -> Iterator[tuple[str, str]]:
    """A file and its loop device."""
    with ExitStack() as stack:
        path = file_of(64 * MIB)
        yield path, stack.enter_context(loop_device(path))


def test_a_loop_device_leads_to_its_file_and_back(names: tuple[str, str]) -> None:
    path, loop = names
    assert loop_of(Path(loop).stat()) == (path, 0)
    assert loops_over(Path(path).stat()) == [loop]
    assert (other_names(path), other_names(loop)) == ([loop], [path])


@pytest.mark.parametrize("first", [0, 1])
def test_a_file_and_its_loop_device_are_held_by_one_process(names: tuple[str, str], first: int) -> None:
    held, other = names[first], names[1 - first]
    with held_by_another_process(held) as process, pytest.raises(InUse) as raised:
        open_device(other)
    assert all(words in str(raised.value) for words in (held, other, f"process {process}"))
    open_device(other).close()


def test_two_loop_devices_over_one_file_are_held_by_one_process(names: tuple[str, str]) -> None:
    path, loop = names
    with loop_device(path) as second:
        with (
            held_by_another_process(loop),
            pytest.raises(InUse, match=f"{second} is held by another iomesh process .*{path}"),
        ):
            open_device(second)
        open_device(second).close()


def test_loop_devices_over_parts_of_a_file_are_held_each_by_itself(file_of: Maker) -> None:
    path = file_of(64 * MIB)
    with ExitStack() as stack:
        lower = stack.enter_context(loop_device(path, f"--sizelimit={32 * MIB}"))
        upper = stack.enter_context(loop_device(path, f"--offset={32 * MIB}"))
        across = stack.enter_context(loop_device(path, f"--offset={16 * MIB}"))
        with held_by_another_process(lower):
            open_device(upper).close()
            for covered in (across, path):
                with pytest.raises(InUse):
                    open_device(covered)


def test_what_lies_two_loop_devices_below_is_held_too(names: tuple[str, str]) -> None:
    path, loop = names
    with loop_device(loop) as upper, held_by_another_process(upper):
        for below in (loop, path):
            with pytest.raises(InUse):
                open_device(below)


def test_a_bind_mount_of_a_file_is_the_file(file_of: Maker, tmp_path: Path) -> None:
    path = file_of(64 * MIB)
    with (
        bind_mount(path, tmp_path / "bound") as bound,
        held_by_another_process(path),
        pytest.raises(InUse, match="has its lock"),
    ):
        open_device(bound)


def test_a_loop_device_whose_file_was_deleted_is_opened(file_of: Maker) -> None:
    path = file_of(64 * MIB)
    with loop_device(path) as loop:
        Path(path).unlink()
        assert loop_of(Path(loop).stat()) is None
        open_device(loop).close()
