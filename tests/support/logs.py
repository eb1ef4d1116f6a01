"""Log messages that are signs of a bug. No daemon may log them, whatever the test does. A test that provokes one
declares it:
`@pytest.mark.logs("stop step failed")`.
"""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

BUGS = (
    "internal error",  # an exception that is not an IomeshError
    "stop step failed",
    "invariant broken",
    "Traceback (most recent call last)",
    "Fatal Python error",
    "exception was never retrieved",
    "was never awaited",
    "exception ignored in",
    "AddressSanitizer",
    "runtime error: ",  # UndefinedBehaviorSanitizer
)
LINES_MAX = 20


def complaints(text: str, expected: Iterable[str] = ()) -> list[str]:
    """Log lines that are signs of a bug, except those that contain an expected text."""
    allowed = tuple(expected)
    return [
        line
        for line in text.splitlines()
        if any(words.lower() in line.lower() for words in BUGS) and not any(words in line for words in allowed)
    ]


def check(folder: Path, expected: Iterable[str] = ()) -> None:
    """Fails the test if any log in the folder has a sign of a bug."""
    check_after(lambda: None, folder, expected)


def check_after(end: Callable[[], None], folder: Path, expected: Iterable[str] = ()) -> None:
    """Checks logs after `end` has run, which may remove the folder."""
    with contextlib.ExitStack() as files:
        logs = [files.enter_context(path.open(errors="replace")) for path in sorted(folder.rglob("*.log"))]
        end()
        for log in logs:
            found = complaints(log.read(), expected)
            assert not found, "\n".join([f"{log.name} shows a bug:", *found[:LINES_MAX]])
