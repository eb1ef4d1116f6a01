"""The metrics for Prometheus: the engine's counters and histograms, read at each scrape. docs/metrics.md lists them.

Everything is read from the engine's memory in place; no reactor stops for it. Base units: seconds and bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from iomesh.api.model import BackgroundTask, DeviceState, NodeState, VolumeState
from iomesh.certificates.authority import expires_at
from iomesh.engine import engine as compiled
from iomesh.node.clock import read_clock

if TYPE_CHECKING:
    from iomesh.node.node import Node

SMALLEST_BOUND_NS = 1 << 12  # 4 µs: nothing is faster than one iteration of the reactor
LARGEST_BOUND_NS = 1 << 36  # 69 s: longer times share a bucket

_REACTOR_GAUGES = {
    "volumes": "Volumes that live on it.",
    "map_frames": "Nodes of the map that its cache has room for.",
    "map_used": "Nodes of the map in its cache.",
    "map_dirty": "Nodes of the map that changed since they were written.",
}
_REACTOR_COUNTERS = {
    "turns": "Turns of its loop.",
    "sleeps": "Times it went to sleep for want of work.",
    "device_timeouts": "Requests to devices that were not answered in time.",
    "map_hits": "Nodes of the map found in its cache.",
    "map_misses": "Nodes of the map that had to be read.",
}

_CLEANING_COUNTERS = {
    "chosen": ("chosen_segments", "Segments that the policy asked to be cleaned."),
    "skipped": ("skipped_segments", "Of them those from which nothing was to be gained then."),
    "failed": ("failed_segments", "Of them those that could not be cleaned for an error."),
    "freed_bytes": ("freed_bytes", "Space given back by compaction."),
}


def registry(node: Node) -> CollectorRegistry:
    collected = CollectorRegistry()
    collected.register(NodeCollector(node))
    ProcessCollector(registry=collected)
    return collected


class NodeCollector:
    def __init__(self, node: Node) -> None:
        self._node = node

    def describe(self) -> Iterable[Metric]:
        return []  # the metrics depend on the volumes

    def collect(self) -> Iterator[Metric]:
        node = self._node
        status = node.status()
        yield InfoMetricFamily(
            "iomesh_node",
            "Name, cluster and version of the node.",
            {"node": status.node, "cluster": status.cluster, "version": status.version},
        )
        yield GaugeMetricFamily(
            "iomesh_node_ready",
            "1 while every volume can be read and written and every background task is up.",
            float(status.ready),
        )
        state = GaugeMetricFamily("iomesh_node_state", "1 for the state that the node is in.", labels=["state"])
        for each in NodeState:
            if each != NodeState.UNSPECIFIED:
                state.add_metric([each.value], float(each == status.state))
        yield state
        yield from self._tasks(status.tasks)
        yield from self._clock()
        yield self._certificates()
        if node.assembled:
            yield from self._cluster()
            yield from self._devices()
            yield from self._volumes()
            yield from self._counters()
            yield from self._cleaning()
            yield from self._histograms()
            yield from self._reactors()
            yield from self._peers()

    def _tasks(self, tasks: list[BackgroundTask]) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "iomesh_background_task_up", "0 from a failure of the task to its next successful round.", labels=["task"]
        )
        restarts = CounterMetricFamily(
            "iomesh_background_task_restarts", "Times that the task failed and was restarted.", labels=["task"]
        )
        failures = CounterMetricFamily(
            "iomesh_background_job_failures", "Jobs that ended with an error.", labels=["job"]
        )
        for task in tasks:
            up.add_metric([task.name], float(task.up))
            restarts.add_metric([task.name], task.restarts)
        for job, count in self._node.failed_jobs().items():
            failures.add_metric([job], count)
        yield from (up, restarts, failures)

    def _clock(self) -> Iterator[Metric]:
        synchronised = GaugeMetricFamily(
            "iomesh_node_clock_synchronised", "1 while a time service keeps the wall clock, as the kernel says."
        )
        error = GaugeMetricFamily(
            "iomesh_node_clock_error_seconds", "How wrong the wall clock may be at most, as the kernel says."
        )
        with contextlib.suppress(OSError):  # a container runtime may forbid the question
            clock = read_clock()
            synchronised.add_metric([], float(clock.synchronised))
            error.add_metric([], clock.error_seconds)
        yield from (synchronised, error)

    def _certificates(self) -> Metric:
        expiry = GaugeMetricFamily(
            "iomesh_node_certificate_expires_timestamp_seconds",
            "When the certificate that the daemon uses expires, in Unix time.",
            labels=["certificate"],
        )
        found = self._node.certificates
        if found is not None:
            for name, signed in (("node", found.certificate), ("authority", found.authority)):
                expiry.add_metric([name], expires_at(signed.certificate).timestamp())
        return expiry

    def _cluster(self) -> Iterator[Metric]:
        """As this node sees it: what every node of a healthy cluster agrees on."""
        view = self._node.cluster_view
        running = view.running.keys()
        nodes = GaugeMetricFamily(
            "iomesh_cluster_nodes", "Nodes that run, and nodes with devices that do not.", labels=["state"]
        )
        nodes.add_metric(["running"], len(running))
        nodes.add_metric(["down"], len({device.node for device in view.devices()} - running))
        yield nodes
        yield GaugeMetricFamily(
            "iomesh_cluster_volumes_without_owner",
            "Volumes whose owner does not run.",
            sum(stored.log.record.owner not in running for stored in view.volumes()),
        )
        yield GaugeMetricFamily(
            "iomesh_node_lease_held",
            "1 while the metadata service confirms the node's lease on its name.",
            float(not self._node.tenure.problem),
        )

    def _devices(self) -> Iterator[Metric]:
        labels = ["device", "label", "path", "tier"]
        size = GaugeMetricFamily("iomesh_device_size_bytes", "Size of the device.", labels=labels)
        free = GaugeMetricFamily("iomesh_device_free_bytes", "Free space, including the reserve.", labels=labels)
        reserve = GaugeMetricFamily(
            "iomesh_device_reserve_bytes", "Space kept for checkpoints and the journal.", labels=labels
        )
        replicas = GaugeMetricFamily("iomesh_device_replicas", "Segment replicas on the device.", labels=labels)
        online = GaugeMetricFamily(
            "iomesh_device_online",
            "1 if the device is open and without errors, 0 if it is missing or failed.",
            labels=labels,
        )
        full_below = GaugeMetricFamily(
            "iomesh_device_full_below", "1 while the storage under the device has no space.", labels=labels
        )
        verified = CounterMetricFamily(
            "iomesh_device_scrubbed_bytes", "Bytes that scrub has read and verified.", labels=labels
        )
        done = GaugeMetricFamily(
            "iomesh_device_scrub_progress_ratio", "Progress of the current scrub pass, 1 at its end.", labels=labels
        )
        ended = GaugeMetricFamily(
            "iomesh_device_scrub_ended_timestamp_seconds",
            "When the last scrub pass ended, in Unix time.",
            labels=labels,
        )
        damaged = GaugeMetricFamily(
            "iomesh_device_damaged_blocks", "Blocks that scrub has found damaged.", labels=labels
        )
        for device in self._node.stores.list():
            values = [device.id, device.label, device.path, device.tier]
            size.add_metric(values, device.size_bytes)
            online.add_metric(values, float(device.state == DeviceState.ONLINE))
            if device.state == DeviceState.ONLINE:
                full_below.add_metric(values, float(bool(device.reason)))
            if device.state != DeviceState.MISSING:
                free.add_metric(values, device.free_bytes)
                reserve.add_metric(values, device.reserve_bytes)
                replicas.add_metric(values, device.replicas)
                verified.add_metric(values, device.scrub.verified_bytes)
                damaged.add_metric(values, device.scrub.damaged_blocks)
                if device.scrub.pass_bytes:
                    done.add_metric(values, device.scrub.done_bytes / device.scrub.pass_bytes)
                if device.scrub.ended_at:
                    ended.add_metric(values, device.scrub.ended_at.timestamp())
        yield from (size, free, reserve, replicas, online, full_below, verified, done, ended, damaged)

    def _volumes(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "iomesh_volume_state", "1 for the state that the volume is in.", labels=["volume", "state"]
        )
        writable = GaugeMetricFamily(
            "iomesh_volume_writable", "1 while the volume is served and its writes succeed.", labels=["volume"]
        )
        for health in self._node.volumes_health():
            writable.add_metric([health.name], float(health.writable))
        yield writable
        unanswered = GaugeMetricFamily(
            "iomesh_volume_metadata_unanswered_seconds",
            "For how long the metadata service has not answered for the volume, 0 if it does.",
            labels=["volume"],
        )
        for name, seconds in self._node.volumes.unanswered_seconds():
            unanswered.add_metric([name], seconds)
        yield unanswered
        size = GaugeMetricFamily("iomesh_volume_size_bytes", "Size of the volume.", labels=["volume"])
        live = GaugeMetricFamily("iomesh_volume_live_bytes", "Live bytes of the volume's log.", labels=["volume"])
        mapped = GaugeMetricFamily("iomesh_volume_mapped_bytes", "Bytes that the volume maps.", labels=["volume"])
        exclusive = GaugeMetricFamily(
            "iomesh_volume_exclusive_bytes", "Mapped bytes that only the volume itself holds.", labels=["volume"]
        )
        shared = GaugeMetricFamily(
            "iomesh_volume_shared_bytes", "Mapped bytes that a snapshot of the volume holds too.", labels=["volume"]
        )
        inherited = GaugeMetricFamily(
            "iomesh_volume_inherited_bytes",
            "Mapped bytes that are in the logs of a clone's parents.",
            labels=["volume"],
        )
        behind = GaugeMetricFamily(
            "iomesh_volume_replay_bytes",
            "Bytes of log since the checkpoint, which a recovery would read.",
            labels=["volume"],
        )
        segments = GaugeMetricFamily("iomesh_volume_segments", "Segments of the volume's log.", labels=["volume"])
        connections = GaugeMetricFamily(
            "iomesh_volume_connections", "Clients connected to the volume's exports.", labels=["volume"]
        )
        epoch = GaugeMetricFamily(
            "iomesh_volume_epoch", "How often the volume was opened, by any node.", labels=["volume"]
        )
        replicas = GaugeMetricFamily(
            "iomesh_volume_replicas", "Nodes that keep what is written to the volume now.", labels=["volume"]
        )
        wanted = GaugeMetricFamily(
            "iomesh_volume_replicas_wanted", "Nodes that should keep what is written to the volume.", labels=["volume"]
        )
        exposed = GaugeMetricFamily(
            "iomesh_volume_exposed_bytes",
            "Bytes of copies of the volume's segments that are missing, or do not work.",
            labels=["volume"],
        )
        rebuilt = CounterMetricFamily(
            "iomesh_volume_rebuilt_bytes", "Bytes of copies that rebuild has made.", labels=["volume"]
        )
        eta = GaugeMetricFamily(
            "iomesh_volume_rebuild_eta_seconds",
            "Seconds until all copies are there at the present speed; 0 if they are, or it is not known.",
            labels=["volume"],
        )
        recovery = GaugeMetricFamily(
            "iomesh_volume_recovery_seconds", "Duration of the volume's last recovery.", labels=["volume"]
        )
        reactor = GaugeMetricFamily(
            "iomesh_volume_reactor", "Number of the reactor that it lives on.", labels=["volume"]
        )
        snapshots = GaugeMetricFamily("iomesh_volume_snapshots", "Snapshots of the volume.", labels=["volume"])
        newest = GaugeMetricFamily(
            "iomesh_volume_newest_snapshot_timestamp_seconds",
            "When the newest snapshot was created, in Unix time.",
            labels=["volume"],
        )
        window = GaugeMetricFamily(
            "iomesh_volume_window_seconds", "The configured restore window, 0 if none.", labels=["volume"]
        )
        restorable = GaugeMetricFamily(
            "iomesh_volume_window_from_timestamp_seconds",
            "The earliest time that can be restored, in Unix time.",
            labels=["volume"],
        )
        for name, made_ns in self._node.snapshots.made_ns():
            snapshots.add_metric([name], len(made_ns))
            if made_ns:
                newest.add_metric([name], max(made_ns) / 1e9)
        for volume in self._node.volumes.list():
            for each in VolumeState:
                if each not in (VolumeState.UNSPECIFIED, VolumeState.ELSEWHERE):
                    state.add_metric([volume.name, each.value], float(each == volume.state))
            size.add_metric([volume.name], volume.size_bytes)
            epoch.add_metric([volume.name], volume.epoch)
            wanted.add_metric([volume.name], volume.policy.replicas)
            if volume.state in (VolumeState.SERVING, VolumeState.READ_ONLY):
                live.add_metric([volume.name], volume.live_bytes)
                mapped.add_metric([volume.name], volume.space.mapped_bytes)
                exclusive.add_metric([volume.name], volume.space.exclusive_bytes)
                shared.add_metric([volume.name], volume.space.shared_bytes)
                inherited.add_metric([volume.name], volume.space.inherited_bytes)
                behind.add_metric([volume.name], volume.log_bytes_since_checkpoint)
                segments.add_metric([volume.name], volume.segments)
                connections.add_metric([volume.name], sum(export.connections for export in volume.exports))
                replicas.add_metric([volume.name], max(len(volume.replica_nodes), 1))
                exposed.add_metric([volume.name], volume.redundancy.exposed_bytes)
                rebuilt.add_metric([volume.name], volume.redundancy.rebuilt_bytes)
                eta.add_metric([volume.name], volume.redundancy.eta_seconds)
                recovery.add_metric([volume.name], volume.recovery_seconds)
                reactor.add_metric([volume.name], volume.reactor)
                window.add_metric([volume.name], volume.policy.window_seconds)
                if volume.window_from:
                    restorable.add_metric([volume.name], volume.window_from.timestamp())
        yield from (
            state,
            size,
            live,
            mapped,
            exclusive,
            shared,
            inherited,
            behind,
            segments,
            connections,
            epoch,
            replicas,
            wanted,
            exposed,
            rebuilt,
            eta,
            recovery,
            reactor,
            snapshots,
            newest,
        )
        yield from (window, restorable)

    def _counters(self) -> Iterator[Metric]:
        families = [
            CounterMetricFamily(
                f"iomesh_volume_{name}",
                f"{name.replace('_', ' ').capitalize()} since the volume was opened.",
                labels=["volume"],
            )
            for name in compiled.COUNTER_NAMES
        ]
        for name, identity in self._node.volumes.serving():
            for family, value in zip(families, self._node.engine.counters(identity).tolist(), strict=True):
                family.add_metric([name], value)
        yield from families

    def _cleaning(self) -> Iterator[Metric]:
        need = GaugeMetricFamily(
            "iomesh_volume_cleaning_need",
            "0: enough space, 1: space will be short soon, 2: space is short.",
            labels=["volume"],
        )
        families = {
            key: CounterMetricFamily(f"iomesh_volume_cleaning_{name}", words, labels=["volume"])
            for key, (name, words) in _CLEANING_COUNTERS.items()
        }
        for name, identity in self._node.volumes.serving():
            cleaned = self._node.cleaning.cleaned.get(identity)
            if cleaned is not None:
                need.add_metric([name], float(cleaned.need))
                for key, family in families.items():
                    family.add_metric([name], getattr(cleaned, key))
        yield from (need, *families.values())

    def _histograms(self) -> Iterator[Metric]:
        bounds = compiled.histogram_bounds()
        families = [
            HistogramMetricFamily(
                f"iomesh_volume_{name}_seconds",
                f"{name.replace('_', ' ').capitalize()}, in the engine.",
                labels=["volume"],
            )
            for name in compiled.HISTOGRAM_NAMES
        ]
        for name, identity in self._node.volumes.serving():
            for family, counts in zip(families, self._node.engine.histograms(identity).copy(), strict=True):
                buckets, total = prometheus_buckets(counts, bounds)
                family.add_metric([name], buckets, total)
        yield from families

    def _reactors(self) -> Iterator[Metric]:
        states = [self._node.engine.reactor_state(reactor) for reactor in range(self._node.engine.reactors)]
        for key, words in _REACTOR_COUNTERS.items():
            yield _per_reactor(
                CounterMetricFamily(f"iomesh_reactor_{key}", words, labels=["reactor"]),
                [state[key] for state in states],
            )
        for key, words in _REACTOR_GAUGES.items():
            yield _per_reactor(
                GaugeMetricFamily(f"iomesh_reactor_{key}", words, labels=["reactor"]), [state[key] for state in states]
            )
        busy = CounterMetricFamily("iomesh_reactor_busy_seconds", "Time it spent on work.", labels=["reactor"])
        yield _per_reactor(busy, [state["busy_ns"] / 1e9 for state in states])
        load = GaugeMetricFamily(
            "iomesh_reactor_load",
            "Share of the last 5 s that it worked, and 0.1 for each volume opened on it meanwhile.",
            labels=["reactor"],
        )
        yield _per_reactor(load, self._node.engine.reactor_loads())

    def _peers(self) -> Iterator[Metric]:
        labels = ["node", "reactor"]
        connected = GaugeMetricFamily(
            "iomesh_peer_connected", "1 while the reactor's connection to the other node works.", labels=labels
        )
        calls = CounterMetricFamily(
            "iomesh_peer_calls", "Requests of the reactor to the other node, heartbeats included.", labels=labels
        )
        ahead = GaugeMetricFamily(
            "iomesh_peer_clock_ahead_seconds",
            "By how much the other node's clock was ahead of this node's when the connection was made.",
            labels=labels,
        )
        for each in self._node.peers.connections() if self._node.peers is not None else []:
            ahead.add_metric([each.node, str(each.reactor)], each.ahead_seconds)
            connected.add_metric([each.node, str(each.reactor)], float(each.connected))
            calls.add_metric([each.node, str(each.reactor)], each.calls)
        yield from (connected, calls, ahead)


def prometheus_buckets(
    counts: NDArray[np.uint64], bounds_ns: NDArray[np.uint64]
) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets, one per power of two, and the sum of all observations in seconds.

    The engine has four buckets per power of two, so these are exact; the sum counts each observation as the middle of
    its bucket, with an error of at most an eighth.
    """
    cumulative = np.cumsum(counts)
    buckets = []
    for bound in _powers(SMALLEST_BOUND_NS, LARGEST_BOUND_NS):
        within = int(np.searchsorted(bounds_ns, bound, side="right"))
        buckets.append((repr(bound / 1e9), float(cumulative[within - 1]) if within else 0.0))
    buckets.append(("+Inf", float(cumulative[-1])))
    uppers = bounds_ns.astype(np.float64)
    lowers = np.concatenate((np.zeros(1), uppers[:-1]))
    occupied = counts > 0
    total = float(np.sum(counts[occupied] * (lowers[occupied] + uppers[occupied]) / 2)) / 1e9
    return buckets, total


def _powers(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2


def _per_reactor(family: CounterMetricFamily | GaugeMetricFamily, values: list[float]) -> Metric:
    for reactor, value in enumerate(values):
        family.add_metric([str(reactor)], value)
    return family
