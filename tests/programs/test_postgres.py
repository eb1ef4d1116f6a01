"""PostgreSQL on a volume: no commit is lost when the daemon is killed, and the volume can be restored."""

import asyncio
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from iomesh.times import exact_time
from support.amount import Amount
from support.disk import Disk
from support.ledger import Ledger
from support.postgres import USER, Postgres
from support.run import end, run
from support.trial import Trial, iomesh_command

CLIENTS = 8
VOLUME = "trial"


@contextmanager
def pgbench(postgres: Postgres, clients: int = 4) -> Iterator[None]:
    """A load beside the ledger's, until the server goes away."""
    load: subprocess.Popen[bytes] = postgres.begin(
        "pgbench", "--client", str(clients), "--jobs=1", "--time=3600", "--no-vacuum"
    )
    try:
        yield
    finally:
        end(load.pid, signal.SIGTERM)
        load.wait()


async def commit_until_killed(ledger: Ledger, trial: Trial, seconds: float) -> None:
    killed = asyncio.Event()

    def kill() -> None:
        trial.crash()
        killed.set()

    asyncio.get_running_loop().call_later(seconds, kill)
    await asyncio.wait_for(ledger.run(killed), 120)


@pytest.mark.timeout(3600)
def test_no_acknowledged_commit_is_lost_when_the_daemon_is_killed(
    new_trial: Callable[..., Trial], new_disk: Callable[[str], Disk], room: Path, draw: random.Random, amount: Amount
) -> None:
    trial = new_trial("--device-size", "32Gi", "--size", "4Gi")
    disk = new_disk(trial.uri)
    disk.make("xfs")
    postgres = Postgres(disk.mount() / "data", room / "sockets")
    postgres.make()
    postgres.start()
    try:
        postgres.program("pgbench", "--initialize", "--quiet", "--scale=5")
        ledger = Ledger(postgres.sockets, CLIENTS)
        asyncio.run(ledger.make())
        for kill in range(amount.database_kills):
            seconds = draw.uniform(0.5, 6)
            before = sum(ledger.committed.values())
            with pgbench(postgres):
                asyncio.run(commit_until_killed(ledger, trial, seconds))
            committed = sum(ledger.committed.values()) - before
            print(f"kill {kill + 1}: after {seconds:.2f} s and {committed} commits")
            assert committed > 0, "no commit was acknowledged before the kill: this shows nothing"
            postgres.kill()
            disk.detach()
            trial.start()
            disk = new_disk(trial.uri)
            postgres.data = disk.mount() / "data"
            postgres.start()
            asyncio.run(ledger.verify())
            postgres.check()
        postgres.stop()
        disk.unmount()
        disk.check("xfs")
    finally:
        postgres.kill()


def test_a_dropped_table_is_restored_and_a_clone_serves_a_second_database(
    new_trial: Callable[..., Trial], new_disk: Callable[[str], Disk], room: Path
) -> None:
    """The volume is restored to the second before the mistake; an older snapshot, taken under load, is cloned beside
    it."""
    trial = new_trial("--device-size", "16Gi", "--size", "1Gi")

    def iomesh(*words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(
            run([iomesh_command(), *words, "--json", "--address", trial.control]).stdout
        )
        return answer

    def transactions(database: Postgres) -> int:
        return int(database.sql("SELECT count(*) FROM pgbench_history"))

    iomesh("volume", "set", VOLUME, "--window", "1h")
    disk = new_disk(trial.uri)
    disk.make("ext4")
    postgres = Postgres(disk.mount() / "data", room / "sockets")
    postgres.make()
    postgres.start()
    second = None
    try:
        postgres.program("pgbench", "--initialize", "--quiet", "--scale=2")
        with pgbench(postgres):
            time.sleep(1)
            before = transactions(postgres)
            iomesh("snapshot", "create", f"{VOLUME}@monday")
            after = transactions(postgres)
            time.sleep(1)
            least = transactions(postgres)
            restored_to = exact_time(time.time_ns())
            most = transactions(postgres)
            time.sleep(1)
        postgres.sql("DROP TABLE pgbench_accounts", "CHECKPOINT")
        postgres.stop()
        disk.detach()
        iomesh("volume", "restore", VOLUME, "--at", restored_to)
        disk = new_disk(trial.uri)
        postgres.data = disk.mount() / "data"
        postgres.start()
        assert postgres.sql("SELECT count(*) FROM pgbench_accounts").strip() == "200000"
        assert before <= after <= least <= transactions(postgres) <= most + 4, "not the second that was asked for"
        postgres.check()

        clone = iomesh("volume", "clone", f"{VOLUME}@monday", "second", "--export")
        beside = new_disk(clone["exports"][0]["uris"][0])
        second = Postgres(beside.mount() / "data", room / "more-sockets")
        second.sockets.mkdir(mode=0o700)
        shutil.chown(second.sockets, USER, USER)
        second.start()
        assert before <= transactions(second) <= after + 4
        with pgbench(postgres), pgbench(second):
            time.sleep(2)
        for database, were in ((postgres, most), (second, after)):
            assert transactions(database) > were, "it has not gone on"
            database.check()
            database.stop()
    finally:
        postgres.kill()
        if second is not None:
            second.kill()
