"""`nodes/<name>`: the daemon that runs under a node's name. docs/metadata.md describes every field."""

from __future__ import annotations

import uuid
from typing import Annotated

import msgspec

from iomesh.errors import Damaged
from iomesh.metadata.protocol import Entry, Metadata, Put

NODES = "nodes/"


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    format: int = 1
    name: str
    incarnation: uuid.UUID  # of this process of the daemon
    state: uuid.UUID  # of its state directory
    boot: uuid.UUID  # the kernel's boot_id
    process: int
    process_namespace: int  # inode of the PID namespace in which `process` is a number
    process_started: int  # clock ticks after boot
    host: str
    state_dir: str
    started_ns: int  # Unix time
    peer_address: str = ""  # "host:port" for other nodes of the cluster; empty: it has no connections to them
    reactors: Annotated[int, msgspec.Meta(ge=1)] = 1
    control_address: str = ""  # of its control API: "host:port", or the path of a unix socket on its machine
    version: str = ""  # of iomesh


def node_key(name: str) -> str:
    return NODES + name


async def node_names(metadata: Metadata) -> list[str]:
    """The nodes of the cluster under whose names daemons run."""
    return [entry.key.removeprefix(NODES) for entry in (await metadata.list_prefix(NODES)).entries]


def put_node(record: NodeRecord, version: int, lease: int) -> Put:
    return Put(node_key(record.name), msgspec.json.encode(record), version, lease)


def decode_node(entry: Entry) -> NodeRecord:
    """Raises Damaged."""
    try:
        return msgspec.json.decode(entry.value, type=NodeRecord)
    except msgspec.MsgspecError as error:
        raise Damaged(f"metadata key {entry.key}: {error}") from error
