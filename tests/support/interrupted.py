"""Commands whose daemon is killed before it answers."""

from collections.abc import Awaitable
from typing import Any

import grpc

from iomesh.api.status import sent_error
from iomesh.errors import Unavailable


async def was_answered(command: Awaitable[Any]) -> bool:
    """Whether the command was answered; False if the daemon ended first. Raises the daemon's own errors, also
    Unavailable: a failed volume is no kill.
    """
    try:
        await command
    except Unavailable as error:
        if not _went_away(error):
            raise
        return False
    return True


def _went_away(error: Unavailable) -> bool:
    """The error is the transport's: an error of the daemon has its details in the trailing metadata."""
    call = error.__context__
    return isinstance(call, grpc.aio.AioRpcError) and sent_error(call) is None
