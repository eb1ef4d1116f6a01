"""`iomesh status` says of the whole cluster, at any node, whether it is healthy, and if not, why."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from iomesh.api.model import (
    Device,
    DeviceState,
    MembershipState,
    Node,
    NodeState,
    Policy,
    Reason,
    Scrub,
    Status,
    Verdict,
    Volume,
    VolumeState,
)
from iomesh.node.control.verdict import Told, reasons_of
from support.nodes import Nodes, until
from support.run import run
from support.trial import iomesh_command

SIZES = ("--device-size", "1Gi", "--size", "16Mi")


def status_at(nodes: Nodes, name: str) -> tuple[int, dict[str, Any]]:
    done = run([iomesh_command(), "status", "--address", nodes.control_of(name), "--json"], succeeds=False)
    return done.returncode, json.loads(done.stdout)


def kinds(found: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(reason["kind"], reason["node"], reason["volume"]) for reason in found["cluster"]["reasons"]}


@pytest.mark.logs("its owner is lost")
async def test_one_verdict_for_the_cluster_whichever_node_is_asked(new_trial: Callable[..., Any]) -> None:
    nodes: Nodes = new_trial("--nodes", "3", "--replicas", "3", *SIZES, kind=Nodes)
    await until(lambda: nodes.has_all_replicas(3), "the volume has its replicas")
    for name in "abc":
        code, found = status_at(nodes, name)
        assert (code, found["cluster"]["verdict"], found["cluster"]["reasons"]) == (0, "healthy", [])
        assert (found["health"], found["node"]["node"]) == ("ready", name)
        assert [node["name"] for node in found["cluster"]["nodes"]] == ["a", "b", "c"]

    nodes.kill("c")

    def degraded() -> bool:
        found = status_at(nodes, "b")[1]
        return kinds(found) == {("node-down", "c", ""), ("volume-replicas", "a", "trial")}

    await until(degraded, "node b knows that c is down and the volume lacks a replica")
    code, found = status_at(nodes, "b")
    assert (code, found["cluster"]["verdict"], found["health"]) == (21, "degraded", "ready")
    words = run([iomesh_command(), "status", "--address", nodes.control_of("a")], succeeds=False).stdout
    assert "reason    node c is down, and has 1 device(s): start its daemon" in words
    assert "volume trial has 2 of 3 replicas, on " in words

    nodes.start_nodes("c")
    await until(lambda: status_at(nodes, "c")[0] == 0, "all is well again")


@pytest.mark.logs("its owner is lost")
async def test_a_volume_that_no_node_serves_makes_the_cluster_unavailable(new_trial: Callable[..., Any]) -> None:
    nodes: Nodes = new_trial("--nodes", "2", *SIZES, kind=Nodes)
    nodes.pause("a")
    code, found = status_at(nodes, "b")
    assert (code, found["cluster"]["verdict"], found["health"]) == (22, "unavailable", "ready")
    assert {("node-silent", "a", ""), ("volume-not-served", "a", "trial")} == kinds(found) or {
        ("node-down", "a", ""),
        ("volume-not-served", "a", "trial"),
    } == kinds(found), "its lease may have expired meanwhile"
    assert found["cluster"]["reasons"][0]["kind"] == "volume-not-served", "the worst comes first"
    nodes.resume("a")
    await until(lambda: status_at(nodes, "b")[0] == 0, "node a answers again")


def told(name: str, *, devices: list[Device] | None = None, volumes: list[Volume] | None = None, **status: Any) -> Told:
    usual: dict[str, Any] = {"state": NodeState.READY, "capacity_bytes": 100 << 30, "free_bytes": 50 << 30}
    return Told(
        Node(name=name, state=MembershipState.RUNNING, devices=1),
        Status(
            node=name,
            cluster="",
            version="",
            process_id=1,
            started_at=datetime.now(UTC),
            ready=True,
            reactors=1,
            control_address="",
            metrics_address="",
            nbd_addresses=[],
            volumes=0,
            devices=1,
            warnings=[],
            **(usual | status),
        ),
        devices or [],
        volumes or [],
    )


def volume(name: str, state: VolumeState, *, replicas: int = 1, on: tuple[str, ...] = (), reason: str = "") -> Volume:
    return Volume(
        name=name,
        id=name,
        size_bytes=1,
        segment_bytes=1,
        epoch=1,
        owner="a",
        state=state,
        reason=reason,
        policy=Policy(replicas=replicas),
        replica_nodes=list(on),
    )


def device(state: DeviceState, *, damaged: int = 0, reason: str = "") -> Device:
    scrub = Scrub(damaged_blocks=damaged)
    return Device(id="", path="/dev/x", tier="ssd", label="", size_bytes=1, state=state, scrub=scrub, reason=reason)


def test_every_kind_of_reason_names_what_it_is_about() -> None:
    failed = volume("db", VolumeState.FAILED, reason="no map")
    serving = volume("log", VolumeState.SERVING, replicas=3, on=("a", "b"))
    found = list(
        reasons_of(
            [
                told(
                    "a",
                    devices=[device(DeviceState.FAILED, reason="EIO"), device(DeviceState.ONLINE, damaged=2)],
                    volumes=[failed, serving],
                    problems=["volume db has failed: no map", "background task scrub is down: bug"],
                    free_bytes=1 << 30,
                ),
                told("b", state=NodeState.STARTING),
            ],
            [volume("db", VolumeState.ELSEWHERE), volume("log", VolumeState.ELSEWHERE)],
        )
    )
    assert found == [
        Reason(Verdict.DEGRADED, "node-problem", "a", "", "node a: background task scrub is down: bug"),
        Reason(Verdict.DEGRADED, "device-failed", "a", "", "device /dev/x of node a is failed: EIO"),
        Reason(Verdict.DEGRADED, "device-damaged", "a", "", "device /dev/x of node a has 2 damaged block(s)"),
        Reason(
            Verdict.DEGRADED,
            "space",
            "a",
            "",
            "node a has 1 Gi of 100 Gi left: add a device, or delete something",
        ),
        Reason(Verdict.DEGRADED, "node-changing", "b", "", "node b is starting"),
        Reason(Verdict.UNAVAILABLE, "volume-not-served", "a", "db", "volume db has failed: no map"),
        Reason(Verdict.DEGRADED, "volume-replicas", "a", "log", "volume log has 2 of 3 replicas, on a, b"),
    ]
