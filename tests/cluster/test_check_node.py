"""`iomesh check node` finds what a daemon's start would find, in the same words, and disturbs no daemon that runs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iomesh.node.config import EngineConfig
from iomesh.operator.disks import survey
from iomesh.preflight import limits
from iomesh.preflight.findings import State
from support import withheld
from support.daemon import Daemon
from support.documents import faults


def words_of(daemon: Daemon, *options: str) -> list[str]:
    """The command, with the configuration that the daemon's own command has."""
    command = daemon.command()
    place = command.index("run")
    return [*command[: place - 1], "check", "node", "--no-driver", *options, *command[place + 1 :]]


def check(daemon: Daemon, *, code: int = 0) -> dict[str, dict[str, Any]]:
    """The checks by name. The last one counts where a name has several."""
    words = words_of(daemon, "--json")
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=daemon.environment)
    assert done.returncode == code, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert faults("check node", document) == []
    assert document["ready"] is (code == 0)
    return {each["name"]: each for each in document["checks"]}


def test_what_a_daemon_needs_is_there_and_it_starts(daemon: Daemon) -> None:
    found = check(daemon)
    assert not [each for each in found.values() if each["state"] == "failed"]
    assert found["io_uring"]["state"] == "ok" and "Linux" in found["io_uring"]["message"]
    assert found["devices"]["message"] == "1, all of one cluster"
    assert not (daemon.directory / "state").exists(), "nothing is made"
    daemon.start()


def test_a_daemon_that_runs_is_not_disturbed(node: Daemon) -> None:
    found = check(node)
    skipped = {name for name, each in found.items() if each["state"] == "skipped"}
    assert {"state_dir", "control.socket", "nbd.socket", "metrics.listen", "devices"} <= skipped
    assert node.stop() == 0
    assert check(node)["devices"]["state"] == "ok"


async def missing(daemon: Daemon) -> None:
    daemon.devices = [str(daemon.directory / "none.img")]


async def foreign(daemon: Daemon) -> None:
    daemon.cluster = None  # with one, the engine refuses the device later, in other words
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", daemon.devices[0]], check=True)


async def no_directory(daemon: Daemon) -> None:
    (daemon.directory / "state").touch()


async def bad_setting(daemon: Daemon) -> None:
    daemon.settings["engine.reactors"] = 0


async def no_ring(daemon: Daemon) -> None:
    daemon.under = [sys.executable, withheld.__file__, "ENOSYS"]


async def copy(daemon: Daemon) -> None:
    twin = daemon.directory / "twin.img"
    subprocess.run(["cp", "--sparse=always", daemon.devices[0], twin], check=True)
    daemon.devices.append(str(twin))


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (missing, "devices"),
        (foreign, "devices"),
        (copy, "devices"),
        (no_directory, "state_dir"),
        (no_ring, "io_uring"),
        (bad_setting, "configuration"),
    ],
)
async def test_what_a_daemon_refuses_has_failed_in_its_words(
    daemon: Daemon, broken: Callable[[Daemon], Any], name: str
) -> None:
    await broken(daemon)
    failed = {key: each for key, each in check(daemon, code=1).items() if each["state"] == "failed"}
    assert failed.keys() == {name}
    _, words = daemon.refuse()
    assert words in failed[name]["message"]


def test_a_port_that_is_taken_has_failed(daemon: Daemon) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        daemon.settings["nbd.listen"] = f"127.0.0.1:{taken.getsockname()[1]}"
        failed = check(daemon, code=1)["nbd.listen"]
        assert failed["state"] == "failed" and "another process listens there: stop it" in failed["message"]


def test_a_place_where_nothing_can_be_made_has_failed(daemon: Daemon) -> None:
    (daemon.directory / "file").touch()
    daemon.settings = {"state_dir": daemon.directory / "file" / "state", "run_dir": daemon.directory / "file"}
    failed = {name: each["message"] for name, each in check(daemon, code=1).items() if each["state"] == "failed"}
    assert failed.keys() == {"state_dir", "control.socket", "nbd.socket"}
    assert all(f"{daemon.directory}/file is not a directory" in message for message in failed.values()), failed


def test_a_limit_that_the_engine_works_without_is_a_warning(daemon: Daemon) -> None:
    daemon.under = ["prlimit", "--nofile=500"]
    found = check(daemon)["io_uring"]
    assert found["state"] == "warning" and "RLIMIT_NOFILE" in found["message"]


def test_people_get_a_table_of_checks_and_disks(daemon: Daemon) -> None:
    shown = subprocess.run(words_of(daemon), capture_output=True, text=True, check=True).stdout
    assert shown.startswith("CHECK") and "io_uring" in shown
    for disk, reason in survey(None, least_bytes=10 << 30):
        assert disk.path in shown and reason in shown


@pytest.mark.parametrize(
    ("memory", "processors", "states"),
    [
        ("max", "max 100000", [State.OK, State.OK]),
        (str(4 << 30), "400000 100000", [State.OK, State.OK]),
        (str(300 << 20), "150000 100000", [State.WARNING, State.WARNING]),
    ],
)
def test_limits_of_the_control_group_and_those_above_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str, processors: str, states: list[State]
) -> None:
    own = tmp_path / "pods.slice" / "daemon"
    own.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").touch()
    (own / "memory.max").write_text("max\n")
    (own.parent / "memory.max").write_text(memory + "\n")
    (own / "cpu.max").write_text(processors + "\n")
    (tmp_path / "self").write_text("1:name=systemd:/\n0::/pods.slice/daemon\n")
    monkeypatch.setattr(limits, "GROUPS", tmp_path)
    monkeypatch.setattr(limits, "OWN", tmp_path / "self")
    assert [each.state for each in limits.check_limits(EngineConfig())] == states
