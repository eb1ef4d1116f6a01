"""Errors on the wire: a google.rpc.Status with one ErrorInfo, in a call's trailing metadata (docs/api.md, "Errors").

ErrorInfo.reason is the name of the error's class in capitals (NOT_FOUND is NotFound), its domain DOMAIN.
"""

from __future__ import annotations

import re

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from iomesh.errors import IomeshError, from_wire, meaning

DOMAIN = "iomesh"
DETAILS = "grpc-status-details-bin"  # trailing metadata: the serialized Status

Trailing = tuple[tuple[str, str | bytes], ...]


def reason_of(kind: type[IomeshError]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).upper()


def status_of(error: IomeshError, node: str) -> status_pb2.Status:
    """node: that refused."""
    code = grpc.StatusCode[meaning(error).grpc_code]
    status = status_pb2.Status(code=code.value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=reason_of(type(error)), domain=DOMAIN, metadata={"node": node})
    status.details.add().Pack(info)
    return status


def trailing_of(error: IomeshError, node: str) -> Trailing:
    """What goes with a refusal by this node."""
    return tuple(rpc_status.to_status(status_of(error, node)).trailing_metadata)


def sent_error(call: grpc.aio.AioRpcError) -> IomeshError | None:
    """The error that a node raised. None: it is gRPC's own, such as a connection that was refused."""
    for key, value in call.trailing_metadata() or ():
        if key != DETAILS or not isinstance(value, bytes):
            continue
        if (error := error_of(status_pb2.Status.FromString(value))) is not None:
            return error
    return None


def error_of(status: status_pb2.Status) -> IomeshError | None:
    """None: it is not one of iomesh."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            code = next(each.name for each in grpc.StatusCode if each.value[0] == status.code)
            return from_wire(info.reason.title().replace("_", ""), code, status.message)
    return None
