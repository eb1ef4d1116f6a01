"""Kubernetes' own end-to-end cases for external storage drivers: those that are neither slow nor disruptive."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.kubernetes import images, programs
from support.kubernetes.cluster import Cluster, inside
from support.kubernetes.disks import Disks
from support.kubernetes.installation import Installation

HERE = Path(__file__).parent
REPORT = HERE.parents[2] / "build" / "kubernetes-e2e"
FOCUS = "External.Storage"
# The last two: a populator whose image cannot be built here, and classes for groups with the parameter deletionPolicy,
# which no driver knows.
SKIP = r"\[Disruptive\]|\[Slow\]|any volume data source|volumegroupsnapshottable"
PROCESSES = 4

# Parts of the names of cases that fail, and why.
KNOWN = {
    "correct filesystem size when restoring snapshot": "it deletes the snapshot before the volume restored from it",
}


@pytest.fixture(scope="module")
def disks(driven: Cluster) -> Iterator[Disks]:
    with Disks(driven.nodes, 24 << 30) as disks:
        yield disks


@pytest.fixture(scope="module")
def suite(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    cluster, folder = installation.cluster, tmp_path_factory.mktemp("images")
    if reason := programs.missing("e2e.test", "ginkgo", "agnhost"):
        pytest.skip(reason)
    installation.wait_formed(devices=2)
    wanted = subprocess.run([programs.program("e2e.test"), "--list-images"], check=True, capture_output=True, text=True)

    def names(*kinds: str) -> list[str]:
        return re.findall(rf"^\S+/(?:{'|'.join(kinds)}):\S+$", wanted.stdout, re.MULTILINE)

    images.make_image(folder / "busybox.tar", names("busybox", "nginx"), ["/bin/sh"])
    images.make_image(folder / "pause.tar", names("pause"), ["/bin/sleep", "2147483647"])
    added = {"/agnhost": programs.program("agnhost"), "/bin/nsenter": str(HERE / "nsenter")}
    images.make_image(folder / "agnhost.tar", names("agnhost"), ["pause"], add=added, entry=["/agnhost"])
    cluster.load(*folder.glob("*.tar"))
    return cluster


def test_kubernetes_own_cases(suite: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    REPORT.mkdir(parents=True, exist_ok=True)
    for old in REPORT.glob("junit*.xml"):
        old.unlink()
    command = [
        programs.program("ginkgo"), "-procs", str(PROCESSES), "--no-color", f"--focus={FOCUS}", f"--skip={SKIP}",
        programs.program("e2e.test"), "--", f"--kubeconfig={suite.kubeconfig}", "--provider=skeleton",
        f"--repo-root={HERE}", f"--storage.testdriver={HERE / 'driver.yaml'}", f"--report-dir={REPORT}",
    ]  # fmt: skip
    environment = os.environ | {"KUBECONFIG": str(suite.kubeconfig), "PATH": programs.search_path()}
    with (REPORT / "log").open("wb") as log:
        subprocess.run(inside(suite.network, command), stdout=log, stderr=log, env=environment, cwd=REPORT, check=False)
    results = _results()
    counts = Counter(results.values())
    with capsys.disabled():
        print(f"\n{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped: {REPORT}/log")
    assert counts["passed"], "a case whose options are missing skips"
    failed = [name for name, result in results.items() if result == "failed"]
    assert not [name for name in failed if not any(part in name for part in KNOWN)]


def _results() -> dict[str, str]:
    """Of the cases that were chosen: passed, failed or skipped (by itself, when it ran)."""
    found = {}
    for path in REPORT.glob("junit*.xml"):
        for case in ElementTree.parse(path).iter("testcase"):
            name = case.get("name", "")
            if not re.search(FOCUS, name) or re.search(SKIP, name):
                continue
            states = {"failure": "failed", "error": "failed", "skipped": "skipped"}
            found[name] = next((states[child.tag] for child in case if child.tag in states), "passed")
    return found
