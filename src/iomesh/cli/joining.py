"""How a node joins a cluster with a token: what `iomesh cluster join` does, and `iomesh trial up` for all its nodes but
the first."""

import uuid
from pathlib import Path
from time import time_ns as now_ns

from google.protobuf.timestamp_pb2 import Timestamp

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.client import Client, Credentials
from iomesh.certificates.authority import Signed, check_pair, new_request
from iomesh.certificates.files import Identity, refuse_existing, write_identity
from iomesh.certificates.token import JoinToken, read_token
from iomesh.errors import Foreign, IomeshError, Unreachable
from iomesh.peers.handshake import VERSIONS

ANSWER_SECONDS = 30.0


async def join(text: str, node: str, directory: Path, *, version: str, cluster: uuid.UUID | None = None) -> Identity:
    """Writes what the node gets to a new directory. cluster: that the node's configuration names. After an error there
    is no directory."""
    token = read_token(text)
    refuse_existing(directory)
    if cluster not in (None, token.cluster):
        raise Foreign(
            f"the join token is of cluster {token.cluster}, and the configuration says {cluster}: use a token of that "
            "cluster, or correct `cluster`"
        )
    request, key = new_request()
    now = Timestamp()
    now.FromNanoseconds(now_ns())
    answer = await _ask(
        token,
        pb.JoinRequest(
            node=node,
            certificate_request=request,
            cluster=str(cluster or ""),
            lowest_protocol=VERSIONS[0],
            highest_protocol=VERSIONS[1],
            version=version,
            time=now,
        ),
    )
    check_pair(answer.certificate, key, answer.authority)
    identity = Identity(
        uuid.UUID(answer.cluster),
        node,
        Signed(answer.authority, answer.authority_key),
        Signed(answer.certificate, key),
        answer.cluster_key,
    )
    write_identity(directory, identity)
    return identity


async def _ask(token: JoinToken, request: pb.JoinRequest) -> pb.JoinResponse:
    """Of the first node that answers."""
    failed: IomeshError = IomeshError("the join token names no node")
    credentials = Credentials(token.authority, token.certificate, token.key)
    for address in token.addresses:
        try:
            async with Client(address, timeout_seconds=ANSWER_SECONDS, credentials=credentials) as client:
                return await client.join(request)
        except Unreachable as error:
            failed = Unreachable(
                f"no node of cluster {token.cluster} answers at {address} ({error.reason}): see that the daemon which "
                "made the token runs, and can be reached from here",
                address=address,
                reason=error.reason,
            )
    raise failed
