"""Nodes that join the cluster: tokens, and what is given for one.

A token is a record in the metadata service and a client certificate whose role is to join. Whether it may still be used
is decided by a compare-and-swap of the record, so of two nodes that use it at once one joins. The name is reserved
first: a refused name costs no token.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from iomesh.api import iomesh_pb2 as pb
from iomesh.api.model import JoinToken
from iomesh.certificates.authority import fingerprint
from iomesh.certificates.files import Identity
from iomesh.certificates.token import JoinToken as TokenText
from iomesh.errors import (
    AlreadyExists,
    Conflict,
    Foreign,
    InUse,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unsupported,
)
from iomesh.metadata import Delete, Metadata, MetadataUnavailable
from iomesh.metadata.nodes import decode_node, node_key
from iomesh.metadata.records import (
    MemberRecord,
    TokenRecord,
    Versioned,
    decode,
    device_key,
    member_key,
    put_member,
    put_token,
    token_key,
)
from iomesh.node.cluster import Cluster
from iomesh.node.config import is_node_name
from iomesh.node.logs import logger
from iomesh.node.metadata_calls import answered
from iomesh.node.tenure import has_ended
from iomesh.peers.handshake import VERSIONS
from iomesh.peers.messages import common_version
from iomesh.times import SECOND_NS, exact_time, time_of

if TYPE_CHECKING:
    from iomesh.node.node import Node

log = logger("joining")
TOKEN_SECONDS, TOKEN_SECONDS_MAX = 3600, 7 * 24 * 3600
DAY_SECONDS = 24 * 3600
CLOCK_SECONDS_MAX = 60.0  # by which the clock of a node that joins may differ


class Joining:
    def __init__(self, node: Node, address: str) -> None:
        """address: of this node's control API, for others. Raises Unsupported if the node cannot let others join."""
        identity = node.certificates
        if identity is None or not identity.may_sign:
            what = "no certificates" if identity is None else "no key of the cluster's certificate authority"
            raise Unsupported(
                f"node {node.name} has {what} ({node.config.certificates}), so no other can join by it: "
                "`iomesh cluster init` makes a cluster; or ask a node that has them"
            )
        if "/" in address:
            raise Unsupported(
                f"node {node.name} has no address for other machines, so no other can join by it: set control.listen"
            )
        self._node = node
        self._metadata = node.metadata
        self._address = address
        self._identity: Identity = identity

    async def create_token(self, seconds: int) -> JoinToken:
        seconds = seconds or TOKEN_SECONDS
        if seconds > TOKEN_SECONDS_MAX:
            raise InvalidArgument(f"a join token for {seconds} s: at most {TOKEN_SECONDS_MAX}, which is a week")
        record = TokenRecord(id=uuid.uuid4(), expires_ns=time.time_ns() + seconds * SECOND_NS)
        await answered(self._metadata.commit(put_token(record, 0)))
        # The record decides; the certificate lasts longer, so that whoever comes too late gets the reason.
        certificate, key = self._identity.sign().join(record.id, seconds / DAY_SECONDS + 1)
        token = TokenText(
            id=record.id,
            cluster=self._identity.cluster,
            expires_ns=record.expires_ns,
            addresses=[self._address],
            authority=self._identity.authority.certificate,
            certificate=certificate,
            key=key,
        )
        log.info("join token made", id=str(record.id), seconds=seconds)
        return JoinToken(token=token.text(), id=str(record.id), expires_at=time_of(record.expires_ns))

    async def join(self, request: pb.JoinRequest, token: str) -> pb.JoinResponse:
        """token: the id in the client's certificate, which TLS has verified."""
        self._check(request)
        stored = await self._token(token)
        certificate = self._identity.sign().node(request.node, request.certificate_request).certificate
        before = await self._reserve(request.node, stored.record.id, fingerprint(certificate))
        try:
            await self._use(stored, request.node)
        except BaseException:
            await self._metadata.commit(
                Delete(member_key(request.node), None) if before is None else put_member(before, None)
            )
            raise
        log.info("node has joined", node=request.node, token=token, version=request.version)
        return pb.JoinResponse(
            cluster=str(self._identity.cluster),
            authority=self._identity.authority.certificate,
            authority_key=self._identity.authority.key,
            certificate=certificate,
            cluster_key=self._identity.key,
        )

    def _check(self, request: pb.JoinRequest) -> None:
        name, mine = request.node, (VERSIONS[0], VERSIONS[1])
        if not is_node_name(name):
            raise InvalidArgument(f"{name!r} is not a valid node name")
        if request.cluster not in ("", str(self._identity.cluster)):
            raise Foreign(
                f"node {name} belongs to cluster {request.cluster} by its configuration, and this is "
                f"{self._identity.cluster}: use a token of its cluster, or correct `cluster` there"
            )
        theirs = (request.lowest_protocol, request.highest_protocol)
        if common_version(mine, theirs) is None:
            raise Unsupported(
                f"node {name} (iomesh {request.version}) speaks versions {theirs[0]} to {theirs[1]} of the peer "
                f"protocol, and this cluster {mine[0]} to {mine[1]}: update the older one"
            )
        off = clock_offset(request.time.ToDatetime(tzinfo=UTC))
        if abs(off) > CLOCK_SECONDS_MAX:
            raise InvalidArgument(
                f"the clock of node {name} is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} that of node "
                f"{self._node.name}, and may differ by {CLOCK_SECONDS_MAX:g} s: set it, best with NTP"
            )

    async def _token(self, words: str) -> Versioned[TokenRecord]:
        """Raises PermissionDenied if it may not be used."""
        try:
            entry = await answered(self._metadata.get(token_key(uuid.UUID(words))))
        except ValueError:
            entry = None
        if entry is None:
            raise PermissionDenied(
                "the join token is not known to this cluster: make another with `iomesh cluster token`"
            )
        stored = decode(TokenRecord, entry)
        record = stored.record
        if record.used_by:
            raise PermissionDenied(
                f"the join token was used by node {record.used_by} at {_seconds(record.used_ns)}, and it serves once: "
                "make another with `iomesh cluster token`"
            )
        if record.expires_ns <= time.time_ns():
            raise PermissionDenied(
                f"the join token expired at {_seconds(record.expires_ns)}: make another with `iomesh cluster token`"
            )
        return stored

    async def _reserve(self, name: str, token: uuid.UUID, key: str) -> MemberRecord | None:
        """Returns the removed node that had the name. Raises AlreadyExists."""
        before = await _member(self._metadata, name)
        running = await answered(self._metadata.get(node_key(name)))
        taken = running is not None and not has_ended(decode_node(running))
        taken = taken or (before is not None and not before.record.removed_ns)
        if not taken:
            record = MemberRecord(name=name, token=token, joined_ns=time.time_ns(), key=key)
            try:
                await answered(self._metadata.commit(put_member(record, before.version if before else 0)))
            except Conflict:
                taken = True
        if taken:
            raise AlreadyExists(
                f"this cluster has a node {name}: join under another name, or, if that node is gone or is to join "
                f"anew, free its name first (`iomesh cluster remove {name}`)"
            )
        return before.record if before else None

    async def _use(self, stored: Versioned[TokenRecord], node: str) -> None:
        record = msgspec.structs.replace(stored.record, used_by=node, used_ns=time.time_ns())
        try:
            await answered(self._metadata.commit(put_token(record, stored.version)))
        except Conflict:
            raise PermissionDenied(
                "the join token has just been used by another node, and it serves once: make another with "
                "`iomesh cluster token`"
            ) from None


async def _member(metadata: Metadata, name: str) -> Versioned[MemberRecord] | None:
    entry = await answered(metadata.get(member_key(name)))
    return None if entry is None else decode(MemberRecord, entry)


async def register_member(metadata: Metadata, name: str, key: str) -> None:
    """That the node which made the cluster is one of it; those that joined are registered. A metadata service that does
    not answer keeps no node from starting: the next start registers it.

    key: of the node's certificate. Raises PermissionDenied if the node was removed, Foreign if another one has joined
    under its name."""
    with contextlib.suppress(Conflict, MetadataUnavailable):
        found = await _member(metadata, name)
        record = found.record if found is not None else MemberRecord(name=name, joined_ns=time.time_ns())
        if record.removed_ns and record.key in ("", key):
            raise PermissionDenied(
                f"node {name} was removed from the cluster at {_seconds(record.removed_ns)}, so the others refuse its "
                "certificate: remove the directory of its certificates, and let it join again (`iomesh cluster join`)"
            )
        if not record.removed_ns and record.key == key:
            return
        if record.key and record.token is not None and not record.removed_ns:
            raise Foreign(
                f"another node has joined the cluster under the name {name} since this one did: remove the directory "
                "of this node's certificates, and let it join again under another name"
            )
        # It made the cluster, or has made its certificate of the cluster's authority, as nodes do in Kubernetes.
        record = msgspec.structs.replace(
            record, key=key, removed_ns=0, draining=record.draining and not record.removed_ns
        )
        await answered(metadata.commit(put_member(record, found.version if found else 0)))


async def remove_member(metadata: Metadata, cluster: Cluster, name: str, *, forget_devices: bool) -> None:
    """From now on its certificate is refused, and its name is free. Its devices are forgotten, too, if it was drained
    or forget_devices is set: copies that were on them are made elsewhere. Otherwise they stay its own. Raises InUse
    while its daemon runs, or if a volume's data is only on them; NotFound if it has not joined."""
    running = await answered(metadata.get(node_key(name)))
    if running is not None and not has_ended(decode_node(running)):
        raise InUse(
            f"node {name} runs: stop its daemon first; a node that has just been lost counts as running until its "
            "lease ends"
        )
    found = await _member(metadata, name)
    if found is None or found.record.removed_ns:
        raise NotFound(f"no node {name!r} has joined this cluster: `iomesh cluster nodes` lists its nodes")
    forgotten = [device for device in cluster.devices() if device.node == name]
    if not (forget_devices or found.record.draining):
        forgotten = []
    check_no_last_copies(cluster, name, {device.number for device in forgotten})
    removed = msgspec.structs.replace(found.record, removed_ns=time.time_ns())
    await answered(metadata.commit(put_member(removed, found.version)))
    for device in forgotten:
        entry = await answered(metadata.get(device_key(device.id)))
        if entry is not None:
            await answered(metadata.commit(Delete(entry.key, entry.version)))
    log.info("node removed", node=name, devices_forgotten=len(forgotten))


def check_no_last_copies(cluster: Cluster, name: str, devices: set[int]) -> None:
    """Raises InUse if a volume needs one of these devices of the node: it has no replicas, or nobody else has what was
    written last."""
    for stored in cluster.volumes() if devices else ():
        record, its_log = stored.volume.record, stored.log.record
        alone = record.policy.replicas == 1 and its_log.owner == name
        if alone or any(set(fragment.devices) <= devices for fragment in its_log.fragments):
            raise InUse(
                f"the devices of node {name} cannot be forgotten: data of volume {record.name} is only on them. Start "
                "the node, or delete the volume"
            )


def clock_offset(theirs: datetime) -> float:
    """Seconds by which another clock is ahead of this machine's."""
    return (theirs - datetime.now(UTC)).total_seconds()


def _seconds(time_ns: int) -> str:
    return exact_time(time_ns // SECOND_NS * SECOND_NS)
