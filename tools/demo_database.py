"""PostgreSQL on a directory, a load on it, and a ledger of acknowledged commits.

The ledger is outside the volume. A client appends a line to it after PostgreSQL has acknowledged the commit and before
it sends the next one; so after any crash every line of the ledger must be a row of the table, and the table has at most
one more row per client.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from demo_disk import DemoError, end_processes_in, run, wait_for

USER = "postgres"
DATABASE = "demo"
SETTINGS = ["listen_addresses=", "shared_buffers=128MB", "max_wal_size=1GB"]


def postgres_programs() -> Path | None:
    """The programs of the newest installed PostgreSQL."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if installed:
        return installed[-1].parent
    found = shutil.which("postgres")
    return Path(found).parent if found else None


class Database:
    """A cluster in `data`, its socket and log in `outside`."""

    def __init__(self, data: Path, outside: Path) -> None:
        programs = postgres_programs()
        assert programs is not None
        self.programs, self.data, self.outside = programs, data, outside
        self.log = outside / "postgresql.log"
        self.server: subprocess.Popen[bytes] | None = None
        self.environment = {
            "PGHOST": str(outside),
            "PGUSER": USER,
            "PGDATABASE": DATABASE,
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
        }

    def create(self) -> None:
        self.data.mkdir(mode=0o700)
        shutil.chown(self.data, USER, USER)
        run(
            self.programs / "initdb",
            "-D",
            self.data,
            "--auth=trust",
            "--data-checksums",
            "--no-instructions",
            user=USER,
        )

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.server = subprocess.Popen(
                [
                    self.programs / "postgres", "-D", self.data, "-k", self.outside,
                    *(word for each in SETTINGS for word in ("-c", each)),
                ],
                user=USER, group=USER, extra_groups=[], start_new_session=True, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, cwd="/",
            )  # fmt: skip
        try:
            wait_for(
                self.ready,
                "PostgreSQL takes connections",
                lambda: self.server is not None and self.server.poll() is None,
                120,
            )
        except DemoError as error:
            raise DemoError(f"{error}; the end of its log:\n{self.log.read_text(errors='replace')[-2000:]}") from None

    def ready(self) -> bool:
        words = [str(self.programs / "pg_isready"), "-q", "-h", str(self.outside), "-U", USER, "-d", "postgres"]
        return subprocess.run(words, check=False, cwd="/").returncode == 0

    def stop(self) -> None:
        """A clean shutdown."""
        self._end(signal.SIGINT, 60)

    def give_up(self) -> None:
        """An immediate shutdown: the server may be unable to write."""
        self._end(signal.SIGQUIT, 15)
        end_processes_in(self.data)

    def _end(self, number: signal.Signals, seconds: float) -> None:
        if self.server is None:
            return
        self.server.send_signal(number)
        try:
            self.server.wait(seconds)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()
        self.server = None

    def ask(self, question: str, database: str = DATABASE) -> str:
        return run(
            self.programs / "psql",
            "-XAtq",
            "-h",
            self.outside,
            "-U",
            USER,
            "-d",
            database,
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            question,
        ).strip()

    def fill(self, scale: int) -> None:
        self.ask(f"CREATE DATABASE {DATABASE}", "postgres")
        run(
            self.programs / "pgbench",
            "-h",
            self.outside,
            "-U",
            USER,
            "-q",
            "-i",
            "-s",
            str(scale),
            DATABASE,
            seconds=600,
        )
        self.ask("CREATE TABLE ledger (client int, number int, PRIMARY KEY (client, number))")

    @contextlib.contextmanager
    def under_load(self) -> Iterator[None]:
        """pgbench runs until the end of the block."""
        words: list[str | Path] = [self.programs / "pgbench", "-n", "-c", "4", "-j", "2", "-T", "3600"]
        pgbench = subprocess.Popen(
            words,
            env=self.environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        try:
            yield
            if pgbench.poll() is not None:
                raise DemoError("pgbench has ended although the database is there")
        finally:
            pgbench.terminate()
            pgbench.wait()

    def balanced(self) -> bool:
        """pgbench's balances add up, as they do after every complete transaction."""
        history = "(SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
        sums = {"accounts": "abalance", "branches": "bbalance", "tellers": "tbalance"}
        return (
            self.ask(
                "SELECT "
                + " AND ".join(f"(SELECT sum({of}) FROM pgbench_{table}) = {history}" for table, of in sums.items())
            )
            == "t"
        )

    def amcheck(self) -> None:
        """Checks tables against their indexes and pages against their checksums. Raises DemoError with the fault."""
        run(
            self.programs / "pg_amcheck",
            "-h",
            self.outside,
            "-U",
            USER,
            "-d",
            DATABASE,
            "--install-missing",
            "--heapallindexed",
            seconds=600,
        )


class Load:
    """pgbench and clients with a ledger, until the database is gone."""

    def __init__(self, database: Database, ledger: Path, clients: int = 2) -> None:
        self.database, self.ledger, self.clients = database, ledger, clients
        self.lock = threading.Lock()
        self.committed = 0
        self.at: list[float] = []  # of the commits: time.monotonic()
        self.threads: list[threading.Thread] = []
        self.sessions: list[subprocess.Popen[str]] = []
        self.pgbench: subprocess.Popen[bytes] | None = None
        self.transaction_log = ledger.parent / "transactions"

    def start(self, seconds: int) -> None:
        base = self.database
        self.pgbench = subprocess.Popen(
            [
                base.programs / "pgbench", "-n", "-c", "4", "-j", "2", "-T", str(seconds), "-l",
                f"--log-prefix={self.transaction_log}",
            ],
            env=base.environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, cwd=self.ledger.parent,
        )  # fmt: skip
        for client in range(self.clients):
            session = subprocess.Popen(
                [base.programs / "psql", "-Xq", "-v", "ON_ERROR_STOP=1"], env=base.environment,
                start_new_session=True, text=True, cwd="/", stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=1,
            )  # fmt: skip
            self.sessions.append(session)
            self.threads.append(threading.Thread(target=self._commit, args=(client, session), daemon=True))
            self.threads[-1].start()

    def _commit(self, client: int, session: subprocess.Popen[str]) -> None:
        """Commits one after the other, each recorded in the ledger once acknowledged; ends with the session."""
        assert session.stdin is not None
        assert session.stdout is not None
        number = 0
        with contextlib.suppress(OSError, ValueError), self.ledger.open("a") as ledger:
            while True:
                number += 1
                session.stdin.write(f"INSERT INTO ledger VALUES ({client}, {number});\n\\echo {number}\n")
                session.stdin.flush()
                if session.stdout.readline().strip() != str(number):  # psql ends at the first error, before the echo
                    return
                with self.lock:
                    ledger.write(f"{client} {number}\n")
                    ledger.flush()
                    self.committed += 1
                    self.at.append(time.monotonic())

    def longest_pause(self, since: float) -> float:
        """Seconds without a commit of any client: between two commits of which the second came after `since`, or from
        the last one until now."""
        with self.lock:
            at = [*self.at, time.monotonic()]
        return max((later - earlier for earlier, later in pairwise(at) if later > since), default=0.0)

    def end(self) -> None:
        """Waits until all processes have noticed the end of the database; kills those that have not."""
        processes: list[subprocess.Popen[str] | subprocess.Popen[bytes]] = [*self.sessions]
        if self.pgbench is not None:
            processes.append(self.pgbench)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for thread in self.threads:
            thread.join(20)

    @property
    def transactions(self) -> int:
        """pgbench's acknowledged transactions: it logs each after its commit."""
        return sum(log.read_bytes().count(b"\n") for log in self.ledger.parent.glob(f"{self.transaction_log.name}.*"))


def missing_commits(database: Database, ledger: Path) -> tuple[int, set[tuple[int, int]], set[tuple[int, int]]]:
    """Number of commits in the ledger; those missing in the database; those only in the database."""
    acknowledged = {
        (int(client), int(number)) for client, number in (line.split() for line in ledger.read_text().splitlines())
    }
    rows = database.ask("SELECT client, number FROM ledger").splitlines()
    there = {(int(client), int(number)) for client, number in (row.split("|") for row in rows)}
    return len(acknowledged), acknowledged - there, there - acknowledged
