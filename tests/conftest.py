"""Fixtures of all tests: a trial installation, its volume, a disk over it, and seeded random numbers."""

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from simulation import seeds
from support import logs, rooms
from support.amount import Amount
from support.disk import Disk
from support.kubernetes import programs
from support.trial import Trial

_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("iomesh")
    group.addoption(
        "--soak",
        action="store_true",
        help="the long forms: 200 kills under load, 20 under a database, every kind of damage everywhere",
    )
    group.addoption("--seed", type=int, help="repeat a run: the number that its first lines and every failure name")
    group.addoption(
        "--seeds-of", metavar="DAY", help="the simulated world's seeds of another day than today, such as 2026-11-30"
    )
    group.addoption(
        "--keep",
        action="store_true",
        help="leave trials as they are after a test, their daemons killed, to look into them",
    )
    group.addoption("--kills", type=int, help="SIGKILLs under load (10, with --soak 200)")
    group.addoption("--database-kills", type=int, help="SIGKILLs under PostgreSQL (2, with --soak 20)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "logs(words, ...): a daemon's log may hold these words, which are else taken for a bug's"
    )
    rooms.seed(config)  # before the worker processes start: all share one seed ...
    config.option.seeds_of = config.option.seeds_of or seeds.today()  # ... and one day, also past midnight


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [
        f"seed: {rooms.seed(config)} (repeat with --seed)",
        f"simulated: seeds of {config.option.seeds_of} (repeat with --seeds-of)",
        *([f"not tested on Kubernetes: {lacking}"] if (lacking := programs.without_api_server()) else []),
    ]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """With --dist loadfile, a module's tests run in one process and share its installations. Simulation runs share
    nothing; they run last, one by one, on whichever core is free.
    """
    return ByModule(config, log) if config.getvalue("dist") == "loadfile" else None


class ByModule(LoadScopeScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith("tests/simulation/") else nodeid.partition("::")[0]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    number = rooms.seed(request.config)
    print(f"seed {number}")
    return number


@pytest.fixture
def draw(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """Random generator of this test, seeded with the run's seed and the test's name."""
    return random.Random(f"{seed}/{request.node.name}")


@pytest.fixture(scope="session")
def amount(request: pytest.FixtureRequest) -> Amount:
    soak = bool(request.config.getoption("--soak"))
    return Amount(
        soak,
        request.config.getoption("--kills") or (200 if soak else 10),
        request.config.getoption("--database-kills") or (20 if soak else 2),
    )


@pytest.fixture
def expected_in_logs(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Log messages that daemons may log in this test although they are signs of a bug (support/logs.py)."""
    return tuple(word for mark in request.node.iter_markers("logs") for word in mark.args)


@pytest.fixture
def room(request: pytest.FixtureRequest, expected_in_logs: tuple[str, ...]) -> Iterator[Path]:
    """A folder for a test and its daemons; the test fails if their logs show a bug."""
    with rooms.room(request.config) as folder:
        yield folder
        logs.check(folder, expected_in_logs)


@pytest.fixture
def new_trial(
    request: pytest.FixtureRequest, room: Path, expected_in_logs: tuple[str, ...]
) -> Iterator[Callable[..., Trial]]:
    """Creates trials: new_trial("--size", "1Gi", ...) takes the arguments of `trial up`. kind: Trial or a subclass."""
    made: list[Trial] = []

    def make(*options: str, kind: type[Trial] = Trial) -> Trial:
        trial = kind(room / f"trial{len(made)}", list(options))
        made.append(trial)
        trial.up()
        return trial

    yield make
    for trial in made:
        leave(trial, request.config, expected_in_logs)


def leave(trial: Trial, config: pytest.Config, expected_in_logs: tuple[str, ...] = ()) -> None:
    end = trial.crash if config.getoption("--keep") else trial.down
    logs.check_after(end, trial.directory, expected_in_logs)


@pytest.fixture
def trial(new_trial: Callable[..., Trial]) -> Trial:
    """A small installation: one device, one volume of 256 MiB."""
    return new_trial("--device-size", "4Gi", "--size", "256Mi")


@pytest.fixture(scope="session")
def installation(request: pytest.FixtureRequest) -> Iterator[Trial]:
    """One trial, shared by all tests that need only a volume."""
    with rooms.room(request.config) as folder:
        trial = Trial(folder / "trial", ["--device-size", "64Gi", "--size", "16Mi"])
        trial.up()
        yield trial
        leave(trial, request.config)


@pytest.fixture
def volume_bytes() -> int:
    return 256 << 20


@pytest.fixture
def volume(installation: Trial, volume_bytes: int, expected_in_logs: tuple[str, ...]) -> Iterator[str]:
    """The NBD URI of a volume that only this test uses."""
    if not installation.running():  # an earlier test ended the daemon and has failed for it; this one has not
        installation.start()
    name = f"volume-{next(_numbers)}"
    yield asyncio.run(installation.make_volume(name, volume_bytes))
    if installation.running():
        asyncio.run(installation.delete_volume(name))
    logs.check(installation.directory, expected_in_logs)


@pytest.fixture
def new_disk(room: Path, new_trial: Callable[..., Trial]) -> Iterator[Callable[[str], Disk]]:
    """Creates block devices from NBD URIs. All are removed before the trials, also when their servers have ended."""
    made: list[Disk] = []

    def make(uri: str) -> Disk:
        disk = Disk(uri, room / f"disk{len(made)}")
        made.append(disk)
        disk.attach()
        return disk

    yield make
    for disk in reversed(made):
        disk.detach()


@pytest.fixture
def disk(new_disk: Callable[[str], Disk], volume: str) -> Disk:
    """The volume as a block device."""
    return new_disk(volume)
