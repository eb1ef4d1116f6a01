"""The alerts and dashboards of the chart, and promtool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "iomesh"
RULES = CHART / "monitoring" / "alerts.yaml"


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def promtool(*words: str | Path, folder: Path | None = None) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: tools/packages test installs it (package prometheus)")
    done = subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
