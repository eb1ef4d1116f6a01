"""`iomesh trial` and the commands around it, with the real daemon: what they print is true, also after a crash."""

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iomesh.api.client import Client
from iomesh.api.model import VolumeState
from support.run import alive
from support.trial import Trial, iomesh_command


def told(*words: str, code: int = 0) -> Any:
    """What a command says with --json."""
    done = subprocess.run(
        [iomesh_command(), *words, "--json"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def shown(*words: str, code: int = 0) -> str:
    """What a command says to people, both streams."""
    done = subprocess.run([iomesh_command(), *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def qemu_io(uri: str, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "-f", "raw", *words, uri], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout, done.stdout
    return done.stdout


@pytest.fixture
def directory(room: Path) -> Iterator[Path]:
    yield room / "trial"
    subprocess.run([iomesh_command(), "trial", "down", "--dir", str(room / "trial")], capture_output=True, check=False)


def up(directory: Path, *options: str) -> Any:
    return told("trial", "up", "--dir", str(directory), "--device-size", "2Gi", "--size", "256Mi", *options)


def test_a_trial_from_up_over_write_crash_and_start_to_down(directory: Path) -> None:
    made = up(directory)
    assert made["directory"] == str(directory)
    (node,), (volume,) = made["nodes"], made["volumes"]
    assert (node["name"], node["state"], volume["owner"]) == ("a", "running", "a")
    assert volume["size"] == 256 << 20
    assert alive(node["pid"])
    assert told("trial", "status", "--dir", str(directory)) == made
    script = 'eval "$("$0" trial env --dir "$1")"; "$0" volume show "$2" --json; echo "$IOMESH_TRIAL_URI"'
    words = ["bash", "-euc", script, iomesh_command(), str(directory), volume["name"]]
    found = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert json.loads(found[0])["size_bytes"] == volume["size"]
    assert found[1] == volume["uri"]

    qemu_io(volume["uri"], "write -P 0x41 0 1M", "write -P 0x42 100M 64k", "flush")
    dead = told("trial", "kill", "--dir", str(directory))
    assert dead["nodes"] == [{**node, "pid": None, "state": "stopped"}]
    assert dead["volumes"] == [{**volume, "uri": None, "owner": None}]
    error = told("trial", "env", "--dir", str(directory), code=9)["error"]["message"]
    assert f"served by no node at present: `iomesh trial status --dir {directory}`" in error
    assert not alive(node["pid"])
    with socket.socket(socket.AF_UNIX) as connection, pytest.raises(OSError, match="refused"):
        connection.connect(node["control"])

    again = told("trial", "start", "--dir", str(directory))
    assert again["nodes"][0]["pid"] not in (None, node["pid"])
    assert again["start_seconds"] > 0
    assert [(one["volume"], one["bytes"] > 1 << 20) for one in again["recovered"]] == [(volume["name"], True)]
    qemu_io(volume["uri"], "read -P 0x41 0 1M", "read -P 0x42 100M 64k", "read -P 0 200M 1M")

    assert told("trial", "down", "--dir", str(directory)) == {"directory": str(directory), "removed": True}
    assert not alive(again["nodes"][0]["pid"])
    assert not directory.exists()


def test_a_clean_stop_keeps_the_data_and_leaves_nothing_to_recover(directory: Path) -> None:
    uri = up(directory)["volumes"][0]["uri"]
    qemu_io(uri, "write -P 0x55 0 8M")
    told("trial", "stop", "--dir", str(directory))
    assert told("trial", "start", "--dir", str(directory))["recovered"][0]["bytes"] < 1 << 20
    qemu_io(uri, "read -P 0x55 0 8M")


def test_what_does_not_fit_the_trials_state_is_refused_with_the_next_step(directory: Path) -> None:
    up(directory)
    assert "end it with `iomesh trial down`" in shown("trial", "up", "--dir", str(directory), code=5)
    assert f"`iomesh trial status --dir {directory}` shows it" in shown(
        "trial", "start", "--dir", str(directory), code=5
    )
    told("trial", "kill", "--dir", str(directory))
    for command in ("kill", "pause", "resume"):
        assert (
            f"nothing to {command} in the trial in {directory}: a is stopped; `iomesh trial status --dir {directory}` "
            f"shows it, `iomesh trial start --dir {directory}` starts what is stopped"
        ) in shown("trial", command, "--dir", str(directory), code=3)
    assert "no node 'b': its nodes are a" in shown("trial", "start", "b", "--dir", str(directory), code=3)


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (("--device-size", "32Mi"), 2, "too small"),
        (("--size", "65Ti"), 2, "too large"),
        (("--volume", "a/b"), 2, "a/b"),
        (("--preallocate", "--device-size", "1E"), 8, "choose a smaller size"),
    ],
    ids=str,
)
def test_a_trial_that_cannot_be_set_up_leaves_nothing(
    directory: Path, options: tuple[str, ...], code: int, reason: str
) -> None:
    error = told("trial", "up", "--dir", str(directory), *options, code=code)["error"]
    assert reason in error["message"]
    assert not directory.exists()
    assert not [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if os.fsencode(directory) in read(entry)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_several_devices_and_the_engines_settings_reach_the_daemon(directory: Path) -> None:
    options = (
        "--map-cache",
        "32Mi",
        "--mode",
        "sleep",
        "--poll-us",
        "10",
        "--checkpoint-bytes",
        "64Mi",
        "--tier",
        "ssd",
        "--volume",
        "db",
    )
    made = up(directory, "--devices", "3", *options)
    assert len(made["nodes"][0]["devices"]) == 3
    control = made["nodes"][0]["control"]
    devices = told("device", "list", "--address", control)["devices"]
    assert [
        (one["path"], one["tier"], one["label"], one["state"])
        for one in sorted(devices, key=lambda one: str(one["path"]))
    ] == [(made["nodes"][0]["devices"][number], "ssd", f"a-{number}", "online") for number in range(3)]
    checked = told("daemon", "run", "--check", "--config", made["nodes"][0]["config"])
    assert {
        name: checked["engine"][name] for name in ("map_cache_bytes", "mode", "poll_microseconds", "checkpoint_bytes")
    } == {
        "map_cache_bytes": 32 << 20,
        "mode": "sleep",
        "poll_microseconds": 10,
        "checkpoint_bytes": 64 << 20,
    }
    assert told("volume", "show", "db", "--address", control)["state"] == "serving"


def test_volumes_go_through_their_life_from_the_command_line(trial: Trial) -> None:
    control = ("--address", trial.described["nodes"][0]["control"])
    made = told("volume", "create", "db", "64Mi", "--export", *control)
    assert (made["name"], made["size_bytes"], made["state"]) == ("db", 64 << 20, "serving")
    assert told("volume", "create", "db", "64Mi", *control)["id"] == made["id"]
    assert told("volume", "create", "db", "65Mi", *control, code=4)["error"]["kind"] == "AlreadyExists"
    qemu_io(made["exports"][0]["uris"][0], "write -P 0x11 0 1M")
    assert told("volume", "grow", "db", "+64Mi", *control)["size_bytes"] == 128 << 20
    assert told("volume", "grow", "db", "64Mi", *control, code=2)["error"]["kind"] == "InvalidArgument"
    assert [one["name"] for one in told("volume", "list", *control)["volumes"]] == [
        "db",
        trial.described["volumes"][0]["name"],
    ]
    assert "128 Mi" in shown("volume", "list", *control)
    assert told("volume", "checkpoint", "db", *control) == {"name": "db", "checkpoint": True}
    assert told("volume", "unexport", "db", *control) == {"name": "db", "exported": False}
    assert told("volume", "show", "db", *control)["exports"] == []
    assert told("volume", "export", "db", *control)["uris"]
    assert told("volume", "delete", "db", *control)["deleted"] is True
    for command in (("show",), ("delete",), ("export",), ("unexport",), ("checkpoint",)):
        assert told("volume", *command, "db", *control, code=3)["error"]["kind"] == "NotFound"


def test_status_and_devices_are_shown_to_people(trial: Trial) -> None:
    control = ("--address", trial.described["nodes"][0]["control"])
    page = shown("status", *control)
    for word in ("a  ready", "a-0", "serving", trial.uri, str(trial.pid)):
        assert word in page
    assert told("status", *control)["health"] == "ready"
    path = told("device", "list", *control)["devices"][0]["path"]
    assert told("device", "show", "a-0", *control)["path"] == path
    assert told("device", "show", "nothing", *control, code=3)["error"]["kind"] == "NotFound"


def test_top_shows_what_is_written_while_it_looks(trial: Trial) -> None:
    control = ("--address", trial.described["nodes"][0]["control"])
    top = subprocess.Popen(
        [iomesh_command(), "top", "--interval", "0.5", "--json", *control],
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.PIPE,
    )
    try:
        assert top.stdout is not None
        json.loads(top.stdout.readline())
        qemu_io(trial.uri, "write -P 0x11 0 8M", "read -P 0x11 0 8M")
        samples = [json.loads(top.stdout.readline())["volumes"][0] for _ in range(2)]
        assert sum(one["written_bytes_per_second"] * 0.5 for one in samples) == pytest.approx(8 << 20, rel=0.2)
        assert sum(one["write_latency"]["count"] for one in samples) > 0
        assert sum(one["read_latency"]["count"] for one in samples) > 0
    finally:
        top.kill()
        top.communicate()
    assert "VOLUME" in shown("top", "--once", "--interval", "0.1", *control)


def test_names_complete_from_the_daemon(trial: Trial) -> None:
    control = trial.described["nodes"][0]["control"]
    for words, expected in ((("volume", "show", ""), "trial"), (("device", "show", "/"), "0.img")):
        environment = {**os.environ, "_IOMESH_COMPLETE": "bash_complete", "IOMESH_ADDRESS": control}
        environment |= {"COMP_WORDS": " ".join(["iomesh", *words]), "COMP_CWORD": str(len(words))}
        done = subprocess.run(
            [iomesh_command()], env=environment, capture_output=True, text=True, check=False, timeout=30
        )
        assert expected in done.stdout


def test_a_device_of_the_trial_is_inspected_at_rest(directory: Path) -> None:
    made = up(directory)
    qemu_io(made["volumes"][0]["uri"], "write -P 0x61 0 32M", "discard 1M 1M", "flush")
    told("volume", "checkpoint", made["volumes"][0]["name"], "--address", made["nodes"][0]["control"])
    qemu_io(made["volumes"][0]["uri"], "write -P 0x62 40M 64k")
    told("trial", "kill", "--dir", str(directory))
    device = made["nodes"][0]["devices"][0]

    assert [one["valid"] for one in told("inspect", "superblock", device)["superblocks"]] == [True, True]
    segments = told("inspect", "directory", device)["segments"]
    assert {one["state"] for one in segments} == {"open", "sealed"}
    for one in segments:
        found = told("inspect", "segment", device, str(one["segment"]), "--verify")
        assert one["state"] == "open" or found["footer"]["valid"]
        # The cleaner may have compacted some meanwhile: those have no records any more, and say what they kept.
        assert one["state"] == "open" or found["records"] or found["compacted"]["live_blocks"] == one["live"]
    checkpoint = told("inspect", "checkpoint", device)
    assert checkpoint["size_bytes"] == 256 << 20
    leaf = told("inspect", "node", device, "--offset", "2Mi")["nodes"][-1]
    assert (leaf["level"], leaf["pointers"][leaf["slot"]] is not None) == (0, True)
    assert "nothing is mapped" in shown("inspect", "node", device, "--offset", "1Mi")
    assert told("device", "show", device)["label"] == "a-0"


def test_a_device_is_formatted_once_and_again_only_by_force(room: Path) -> None:
    path = str(room / "device")
    cluster = "0f8fad5b-d9cb-469f-a165-70867728950e"
    made = told("device", "format", path, "--cluster", cluster, "--size", "64Mi", "--label", "first", "--tier", "hdd")
    assert (made["cluster"], made["label"], made["tier"], made["size_bytes"]) == (cluster, "first", "hdd", 64 << 20)
    assert told("device", "show", path)["id"] == made["id"]
    assert "--force" in told("device", "format", path, "--cluster", "new", code=6)["error"]["message"]
    assert (
        told("device", "format", path, "--cluster", cluster, "--size", "64Mi", code=4)["error"]["kind"]
        == "AlreadyExists"
    )
    again = told("device", "format", path, "--cluster", "new", "--force")
    assert again["id"] != made["id"]
    assert told("inspect", "superblock", path)["superblocks"][0]["device"].replace("-", "") == again["id"].replace(
        "-", ""
    )


def test_a_foreign_filesystem_is_not_touched(room: Path) -> None:
    path = room / "disk"
    path.touch()
    os.truncate(path, 512 << 20)
    subprocess.run(["mkfs.xfs", "-q", str(path)], check=True)
    before = path.read_bytes()
    error = told("device", "format", str(path), "--cluster", "new", code=6)["error"]
    assert "xfs" in error["message"]
    assert path.read_bytes() == before


def test_a_device_too_small_is_refused_and_its_new_file_removed(room: Path) -> None:
    error = told("device", "format", str(room / "device"), "--cluster", "new", "--size", "1Mi", code=2)["error"]
    assert "too small" in error["message"]
    assert not (room / "device").exists()


def test_a_device_that_a_daemon_has_open_is_refused(trial: Trial) -> None:
    error = told("device", "format", str(trial.devices[0]), "--cluster", "new", "--force", code=5)["error"]
    assert "held by another iomesh process" in error["message"]


def test_start_waits_until_the_volume_is_served_again(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial("--device-size", "4Gi", "--size", "1Gi", "--checkpoint-bytes", "1Gi")
    qemu_io(trial.uri, *(f"write -P {number} {number * 16}M 16M" for number in range(1, 33)))
    trial.crash()
    trial.start()
    assert asyncio.run(state_of(trial)) == VolumeState.SERVING
    qemu_io(trial.uri, "read -P 7 112M 16M")


async def state_of(trial: Trial) -> VolumeState:
    async with Client(trial.control) as client:
        return (await client.volume("trial")).state
