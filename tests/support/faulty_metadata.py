"""A wrapper of a real metadata service with injected faults."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator

from iomesh.metadata import Change, Entry, Listing, Metadata, MetadataUnavailable, Operation


class Fault(enum.Enum):
    """A fault of a commit. In both cases the outcome is unknown to the caller."""

    NOT_DONE = "the request is lost"
    DONE = "the commit takes place, and its answer is lost"


class FaultyMetadata:
    """`faults` apply to the next commits, one each. While `down` is set, every call fails with it."""

    def __init__(self, real: Metadata) -> None:
        self.real = real
        self.faults: list[Fault] = []
        self.down: Fault | None = None
        self.failed = 0  # number of failed calls

    async def get(self, key: str) -> Entry | None:
        self._fail_if_down()
        return await self.real.get(key)

    async def list_prefix(self, prefix: str) -> Listing:
        self._fail_if_down()
        return await self.real.list_prefix(prefix)

    async def commit(self, operation: Operation) -> int:
        fault = self.faults.pop(0) if self.faults else self.down
        if fault is None:
            return await self.real.commit(operation)
        if fault is Fault.DONE:
            await self.real.commit(operation)
        raise self._failure()

    def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
        return self.real.watch(prefix, after)

    async def grant(self, seconds: float) -> int:
        self._fail_if_down()
        return await self.real.grant(seconds)

    async def renew(self, lease: int) -> None:
        self._fail_if_down()
        await self.real.renew(lease)

    async def revoke(self, lease: int) -> None:
        self._fail_if_down()
        await self.real.revoke(lease)

    async def close(self) -> None:
        await self.real.close()

    def _fail_if_down(self) -> None:
        if self.down is not None:
            raise self._failure()

    def _failure(self) -> MetadataUnavailable:
        self.failed += 1
        return MetadataUnavailable("metadata: disk I/O error")
