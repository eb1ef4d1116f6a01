"""The operator's one task: an IOMeshCluster has its secret, and shows the state of its nodes.

Everything is read anew in each round, so nothing is remembered and a restart loses nothing. It creates the cluster's
secret once and deletes nothing that a daemon needs.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from datetime import UTC, datetime, timedelta

from iomesh.metadata.kubernetes import object_name
from iomesh.metadata.kubernetes_api import Object, Refused
from iomesh.metadata.records import CLUSTER_KEY
from iomesh.operator.identity import cluster_in_record, new_secret_data
from iomesh.operator.objects import MANAGED_BY, Objects, condition, conditions_of, holds, nested

STALE = timedelta(seconds=90)  # three heartbeats of an agent
STARTING = timedelta(seconds=60)  # after an installation, nodes have not reported yet
NODE_PODS = {"app.kubernetes.io/name": "iomesh", "app.kubernetes.io/component": "node"}


class Reconciler:
    def __init__(self, objects: Objects, secret: str) -> None:
        self._objects = objects
        self._secret = secret

    async def round(self) -> None:
        await self.ensure_secret()
        clusters = await self._objects.list("iomeshclusters")
        nodes = await self._objects.list("storagenodes")
        running = await self._nodes_with_a_pod()
        for node in nodes:
            await self._mark_if_silent(node, running)
        for cluster in clusters:
            await self._tell_unknown_nodes(cluster, nodes)
            await self._show(cluster, nodes, multiple=len(clusters) > 1)

    async def ensure_secret(self) -> None:
        """The Secret by which nodes know each other. It outlives an uninstallation."""
        path = f"/api/v1/namespaces/{self._objects.namespace}/secrets"
        if await self._objects.read(f"{path}/{self._secret}") is not None:
            return
        cluster = cluster_in_record(await self._objects.get("metadatarecords", object_name(CLUSTER_KEY)))
        made: Object = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": self._secret, "namespace": self._objects.namespace, "labels": MANAGED_BY},
            "data": new_secret_data(cluster),
        }
        try:
            await self._objects.api.request("POST", path, made)
        except Refused as refused:
            if refused.status != 409:  # another replica of the operator was first
                raise

    async def _nodes_with_a_pod(self) -> set[str]:
        """Where a node's pod runs and is not being ended."""
        labels = ",".join(f"{key}={value}" for key, value in NODE_PODS.items())
        path = f"/api/v1/namespaces/{self._objects.namespace}/pods"
        answer = await self._objects.api.request("GET", path, params={"labelSelector": labels})
        return {
            nested(pod, "spec", "nodeName", default="")
            for pod in answer["items"]
            if nested(pod, "status", "phase") == "Running" and not nested(pod, "metadata", "deletionTimestamp")
        }

    async def _mark_if_silent(self, node: Object, running: Set[str]) -> None:
        """An agent that is gone cannot say so itself."""
        heartbeat, name = nested(node, "status", "heartbeat"), node["metadata"]["name"]
        if heartbeat is None:
            return
        if name not in running:
            reason, message = "NoPod", f"no pod of iomesh-node runs on node {name}, or it is being ended"
        elif datetime.now(UTC) - datetime.fromisoformat(heartbeat) >= STALE:
            reason, message = "NoReport", f"the agent of the node has not reported since {heartbeat}"
        else:
            return
        shown = dict(node["status"]) | {"state": "Lost"}
        shown["conditions"] = [condition(conditions_of(node), "Ready", None, reason, message)]
        await self._objects.set_status("storagenodes", node, shown)
        node["status"] = shown  # the cluster's state of this round is made of it
        await self._objects.event(node, "Warning", reason, message)

    async def _tell_unknown_nodes(self, cluster: Object, nodes: Sequence[Object]) -> None:
        known = sorted(node["metadata"]["name"] for node in nodes)
        named = [each["name"] for each in nested(cluster, "spec", "devices", "nodes", default=[])]
        age = datetime.now(UTC) - datetime.fromisoformat(cluster["metadata"]["creationTimestamp"])
        unknown = [name for name in named if name not in known]
        if unknown and age > STARTING:
            text = (
                f"spec.devices.nodes names {', '.join(unknown)}, where no daemon has reported: write names of nodes "
                f"that run one ({', '.join(known) or 'none yet'})"
            )
            await self._objects.event(cluster, "Warning", "NoSuchNode", text)

    async def _show(self, cluster: Object, nodes: Sequence[Object], *, multiple: bool) -> None:
        before, generation = conditions_of(cluster), cluster["metadata"].get("generation", 0)
        ready = [node for node in nodes if holds(node, "Ready")]
        storing = [node for node in ready if nested(node, "status", "devices", default=0)]
        lost = [node["metadata"]["name"] for node in nodes if node not in ready]
        degraded = [node["metadata"]["name"] for node in ready if nested(node, "status", "problems")]
        reason, message = _verdict(storing, nodes, multiple=multiple)
        shown: Object = {
            "clusterID": next((nested(node, "status", "cluster") for node in ready), None)
            or nested(cluster, "status", "clusterID", default=""),
            "nodes": len(nodes),
            "readyNodes": len(ready),
            "devices": sum(nested(node, "status", "devices", default=0) for node in ready),
            "volumes": sum(nested(node, "status", "volumes", default=0) for node in ready),
            "capacityBytes": sum(nested(node, "status", "capacityBytes", default=0) for node in ready),
            "freeBytes": sum(nested(node, "status", "freeBytes", default=0) for node in ready),
            "conditions": [
                condition(before, "Ready", reason == "Formed", reason, message, generation),
                condition(
                    before,
                    "Degraded",
                    bool(lost or degraded),
                    "NodesNotReady" if lost else "NodesWithProblems" if degraded else "AllNodesReady",
                    ", ".join(lost or degraded),
                    generation,
                ),
            ],
        }
        await self._objects.set_status("iomeshclusters", cluster, shown)
        if not holds(cluster, "Ready") and reason == "Formed":
            await self._objects.event(cluster, "Normal", "Formed", message)
        if reason == "SeveralClusters":
            await self._objects.event(cluster, "Warning", reason, message)


def _verdict(storing: Sequence[Object], nodes: Sequence[Object], *, multiple: bool) -> tuple[str, str]:
    if multiple:
        return "SeveralClusters", "a namespace has one IOMeshCluster: delete the others"
    if not nodes:
        return "NoNodes", "no node daemon has reported yet"
    if not storing:
        return "NoDevices", (
            "no node has a device: `kubectl get devices.iomesh.dev` shows the disks that were found; name others in "
            "spec.devices"
        )
    return "Formed", f"{len(storing)} of {len(nodes)} nodes serve devices"
