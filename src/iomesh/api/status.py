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


def trailing_of(error: IomeshError, node: str) -> Trailing:
    """What goes with a refusal by this node."""
    code = grpc.StatusCode[meaning(error).grpc_code]
    status = status_pb2.Status(code=code.value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=reason_of(type(error)), domain=DOMAIN, metadata={"node": node})
    status.details.add().Pack(info)
    return tuple(rpc_status.to_status(status).trailing_metadata)


def sent_error(call: grpc.aio.AioRpcError) -> IomeshError | None:
    """The error that a node raised. None: it is gRPC's own, such as a connection that was refused."""
    for key, value in call.trailing_metadata() or ():
        if key != DETAILS or not isinstance(value, bytes):
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                kind = info.reason.title().replace("_", "")
                return from_wire(kind, call.code().name, call.details() or "")
    return None
