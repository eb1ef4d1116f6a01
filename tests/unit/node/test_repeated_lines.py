"""Repeated warnings and errors become one line with a count."""

import contextlib
from typing import Any

import pytest
import structlog

from iomesh.node.logs import Repeats


class Lines:
    """What appears, with a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.seen: list[dict[str, Any]] = []
        self.repeats = Repeats(self._again, seconds=10, clock=lambda: self.now)

    def say(self, event: str, method: str = "error", **fields: Any) -> None:
        with contextlib.suppress(structlog.DropEvent):
            self.seen.append(dict(self.repeats(None, method, {"event": event, "part": "volumes", **fields})))

    def _again(self, method: str, event: Any) -> None:
        self.seen.append(dict(self.repeats(None, method, event)))


@pytest.fixture
def lines() -> Lines:
    return Lines()


def test_eight_thousand_checksum_errors_are_two_lines(lines: Lines) -> None:
    for block in range(8192):
        lines.say("checksum error", volume="db", segment=3, block=block)
    assert [line["block"] for line in lines.seen] == [0], "the first appears at once"
    lines.now += 10
    lines.repeats.flush()
    assert len(lines.seen) == 2
    assert (lines.seen[1]["repeated"], lines.seen[1]["block"]) == (8191, 8191)


def test_each_volume_and_device_and_kind_has_a_line_of_its_own(lines: Lines) -> None:
    for _ in range(50):
        lines.say("checksum error", volume="db")
        lines.say("checksum error", volume="other")
        lines.say("device error", volume="db", store=0)
        lines.say("device error", volume="db", store=1)
    assert len(lines.seen) == 4
    lines.repeats.flush(all_of_them=True)
    assert [line["repeated"] for line in lines.seen[4:]] == [49] * 4


def test_an_event_that_goes_on_has_one_line_per_interval_and_one_that_returns_appears_at_once(lines: Lines) -> None:
    for _ in range(100):  # for 25 s
        lines.say("device error", store=0)
        lines.now += 0.25
        lines.repeats.flush()
    assert [line.get("repeated") for line in lines.seen] == [None, 39, 40]
    lines.now += 10
    lines.repeats.flush()  # the rest
    lines.now += 10
    lines.repeats.flush()
    assert sum(line.get("repeated", 1) for line in lines.seen) == 100
    lines.say("device error", store=0)
    assert "repeated" not in lines.seen[-1]


def test_ordinary_lines_are_not_counted(lines: Lines) -> None:
    for _ in range(3):
        lines.say("checkpoint", "info", volume="db")
    assert len(lines.seen) == 3
