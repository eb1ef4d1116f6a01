"""Time spans and points in time as people write and read them: "24h", "1h 30m", "7 days"; "2 minutes ago",
"2026-11-27T14:05:00Z", "14:05".

One syntax everywhere (flags, configuration, Kubernetes). A point in time without a zone is in this machine's.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

SECOND_NS = 10**9
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_WORDS = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h", "hr": "h", "day": "d", "week": "w"}
_PIECE = re.compile(r"(\d+)\s*([a-z]+)[\s,]*", re.ASCII)


class TimeError(ValueError):
    """The text is no span or point in time; the message names it, the reason and a valid example."""


def parse_span(text: str) -> int:
    """The seconds that `text` means; "0" and "off" are 0. Raises TimeError."""
    folded = text.strip().lower()
    if folded in ("0", "off"):
        return 0
    seconds, at = 0, 0
    while at < len(folded):
        piece = _PIECE.match(folded, at)
        unit = _unit(piece[2]) if piece else None
        if piece is None or unit is None:
            raise TimeError(f"{text!r} is not a span of time: write a number and a unit, such as 24h, 90m or 7d")
        seconds += int(piece[1]) * UNITS[unit]
        at = piece.end()
    if not seconds:
        raise TimeError(f"{text!r} is not a span of time: write a number and a unit, such as 24h, 90m or 7d")
    return seconds


def exact_span(seconds: int) -> str:
    """`seconds` as text that parse_span reads back: "24h", "1h30m", "0"."""
    pieces = []
    for unit in ("d", "h", "m", "s"):
        count, seconds = divmod(seconds, UNITS[unit])
        if count:
            pieces.append(f"{count}{unit}")
    return "".join(pieces) or "0"


class RequestedTime(NamedTuple):
    """A point in time as a client requests it: a Unix time, or how long ago, which the node resolves by log time."""

    at_ns: int = 0
    ago_ns: int | None = None


def parse_time(text: str, now_ns: int) -> RequestedTime:
    """The meaning of `text`: a span and "ago", a time of the day of `now_ns`, or RFC 3339. Raises TimeError."""
    stripped = text.strip()
    if stripped.lower() == "now":
        return RequestedTime(ago_ns=0)
    if stripped.lower().endswith("ago"):
        return RequestedTime(ago_ns=parse_span(stripped[:-3]) * SECOND_NS)
    try:
        if re.fullmatch(r"\d\d:\d\d(:\d\d)?", stripped):
            stripped = f"{datetime.fromtimestamp(now_ns / SECOND_NS).astimezone().date().isoformat()}T{stripped}"
        time = datetime.fromisoformat(stripped)
    except ValueError:
        raise TimeError(
            f"{text!r} is not a point in time: write how long ago, such as '2 minutes ago', or when, such as "
            "2026-11-27T14:05:00Z or 14:05"
        ) from None
    time = time if time.tzinfo else time.astimezone()
    return RequestedTime(at_ns=int(time.replace(microsecond=0).timestamp()) * SECOND_NS + time.microsecond * 1000)


def exact_time(nanoseconds: int) -> str:
    """A Unix time as RFC 3339, in UTC, to the second or, if that is not exact, to the millisecond or finer."""
    text = datetime.fromtimestamp(nanoseconds // SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{nanoseconds % SECOND_NS:09d}".rstrip("0")
    return f"{text}.{fraction:0<3}Z" if fraction else f"{text}Z"


def time_of(nanoseconds: int) -> datetime:
    """A Unix time as a datetime in UTC, truncated to microseconds."""
    return datetime.fromtimestamp(nanoseconds // SECOND_NS, UTC) + timedelta(
        microseconds=nanoseconds % SECOND_NS // 1000
    )


def _unit(word: str) -> str | None:
    word = word if word in UNITS else _WORDS.get(word, _WORDS.get(word.removesuffix("s"), ""))
    return word or None
