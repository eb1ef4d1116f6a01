"""The alerts and dashboards ask for what daemons export, and a Prometheus that scrapes two of them answers."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from iomesh.api.client import Client
from support.monitoring import CHART, RULES, alerts
from support.nbd import Connection
from support.nodes import Nodes, until
from support.promql import ADDED, labels_shown, used_by
from support.run import end, eventually

DASHBOARDS = sorted((CHART / "monitoring" / "dashboards").glob("*.json"))
VARIABLES = {"$__rate_interval": "1m", "$instance": ".*", "$device": ".*", "$volume": ".*"}
# The labels of those without samples on a healthy node that was just started.
WITHOUT_SAMPLES = {
    "iomesh_background_job_failures_total": {"job"},
    "iomesh_device_scrub_progress_ratio": {"device", "label", "path", "tier"},
    "iomesh_device_scrub_ended_timestamp_seconds": {"device", "label", "path", "tier"},
}
# What a machine's clock does is not the cluster's fault.
OF_THE_MACHINE = {"IomeshClockNotSynchronised", "IomeshReactorOverloaded", "IomeshFlushesSlow"}
KILLED = {
    "IomeshNodeDown",
    "IomeshNodeLost",
    "IomeshPeerConnectionLost",
    "IomeshVolumeReplicasMissing",
    "IomeshVolumeWithoutOwner",
}


def queries() -> Iterator[tuple[str, str, str]]:
    """Of all alerts and panels: where it is, the query, and what is shown of its answer."""
    for name, rule in alerts().items():
        yield name, rule["expr"], rule["annotations"]["summary"]
    for file in DASHBOARDS:
        document = json.loads(file.read_text())
        for panel in document["panels"]:
            for target in panel.get("targets", []):
                yield f"{file.stem}, {panel['title']}", target["expr"], target["legendFormat"]
        for variable in document["templating"]["list"][1:]:
            query, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
            yield f"{file.stem}, ${variable['name']}", query, f"{{{{{label}}}}}"


def exported(page: str) -> dict[str, set[str]]:
    """The labels of each metric."""
    found: dict[str, set[str]] = {}
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            found.setdefault(line.split()[2], set())
        elif not line.startswith("#"):
            name, labels = re.match(r"(\w+)(?:\{(.*)\})?", line).groups()  # type: ignore[union-attr]
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels or ""))
    return found


class Prometheus:
    """A server that scrapes the nodes every 2 s and evaluates the alerts without waiting."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        rules = re.sub(r"^( +for:) .*$", r"\1 0s", RULES.read_text(), flags=re.MULTILINE)
        (folder / "alerts.yaml").write_text(rules)
        scrape = [{"targets": [address], "labels": {"instance": node}} for node, address in targets.items()]
        config = {
            "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
            "rule_files": ["alerts.yaml"],
            "scrape_configs": [{"job_name": "iomesh", "static_configs": scrape}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.log = (folder / "prometheus.log").open("w")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={self.address}"],
            stdout=self.log, stderr=self.log, cwd=folder,
        )  # fmt: skip

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url) as answer:
            return json.loads(answer.read())["data"]

    def query(self, query: str) -> list[Any]:
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        found: list[Any] = self.ask("query", query=query)["result"]
        return found

    def answers(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()
        try:
            return len(self.query('up{job="iomesh"} == 1')) == 2
        except OSError:
            return False

    def firing(self) -> set[str]:
        return {found["metric"]["alertname"] for found in self.query('ALERTS{alertstate="firing"}')}

    def end(self) -> None:
        end(self.process.pid)
        self.process.wait()
        self.log.close()


async def prepare(trial: Nodes) -> dict[str, str]:
    """A volume with all that there is to see; returns the nodes' metrics addresses."""
    addresses = {}
    for name in trial.names:
        async with trial.client(name) as client:
            addresses[name] = (await client.status()).metrics_address
    async with Client(trial.control) as client:
        await client.set_volume(trial.volume, window_seconds=3600)
        await client.create_snapshots([trial.volume], "first")
    async with trial.client("b") as client:
        await client.create_volume("single", 64 << 20)  # that no other node can take over
    await write(trial.uri)
    for address in addresses.values():  # cleaning reports a volume after its first look at it
        await until(partial(shows_cleaning, address), f"{address} shows what cleaning does")
    return addresses


def shows_cleaning(address: str) -> bool:
    return "iomesh_volume_cleaning_need{" in page(address)


async def write(uri: str) -> None:
    connection = await Connection.connect(uri)
    await connection.write(0, b"x" * (1 << 20))
    await connection.flush()
    await connection.close()


def page(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        return str(answer.read().decode())


@pytest.fixture
def trial(new_trial: Any) -> Nodes:
    options = ("--nodes", "2", "--replicas", "2", "--device-size", "1Gi", "--size", "64Mi", "--map-cache", "16Mi")
    trial = new_trial(*options, kind=Nodes)
    assert isinstance(trial, Nodes)
    return trial


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Prometheus]]:
    servers: list[Prometheus] = []
    yield servers
    for server in servers:
        server.end()


def test_alerts_and_dashboards_over_two_real_nodes(trial: Nodes, started: list[Prometheus], tmp_path: Path) -> None:
    targets = asyncio.run(prepare(trial))
    check_names([exported(page(address)) for address in targets.values()])

    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is missing: tools/packages test installs it")
    started.append(prometheus := Prometheus(tmp_path, targets))
    eventually(prometheus.answers, what="Prometheus has scraped both nodes")
    check_queries(prometheus)
    evaluated(prometheus)
    fires(prometheus, set())

    trial.kill("b")
    asyncio.run(write(trial.uri))  # the volume goes on with one replica
    fires(prometheus, KILLED)


def fires(prometheus: Prometheus, wanted: set[str]) -> None:
    """Returns once these alerts fire and no other. On a slow machine one may fire for a moment: none waits here."""
    seen: set[str] = set()

    def as_wanted() -> bool:
        nonlocal seen
        seen = prometheus.firing() - OF_THE_MACHINE
        return seen == wanted

    try:
        eventually(as_wanted, what="the alerts are as wanted")
    except AssertionError as error:
        raise AssertionError(f"{wanted or 'no alerts'} should fire, and {seen or 'none'} do") from error


def check_names(pages: list[dict[str, set[str]]]) -> None:
    """Every metric of a query is exported by each node, with the labels that the query uses."""
    unknown = []
    for place, query, shown in queries():
        used = used_by(query)
        assert used.matched, f"{place}: no metric is found in {query}"
        known: set[str] = set(ADDED)
        for metric, labels in used.matched.items():
            found = ADDED if metric == "up" else labels_of(metric, pages)
            known |= found
            if metric != "up" and not any(declares(metric, names) for names in pages):
                unknown.append(f"{place}: no node exports {metric}")
            elif not labels <= found:
                unknown.append(f"{place}: {metric} has no label {', '.join(labels - found)}, but {found}")
        if others := (used.grouped | labels_shown(shown)) - known:
            unknown.append(f"{place}: no metric of the query has a label {', '.join(others)}")
    assert not unknown, "\n".join(unknown)


def labels_of(metric: str, pages: list[dict[str, set[str]]]) -> set[str]:
    return ADDED | WITHOUT_SAMPLES.get(metric, set()).union(*(names.get(metric, set()) for names in pages))


def declares(metric: str, names: dict[str, set[str]]) -> bool:
    """Also without samples: then the page has the family's name and type alone."""
    return metric in names or metric.removesuffix("_total") in names


def check_queries(prometheus: Prometheus) -> None:
    """Each query of a dashboard can be computed, and gives something unless nothing is wrong or was done."""
    rate = "rate(process_cpu_seconds_total[1m])"
    eventually(lambda: len(prometheus.query(rate)) == 2, what="there are rates: each node was scraped twice")
    for place, query, _ in queries():
        quiet = query.endswith("== 0") or used_by(query).matched.keys() & WITHOUT_SAMPLES
        assert prometheus.query(query) or quiet or place in alerts(), f"{place}: {query} gives nothing"


def evaluated(prometheus: Prometheus) -> None:
    """Returns once each alert was evaluated over both nodes, without an error."""

    def all_are() -> bool:
        groups = prometheus.ask("rules", type="alert")["groups"]
        for rule in (rule for group in groups for rule in group["rules"]):
            assert rule["health"] != "err", f"{rule['name']}: {rule['lastError']}"
        return all(rule["health"] == "ok" for group in groups for rule in group["rules"])

    eventually(all_are, what="Prometheus evaluates each alert")
