"""What the driver reports as unhealthy of a volume (CSI 1.13's VolumeHealth, alpha)."""

from __future__ import annotations

from iomesh.api.model import Volume, VolumeState
from iomesh.csi import csi_pb2 as pb


def volume_health(volume: Volume) -> pb.VolumeHealth:
    """Each reason once."""
    entries: list[pb.VolumeHealth.VolumeHealthEntry] = []

    def add(status: pb.VolumeHealthErrorType.ValueType, reason: str, message: str) -> None:
        entries.append(pb.VolumeHealth.VolumeHealthEntry(status=status, reason=reason, message=message))

    if volume.state is VolumeState.FAILED:
        add(pb.INACCESSIBLE, "Failed", volume.reason)
    elif volume.state is VolumeState.ELSEWHERE and volume.reason:
        add(pb.INACCESSIBLE, "OwnerLost", volume.reason)
    elif volume.state is VolumeState.OPENING:
        add(pb.INACCESSIBLE, "Opening", "its log is being recovered")
    elif volume.state is VolumeState.READ_ONLY:
        add(pb.DEGRADED, "ReadOnly", volume.reason)
    if volume.replica_nodes and len(volume.replica_nodes) < volume.policy.replicas:
        there = ", ".join(volume.replica_nodes)
        add(pb.DEGRADED, "ReplicasMissing", f"{volume.policy.replicas} replicas are wanted; there are those of {there}")
    elif volume.warnings:
        add(pb.DEGRADED, "Warning", "; ".join(volume.warnings))
    return pb.VolumeHealth(volume_id=volume.id, health_statuses=entries)
