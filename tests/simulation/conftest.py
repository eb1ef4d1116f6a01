"""Fixtures of the simulation tests."""

import os

import pytest


@pytest.fixture(scope="session")
def day(request: pytest.FixtureRequest) -> str:
    """The day whose seeds are run."""
    given = str(request.config.getoption("--seeds-of"))
    print(f"seeds of {given}")
    return given


@pytest.fixture(scope="session")
def processes() -> int:
    """Number of parallel runs: pytest-xdist's workers already share the cores."""
    return 1 if "PYTEST_XDIST_WORKER" in os.environ else os.cpu_count() or 1
