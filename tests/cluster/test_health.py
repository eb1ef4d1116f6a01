"""The reported status of a node while it starts, serves, and fails to serve: /healthz, /readyz, `iomesh status`,
metrics.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from iomesh.api.model import NodeState, VolumeState
from iomesh.errors import Unavailable
from iomesh.metadata.records import log_key
from iomesh.node.scrub import Kept
from support.daemon import START_SECONDS, Daemon, rewrite
from support.trial import iomesh_command

GIB = 1 << 30
TASKS = ("windows", "cleaning", "delete", "scrub")


class Pages:
    """The health pages of a daemon that may be starting: their address is in its log."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status code and document; code 0 while there is no answer."""
        served = self._daemon.logged("serving health and metrics")
        if not served:
            return 0, {}
        try:
            with urllib.request.urlopen(f"http://{served[-1]['address']}{path}", timeout=START_SECONDS) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except OSError:
            return 0, {}

    async def until(self, path: str, wanted: Callable[[int, dict[str, Any]], bool]) -> dict[str, Any]:
        """The first answer that satisfies the condition."""
        seen: tuple[int, dict[str, Any]] = 0, {}
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    seen = await asyncio.to_thread(self.get, path)
                    if wanted(*seen):
                        return seen[1]
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{path} answered {seen} until the end") from None


async def test_nothing_that_blocks_stops_the_event_loop(daemon: Daemon) -> None:
    """A read of the scrub's file that hangs: the file is a pipe without a writer."""
    daemon.start()
    async with daemon.client() as client:
        (device,) = await client.devices()
    assert daemon.stop() == 0
    kept = daemon.directory / "state" / "scrub" / f"{device.id}.json"
    content = msgspec.structs.replace(msgspec.json.decode(kept.read_bytes(), type=Kept), ended_ns=time.time_ns())
    kept.unlink()
    os.mkfifo(kept)
    daemon.start_in_background()
    pages = Pages(daemon)
    await pages.until("/readyz", lambda code, document: code == 200)
    async with daemon.client() as client:
        await client.create_volume("db", GIB)
        assert (await asyncio.to_thread(pages.get, "/healthz"))[0] == 200
        assert (await client.devices())[0].scrub.ended_at is None, "scrub still reads its file"
        await asyncio.to_thread(kept.write_bytes, msgspec.json.encode(content))
        async with asyncio.timeout(START_SECONDS):
            while (await client.devices())[0].scrub.ended_at is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert daemon.stop() == 0
    assert kept.is_file(), "scrub went on, and wrote its file"


async def test_a_node_that_recovers_shows_the_step_and_the_state_of_each_volume(daemon: Daemon) -> None:
    daemon.start()
    async with daemon.client() as client:
        for name in ("db", "wal"):
            await client.create_volume(name, GIB)
    daemon.stop()
    daemon.hooks.write_text("hold volume wal\n")
    daemon.start_in_background()
    pages = Pages(daemon)
    seen = await pages.until(
        "/readyz", lambda code, document: "serving" in {one["state"] for one in document.get("volumes", [])}
    )
    assert (seen["status"], seen["step"], seen["progress"]) == ("starting", "recover the volumes", "1 of 2 volumes")
    assert {volume["name"]: (volume["state"], volume["writable"]) for volume in seen["volumes"]} == {
        "db": ("serving", True),
        "wal": ("opening", False),
    }
    assert (await asyncio.to_thread(pages.get, "/healthz")) == (200, seen)
    assert (await asyncio.to_thread(pages.get, "/readyz")) == (503, seen)

    shown = status_of(daemon)
    for words in (
        "node-a  starting",
        "recover the volumes (14 of 24), 1 of 2 volumes",
        "db ",
        "serving",
        "wal ",
        "opening",
    ):
        assert words in shown
    document = json.loads(status_of(daemon, "--json"))
    assert (document["node"]["state"], document["node"]["ready"]) == ("starting", False)
    assert {volume["name"]: volume["state"] for volume in document["volumes"]} == {"db": "serving", "wal": "opening"}
    async with daemon.client() as client:
        with pytest.raises(Unavailable, match=r"node-a is starting \(recover the volumes\): try again"):
            await client.create_volume("new", GIB)

    daemon.hooks.write_text("")
    assert (await pages.until("/readyz", lambda code, document: code == 200))["status"] == "ok"
    assert "node-a  ready" in status_of(daemon, code=0)


@pytest.mark.parametrize("step", ["probe the devices", "open the metadata", "start the engine"])
async def test_the_status_is_answered_before_the_node_knows_its_volumes(daemon: Daemon, step: str) -> None:
    daemon.hooks.write_text(f"hold {step}\n")
    daemon.start_in_background()
    await Pages(daemon).until("/healthz", lambda code, document: document.get("step") == step)
    assert step in status_of(daemon)
    daemon.hooks.write_text("")
    await Pages(daemon).until("/readyz", lambda code, document: code == 200)


def status_of(daemon: Daemon, *flags: str, code: int = 20) -> str:
    """Output of `iomesh status`; code: the expected exit code, 20 while the daemon starts."""
    command = [iomesh_command(), "status", "--address", daemon.control, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_SECONDS)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


async def test_a_volume_that_cannot_be_opened_makes_the_node_degraded_and_no_more(node: Daemon) -> None:
    async with node.client() as client:
        for name in ("mine", "broken"):
            await client.create_volume(name, GIB)
    node.stop()
    async with node.metadata() as metadata:
        nowhere = b'{"segment":4000,"block":1,"crc":1,"sequence":1}'
        await rewrite(metadata, log_key, "broken", b'"checkpoint":null', b'"checkpoint":' + nowhere)
    node.start()
    pages = Pages(node)
    code, health = await asyncio.to_thread(pages.get, "/healthz")
    assert (code, health["status"], health["ready"]) == (200, "degraded", False)
    assert {volume["name"]: (volume["state"], volume["writable"]) for volume in health["volumes"]} == {
        "mine": ("serving", True),
        "broken": ("failed", False),
    }
    (problem,) = health["problems"]
    assert problem.startswith("volume broken has failed: ") and "segment 4000" in problem
    assert (await asyncio.to_thread(pages.get, "/readyz")) == (503, health)
    async with node.client() as client:
        status = await client.status()
        assert (status.state, status.ready, status.problems) == (NodeState.DEGRADED, False, health["problems"])
        assert (await client.volume("mine")).state is VolumeState.SERVING
    lines = (await node.page("/metrics")).splitlines()
    for line in (
        "iomesh_node_ready 0.0",
        'iomesh_node_state{state="degraded"} 1.0',
        'iomesh_volume_writable{volume="mine"} 1.0',
        'iomesh_volume_writable{volume="broken"} 0.0',
    ):
        assert line in lines


@pytest.mark.parametrize("task", TASKS)
async def test_a_background_task_that_fails_is_started_again_and_the_node_is_not_ready_meanwhile(
    daemon: Daemon, task: str
) -> None:
    daemon.start()
    pages = Pages(daemon)
    await pages.until("/readyz", lambda code, document: code == 200)

    daemon.hooks.write_text(f"fail {task}\n")
    seen = await pages.until("/readyz", lambda code, document: code == 503 and _of(document, task)["restarts"] >= 2)
    assert seen["status"] == "degraded"
    assert [problem.startswith(f"background task {task} is down: ") for problem in seen["problems"]] == [True]
    assert [each["name"] for each in seen["tasks"] if not each["up"]] == [task], "the others are up"
    async with daemon.client() as client:
        assert (await client.status()).state == NodeState.DEGRADED
        await client.create_volume("db", GIB)
    metrics = (await daemon.page("/metrics")).splitlines()
    assert f'iomesh_background_task_up{{task="{task}"}} 0.0' in metrics

    daemon.hooks.write_text("")
    seen = await pages.until("/readyz", lambda code, document: code == 200)
    assert _of(seen, task)["restarts"] >= 2 and seen["problems"] == []
    assert daemon.logged("background task has recovered")[-1]["task"] == task
    assert daemon.stop() == 0
    failures = daemon.logged("background task failed; restarting it")
    assert {line["task"] for line in failures} == {task}
    assert sum(line.get("repeated", 1) for line in failures) == _of(seen, task)["restarts"]


def _of(document: dict[str, Any], task: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in document["tasks"] if each["name"] == task)
    return found
