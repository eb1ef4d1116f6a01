"""PostgreSQL in StatefulSets: snapshot, restore, expansion, clone, and the loss of a daemon. The ledger of acknowledged
commits is kept outside of the volumes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.kubernetes import postgres
from support.kubernetes.installation import Installation
from support.kubernetes.postgres import Database, Ledger
from support.kubernetes.work import Work, from_claim, from_snapshot


class Times:
    """How long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began

    def table(self) -> str:
        rows = [f"| {name} | {seconds:.1f} |" for name, seconds in self.seconds.items()]
        return "\n".join(["", "| step | seconds |", "|---|---|", *rows])


@pytest.fixture(scope="module")
def work(installation: Installation) -> Iterator[Work]:
    installation.wait_formed(devices=2)
    postgres.load_image(installation.cluster)
    installation.cluster.kubectl("create", "secret", "generic", "postgres", "--from-literal=password=secret")
    yield Work(installation.cluster)
    installation.cluster.kubectl("delete", "secret", "postgres")


def test_a_database_loses_no_acknowledged_commit(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    times, cluster = Times(), work.cluster
    database, restored, clone = Database(work, "first"), Database(work, "restored"), Database(work, "clone")
    with times.step("a new StatefulSet: its database is ready"):
        database.start()
    with Ledger(database) as ledger:
        ledger.wait_more()
        least = ledger.acknowledged
        with times.step("snapshot, while it commits"):
            work.snapshot("first", database.claim)
        most = ledger.begun
        ledger.wait_more()
        with times.step("restored into a second StatefulSet: its database is ready"):
            restored.start(source=from_snapshot("first"))
        restored.check(least, most)
        before = database.mib()
        with times.step("expanded from 1 GiB to 2 GiB, while it commits: the file system has the size"):
            work.expand(database.claim, "2Gi")
            cluster.wait("the larger file system", lambda: database.mib() > before + 900)
        ledger.wait_more()
        least = ledger.acknowledged
        with times.step("cloned into a third StatefulSet: its database is ready"):
            clone.start(size="2Gi", source=from_claim(database.claim))
        clone.check(least, ledger.begun)
        ledger.longest_seconds = 0.0
        os.kill(cluster.daemon(database.node()), signal.SIGKILL)
        ledger.wait_more(100)
        times.seconds["daemon of its node killed: the longest wait for a commit"] = ledger.longest_seconds
    database.check(ledger.acknowledged, ledger.begun)
    assert cluster.get("pod", database.pod)["status"]["containerStatuses"][0]["restartCount"] == 0
    for each in (restored, clone):  # their volumes are their own
        each.ask("DELETE FROM ledger")
    with times.step("pod deleted: its successor is ready"):
        work.delete("pod", database.pod)
        database.wait_ready()
    database.check(ledger.acknowledged, ledger.begun)
    assert restored.ask("SELECT count(*) FROM ledger") == clone.ask("SELECT count(*) FROM ledger") == "0"
    with capsys.disabled():
        print(times.table())
    for each in (restored, clone):
        each.delete()
    work.delete("volumesnapshot", "first")
    database.delete()
    work.wait_no_volumes()
