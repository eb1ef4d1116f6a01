"""The --json output of every command of a real daemon matches its schema."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generate_schema import documents

from support.daemon import Daemon
from support.documents import faults
from support.nbd import Connection
from support.trial import Trial, iomesh_command

MIB = 1 << 20


class Told:
    """Runs commands, validates their documents, and records which commands ran."""

    def __init__(self, *more: str) -> None:
        self.more = more
        self.asked: set[str] = set()

    def __call__(self, command: str, *words: str, code: int = 0) -> Any:
        line = [iomesh_command(), *command.split(), *words, "--json", *self.more]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        document = json.loads(done.stdout)
        assert faults("error" if "error" in document else command, document) == []
        assert not times_in_numbers(document), "times are RFC 3339"
        self.asked.add(command)
        return document


DURATIONS = {"p50_ns", "p99_ns", "p999_ns"}


def times_in_numbers(value: Any) -> list[str]:
    """Keys of fields that may be Unix times as numbers."""
    if isinstance(value, dict):
        here = [key for key in value if key.endswith("_ns") and key not in DURATIONS]
        return here + [key for item in value.values() for key in times_in_numbers(item)]
    return [key for item in value for key in times_in_numbers(item)] if isinstance(value, list) else []


def test_what_a_daemon_tells_is_as_the_schema_says(node: Daemon) -> None:
    told = Told("--address", node.control)
    spare = str(node.directory / "spare.img")
    formatted = Told()
    formatted("device format", spare, "--cluster", str(node.cluster), "--size", "64Mi", "--label", "spare")
    assert told("device add", spare)["created_at"].endswith("Z")
    assert len(told("device list")["devices"]) == 2
    told("device show", "spare")
    told("device remove", "spare")
    told("device show", spare)  # at rest

    made = told("volume create", "db", "100M", "--window", "1h", "--export")
    assert made["size_bytes"] == 96 * MIB
    assert made["created_at"] <= made["window_from"]
    assert told("volume create", "db", "100M", "--window", "1h")["id"] == made["id"]
    told("volume create", "log", "32Mi")
    told("snapshot create", "db@one", "log@one")
    told("snapshot create", "db@two")
    told("snapshot diff", "db@one", "db@two")
    told("snapshot diff", "db@one")
    assert {one["created_at"] for one in told("snapshot list")["snapshots"] if one["name"] == "one"} == {
        told("snapshot show", "db@one")["created_at"]
    }
    told("snapshot export", "db@one")
    told("snapshot unexport", "db@one")
    told("volume clone", "db@one", "copy")
    told("volume flatten", "copy")
    told("snapshot delete", "log@one")
    assert told("volume restore", "db@one")["at"] is None
    assert told("volume restore", "db", "--at", "now", "--discard")["at"].endswith("Z")
    told("volume export", "log")
    told("volume unexport", "log")
    told("volume grow", "log", "+32Mi")
    told("volume set", "log", "--window", "1h")
    told("volume checkpoint", "log")
    assert (
        told("volume take-over", "log")["owner"]
        == told("volume move", "log", "--to", told("status")["node"]["node"])["owner"]
    )
    told("volume list")
    told("volume show", "db")
    told("operation show", told("operation list")["operations"][0]["id"])
    told("operation wait", told("volume restore", "db@one", "--no-wait")["operation"])
    assert told("status")["health"] == "ready"
    told("top", "--once", "--interval", "0.1")
    told("volume delete", "db", "--force", "--snapshots")
    told("volume show", "db", code=3)
    there = {
        words
        for words in documents()
        if words.split()[0] in ("device", "volume", "snapshot", "operation", "status", "top")
    }
    assert there - told.asked - formatted.asked == set()


async def write(uri: str) -> None:
    connection = await Connection.connect(uri)
    await connection.write(0, b"content." * (MIB // 8))
    await connection.flush()
    await connection.close()


def test_what_a_trial_tells_is_as_the_schema_says(new_trial: Callable[..., Trial], room: Path) -> None:
    trial = new_trial("--nodes", "2", "--device-size", "256Mi", "--size", "32Mi")
    told, directory = Told(), ("--dir", str(trial.directory))
    told("trial status", *directory)
    told("trial env", *directory)
    told("trial pause", *directory)
    told("trial resume", *directory)
    told("trial cut", "b", *directory)
    told("trial heal", *directory)
    told("trial kill", *directory)
    told("trial start", *directory)
    asyncio.run(write(trial.uri))
    told("volume checkpoint", "trial", "--address", trial.control)
    told("trial stop", *directory)
    device = str(trial.devices[0])
    for command in ("superblock", "journal", "directory", "checkpoint"):
        told(f"inspect {command}", device)
    newest = told("inspect directory", device)["segments"][-1]["segment"]
    told("inspect segment", device, str(newest))
    told("inspect record", device, f"{newest}:0")
    told("trial down", *directory)
    told("trial up", "--device-size", "256Mi", "--size", "32Mi", *directory)
    assert {words for words in documents() if words.startswith("trial ")} - told.asked == set()


def test_the_exit_code_of_status_is_the_health(node: Daemon) -> None:
    told = Told("--address", node.control)
    told("volume create", "db", "32Mi")
    assert told("status")["health"] == "ready"
    node.kill()
    device = Path(node.devices[0])
    device.rename(device.with_suffix(".away"))
    node.devices.clear()
    node.start()
    found = told("status", code=22)
    assert found["health"] == "failed"
    assert [problem.split()[:2] for problem in found["problems"]] == [["volume", "db"], ["device", str(device)]]
    node.kill()
    told("status", code=9)
