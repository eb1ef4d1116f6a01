"""What the tests of the simulated world share."""

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
    """How many runs at once: pytest-xdist's workers share the cores already."""
    return 1 if "PYTEST_XDIST_WORKER" in os.environ else os.cpu_count() or 1
