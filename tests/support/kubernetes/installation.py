"""iomesh in a test's cluster, installed with helm as users do, with the values that such a cluster needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.kubernetes.cluster import Cluster
from support.kubernetes.disks import Disks

CHART = Path(__file__).parents[3] / "charts" / "iomesh"
RELEASE = NAMESPACE = "iomesh"


class Installation:
    def __init__(self, cluster: Cluster, disks: Disks, folder: Path, *, csi: bool = True) -> None:
        self.cluster = cluster
        self.disks = disks
        self.csi = csi
        self.file = folder / "values.json"

    def install(self, **more: Any) -> None:
        self.file.write_text(json.dumps(self.values() | more))
        self.cluster.helm("install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace",
                          "--values", str(self.file))  # fmt: skip
        self.kubectl("rollout", "status", "daemonset/iomesh-node", "--timeout=5m")

    def uninstall(self) -> None:
        self.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
        self.cluster.wait("the end of the pods", lambda: not self.get("pods")["items"])

    def give_up(self) -> None:
        """Uninstalls it, and removes the metadata as well: the disks are as good as erased."""
        self.uninstall()
        self.cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=5m")

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        return self.cluster.kubectl("--namespace", NAMESPACE, *arguments, input=input)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", "-o", "json", *arguments))

    def iomesh(self, node: str, *arguments: str) -> str:
        """The command line, in the pod of a node."""
        return self.kubectl("exec", self.pod("node", node), "--container", "daemon", "--", "iomesh", *arguments)

    def pod(self, component: str, node: str = "") -> str:
        (pod,) = [
            pod["metadata"]["name"]
            for pod in self.get("pods", "--selector", f"app.kubernetes.io/component={component}")["items"]
            if not node or pod["spec"].get("nodeName") == node
        ]
        return str(pod)

    def condition(self, kind: str, name: str, condition: str = "Ready") -> dict[str, Any]:
        status = self.get(kind, name).get("status", {})
        return next((each for each in status.get("conditions", []) if each["type"] == condition), {"status": ""})

    def wait_formed(self, devices: int) -> dict[str, Any]:
        """Until the cluster says that so many devices serve; returns the IOMeshCluster's status."""

        def formed() -> bool:
            status = self.get("iomeshclusters", RELEASE).get("status", {})
            ready = [each["status"] for each in status.get("conditions", []) if each["type"] == "Ready"]
            shown = (ready, status.get("devices"), status.get("readyNodes"))
            return shown == (["True"], devices, len(self.cluster.nodes))

        self.cluster.wait(f"a cluster with {devices} devices", formed)
        return dict(self.get("iomeshclusters", RELEASE)["status"])

    def values(self) -> dict[str, Any]:
        """Of the chart, for a test's cluster."""
        nodes = [{"name": node, "paths": paths} for node, paths in self.disks.paths.items()]
        small = {"requests": {"cpu": "10m", "memory": "64Mi"}}
        return {
            "image": {"pullPolicy": "Never"},
            "devices": {"discover": True, "nodes": nodes},
            "node": {
                "config": {"engine.map_cache_bytes": "64Mi", "engine.mode": "sleep"},
                "resources": small,
                "agentResources": small,
            },
            "operator": {"resources": small},
            "csi": {
                "enabled": self.csi,
                "controller": {"resources": small},
                "node": {"resources": small},
                "sidecarResources": small,
            },
        }
