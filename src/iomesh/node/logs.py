"""Structured logs on standard error: an event in words, and its facts as fields.

One line each, as JSON (for machines, the default where standard error is no terminal) or as text (for people).
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog

from iomesh.node.config import LogConfig

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor


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
