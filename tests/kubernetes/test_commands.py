"""The commands of docs/kubernetes.md, run as they are written there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kubernetes import postgres
from support.kubernetes.cluster import Cluster
from support.kubernetes.disks import Disks
from support.kubernetes.installation import Installation

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"^## From nothing to a database$(.*?)^## ", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    (section,) = SECTION.findall((ROOT / "docs" / "kubernetes.md").read_text())
    return [line for block in BLOCK.findall(section) for line in block.splitlines()]


@pytest.fixture
def checkout(tmp_path: Path, driven: Cluster) -> Iterator[Path]:
    """A folder with what the commands find in a checkout, and the user's disks.yaml: this cluster's disks, and what its
    small nodes need."""
    for name in ("charts", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    with Disks(driven.nodes, 24 << 30) as disks:
        installation = Installation(driven, disks, tmp_path)
        (tmp_path / "disks.yaml").write_text(json.dumps(installation.values()))
        yield tmp_path
        driven.kubectl("delete", "statefulset,service,secret", "postgres")
        driven.kubectl("wait", "--for=delete", "pod/postgres-0", "--timeout=5m")
        driven.kubectl("delete", "pvc", "data-postgres-0")
        driven.kubectl("delete", "pv", "--all")  # Retain: the claim's end does not delete the volume
        installation.give_up()


def test_ten_commands_lead_to_a_database(checkout: Path, driven: Cluster) -> None:
    postgres.load_image(driven)
    written = commands()
    assert len(written) <= 10
    shown = [driven.run(["sh", "-c", command], folder=checkout) for command in written]
    assert "8000" in shown[-2], "the database has what was written"
    assert "Bound" in shown[-1]
