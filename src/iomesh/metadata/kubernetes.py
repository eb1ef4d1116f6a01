"""Metadata in Kubernetes: an object of kind MetadataRecord per key, and Leases (docs/metadata.md, *In Kubernetes*).

- The version of an entry is its object's resource version, which the API server compares and swaps. Resource versions
  of custom resources are the revisions of one etcd, so they rise over all keys.
- Each commit writes a random word as well. So no commit is empty: the API server does not write an object that is
  unchanged. And a commit that was carried out twice on the way (a proxy repeats what it got no answer to) finds its
  own word, and is done rather than refused.
- A removal is answered without its revision: a watch of the object has it.
- Reads ask for no resource version: the API server answers with the newest state.
- Objects that a lease holds name it; kubernetes_leases.py removes them when it ends.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing

from iomesh.errors import ConfigError, Conflict, Damaged, InvalidArgument, NotFound, Unsupported
from iomesh.metadata.kubernetes_api import Access, KubernetesApi, Object, Refused
from iomesh.metadata.kubernetes_leases import LEASE_LABEL, Leases, lease_name
from iomesh.metadata.protocol import (
    Change,
    Delete,
    Entry,
    HistoryLost,
    Listing,
    Operation,
    Put,
    check_key,
    check_operation,
)

GROUP = "iomesh.dev"
API_VERSION = f"{GROUP}/v1alpha1"
KIND, PLURAL = "MetadataRecord", "metadatarecords"
FOLDER_LABEL = f"{GROUP}/folder"  # the first word of the key: a list or watch of "volumes/" asks for it
LIST_LIMIT = 500  # objects in one answer
_SIMPLE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(/[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
NAME_LENGTH_MAX = 200


class KubernetesMetadata:
    """Use `await KubernetesMetadata.open(access)`."""

    def __init__(self, access: Access, namespace: str) -> None:
        self._api = KubernetesApi(access)
        self._path = f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}"
        self.namespace = namespace
        self._leases = Leases(self._api, namespace, self._path)

    @classmethod
    async def open(cls, access: Access, namespace: str = "") -> KubernetesMetadata:
        """`namespace` of the records; empty: that of the access. Raises Unsupported if the cluster does not know the
        kind of the records, PermissionDenied, MetadataUnavailable."""
        if not (namespace or access.namespace):
            raise ConfigError("metadata.namespace is empty, and the kubeconfig names none: set it")
        metadata = cls(access, namespace or access.namespace)
        try:
            await metadata._api.request("GET", metadata._path, params={"limit": "1"})
            await metadata._leases.start()
        except Refused as refused:
            await metadata.close()
            raise Unsupported(
                f"Kubernetes at {access.server} has no {PLURAL}.{GROUP}: install the chart's custom resource "
                f"definitions ({refused.message})"
            ) from refused
        except BaseException:
            await metadata.close()
            raise
        return metadata

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        found = await self._get(key)
        return None if found is None else entry_of(found)

    async def list_prefix(self, prefix: str) -> Listing:
        entries: list[Entry] = []
        params = _selector(prefix) | {"limit": str(LIST_LIMIT)}
        while True:
            try:
                page = await self._api.request("GET", self._path, params=params)
            except Refused as refused:
                if refused.status != 410 or "continue" not in params:
                    raise _invalid(refused) from refused
                entries.clear()  # the point in time of the first page is forgotten: begin anew
                del params["continue"]
                continue
            entries += [entry for entry in map(entry_of, page["items"]) if entry.key.startswith(prefix)]
            if not (following := page["metadata"].get("continue")):
                break
            params["continue"] = following
        return Listing(sorted(entries), int(page["metadata"]["resourceVersion"]))

    async def commit(self, operation: Operation) -> int:
        check_operation(operation)
        if isinstance(operation, Delete):
            return await self._delete(operation)
        if operation.lease is None:
            return await self._put(operation)
        await self._leases.require(operation.lease)
        revision = await self._put(operation)
        try:  # it may have ended meanwhile: then nobody knows of this entry
            await self._leases.require(operation.lease)
        except NotFound:
            await self._leases.remove_entries(lease_name(operation.lease))
            raise
        return revision

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
        if after <= 0:
            raise HistoryLost("there is no history from the beginning: list, and watch from there")
        async with aclosing(self._api.watch(self._path, str(after), _selector(prefix))) as events:
            async for kind, thing in events:
                if kind in ("ADDED", "MODIFIED", "DELETED"):
                    entry = entry_of(thing)
                    if entry.key.startswith(prefix):
                        yield Change(entry.key, None if kind == "DELETED" else entry.value, entry.version)

    async def grant(self, seconds: float) -> int:
        return await self._leases.grant(seconds)

    async def renew(self, lease: int) -> None:
        await self._leases.renew(lease)

    async def revoke(self, lease: int) -> None:
        await self._leases.revoke(lease)

    async def close(self) -> None:
        await self._leases.close()
        await self._api.close()

    async def _get(self, key: str) -> Object | None:
        try:
            found = await self._api.request("GET", f"{self._path}/{object_name(key)}")
        except Refused as refused:
            if refused.status == 404:
                return None
            raise _invalid(refused) from refused
        if entry_of(found).key != key:
            raise Damaged(f"{PLURAL} {object_name(key)} holds the key {entry_of(found).key!r}, not {key!r}")
        return found

    async def _put(self, put: Put) -> int:
        word = secrets.token_hex(8)
        while True:
            version = put.version
            if version is None:
                found = await self._get(put.key)
                version = entry_of(found).version if found else 0
            thing = self._object(put, version, word)
            try:
                if version:
                    written = await self._api.request("PUT", f"{self._path}/{object_name(put.key)}", thing)
                else:
                    written = await self._api.request("POST", self._path, thing)
                return int(written["metadata"]["resourceVersion"])
            except Refused as refused:
                if refused.status not in (404, 409):
                    raise _invalid(refused) from refused
            found = await self._get(put.key)
            if found is not None and found["spec"].get("commit") == word:
                return entry_of(found).version
            if put.version is not None:
                raise _conflict(put.key, found, put.version)

    def _object(self, put: Put, version: int, word: str) -> Object:
        labels = {"app.kubernetes.io/managed-by": "iomesh"} | _folder(put.key)
        spec: Object = {"key": put.key, "commit": word} | _encoded(put.value)
        if put.lease is not None:
            spec["lease"] = labels[LEASE_LABEL] = lease_name(put.lease)
        metadata: Object = {"name": object_name(put.key), "namespace": self.namespace, "labels": labels}
        if version:
            metadata["resourceVersion"] = str(version)
        return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}

    async def _delete(self, delete: Delete) -> int:
        name = {"fieldSelector": f"metadata.name={object_name(delete.key)}"}
        while True:
            before = await self._api.request("GET", self._path, params=name)
            found = before["items"][0] if before["items"] else None
            if delete.version not in (None, entry_of(found).version if found else 0):
                raise _conflict(delete.key, found, delete.version or 0)
            if found is None:
                return int(before["metadata"]["resourceVersion"])
            try:
                await self._api.request("DELETE", f"{self._path}/{object_name(delete.key)}", _exactly(found))
            except Refused as refused:
                if refused.status not in (404, 409):
                    raise _invalid(refused) from refused
                continue
            return await self._removal(name, before["metadata"]["resourceVersion"])

    async def _removal(self, name: dict[str, str], after: str) -> int:
        """The revision of the first removal of an object since `after`."""
        async with aclosing(self._api.watch(self._path, after, name)) as events:
            async for kind, thing in events:
                if kind == "DELETED":
                    return int(thing["metadata"]["resourceVersion"])
        raise AssertionError("a watch has no end")


def object_name(key: str) -> str:
    """A name that Kubernetes allows. That of a plain key can be read (volumes/5f… is volumes.5f…); any other has a hash
    of the key."""
    if len(key) <= NAME_LENGTH_MAX and _SIMPLE.fullmatch(key):
        return key.replace("/", ".")
    readable = re.sub(r"[^a-z0-9]+", "-", key.lower())[:64].strip("-")
    return f"{readable or 'key'}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _folder(key: str) -> dict[str, str]:
    folder, slash, _ = key.partition("/")
    return {FOLDER_LABEL: folder} if slash and _LABEL.fullmatch(folder) else {}


def _selector(prefix: str) -> dict[str, str]:
    folder = _folder(prefix)
    return {"labelSelector": f"{FOLDER_LABEL}={folder[FOLDER_LABEL]}"} if folder else {}


def _encoded(value: bytes) -> dict[str, str]:
    """JSON as it is, for people; anything else in base64."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    return {"text": text} if text.isprintable() else {"base64": base64.b64encode(value).decode()}


def entry_of(thing: Object) -> Entry:
    """Raises Damaged."""
    try:
        spec, version = thing["spec"], int(thing["metadata"]["resourceVersion"])
        value = base64.b64decode(spec["base64"]) if "base64" in spec else spec["text"].encode()
        return Entry(spec["key"], value, version)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        name = thing.get("metadata", {}).get("name", "?")
        raise Damaged(f"{PLURAL} {name}: {type(error).__name__}: {error}") from error


def _exactly(found: Object) -> Object:
    """What a removal demands: that the object is still the one that was read."""
    metadata = found["metadata"]
    conditions = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
    return {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions}


def _conflict(key: str, found: Object | None, version: int) -> Conflict:
    has = entry_of(found).version if found else 0
    return Conflict(f"{key} has version {has}, not {version}: it was changed concurrently")


def _invalid(refused: Refused) -> InvalidArgument:
    return InvalidArgument(f"Kubernetes refuses the record: {refused.message}")
