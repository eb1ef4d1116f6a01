"""Other names of a device, as administrators and disks create them. Each is a context manager that removes the name at
the end, and skips the test, with the reason, where this machine cannot create it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _run(what: str, *command: str | Path) -> str:
    if os.geteuid() != 0:
        pytest.skip(f"{what} needs root")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{what} cannot be made here: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def loop_device(path: str, *options: str) -> Iterator[str]:
    device = _run("a loop device", "losetup", "--find", "--show", "--direct-io=on", *options, path)
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def bind_mount(path: str, target: Path) -> Iterator[str]:
    target.touch()
    _run("a bind mount", "mount", "--bind", path, target)
    try:
        yield str(target)
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)


@contextmanager
def overlay(path: str) -> Iterator[str]:
    """The file through an overlay whose upper layer contains it: another filesystem and inode, the same bytes."""
    upper = Path(path).parent
    with tempfile.TemporaryDirectory(
        prefix="iomesh-overlay-", dir=upper.parent
    ) as made:  # not below `upper`, and on its filesystem
        lower, work, merged = (Path(made, name) for name in ("lower", "work", "merged"))
        for each in (lower, work, merged):
            each.mkdir()
        _run(
            "an overlay",
            "mount",
            "-t",
            "overlay",
            "overlay",
            "-o",
            f"lowerdir={lower},upperdir={upper},workdir={work}",
            merged,
        )
        try:
            yield str(merged / Path(path).name)
        finally:
            subprocess.run(["umount", merged], check=True)


@contextmanager
def device_mapper(path: str, name: str) -> Iterator[str]:
    """A linear device over a block device."""
    if "device-mapper" not in Path("/proc/misc").read_text():
        pytest.skip("this kernel has no device mapper")
    sectors = _run("a mapped device", "blockdev", "--getsz", path)
    _run("a mapped device", "dmsetup", "create", name, "--table", f"0 {sectors} linear {path} 0")
    try:
        yield f"/dev/mapper/{name}"
    finally:
        subprocess.run(["dmsetup", "remove", "--retry", name], check=True)


@contextmanager
def device_node(path: str, node: Path) -> Iterator[str]:
    """A second device node of a block device."""
    number = Path(path).stat().st_rdev
    _run("a device node", "mknod", node, "b", str(os.major(number)), str(os.minor(number)))
    try:
        yield str(node)
    finally:
        node.unlink()
