"""Structured logs on standard error: an event in words, and its facts as fields.

One line each, as JSON (for machines, the default where standard error is no terminal) or as text (for people).

Warnings and errors that repeat are counted: of one kind, on one volume or device, one line appears at once, and then
one per REPEAT_SECONDS with `repeated`, the number of lines that it stands for, and the fields of the last of them.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from iomesh.node.config import LogConfig

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

REPEAT_SECONDS = 10.0
FLUSH_SECONDS = 1.0
LIMITED = ("warning", "error", "critical", "exception")
# A line that differs in one of these fields is about something else. All others (segment, block, reason) are details.
ABOUT = (
    "volume",
    "device",
    "store",
    "path",
    "id",
    "name",
    "snapshot",
    "task",
    "job",
    "step",
    "file",
    "reactor",
    "node",
)


@dataclass
class _Repeated:
    since: float  # of the newest line that appeared
    count: int = 0  # lines withheld since
    method: str = ""
    last: EventDict | None = None  # the newest of them


class Repeats:
    """A structlog processor that withholds repeated lines. `write` gets what `flush` makes of them."""

    def __init__(
        self,
        write: Callable[[str, EventDict], None],
        *,
        seconds: float = REPEAT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._seconds, self._clock = write, seconds, clock
        self._kinds: dict[tuple[Any, ...], _Repeated] = {}
        self._lock = threading.Lock()

    def __call__(self, _logger: object, method: str, event: EventDict) -> EventDict:
        if method not in LIMITED or "repeated" in event:
            return event
        kind = (method, event.get("part"), event.get("event"), *(str(event.get(each)) for each in ABOUT))
        with self._lock:
            known = self._kinds.get(kind)
            if known is None:
                self._kinds[kind] = _Repeated(self._clock())
                return event
            known.count += 1
            known.method, known.last = method, dict(event)
        raise structlog.DropEvent

    def flush(self, *, all_of_them: bool = False) -> None:
        """Writes the counts whose interval is over, and forgets kinds that have not repeated in theirs."""
        now, due = self._clock(), []
        with self._lock:
            for kind, known in list(self._kinds.items()):
                if not all_of_them and now - known.since < self._seconds:
                    continue
                if known.last is None:
                    del self._kinds[kind]
                    continue
                due.append((known.method, {**known.last, "repeated": known.count}))
                self._kinds[kind] = _Repeated(now)
        for method, event in due:
            self._write(method, event)


def _write_again(method: str, event: EventDict) -> None:
    fields = {key: value for key, value in event.items() if key != "event"}
    getattr(structlog.get_logger(), method)(event["event"], **fields)


repeats = Repeats(_write_again)


def flush_repeats(loop: asyncio.AbstractEventLoop) -> None:
    """Writes the counts of repeated lines from now on, as long as the loop runs."""
    repeats.flush()
    loop.call_later(FLUSH_SECONDS, flush_repeats, loop)


def configure(config: LogConfig) -> None:
    terminal = sys.stderr.isatty()
    as_json = config.format == "json" or (config.format == "auto" and not terminal)
    renderer: list[Processor]
    if as_json:
        # Without the values of local variables: logs are often passed on.
        traces = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderer = [structlog.processors.ExceptionRenderer(traces), structlog.processors.JSONRenderer(default=str)]
    else:
        renderer = [structlog.dev.ConsoleRenderer(colors=terminal, pad_event_to=0)]
    level = logging.getLevelNamesMapping()[config.level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            repeats,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _ordered,
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries with standard logging (grpc, asyncio) only log warnings and errors.
    logging.basicConfig(
        level=max(level, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )


def _ordered(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Puts the fields that every line has first."""
    first = {key: event.pop(key) for key in ("time", "level", "part", "event") if key in event}
    return first | dict(event)


def logger(part: str) -> FilteringBoundLogger:
    """Configured on first use: a module creates its logger before logging is configured."""
    lazy: FilteringBoundLogger = structlog.get_logger(part=part)
    return lazy
