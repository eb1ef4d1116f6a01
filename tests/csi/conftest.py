"""A trial cluster of three nodes for the tests of the CSI driver, and a driver on the first of them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import rooms
from support.csi import Driver, exported
from support.run import tool
from support.trial import Trial


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Trial]:
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse: loop devices and mounts")
    for program, package in (("nbdkit", "nbdkit"), ("nbdfuse", "libnbd-bin"), ("mkfs.xfs", "xfsprogs")):
        tool(program, package)
    with rooms.room(request.config) as folder:
        trial = Trial(folder / "t", ["--nodes", "3", "--replicas", "2", "--device-size", "32Gi", "--size", "16Mi"])
        trial.up()
        yield trial
        trial.down()


@pytest.fixture
def controls(cluster: Trial) -> list[str]:
    return [str(node["control"]) for node in cluster.described["nodes"]]


@pytest.fixture
def new_driver(cluster: Trial, controls: list[str], room: Path) -> Iterator[Callable[..., Driver]]:
    """Drivers that leave nothing behind; the first argument is the number of the driver's node."""
    made: list[Driver] = []

    def make(node: int = 0, *options: str) -> Driver:
        driver = Driver(room / f"d{len(made)}", controls[node : node + 1], *options)
        made.append(driver)
        driver.start()
        return driver

    before = exported(controls)
    yield make
    left = [each for driver in made for each in driver.remains()]
    for driver in made:
        driver.stop()
        driver.clear()
    assert left == [], "the driver has left this behind"
    assert exported(controls) == before, "exports that were not there before"


@pytest.fixture
def driver(new_driver: Callable[..., Driver]) -> Driver:
    return new_driver()
