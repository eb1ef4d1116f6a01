"""A PostgreSQL server on a folder: create, start, stop, and kill when the disk under it has failed."""

import contextlib
import os
import pwd
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from support.run import end, eventually, run

USER = "postgres"
SETTINGS = {
    "listen_addresses": "''",
    "shared_buffers": "64MB",  # small, so that the disk is read
    "max_wal_size": "128MB",  # frequent checkpoints, so that one is in progress when the disk fails
    "checkpoint_timeout": "30s",
    "wal_compression": "off",
    "restart_after_crash": "off",
    "max_connections": "60",
    "log_min_messages": "warning",
}


def binaries() -> Path:
    """The folder of PostgreSQL's programs: Debian keeps the server's off PATH."""
    folders: list[Path] = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True
    )
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        folders.append(
            Path(subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
        )
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "pg_amcheck").exists():
            return folder
    pytest.skip("PostgreSQL is not installed: apt-get install postgresql")


class Postgres:
    def __init__(self, data: Path, sockets: Path) -> None:
        self.data = data
        self.sockets = sockets  # outside the volume: the clients' sockets
        self._binaries = binaries()
        self._server: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """initdb, with checksums on, in a folder owned by the server's user."""
        user = pwd.getpwnam(USER)
        for folder in (self.data, self.sockets):
            folder.mkdir(mode=0o700, exist_ok=True)
            os.chown(folder, user.pw_uid, user.pw_gid)
        self.program(
            "initdb",
            "--pgdata",
            self.data,
            "--data-checksums",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-instructions",
        )
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in SETTINGS.items())
            file.flush()
            os.fsync(file.fileno())  # initdb syncs its files; the added file must be synced too

    def start(self) -> None:
        """Starts the server and waits until it accepts connections, that is, until its recovery is complete."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # left by a server that has certainly ended
        self._server = subprocess.Popen(
            [self._binaries / "postgres", "-D", self.data, "-k", self.sockets],
            user=USER,
            group=USER,
            extra_groups=[],
            cwd="/",
            stdout=self._log(),
            stderr=subprocess.STDOUT,
        )
        eventually(self._answers_or_ended, what="PostgreSQL answers", seconds=180)
        assert self._server.poll() is None, f"PostgreSQL did not start:\n{self.log()[-4000:]}"

    def stop(self) -> None:
        self.program("pg_ctl", "stop", "--pgdata", self.data, "--mode=fast", "--wait")
        if self._server is not None:
            self._server.wait(timeout=60)
            self._server = None

    def kill(self) -> None:
        """Kills every process of the server, whatever the state of its disk."""
        if self._server is None:
            return
        children = [
            int(pid)
            for pid in run(["ps", "-o", "pid=", "--ppid", str(self._server.pid)], succeeds=False).stdout.split()
        ]
        self._server.kill()
        self._server.wait()
        self._server = None
        for pid in children:
            end(pid)

    def program(self, name: str, *words: str | Path, timeout: float = 300) -> str:
        """Runs one of PostgreSQL's programs as its user."""
        done = subprocess.run(
            [self._binaries / name, *words],
            user=USER,
            group=USER,
            extra_groups=[],
            cwd="/",
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, (
            f"{name} {' '.join(map(str, words))}\nended with "
            f"{done.returncode}\n{done.stdout}\n{done.stderr}\n{self.log()[-2000:]}"
        )
        return done.stdout

    def begin(self, name: str, *words: str | Path) -> subprocess.Popen[bytes]:
        """Starts one of PostgreSQL's programs, for instance a load that runs until the server has ended."""
        return subprocess.Popen(
            [self._binaries / name, *words],
            user=USER,
            group=USER,
            extra_groups=[],
            cwd="/",
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def sql(self, *statements: str) -> str:
        return self.program(
            "psql",
            "--no-psqlrc",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
            *_each("--command", statements),
        )

    def check(self) -> None:
        """Checks every index against its table and every table's structure; fails the test on the first fault."""
        self.program("pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--parent-check", timeout=600)

    def environment(self) -> dict[str, str]:
        return {
            "PGHOST": str(self.sockets),
            "PGUSER": USER,
            "PGDATABASE": "postgres",
            "PATH": os.environ.get("PATH", ""),
            "LC_ALL": "C",
        }

    def log(self) -> str:
        path = self.sockets / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _log(self) -> int:
        return os.open(self.sockets / "server.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o644)

    def _answers_or_ended(self) -> bool:
        if self._server is None or self._server.poll() is not None:
            return True
        return run([self._binaries / "pg_isready", "-q", "-h", self.sockets], succeeds=False).returncode == 0


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]
