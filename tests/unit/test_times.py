"""Spans and points in time: written forms have one meaning, and what is printed reads back."""

import random
from datetime import UTC, datetime

import pytest

from iomesh.times import SECOND_NS, RequestedTime, TimeError, exact_span, exact_time, parse_span, parse_time, time_of

NOW = int(datetime(2026, 11, 27, 15, 30, tzinfo=UTC).timestamp()) * SECOND_NS


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("24h", 86400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("7 days", 7 * 86400),
        ("2 minutes", 120),
        ("1 hour, 5 min", 3900),
        ("2W", 14 * 86400),
        ("off", 0),
        ("0", 0),
    ],
)
def test_what_people_write_is_read(text: str, seconds: int) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "-5m", "5 fortnights", "1.5h", "0m", "5m later", "m5"])
def test_what_is_no_span_is_refused_and_named(text: str) -> None:
    with pytest.raises(TimeError, match=r"is not a span of time: write"):
        parse_span(text)


def test_spans_are_printed_so_that_they_read_back() -> None:
    draw = random.Random(1)
    for _ in range(1000):
        seconds = draw.randrange(1, 10**7)
        assert parse_span(exact_span(seconds)) == seconds
    assert (exact_span(5400), exact_span(0)) == ("1h30m", "0")


@pytest.mark.parametrize(
    ("text", "before_seconds"),
    [
        ("now", 0),
        ("2 minutes ago", 120),
        ("10s ago", 10),
        ("1h30m ago", 5400),
        ("2026-11-27T15:29:59Z", 1),
        ("2026-11-27T15:29:59.5Z", 0.5),
        ("2026-11-27T16:29:00+01:00", 60),
    ],
)
def test_a_point_in_time_is_how_long_ago_or_when(text: str, before_seconds: float) -> None:
    time, before_ns = parse_time(text, NOW), int(before_seconds * SECOND_NS)
    assert time == (
        RequestedTime(ago_ns=before_ns)
        if text == "now" or text.endswith("ago")
        else RequestedTime(at_ns=NOW - before_ns)
    )


def test_a_time_without_a_zone_is_local() -> None:
    here = datetime.fromtimestamp(NOW // SECOND_NS)
    assert parse_time(here.strftime("%Y-%m-%dT%H:%M:%S"), NOW).at_ns == NOW
    assert parse_time(here.strftime("%H:%M"), NOW).at_ns == NOW
    assert parse_time(here.strftime("%H:%M:%S"), NOW + 5 * SECOND_NS).at_ns == NOW


@pytest.mark.parametrize("text", ["yesterday", "", "25:00", "2026-13-01T00:00:00Z", "soon ago", "tomorrow"])
def test_an_invalid_time_is_refused_and_named(text: str) -> None:
    with pytest.raises(TimeError, match=r"is not a (point in|span of) time: write"):
        parse_time(text, NOW)


def test_printed_times_read_back() -> None:
    draw = random.Random(2)
    for _ in range(1000):
        time = draw.randrange(0, 4 * 10**18) // 1000 * 1000
        assert parse_time(exact_time(time), NOW).at_ns == time
    assert time_of(NOW + 1_999) == datetime(2026, 11, 27, 15, 30, 0, 1, tzinfo=UTC)
    assert exact_time(NOW) == "2026-11-27T15:30:00Z"
    assert exact_time(NOW + SECOND_NS // 2) == "2026-11-27T15:30:00.500Z"
