"""For the tests of crashes: the driver kills itself at a named point. Without the environment variable
IOMESH_CSI_TEST_KILL a point does nothing.

The variable names a file with a line for each such point. The driver removes the line of the point that it passes, so
that a repeated call passes it, and ends by SIGKILL.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

VARIABLE = "IOMESH_CSI_TEST_KILL"

# In the order in which calls pass them. Each is the moment after the step that it names.
POINTS = (
    "create: volume made",
    "create: source snapshot made",
    "create: clone made",
    "create: clone grown",
    "stage: recorded",
    "stage: exported",
    "stage: address recorded",
    "stage: connected",
    "stage: server started",
    "stage: file there",
    "stage: device there",
    "stage: formatted",
    "stage: mounted",
    "stage: grown",
    "publish: target made",
    "publish: mounted",
    "publish: read-only",
    "expand: volume grown",
    "expand: device grown",
    "expand: file system grown",
    "snapshot: made",
    "unpublish: unmounted",
    "unpublish: target removed",
    "unstage: unmounted",
    "unstage: device gone",
    "unstage: server gone",
    "unstage: unexported",
    "delete: volume gone",
    "delete: source snapshot gone",
    "delete: snapshot gone",
)

# Those that one method of attaching has alone.
OF_METHOD = {
    "nbd": ("stage: address recorded", "stage: connected"),
    "nbdfuse": ("stage: server started", "stage: file there", "unstage: server gone"),
}


def points(method: str) -> tuple[str, ...]:
    """Of a driver that attaches with this method."""
    others = {point for name, points in OF_METHOD.items() if name != method for point in points}
    return tuple(point for point in POINTS if point not in others)


def passed(point: str) -> None:
    assert point in POINTS, point
    name = os.environ.get(VARIABLE)
    if not name:
        return
    file = Path(name)
    lines = file.read_text().splitlines()
    if point in lines:
        file.write_text("\n".join(line for line in lines if line != point))
        os.kill(os.getpid(), signal.SIGKILL)
