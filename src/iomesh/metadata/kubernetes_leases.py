"""Leases of the metadata service as Leases of Kubernetes, and the removal of what an ended lease holds.

Kubernetes ends no Lease by itself. Every client watches all of them: one that stays unchanged for its duration, by the
watcher's own monotonic clock since it saw the last change, has ended. The watcher deletes it on the condition that it
is unchanged, so a renewal that is on its way wins or finds it gone, and then the entries that name it. So no two clocks
are compared. While a watcher does not reach the API server it ends nothing, and after that every lease has its full
duration again: an outage of the API server ends no lease whose holder goes on renewing it.

A crash between the two deletions leaves entries of a lease that is gone: they are removed whenever a client lists the
leases, at its start and after an interruption.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import platform
import random
import secrets
from contextlib import aclosing
from datetime import UTC, datetime
from typing import NamedTuple

from iomesh.errors import IomeshError, NotFound
from iomesh.metadata.kubernetes_api import MERGE_PATCH, KubernetesApi, Object, Refused
from iomesh.metadata.protocol import MetadataUnavailable

LEASE_LABEL = "iomesh.dev/lease"
SECONDS_ANNOTATION = "iomesh.dev/seconds"  # exact; leaseDurationSeconds is a whole number
PAUSE_SECONDS = 0.5  # before a watch that broke is begun again; up to twice that


class Seen(NamedTuple):
    metadata: Object
    seconds: float
    ends: float  # of the event loop's clock


class Leases:
    def __init__(self, api: KubernetesApi, namespace: str, records: str) -> None:
        """records: path of the entries' objects."""
        self._api = api
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._records = records
        self._namespace = namespace
        self._seen: dict[str, Seen] = {}  # by name
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises what the first list of the leases raises."""
        self._task = asyncio.create_task(self._follow(await self._observe_all()), name="leases")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def grant(self, seconds: float) -> int:
        lease = secrets.randbits(62) + 1
        now = _now()
        try:
            await self._api.request(
                "POST",
                self._path,
                {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {
                        "name": lease_name(lease),
                        "namespace": self._namespace,
                        "labels": {LEASE_LABEL: lease_name(lease), "app.kubernetes.io/managed-by": "iomesh"},
                        "annotations": {SECONDS_ANNOTATION: repr(seconds)},
                    },
                    "spec": {
                        "holderIdentity": platform.node(),
                        "leaseDurationSeconds": max(1, math.ceil(seconds)),
                        "acquireTime": now,
                        "renewTime": now,
                    },
                },
            )
        except Refused as refused:
            raise MetadataUnavailable(f"Kubernetes refuses a lease: {refused.message}") from refused
        return lease

    async def renew(self, lease: int) -> None:
        try:
            await self._api.request(
                "PATCH", self._one(lease_name(lease)), {"spec": {"renewTime": _now()}}, content_type=MERGE_PATCH
            )
        except Refused as refused:
            raise _ended(lease, refused) from refused

    async def require(self, lease: int) -> None:
        """Raises NotFound if it has ended."""
        try:
            await self._api.request("GET", self._one(lease_name(lease)))
        except Refused as refused:
            raise _ended(lease, refused) from refused

    async def revoke(self, lease: int) -> None:
        with contextlib.suppress(Refused):  # it has ended
            await self._api.request("DELETE", self._one(lease_name(lease)))
        await self.remove_entries(lease_name(lease))

    async def remove_entries(self, name: str) -> None:
        """Removes what the lease holds, which has ended. An entry that was put again meanwhile stays, if it is not
        under that lease."""
        while found := await self._list(self._records, f"{LEASE_LABEL}={name}"):
            for record in found:
                await self._delete(f"{self._records}/{record['metadata']['name']}", record["metadata"])

    async def _follow(self, listed: str | None) -> None:
        """Ends leases, endlessly. `listed`: the resource version to watch from; None: list first. While the API server
        does not answer, none is ended; whoever grants or renews one learns why."""
        while True:
            with contextlib.suppress(IomeshError):
                if listed is None:
                    listed = await self._observe_all()
                async with asyncio.TaskGroup() as group:
                    ending = group.create_task(self._end_all())
                    with contextlib.suppress(IomeshError):
                        await self._watch(listed)
                    ending.cancel()
            listed = None
            await asyncio.sleep(random.uniform(PAUSE_SECONDS, 2 * PAUSE_SECONDS))

    async def _observe_all(self) -> str:
        """Every lease, as new, and what is left of others. Returns the resource version to watch from."""
        held = await self._list(self._records, LEASE_LABEL)
        answer = await self._api.request("GET", self._path, params={"labelSelector": LEASE_LABEL})
        self._seen.clear()
        for lease in answer["items"]:
            self._observe(lease)
        for name in {record["spec"].get("lease", "") for record in held} - set(self._seen):
            await self.remove_entries(name)
        return str(answer["metadata"]["resourceVersion"])

    async def _watch(self, after: str) -> None:
        async with aclosing(self._api.watch(self._path, after, {"labelSelector": LEASE_LABEL})) as events:
            async for kind, thing in events:
                if kind in ("ADDED", "MODIFIED"):
                    self._observe(thing)
                elif kind == "DELETED":
                    self._seen.pop(thing["metadata"]["name"], None)
                    await self.remove_entries(thing["metadata"]["name"])

    def _observe(self, lease: Object) -> None:
        metadata = lease["metadata"]
        try:
            seconds = float(metadata.get("annotations", {})[SECONDS_ANNOTATION])
        except (KeyError, ValueError):
            seconds = float(lease["spec"].get("leaseDurationSeconds", 60))
        self._seen[metadata["name"]] = Seen(metadata, seconds, asyncio.get_running_loop().time() + seconds)
        self._changed.set()

    async def _end_all(self) -> None:
        """Ends the leases whose time has come, one after the other."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            name, seen = min(self._seen.items(), key=lambda each: each[1].ends, default=("", None))
            if seen is None or seen.ends > loop.time():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if seen is None else seen.ends - loop.time()):
                        await self._changed.wait()
                continue
            # Whatever the answer is, it is not asked again at once: the watch brings what changed.
            self._seen[name] = seen._replace(ends=loop.time() + seen.seconds)
            with contextlib.suppress(IomeshError):
                if await self._delete(self._one(name), seen.metadata):
                    await self.remove_entries(name)

    async def _list(self, path: str, selector: str) -> list[Object]:
        try:
            answer = await self._api.request("GET", path, params={"labelSelector": selector})
        except Refused as refused:
            raise MetadataUnavailable(f"Kubernetes refuses a list: {refused.message}") from refused
        return list(answer["items"])

    async def _delete(self, path: str, metadata: Object) -> bool:
        """Whether the object, unchanged since it was read, is removed."""
        conditions = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        try:
            await self._api.request(
                "DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions}
            )
        except Refused:
            return False
        return True

    def _one(self, name: str) -> str:
        return f"{self._path}/{name}"


def lease_name(lease: int) -> str:
    return f"iomesh-{lease:016x}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _ended(lease: int, refused: Refused) -> IomeshError:
    if refused.status == 404:
        return NotFound(f"lease {lease} has expired")
    return MetadataUnavailable(f"Kubernetes: lease {lease}: {refused.message}")
