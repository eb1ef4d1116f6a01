"""The parts of the node that its volumes use."""

from __future__ import annotations

from dataclasses import dataclass

from iomesh.metadata import Metadata
from iomesh.node.cluster import Cluster
from iomesh.node.engine import NodeEngine
from iomesh.node.exports import Exports
from iomesh.node.forwarding import Forwarding
from iomesh.node.hooks import Hooks
from iomesh.node.snapshots import Snapshots
from iomesh.node.stores import Stores
from iomesh.node.supervisor import Supervisor
from iomesh.node.tenure import Tenure
from iomesh.node.volume import Registry
from iomesh.node.windows import Windows


@dataclass(frozen=True)
class Parts:
    engine: NodeEngine
    metadata: Metadata
    stores: Stores
    exports: Exports
    volumes: Registry
    snapshots: Snapshots
    windows: Windows
    supervisor: Supervisor
    hooks: Hooks
    cluster: Cluster
    tenure: Tenure
    forwarding: Forwarding | None  # None: this node has no connections to others
    node: str  # its name
