"""The gRPC codes that the CSI specification names, where they differ from those of the control API (iomesh.errors)."""

from __future__ import annotations

from iomesh.errors import IomeshError, meaning


class OutOfRange(IomeshError):
    """A capacity that no volume can have, or not this one."""


CODES: dict[type[IomeshError], str] = {OutOfRange: "OUT_OF_RANGE"}


def csi_code(error: IomeshError) -> str:
    """The name of a grpc.StatusCode. InUse is FAILED_PRECONDITION, NoSpace is RESOURCE_EXHAUSTED, Conflict (an
    operation is under way, a token is not valid any more) is ABORTED: as in the control API."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), meaning(error).grpc_code)
