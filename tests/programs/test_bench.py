"""`iomesh bench`: it measures a volume of its own, and leaves nothing behind."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from iomesh.benchmark.profiles import PROFILES
from support.documents import faults
from support.run import eventually, run, tool
from support.trial import Trial, iomesh_command


def names(trial: Trial) -> list[str]:
    listed = json.loads(run([iomesh_command(), "volume", "list", "--address", trial.control, "--json"]).stdout)
    return [volume["name"] for volume in listed["volumes"]]


@pytest.fixture
def bench(trial: Trial) -> list[str]:
    if "nbd" not in run([tool("fio", "fio"), "--enghelp"]).stdout.split():
        pytest.skip("this fio was built without its nbd engine")
    return [iomesh_command(), "bench", "volume", "--scratch", "24Mi", "--address", trial.control]


def test_a_scratch_volume_is_measured_and_nothing_is_left_also_after_interrupts(
    bench: list[str], trial: Trial, room: Path
) -> None:
    before = names(trial)
    done = json.loads(run([*bench, "--profile", "mixed", "--seconds", "0.5", "--json"]).stdout)
    assert faults("bench volume", done) == []
    assert [job["job"] for job in done["jobs"]] == [job.name for job in PROFILES["mixed"]]
    sides = {(job["job"], side["direction"]): side for job in done["jobs"] for side in job["sides"]}
    assert set(sides) == {("pages", "read"), ("pages", "write"), ("log", "write"), ("log", "flush"), ("scan", "read")}
    for side in sides.values():
        assert side["operations"] > 0
        assert 0 < side["p50_ns"] <= side["p99_ns"] <= side["p999_ns"]
    assert names(trial) == before

    old = room / "old.json"
    old.write_text(json.dumps(done))
    again = json.loads(run([*bench, "--profile", "mixed", "--seconds", "0.5", "--compare", old, "--json"]).stdout)
    assert faults("bench volume", again) == []
    assert {(one["job"], one["direction"]) for one in again["compared"]} == set(sides)
    refused = run([*bench, "--profile", "log", "--compare", old], succeeds=False)
    assert refused.returncode == 2
    assert "the older run has --profile mixed, this one log" in refused.stderr

    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen([*bench, "--seconds", "600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        eventually(lambda: len(names(trial)) > len(before), what="the scratch volume is made")
        for _ in range(2):  # the second does not disturb what the first began
            process.send_signal(number)
        out, err = process.communicate()
        assert process.returncode == 130, err
        assert out == b""
        assert names(trial) == before


def test_without_room_it_is_refused_in_words(bench: list[str], trial: Trial) -> None:
    done = run([*bench, "--replicas", "2"], succeeds=False)
    assert done.returncode not in (0, 1), done.stderr
    assert done.stderr.startswith("iomesh: ")
    assert "still there" not in done.stderr
    assert names(trial) == ["trial"]
