"""The node's health for /healthz, /readyz, the status and the metrics, computed in one place from the current state.

- live: the event loop answers. A restart helps only a node that is not live, and costs every client its connection, so
  /healthz fails for nothing else; its `status` describes other problems.
- ready: the start has ended, every volume of the node can be read and written, every background task is up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from iomesh.api.model import BackgroundTask, NodeState, Status, VolumeState
from iomesh.node.engine import NodeEngine
from iomesh.node.supervisor import Supervisor
from iomesh.node.volume import NodeVolume, Registry
from iomesh.times import exact_time


class VolumeHealth(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    state: VolumeState
    writable: bool
    reason: str  # why it is not served or not writable; empty: it is both
    warnings: list[str] = []  # what is missing although it is served


def volumes_health(registry: Registry, engine: NodeEngine) -> list[VolumeHealth]:
    """Sorted by name. Hidden volumes serve only their clones and are left out. Volumes with unreadable records count as
    failed."""
    unreadable = [
        VolumeHealth(name=each.name, state=VolumeState.FAILED, writable=False, reason=each.reason)
        for each in registry.unreadable.values()
    ]
    return sorted(
        [*unreadable, *(_volume_health(volume, engine) for volume in registry.named())], key=lambda health: health.name
    )


def _volume_health(volume: NodeVolume, engine: NodeEngine) -> VolumeHealth:
    reason = volume.reason
    if volume.state == VolumeState.SERVING:
        reason = why_not_writable(volume, engine)
    return VolumeHealth(
        name=volume.record.name,
        state=volume.state,
        writable=volume.state == VolumeState.SERVING and not reason,
        reason=reason,
        warnings=volume_warnings(volume),
    )


def volume_warnings(volume: NodeVolume) -> list[str]:
    """What the volume works without, but needs in the long run."""
    found = []
    if (missed := volume.unanswered) is not None:
        found.append(
            f"the metadata service has not answered since {exact_time(missed.since_ns)} ({missed.reason}): reads and "
            "writes continue, but no space is freed until it answers"
        )
    wanted, present = volume.record.policy.replicas, _replicas(volume)
    if volume.in_engine and present < wanted:
        found.append(
            f"it has {present} of {wanted} replicas: what is written now is kept on {present} node(s) only, until more "
            "nodes with devices can be reached"
        )
    return found


def _replicas(volume: NodeVolume) -> int:
    """The members of its current replica set."""
    return len(volume.log.fragments[-1].devices) if volume.log.fragments else 1


def warnings(volumes: list[VolumeHealth]) -> list[str]:
    return [f"volume {volume.name}: {warning}" for volume in volumes for warning in volume.warnings]


def why_not_writable(volume: NodeVolume, engine: NodeEngine) -> str:
    """Why the writes of a served volume fail now. Empty: they do not."""
    state = engine.volume_state(volume.record.id)
    if state["error"]:
        return why_log_failed(state)
    if state["awaits_numbers"]:
        return (
            "writes wait for the metadata service, which does not answer: the log needs a number for its next segment"
        )
    if state["refusing_below"]:
        return "the storage under its devices has no space: make space there, and writes continue by themselves"
    if state["no_space"] and not state["space_is_coming"]:
        return "no space left: delete or trim something, or add a device"
    return ""


def why_log_failed(state: Mapping[str, Any]) -> str:
    """For a volume whose engine `state` has an error."""
    return f"its log can no longer be written ({os.strerror(state['error'])}): restart the node once the cause is gone"


def problems(volumes: list[VolumeHealth], tasks: list[BackgroundTask]) -> list[str]:
    """Why a node that has started is not ready. A volume that is being created or deleted is no problem."""
    found = []
    for volume in volumes:
        if volume.state == VolumeState.FAILED:
            found.append(f"volume {volume.name} has failed: {volume.reason}")
        elif volume.state == VolumeState.OPENING and volume.reason:
            found.append(f"volume {volume.name} is not open yet: {volume.reason}")
        elif volume.state == VolumeState.DELETING and volume.reason:
            found.append(f"volume {volume.name} is not deleted: {volume.reason}")
        elif volume.state == VolumeState.SERVING and not volume.writable:
            found.append(f"volume {volume.name} cannot be written: {volume.reason}")
    return found + [f"background task {task.name} is down: {task.reason}" for task in tasks if not task.up]


def background_tasks(supervisor: Supervisor) -> list[BackgroundTask]:
    return [
        BackgroundTask(name=name, up=state.up, restarts=state.restarts, reason=state.reason)
        for name, state in supervisor.tasks().items()
    ]


def detail(status: Status, volumes: list[VolumeHealth]) -> Mapping[str, object]:
    """The body of /healthz and /readyz. `status` is "ok" only for a node that is ready."""
    return {
        "status": "ok" if status.state == NodeState.READY else status.state,
        "ready": status.ready,
        "node": status.node,
        "version": status.version,
        "step": status.step,
        "steps_done": status.steps_done,
        "steps": status.steps,
        "progress": status.progress,
        "problems": status.problems,
        "warnings": status.warnings,
        "volumes": volumes,
        "tasks": status.tasks,
    }
