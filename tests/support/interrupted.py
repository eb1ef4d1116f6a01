"""Commands whose daemon is killed before it has answered."""

from collections.abc import Awaitable
from typing import Any

import grpc

from iomesh.api.client import ERROR_KIND
from iomesh.errors import Unavailable


async def was_answered(command: Awaitable[Any]) -> bool:
    """Whether the command was answered; False if its daemon went away before. What the daemon refused it with is raised, also where that is
    Unavailable: a volume that has failed is no kill."""
    try:
        await command
    except Unavailable as error:
        if not _went_away(error):
            raise
        return False
    return True


def _went_away(error: Unavailable) -> bool:
    """Nobody answered: an answer would name the error in its trailing metadata."""
    call = error.__context__
    return isinstance(call, grpc.aio.AioRpcError) and ERROR_KIND not in {key for key, _ in call.trailing_metadata() or ()}
