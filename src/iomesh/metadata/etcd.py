"""Metadata in etcd: a key below a prefix per entry, and etcd's leases (docs/metadata.md, *In etcd*).

- The version of an entry is the revision of its last change, which a transaction of one key compares and swaps.
- Reads are linearisable: no read asks a member for what it has by itself.
- A commit is sent once. One that got no answer is unknown; the caller repeats it.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from iomesh.errors import ConfigError, Conflict, NotFound
from iomesh.metadata import etcd_pb2 as pb
from iomesh.metadata.etcd_api import EtcdAccess, EtcdApi
from iomesh.metadata.protocol import (
    Change,
    Delete,
    Entry,
    HistoryLost,
    Listing,
    MetadataUnavailable,
    Operation,
    check_key,
    check_operation,
)

LIST_LIMIT = 500  # entries in one answer
PREFIX = "/iomesh/"
PREFIXES = re.compile(r"[!-~]{0,200}/", re.ASCII)


class EtcdMetadata:
    """Use `await EtcdMetadata.open(access)`."""

    def __init__(self, access: EtcdAccess, prefix: str) -> None:
        self._api = EtcdApi(access)
        self._prefix = prefix.encode()

    @classmethod
    async def open(cls, access: EtcdAccess, prefix: str = PREFIX) -> EtcdMetadata:
        """`prefix` of all keys, which tells installations in one etcd apart. Raises MetadataUnavailable if none of the
        members answers, PermissionDenied, InvalidArgument."""
        if not PREFIXES.fullmatch(prefix):
            raise ConfigError(f"metadata.prefix: {prefix!r} is not a prefix such as /iomesh/, with a slash at its end")
        metadata = cls(access, prefix)
        try:
            await metadata._ask_any(len(access.endpoints))
        except BaseException:
            await metadata.close()
            raise
        return metadata

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        found = await self._api.call("KV/Range", pb.RangeRequest(key=self._key(key)), pb.RangeResponse)
        return self._entry(found.kvs[0]) if found.kvs else None

    async def list_prefix(self, prefix: str) -> Listing:
        while True:
            try:
                return await self._list_once(prefix)
            except HistoryLost:  # the revision of the first page was compacted: begin anew
                continue

    async def commit(self, operation: Operation) -> int:
        check_operation(operation)
        key = self._key(operation.key)
        transaction = pb.TxnRequest(failure=[pb.RequestOp(request_range=pb.RangeRequest(key=key))])
        if operation.version is not None:
            transaction.compare.append(
                pb.Compare(target=pb.Compare.MOD, result=pb.Compare.EQUAL, key=key, mod_revision=operation.version)
            )
        if isinstance(operation, Delete):
            change = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
        else:
            change = pb.RequestOp(request_put=pb.PutRequest(key=key, value=operation.value, lease=operation.lease or 0))
        transaction.success.append(change)
        answer = await self._api.call("KV/Txn", transaction, pb.TxnResponse)
        if not answer.succeeded:
            found = answer.responses[0].response_range.kvs
            has = found[0].mod_revision if found else 0
            raise Conflict(f"{operation.key} has version {has}, not {operation.version}: it was changed concurrently")
        return answer.header.revision

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
        key = self._prefix + prefix.encode()
        request = pb.WatchCreateRequest(key=key, range_end=_end_of(key), start_revision=after + 1)
        async with aclosing(self._api.watch(request)) as answers:
            async for answer in answers:
                for event in answer.events:
                    removed = event.type == pb.Event.DELETE
                    entry = self._entry(event.kv)
                    yield Change(entry.key, None if removed else entry.value, entry.version)

    async def grant(self, seconds: float) -> int:
        """etcd makes a lease that is shorter than one and a half of its election timeout (1.5 s) as long as that."""
        request = pb.LeaseGrantRequest(TTL=math.ceil(seconds))
        return (await self._api.call("Lease/LeaseGrant", request, pb.LeaseGrantResponse)).ID

    async def renew(self, lease: int) -> None:
        request = pb.LeaseKeepAliveRequest(ID=lease)
        if (await self._api.call("Lease/LeaseKeepAlive", request, pb.LeaseKeepAliveResponse)).TTL <= 0:
            raise NotFound(f"lease {lease} has expired")

    async def revoke(self, lease: int) -> None:
        with contextlib.suppress(NotFound):
            await self._api.call("Lease/LeaseRevoke", pb.LeaseRevokeRequest(ID=lease), pb.LeaseRevokeResponse)

    async def close(self) -> None:
        await self._api.close()

    async def _ask_any(self, members: int) -> None:
        for left in reversed(range(members)):
            try:
                await self._api.call("KV/Range", pb.RangeRequest(key=self._prefix, limit=1), pb.RangeResponse)
                return
            except MetadataUnavailable:
                if not left:
                    raise

    async def _list_once(self, prefix: str) -> Listing:
        key = self._prefix + prefix.encode()
        end, revision = _end_of(key), 0
        entries: list[Entry] = []
        while True:
            request = pb.RangeRequest(key=key, range_end=end, limit=LIST_LIMIT, revision=revision)
            page = await self._api.call("KV/Range", request, pb.RangeResponse)
            entries += map(self._entry, page.kvs)
            revision = revision or page.header.revision
            if not page.more:
                return Listing(entries, revision)
            key = page.kvs[-1].key + b"\0"

    def _key(self, key: str) -> bytes:
        return self._prefix + key.encode()

    def _entry(self, found: pb.KeyValue) -> Entry:
        return Entry(found.key.removeprefix(self._prefix).decode(), found.value, found.mod_revision)


def _end_of(prefix: bytes) -> bytes:
    """The first key behind all that begin with `prefix`, whose last byte is below 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
