"""fio writes over NBD and reads back what it wrote, for all block sizes, queue depths and numbers of connections."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.run import run, tool
from support.trial import Trial


def fio(uri: str, room: Path, *options: str, name: str = "fio") -> dict[str, Any]:
    """Runs a verifying job; fio itself fails on the first block that is not what it wrote."""
    if "nbd" not in run([tool("fio", "fio"), "--enghelp"]).stdout.split():
        pytest.skip("this fio was built without its nbd engine")
    report = room / f"{name}.json"
    run(
        [
            tool("fio", "fio"),
            "--name=verify",
            "--ioengine=nbd",
            f"--uri={uri}",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--serialize_overlap=1",
            "--verify_state_save=0",
            "--output-format=json",
            f"--output={report}",
            *options,
        ],
        timeout=300,
    )
    answer: dict[str, Any] = json.loads(report.read_text())
    for job in answer["jobs"]:
        assert job["error"] == 0, f"fio ended with error {job['error']}"
        assert job["read"]["total_ios"] > 0, "fio verified nothing"
    return answer


@pytest.mark.parametrize("depth", [1, 4, 32, 128])
def test_random_writes_verify_at_every_depth(volume: str, room: Path, depth: int) -> None:
    fio(volume, room, "--rw=randwrite", "--bs=4k", f"--iodepth={depth}", "--size=48M")


@pytest.mark.parametrize("sizes", ["512-128k", "4k-1m", "4k-64k,4k-256k"])
def test_random_sizes_verify(volume: str, room: Path, sizes: str) -> None:
    fio(volume, room, "--rw=randwrite", f"--bsrange={sizes}", "--iodepth=32", "--size=128M")


def test_mixed_sizes_verify_under_mixed_reads_and_writes(volume: str, room: Path) -> None:
    fio(
        volume,
        room,
        "--rw=randrw",
        "--rwmixread=30",
        "--bssplit=4k/50:8k/10:16k/20:64k/15:512k/5",
        "--iodepth=64",
        "--size=128M",
    )


def test_sequential_writes_verify(volume: str, room: Path) -> None:
    fio(volume, room, "--rw=write", "--bs=1m", "--iodepth=8", "--size=192M")


def test_overwriting_everything_verifies_the_newest(volume: str, room: Path) -> None:
    for seed in (1, 2):
        fio(volume, room, "--rw=randwrite", "--bs=8k", "--iodepth=32", "--size=48M", f"--randseed={seed}")


def test_several_connections_each_verify_their_part(volume: str, room: Path) -> None:
    answer = fio(
        volume,
        room,
        "--rw=randwrite",
        "--bsrange=4k-64k",
        "--iodepth=32",
        "--size=32M",
        "--numjobs=4",
        "--offset_increment=32M",
    )
    assert len(answer["jobs"]) == 4


def test_flushes_among_writes_verify(volume: str, room: Path) -> None:
    fio(volume, room, "--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=16M", "--fsync=8")


def test_trims_among_writes_leave_the_rest_as_it_was(volume: str, room: Path) -> None:
    fio(volume, room, "--rw=randwrite", "--bs=64k", "--iodepth=16", "--size=64M", "--offset=128M")
    run(
        [
            tool("fio", "fio"),
            "--name=trim",
            "--ioengine=nbd",
            f"--uri={volume}",
            "--rw=randtrim",
            "--bs=64k",
            "--iodepth=16",
            "--size=128M",
        ],
        timeout=300,
    )
    fio(volume, room, "--rw=randwrite", "--bs=64k", "--iodepth=16", "--size=64M", "--offset=128M", "--verify_only=1")


@pytest.mark.parametrize("reactors", [1, 2])
def test_two_volumes_on_shared_devices_verify_at_once(
    new_trial: Callable[..., Trial], room: Path, reactors: int
) -> None:
    trial = new_trial("--devices", "2", "--reactors", str(reactors), "--device-size", "4Gi", "--size", "128Mi")
    uris = [trial.uri, asyncio.run(trial.make_volume("other", 128 << 20))]
    jobs = ("--rw=randwrite", "--bsrange=4k-128k", "--iodepth=32", "--size=32M", "--numjobs=2")
    with ThreadPoolExecutor(len(uris)) as threads:
        running = [
            threads.submit(fio, uri, room, *jobs, "--offset_increment=32M", "--fsync=32", name=f"fio-{number}")
            for number, uri in enumerate(uris)
        ]
        assert [len(each.result()["jobs"]) for each in running] == [2, 2]
