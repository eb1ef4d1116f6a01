"""PostgreSQL on a volume whose daemon is killed: every commit that a client was told of is there afterwards."""

import asyncio
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.amount import Amount
from support.disk import Disk
from support.ledger import Ledger
from support.postgres import Postgres
from support.run import end
from support.trial import Trial

CLIENTS = 8


@contextmanager
def pgbench(postgres: Postgres, clients: int = 4) -> Iterator[None]:
    """A load beside the ledger's, until the server goes away."""
    load: subprocess.Popen[bytes] = postgres.begin("pgbench", "--client", str(clients), "--jobs=1", "--time=3600", "--no-vacuum")
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
    trial = new_trial("--device-size", "32G", "--size", "4G")
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
