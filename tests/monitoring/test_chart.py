"""What the chart makes for Prometheus and Grafana, and for `helm test`, as `helm template` renders it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import yaml

from iomesh.cli.check import check
from support.kubernetes import programs
from support.monitoring import CHART, RULES

OURS = ("ServiceMonitor", "PrometheusRule")


def render(*settings: str) -> list[dict[str, Any]]:
    if reason := programs.missing("helm"):
        pytest.skip(reason)
    words = [programs.program("helm"), "template", "storage", str(CHART), "--namespace", "iomesh"]
    done = subprocess.run(
        [*words, *(word for setting in settings for word in ("--set", setting))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def find(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def test_nothing_for_prometheus_is_made_unless_it_is_asked_for() -> None:
    documents = render()
    assert not [each for each in documents if each["kind"] in OURS]
    assert not [each for each in documents if "metrics" in each["metadata"]["name"]]
    assert not [each for each in documents if "dashboards" in each["metadata"]["name"]]


def test_prometheus_finds_the_daemons_by_the_service_monitor() -> None:
    documents = render("monitoring.serviceMonitor.enabled=true", "node.ports.metrics=9999",
                       "monitoring.serviceMonitor.labels.release=prometheus")  # fmt: skip
    monitor = find(documents, "ServiceMonitor", "iomesh-node")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    service = find(documents, "Service", "iomesh-node-metrics")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    assert (port["name"], port["targetPort"]) == (monitor["spec"]["endpoints"][0]["port"], 9999)
    assert service["spec"]["publishNotReadyAddresses"], "a node that is not ready is the one to be looked at"
    daemons = find(documents, "DaemonSet", "iomesh-node")["spec"]["template"]
    assert service["spec"]["selector"].items() <= daemons["metadata"]["labels"].items()
    assert "--set=metrics.listen=$(HOST_IP):9999" in daemons["spec"]["containers"][0]["args"]
    targets = {each["targetLabel"] for each in monitor["spec"]["endpoints"][0]["relabelings"]}
    assert targets == {"job", "instance"}, "the alerts go by these"


def test_the_service_is_there_for_a_prometheus_without_the_operator() -> None:
    documents = render("monitoring.service=true")
    assert find(documents, "Service", "iomesh-node-metrics")
    assert not [each for each in documents if each["kind"] in OURS]


def test_the_alerts_are_those_of_the_file() -> None:
    rule = find(render("monitoring.rules.enabled=true"), "PrometheusRule", "iomesh")
    assert rule["spec"] == yaml.safe_load(RULES.read_text())


def test_the_alerts_link_to_where_the_manual_is() -> None:
    place = "https://wiki.example.org/iomesh"
    rule = find(
        render("monitoring.rules.enabled=true", f"monitoring.rules.runbooks={place}"), "PrometheusRule", "iomesh"
    )
    urls = [each["annotations"]["runbook_url"] for group in rule["spec"]["groups"] for each in group["rules"]]
    assert all(url.startswith(f"{place}#iomesh") for url in urls), urls


def test_grafana_gets_every_dashboard() -> None:
    found = find(render("monitoring.dashboards.enabled=true"), "ConfigMap", "iomesh-dashboards")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    files = {file.name: json.loads(file.read_text()) for file in (CHART / "monitoring" / "dashboards").glob("*.json")}
    assert {name: json.loads(text) for name, text in found["data"].items()} == files
    assert len({document["uid"] for document in files.values()}) == len(files) == 5


@pytest.mark.parametrize(("driver", "image"), [("true", "csi"), ("false", "node")])
def test_helm_test_checks_the_nodes_with_the_daemons_configuration(driver: str, image: str) -> None:
    documents = render("preflight.nodes=3", f"csi.enabled={driver}", "node.config.engine\\.reactors=2")
    job = find(documents, "Job", "iomesh-preflight")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "test", "an installation does not run it"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 3
    pod = job["spec"]["template"]
    (apart,) = pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["labelSelector"]["matchLabels"] == pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    assert f"/{image}:" in container["image"]
    assert ("--no-driver" in container["args"]) is (driver == "false")
    daemon = find(documents, "DaemonSet", "iomesh-node")["spec"]["template"]["spec"]["containers"][0]
    settings = {each for each in daemon["args"] if each.startswith("--") and "peers.listen" not in each}
    assert settings <= set(container["args"]), "it checks what the daemon is started with"
    assert container["securityContext"] == daemon["securityContext"]

    words = [each.replace("$(NODE_NAME)", "n").replace("$(HOST_IP)", "127.0.0.1") for each in container["args"]]
    check.commands["node"].make_context("node", words[2:], resilient_parsing=True)  # each option exists


def test_the_check_can_be_left_out() -> None:
    assert not [each for each in render("preflight.enabled=false") if each["kind"] == "Job"]
