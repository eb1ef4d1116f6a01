"""Custom resources of iomesh and their events, in one namespace."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import inf
from typing import Any

from iomesh.errors import IomeshError
from iomesh.metadata.kubernetes_api import KubernetesApi, Object, Refused

GROUP, VERSION = "iomesh.dev", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KINDS = {"iomeshclusters": "IOMeshCluster", "storagenodes": "StorageNode", "devices": "Device", "volumes": "Volume"}
REPORTER = "iomesh.dev/operator"
SIZES = ("freeBytes", "usedBytes")
SIZES_SECONDS = 30.0
MANAGED_BY = {"app.kubernetes.io/managed-by": "iomesh"}


class Objects:
    def __init__(self, api: KubernetesApi, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self._written: dict[str, float] = {}  # when the status of each object was written
        self._told: dict[str, str] = {}  # the last message of each object and reason: an event tells it once

    def path(self, plural: str, name: str = "") -> str:
        folder = f"/apis/{API_VERSION}/namespaces/{self.namespace}/{plural}"
        return f"{folder}/{name}" if name else folder

    async def list(self, plural: str, labels: Mapping[str, str] | None = None) -> list[Object]:
        params = {"labelSelector": ",".join(f"{key}={value}" for key, value in labels.items())} if labels else None
        answer = await self.api.request("GET", self.path(plural), params=params)
        # The items of a list do not name their kind.
        return [{"apiVersion": API_VERSION, "kind": KINDS[plural]} | item for item in answer["items"]]

    async def get(self, plural: str, name: str) -> Object | None:
        return await self.read(self.path(plural, name))

    async def read(self, path: str) -> Object | None:
        try:
            return await self.api.request("GET", path)
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    async def ensure(self, plural: str, name: str, spec: Object, labels: Mapping[str, str] | None = None) -> Object:
        """The object; it is created if there is none."""
        if (found := await self.get(plural, name)) is not None:
            return found
        metadata = {"name": name, "namespace": self.namespace, "labels": MANAGED_BY | dict(labels or {})}
        return await self.api.request(
            "POST",
            self.path(plural),
            {"apiVersion": API_VERSION, "kind": KINDS[plural], "metadata": metadata, "spec": spec},
        )

    async def set_status(self, plural: str, found: Object, status: Object) -> None:
        """Writes it if it is another one; if only sizes have changed, which happens all the time, not more often than
        every SIZES_SECONDS. Somebody else's change in between is a Refused: the next round repeats."""
        before, place = found.get("status") or {}, found["metadata"]["uid"]
        if before == status:
            return
        clock = asyncio.get_running_loop().time()
        if _without_sizes(before) == _without_sizes(status) and clock - self._written.get(place, -inf) < SIZES_SECONDS:
            return
        self._written[place] = clock
        name = found["metadata"]["name"]
        await self.api.request("PUT", f"{self.path(plural, name)}/status", found | {"status": status})

    async def delete(self, plural: str, found: Object) -> None:
        """The object alone: none of iomesh's objects owns data."""
        with contextlib.suppress(Refused):
            await self.api.request("DELETE", self.path(plural, found["metadata"]["name"]))

    async def event(self, about: Object, kind: str, reason: str, message: str) -> None:
        """kind: Normal or Warning. One that was told already is not repeated; one that cannot be written is dropped, as
        everywhere in Kubernetes: the object's conditions have the state."""
        metadata = about["metadata"]
        place = f"{metadata['uid']}/{reason}"
        if self._told.get(place) == message:
            return
        self._told[place] = message
        name = f"{metadata['name'][:200]}.{secrets.token_hex(6)}"
        regarding = {key: metadata.get(key, "") for key in ("name", "namespace", "uid", "resourceVersion")}
        with contextlib.suppress(IomeshError):
            await self.api.request(
                "POST",
                f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events",
                {
                    "apiVersion": "events.k8s.io/v1",
                    "kind": "Event",
                    "metadata": {"name": name, "namespace": self.namespace},
                    "regarding": {"apiVersion": about["apiVersion"], "kind": about["kind"]} | regarding,
                    "type": kind,
                    "reason": reason,
                    "note": message[:1000],
                    "action": reason,
                    "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                    "reportingController": REPORTER,
                    "reportingInstance": REPORTER,
                },
            )


def _without_sizes(status: Object) -> Object:
    return {key: value for key, value in status.items() if key not in SIZES}


def condition(
    before: Sequence[Object], kind: str, holds: bool | None, reason: str, message: str = "", generation: int = 0
) -> Object:
    """A condition; its time of change is kept while it has the same status. holds: None: unknown."""
    status = {True: "True", False: "False", None: "Unknown"}[holds]
    old = next((each for each in before if each["type"] == kind and each["status"] == status), None)
    made: Object = {"type": kind, "status": status, "reason": reason, "message": message[:1000]}
    made["lastTransitionTime"] = old["lastTransitionTime"] if old else now()
    if generation:
        made["observedGeneration"] = generation
    return made


def conditions_of(found: Object) -> list[Object]:
    return list((found.get("status") or {}).get("conditions") or [])


def holds(found: Object, kind: str) -> bool:
    return any(each["type"] == kind and each["status"] == "True" for each in conditions_of(found))


def object_name(text: str) -> str:
    """A name that Kubernetes allows, as similar as may be."""
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")[:250]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def nested(thing: Any, *keys: str, default: Any = None) -> Any:
    for key in keys:
        thing = thing.get(key) if isinstance(thing, Mapping) else None
    return default if thing is None else thing
