"""csi-sanity, whole, against the driver and a cluster, with real mounts."""

import json
from pathlib import Path

import pytest

from support.amount import Amount
from support.csi import Driver
from support.kubernetes import programs
from support.run import run

# Why cases are skipped, by the start of their names. Every other one has to run.
SKIPPED = {
    "Controller Service [Controller Server] ControllerPublishVolume": "a node attaches by itself (docs/csi.md)",
    "Controller Service [Controller Server] ControllerUnpublishVolume": "as above",
    "Controller Service [Controller Server] volume lifecycle": "it publishes in the controller, as above",
    "CreateSnapshot [Controller Server] should succeed when creating a snapshot with accessibility requirements": (
        "a snapshot is as accessible as its volume: from every node"
    ),
    "Controller Service [Controller Server] ListVolumes pagination should detect volumes": (
        "switched off in csi-sanity itself, which calls it fragile; test_volumes.py has such a case"
    ),
}


@pytest.mark.skipif(
    bool(programs.missing("csi-sanity")), reason="csi-sanity is not compiled; make test-csi compiles it (2 minutes)"
)
@pytest.mark.parametrize("access", ["mount", "block"])
def test_csi_sanity_passes(driver: Driver, room: Path, access: str, amount: Amount) -> None:
    if access == "block" and not amount.soak:
        pytest.skip("--soak; test_nodes.py has a block device")
    (room / "class.yaml").write_text('replicas: "2"\n')
    (room / "attributes.yaml").write_text("window: 10m\n")
    report = room / "report.json"
    words = {
        "csi.endpoint": driver.socket,
        "csi.mountdir": room / "mount",
        "csi.stagingdir": room / "staging",
        "csi.testvolumesize": 1 << 30,
        "csi.testvolumeaccesstype": access,
        "csi.testvolumeparameters": room / "class.yaml",
        "csi.testvolumemutableparameters": room / "attributes.yaml",
        "ginkgo.json-report": report,
    }
    done = run(
        [programs.program("csi-sanity"), *(f"--{name}={value}" for name, value in words.items())],
        timeout=550,
        succeeds=False,
    )
    cases = json.loads(report.read_text())[0]["SpecReports"]
    states = {
        " ".join([*(case["ContainerHierarchyTexts"] or []), case["LeafNodeText"]]).strip(): case["State"]
        for case in cases
        if case["LeafNodeType"] == "It"
    }
    failed = sorted(name for name, state in states.items() if state not in ("passed", "skipped", "pending"))
    assert failed == [] and done.returncode == 0, done.stdout[-8000:]
    left_out = [name for name, state in states.items() if state != "passed"]
    assert [name for name in left_out if not name.startswith(tuple(SKIPPED))] == [], "skipped without a reason"
    assert len(states) - len(left_out) >= 91
