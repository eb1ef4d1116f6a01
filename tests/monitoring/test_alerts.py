"""The alerts of the chart fire when they should and not otherwise, as promtool computes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from support.monitoring import RULES, alerts, promtool

CASES: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text())


def series(text: str) -> str:
    """With the labels that a scrape adds."""
    name, _, labels = text.rstrip("}").partition("{")
    added = [f'{key}="{value}"' for key, value in (("job", "iomesh"), ("instance", "a")) if f"{key}=" not in labels]
    return f"{name}{{{', '.join([*added, *filter(None, [labels])])}}}"


def case(alert: str, rule: dict[str, Any], given: dict[str, Any], *, fires: bool) -> dict[str, Any]:
    """A test of promtool."""
    labels = {"severity": rule["labels"]["severity"]} | given.get("labels", {})
    if "job" not in labels:
        labels |= {"job": "iomesh", "instance": "a"}
    annotations = {"summary": given["says"], "runbook_url": rule["annotations"]["runbook_url"]}
    return {
        "name": f"{alert} {'fires' if fires else 'does not fire'}",
        "interval": "1m",
        "input_series": [
            {"series": series(name), "values": values} for name, values in given["fires" if fires else "quiet"].items()
        ],
        "alert_rule_test": [
            {
                "eval_time": given["at"],
                "alertname": alert,
                "exp_alerts": [{"exp_labels": labels, "exp_annotations": annotations}] if fires else [],
            }
        ],
    }


def test_each_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    rules = alerts()
    assert list(rules) == list(CASES), "an alert has no test, or they are in another order"
    tests = [case(alert, rules[alert], CASES[alert], fires=fires) for alert in rules for fires in (True, False)]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", file)


def test_each_alert_has_a_severity_and_a_section_of_the_operations_manual() -> None:
    for alert, rule in alerts().items():
        assert rule["labels"]["severity"] in ("critical", "warning"), alert
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{alert.lower()}"
        assert re.fullmatch(r"Iomesh[A-Z]\w+", alert)
