"""Volumes in use do not notice that what attached them is replaced."""

from __future__ import annotations

from support.kubernetes.installation import Installation
from support.kubernetes.work import Work


def test_a_pod_goes_on_writing_while_the_driver_and_then_the_daemon_of_its_node_are_replaced(
    installation: Installation,
) -> None:
    installation.wait_formed(devices=2)
    work, node = Work(installation.cluster), installation.cluster.nodes[0]
    work.claim("steady")
    work.pod("steady", "steady", node=node)
    loop = "while date +%s.%N >> /mnt/log && sync /mnt/log; do sleep 0.1; done; echo > /ended"
    work.run("steady", f"({loop}) > /dev/null 2>&1 &")

    def lines() -> int:
        return int(work.run("steady", "wc -l < /mnt/log"))

    for component, daemon_set in (("csi-node", "iomesh-csi-node"), ("node", "iomesh-node")):
        installation.kubectl("delete", "pod", installation.pod(component, node))
        installation.kubectl("rollout", "status", f"daemonset/{daemon_set}", "--timeout=5m")
        before = lines()
        work.cluster.wait(f"writes behind the end of {daemon_set}", lambda before=before: lines() > before + 20)  # type: ignore[misc]
    assert "ended" not in work.run("steady", "ls /"), "a write has failed"
    work.expand("steady", "768Mi")
    work.cluster.wait("the larger file system", lambda: work.mib("steady") > 600)
    assert installation.get("storagenodes", node)["status"]["attach"] in ("nbd", "nbdfuse")
    work.delete("pod", "steady")
    work.delete("pvc", "steady")
    work.wait_no_volumes()
