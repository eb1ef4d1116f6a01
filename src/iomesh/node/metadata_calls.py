"""Calls of a metadata service that may not answer: bounded in time, or repeated until it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from iomesh.metadata import MetadataUnavailable
from iomesh.node.backoff import pauses
from iomesh.node.logs import logger

ANSWER_SECONDS = 15.0  # a longer call counts as unanswered
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
LOG_SECONDS = 60.0  # between two equal lines

log = logger("metadata")

AnswerT = TypeVar("AnswerT")


async def answered(call: Awaitable[AnswerT]) -> AnswerT:
    """The metadata service's answer within ANSWER_SECONDS. Raises MetadataUnavailable."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await call
    except TimeoutError:
        raise MetadataUnavailable(f"the metadata service has not answered for {ANSWER_SECONDS:g} seconds") from None


async def until_answered(
    call: Callable[[], Awaitable[AnswerT]], waits: Callable[[str], None] = lambda reason: None
) -> AnswerT:
    """Repeats a call, which must be repeatable, until it is answered: for steps of the start that cannot continue
    without it. `waits` receives the reason."""
    logged = float("-inf")
    for pause in pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS):
        try:
            return await answered(call())
        except MetadataUnavailable as error:
            waits(error.message)
            if time.monotonic() - logged >= LOG_SECONDS:
                logged = time.monotonic()
                log.warning("metadata service does not answer; retrying", reason=error.message)
        await asyncio.sleep(pause)
    raise AssertionError("pauses have no end")
