"""Writes the dashboards for Grafana, charts/iomesh/monitoring/dashboards/*.json; --check only reports whether they are
up to date.

Each dashboard is a list of rows here, each row a title and its panels. Grafana gets one graph or number per panel, two
or six beside each other.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent.parent / "charts" / "iomesh" / "monitoring" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24  # of Grafana's grid
NODE = 'instance=~"$instance"'
DEVICE = f'{NODE}, path=~"$device"'
VOLUME = 'volume=~"$volume"'


class Query(NamedTuple):
    expr: str
    legend: str = ""  # with {{label}}


class Panel(NamedTuple):
    """A graph; `number`: the present value in large. bad_above, bad_below: the number is red beyond it."""

    title: str
    unit: str
    queries: list[Query]
    description: str = ""
    number: bool = False
    stacked: bool = False
    bad_above: float | None = None
    bad_below: float | None = None


class Row(NamedTuple):
    title: str
    panels: list[Panel]


class Dashboard(NamedTuple):
    name: str  # of the file, and its id in Grafana
    title: str
    variables: dict[str, str]  # name -> query of its values
    rows: list[Row]


def number(title: str, expr: str, unit: str = "short", **more: Any) -> Panel:
    return Panel(title, unit, [Query(expr)], number=True, **more)


def graph(title: str, unit: str, *queries: tuple[str, str], **more: Any) -> Panel:
    return Panel(title, unit, [Query(*each) for each in queries], **more)


def quantiles(which: str, by: str, labels: str) -> list[tuple[str, str]]:
    buckets = f"sum by ({by}, le) (rate(iomesh_volume_{which}_latency_seconds_bucket{{{labels}}}[$__rate_interval]))"
    legend = " ".join(f"{{{{{each}}}}}" for each in by.split(", "))
    return [(f"histogram_quantile({share}, {buckets})", f"{legend} {name}") for share, name in QUANTILES]


QUANTILES = [(0.5, "median"), (0.99, "99 %"), (0.999, "99.9 %")]
INSTANCES = {"instance": "label_values(iomesh_node_info, instance)"}

OVERVIEW = Dashboard(
    "iomesh-overview",
    "iomesh / Overview",
    {},
    [
        Row(
            "State",
            [
                number("Nodes running", 'max(iomesh_cluster_nodes{state="running"})', bad_below=1),
                number("Nodes down", 'max(iomesh_cluster_nodes{state="down"})', bad_above=1),
                number("Nodes not ready", "count(iomesh_node_ready == 0) or vector(0)", bad_above=1),
                number("Volumes served", 'sum(iomesh_volume_state{state="serving"})'),
                number(
                    "Volumes not served",
                    'sum(iomesh_volume_state{state=~"opening|failed"}) + max(iomesh_cluster_volumes_without_owner)',
                    bad_above=1,
                ),
                number(
                    "Volumes short of replicas",
                    "count(iomesh_volume_replicas < iomesh_volume_replicas_wanted) or vector(0)",
                    bad_above=1,
                ),
            ],
        ),
        Row(
            "Space",
            [
                graph(
                    "Used and free space",
                    "bytes",
                    ("sum(iomesh_device_size_bytes) - sum(iomesh_device_free_bytes)", "used"),
                    ("sum(iomesh_device_free_bytes) - sum(iomesh_device_reserve_bytes)", "free"),
                    ("sum(iomesh_device_reserve_bytes)", "reserve"),
                    stacked=True,
                ),
                graph(
                    "Free space in three days, as it changed in the last six hours",
                    "bytes",
                    ("sum by (instance) (predict_linear(iomesh_device_free_bytes[6h], 3 * 86400))", "{{instance}}"),
                ),
            ],
        ),
        Row(
            "Load",
            [
                graph(
                    "Requests",
                    "ops",
                    ("sum(rate(iomesh_volume_reads_total[$__rate_interval]))", "reads"),
                    ("sum(rate(iomesh_volume_writes_total[$__rate_interval]))", "writes"),
                    ("sum(rate(iomesh_volume_flushes_total[$__rate_interval]))", "flushes"),
                ),
                graph(
                    "Throughput",
                    "Bps",
                    ("sum(rate(iomesh_volume_read_bytes_total[$__rate_interval]))", "read"),
                    ("sum(rate(iomesh_volume_written_bytes_total[$__rate_interval]))", "written"),
                ),
                graph("Busiest volumes: writes", "ops", *[
                    ("topk(10, sum by (volume) (rate(iomesh_volume_writes_total[$__rate_interval])))", "{{volume}}")
                ]),
                graph("Flush latency", "s", *quantiles("flush", "instance", "")),
            ],
        ),
        Row(
            "Trouble",
            [
                graph(
                    "Errors",
                    "short",
                    ("sum(increase(iomesh_volume_read_errors_total[$__rate_interval]))", "read errors"),
                    ("sum(increase(iomesh_volume_write_errors_total[$__rate_interval]))", "write errors"),
                    ("sum(increase(iomesh_volume_no_space_errors_total[$__rate_interval]))", "no space"),
                    ("sum(increase(iomesh_volume_checksum_errors_total[$__rate_interval]))", "checksum errors"),
                    ("sum(increase(iomesh_reactor_device_timeouts_total[$__rate_interval]))", "device timeouts"),
                ),
                graph(
                    "Devices",
                    "short",
                    ("sum(iomesh_device_damaged_blocks)", "damaged blocks"),
                    ("count(iomesh_device_online == 0) or vector(0)", "devices missing or failed"),
                    ("sum(iomesh_device_full_below)", "devices without space below"),
                ),
            ],
        ),
    ],
)  # fmt: skip

NODES = Dashboard(
    "iomesh-node",
    "iomesh / Node",
    INSTANCES,
    [
        Row(
            "State",
            [
                number("Ready", f"min(iomesh_node_ready{{{NODE}}})", bad_below=1),
                number("Lease held", f"min(iomesh_node_lease_held{{{NODE}}})", bad_below=1),
                number("Clock synchronised", f"min(iomesh_node_clock_synchronised{{{NODE}}})", bad_below=1),
                number("Clock error at most", f"max(iomesh_node_clock_error_seconds{{{NODE}}})", "s", bad_above=1),
                number("Runs for", f"time() - max(process_start_time_seconds{{{NODE}}})", "s"),
                number(
                    "Certificate expires in",
                    f"min(iomesh_node_certificate_expires_timestamp_seconds{{{NODE}}}) - time()",
                    "s",
                    bad_below=30 * 86400,
                ),
            ],
        ),
        Row(
            "Reactors",
            [
                graph(
                    "Share of the time that reactors work",
                    "percentunit",
                    (f"rate(iomesh_reactor_busy_seconds_total{{{NODE}}}[$__rate_interval])",
                     "{{instance}} reactor {{reactor}}"),
                ),
                graph(
                    "Volumes per reactor",
                    "short",
                    (f"iomesh_reactor_volumes{{{NODE}}}", "{{instance}} reactor {{reactor}}"),
                ),
                graph(
                    "Hit rate of the map cache",
                    "percentunit",
                    (
                        f"rate(iomesh_reactor_map_hits_total{{{NODE}}}[$__rate_interval]) / "
                        f"(rate(iomesh_reactor_map_hits_total{{{NODE}}}[$__rate_interval]) + "
                        f"rate(iomesh_reactor_map_misses_total{{{NODE}}}[$__rate_interval]))",
                        "{{instance}} reactor {{reactor}}",
                    ),
                ),
                graph(
                    "Map cache: nodes in use and dirty",
                    "short",
                    (f"iomesh_reactor_map_used{{{NODE}}}", "{{instance}} reactor {{reactor}} used"),
                    (f"iomesh_reactor_map_dirty{{{NODE}}}", "{{instance}} reactor {{reactor}} dirty"),
                ),
            ],
        ),
        Row(
            "Daemon",
            [
                graph(
                    "CPU of the whole daemon, in cores",
                    "short",
                    (f'rate(process_cpu_seconds_total{{job="iomesh", {NODE}}}[$__rate_interval])', "{{instance}}"),
                ),
                graph(
                    "Memory",
                    "bytes",
                    (f'process_resident_memory_bytes{{job="iomesh", {NODE}}}', "{{instance}}"),
                ),
                graph(
                    "Background tasks that are down",
                    "short",
                    (f"iomesh_background_task_up{{{NODE}}} == 0", "{{instance}} {{task}}"),
                ),
                graph(
                    "Restarts of background tasks, failed jobs",
                    "short",
                    (f"increase(iomesh_background_task_restarts_total{{{NODE}}}[$__rate_interval])",
                     "{{instance}} {{task}}"),
                    (f"increase(iomesh_background_job_failures_total{{{NODE}}}[$__rate_interval])",
                     "{{instance}} {{job}}"),
                ),
            ],
        ),
    ],
)  # fmt: skip

DEVICES = Dashboard(
    "iomesh-device",
    "iomesh / Device",
    INSTANCES | {"device": "label_values(iomesh_device_size_bytes{instance=~\"$instance\"}, path)"},
    [
        Row(
            "State",
            [
                number("Devices online", f"sum(iomesh_device_online{{{DEVICE}}})"),
                number("Missing or failed", f"count(iomesh_device_online{{{DEVICE}}} == 0) or vector(0)", bad_above=1),
                number("Without space below", f"sum(iomesh_device_full_below{{{DEVICE}}})", bad_above=1),
                number("Damaged blocks", f"sum(iomesh_device_damaged_blocks{{{DEVICE}}})", bad_above=1),
                number("Size", f"sum(iomesh_device_size_bytes{{{DEVICE}}})", "bytes"),
                number(
                    "Free",
                    f"sum(iomesh_device_free_bytes{{{DEVICE}}} - iomesh_device_reserve_bytes{{{DEVICE}}}) / "
                    f"sum(iomesh_device_size_bytes{{{DEVICE}}})",
                    "percentunit",
                    bad_below=0.1,
                ),
            ],
        ),
        Row(
            "Space",
            [
                graph("Free space", "bytes", (f"iomesh_device_free_bytes{{{DEVICE}}}", "{{instance}} {{path}}")),
                graph("Segment replicas", "short", (f"iomesh_device_replicas{{{DEVICE}}}", "{{instance}} {{path}}")),
            ],
        ),
        Row(
            "Scrub",
            [
                graph(
                    "Progress of the pass",
                    "percentunit",
                    (f"iomesh_device_scrub_progress_ratio{{{DEVICE}}}", "{{instance}} {{path}}"),
                ),
                graph(
                    "Since the last complete pass",
                    "s",
                    (f"time() - iomesh_device_scrub_ended_timestamp_seconds{{{DEVICE}}}", "{{instance}} {{path}}"),
                ),
                graph(
                    "Read by scrub",
                    "Bps",
                    (f"rate(iomesh_device_scrubbed_bytes_total{{{DEVICE}}}[$__rate_interval])",
                     "{{instance}} {{path}}"),
                ),
                graph("Damaged blocks", "short",
                      (f"iomesh_device_damaged_blocks{{{DEVICE}}}", "{{instance}} {{path}}")),
            ],
        ),
        Row(
            "Requests",
            [
                graph(
                    "Requests that were not answered in time",
                    "short",
                    (f"increase(iomesh_reactor_device_timeouts_total{{{NODE}}}[$__rate_interval])",
                     "{{instance}} reactor {{reactor}}"),
                ),
                graph(
                    "Device flushes",
                    "ops",
                    (f"sum by (instance) (rate(iomesh_volume_device_flushes_total{{{NODE}}}[$__rate_interval]))",
                     "{{instance}}"),
                ),
            ],
        ),
    ],
)  # fmt: skip

VOLUMES = Dashboard(
    "iomesh-volume",
    "iomesh / Volume",
    {"volume": "label_values(iomesh_volume_size_bytes, volume)"},
    [
        Row(
            "State",
            [
                number("Served", f'sum(iomesh_volume_state{{{VOLUME}, state="serving"}})', bad_below=1),
                number("Writable", f"min(iomesh_volume_writable{{{VOLUME}}})", bad_below=1),
                number("Size", f"sum(iomesh_volume_size_bytes{{{VOLUME}}})", "bytes"),
                number("Clients", f"sum(iomesh_volume_connections{{{VOLUME}}})"),
                number("Last recovery took", f"max(iomesh_volume_recovery_seconds{{{VOLUME}}})", "s"),
                number(
                    "Metadata unanswered for",
                    f"max(iomesh_volume_metadata_unanswered_seconds{{{VOLUME}}})",
                    "s",
                    bad_above=120,
                ),
            ],
        ),
        Row(
            "Requests",
            [
                graph(
                    "Requests",
                    "ops",
                    *(
                        (f"sum by (volume) (rate(iomesh_volume_{kind}_total{{{VOLUME}}}[$__rate_interval]))",
                         f"{{{{volume}}}} {kind}")
                        for kind in ("reads", "writes", "flushes", "trims")
                    ),
                ),
                graph(
                    "Throughput",
                    "Bps",
                    *(
                        (f"sum by (volume) (rate(iomesh_volume_{kind}_bytes_total{{{VOLUME}}}[$__rate_interval]))",
                         f"{{{{volume}}}} {kind}")
                        for kind in ("read", "written")
                    ),
                ),
                graph("Read latency", "s", *quantiles("read", "volume", VOLUME)),
                graph("Write latency", "s", *quantiles("write", "volume", VOLUME)),
                graph("Flush latency", "s", *quantiles("flush", "volume", VOLUME)),
                graph(
                    "Errors",
                    "short",
                    *(
                        (f"increase(iomesh_volume_{kind}_total{{{VOLUME}}}[$__rate_interval])",
                         f"{{{{volume}}}} {kind.replace('_', ' ')}")
                        for kind in ("read_errors", "write_errors", "checksum_errors", "no_space_errors")
                    ),
                ),
            ],
        ),
        Row(
            "Log",
            [
                graph(
                    "Mapped: what the volume holds",
                    "bytes",
                    (f"iomesh_volume_exclusive_bytes{{{VOLUME}}}", "{{volume}} alone"),
                    (f"iomesh_volume_shared_bytes{{{VOLUME}}}", "{{volume}} shared with snapshots"),
                    (f"iomesh_volume_inherited_bytes{{{VOLUME}}}", "{{volume}} in its parents"),
                    stacked=True,
                ),
                graph(
                    "Write amplification, cleaning included",
                    "short",
                    (
                        f"(rate(iomesh_volume_record_bytes_total{{{VOLUME}}}[$__rate_interval]) + "
                        f"rate(iomesh_volume_compaction_bytes_total{{{VOLUME}}}[$__rate_interval])) / "
                        f"rate(iomesh_volume_written_bytes_total{{{VOLUME}}}[$__rate_interval])",
                        "{{volume}}",
                    ),
                ),
                graph(
                    "Cleaning need: 1 space will be short, 2 it is",
                    "short",
                    (f"iomesh_volume_cleaning_need{{{VOLUME}}}", "{{volume}}"),
                ),
                graph(
                    "Cleaning",
                    "Bps",
                    (f"rate(iomesh_volume_cleaning_freed_bytes_total{{{VOLUME}}}[$__rate_interval])",
                     "{{volume}} freed"),
                    (f"rate(iomesh_volume_compaction_bytes_total{{{VOLUME}}}[$__rate_interval])",
                     "{{volume}} written by compaction"),
                    (f"rate(iomesh_volume_evacuated_bytes_total{{{VOLUME}}}[$__rate_interval])",
                     "{{volume}} written by evacuation"),
                ),
                graph(
                    "Log that a recovery would read",
                    "bytes",
                    (f"iomesh_volume_replay_bytes{{{VOLUME}}}", "{{volume}}"),
                ),
                graph("Segments", "short", (f"iomesh_volume_segments{{{VOLUME}}}", "{{volume}}")),
            ],
        ),
        Row(
            "Snapshots and restore window",
            [
                graph("Snapshots", "short", (f"iomesh_volume_snapshots{{{VOLUME}}}", "{{volume}}")),
                graph(
                    "How far back it can be restored, and should be",
                    "s",
                    (f"time() - iomesh_volume_window_from_timestamp_seconds{{{VOLUME}}}", "{{volume}} can"),
                    (f"iomesh_volume_window_seconds{{{VOLUME}}} > 0", "{{volume}} should"),
                ),
            ],
        ),
    ],
)  # fmt: skip

REPLICATION = Dashboard(
    "iomesh-replication",
    "iomesh / Replication",
    {"volume": "label_values(iomesh_volume_size_bytes, volume)"},
    [
        Row(
            "State",
            [
                number(
                    "Volumes short of replicas",
                    "count(iomesh_volume_replicas < iomesh_volume_replicas_wanted) or vector(0)",
                    bad_above=1,
                ),
                number("Volumes without owner", "max(iomesh_cluster_volumes_without_owner)", bad_above=1),
                number("Nodes running", 'max(iomesh_cluster_nodes{state="running"})', bad_below=1),
                number("Nodes down", 'max(iomesh_cluster_nodes{state="down"})', bad_above=1),
                number("Connections lost", "count(iomesh_peer_connected == 0) or vector(0)", bad_above=1),
                number("Clocks differ by", "max(abs(iomesh_peer_clock_ahead_seconds))", "s", bad_above=5),
            ],
        ),
        Row(
            "Volumes",
            [
                graph(
                    "Nodes that keep what is written",
                    "short",
                    (f"iomesh_volume_replicas{{{VOLUME}}}", "{{volume}} on {{instance}}"),
                ),
                graph(
                    "Opened in the last hour: restarts and take-overs",
                    "short",
                    (
                        f"max by (volume) (max_over_time(iomesh_volume_epoch{{{VOLUME}}}[1h])) - "
                        f"min by (volume) (min_over_time(iomesh_volume_epoch{{{VOLUME}}}[1h]))",
                        "{{volume}}",
                    ),
                ),
                graph(
                    "Where volumes are served",
                    "short",
                    ('sum by (instance) (iomesh_volume_state{state="serving"})', "{{instance}}"),
                ),
                graph(
                    "Blocks repaired from copies",
                    "short",
                    (f"increase(iomesh_volume_blocks_repaired_total{{{VOLUME}}}[$__rate_interval])", "{{volume}}"),
                ),
            ],
        ),
        Row(
            "Connections between nodes",
            [
                graph(
                    "Working connections",
                    "short",
                    ("sum by (instance, node) (iomesh_peer_connected)", "{{instance}} to {{node}}"),
                ),
                graph(
                    "Requests",
                    "ops",
                    ("sum by (instance, node) (rate(iomesh_peer_calls_total[$__rate_interval]))",
                     "{{instance}} to {{node}}"),
                ),
            ],
        ),
    ],
)  # fmt: skip

DASHBOARDS = [OVERVIEW, NODES, DEVICES, VOLUMES, REPLICATION]


def document(dashboard: Dashboard) -> dict[str, Any]:
    """As Grafana imports it."""
    return {
        "uid": dashboard.name,
        "title": dashboard.title,
        "tags": ["iomesh"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": [
            {"type": "dashboards", "title": "iomesh", "tags": ["iomesh"], "asDropdown": True, "includeVars": True,
             "keepTime": True}
        ],
        "templating": {"list": [_data_source(), *(_variable(*each) for each in dashboard.variables.items())]},
        "panels": list(_panels(dashboard)),
    }  # fmt: skip


def _data_source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    identity, top = 0, 0
    for row in dashboard.rows:
        identity += 1
        yield {
            "id": identity,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        top += 1
        width, height = (4, 4) if row.panels[0].number else (12, 8)
        for place, panel in enumerate(row.panels):
            identity += 1
            line, column = divmod(place * width, COLUMNS)
            yield _panel(panel, identity) | {
                "gridPos": {"x": column, "y": top + line * height, "w": width, "h": height}
            }
        top += -(-len(row.panels) * width // COLUMNS) * height


def _panel(panel: Panel, identity: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": _thresholds(panel)}
    if panel.number:
        options: dict[str, Any] = {"colorMode": "value", "reduceOptions": {"calcs": ["lastNotNull"]}}
    else:
        defaults |= {
            "min": 0,
            "custom": {
                "fillOpacity": 30 if panel.stacked else 5,
                "showPoints": "never",
                "stacking": {"mode": "normal" if panel.stacked else "none"},
            },
        }
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    return {
        "id": identity,
        "type": "stat" if panel.number else "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": SOURCE,
                "expr": re.sub(r"\{\}", "", query.expr),
                "legendFormat": query.legend or "__auto",
            }
            for place, query in enumerate(panel.queries)
        ],
    }


def _thresholds(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "red" if panel.bad_below is not None else "green", "value": None}]
    if panel.bad_below is not None:
        steps.append({"color": "green", "value": panel.bad_below})
    if panel.bad_above is not None:
        steps.append({"color": "red", "value": panel.bad_above})
    return {"mode": "absolute", "steps": steps}


def main() -> int:
    outdated = []
    for dashboard in DASHBOARDS:
        file, text = FOLDER / f"{dashboard.name}.json", json.dumps(document(dashboard), indent=1) + "\n"
        if not file.exists() or file.read_text() != text:
            outdated.append(file.name)
            if "--check" not in sys.argv[1:]:
                file.write_text(text)
                print(f"wrote {file}")
    if outdated and "--check" in sys.argv[1:]:
        print(f"{', '.join(outdated)}: not what {Path(__file__).name} makes: run it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
