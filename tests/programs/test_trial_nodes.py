"""`iomesh trial` with several nodes: each command changes the node that it names and no other, and the present state is
reported."""

import json
import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.run import alive, eventually
from support.trial import iomesh_command

DEGRADED = (20, 21)  # exit codes of `iomesh status`
SMALL = ("--device-size", "256Mi", "--size", "32Mi", "--map-cache", "16Mi")


class Cluster:
    """Runs `iomesh trial` commands for one directory; returns their documents."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *words: str, code: int = 0) -> Any:
        command = [iomesh_command(), "trial", *words, "--dir", str(self.directory), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def ask(self, *words: str, address: str, code: int = 0, degraded: bool = False) -> Any:
        """degraded: `status` says so with its exit code while a node is missed."""
        command = [iomesh_command(), *words, "--address", address, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == code or (degraded and done.returncode in DEGRADED), done.stdout + done.stderr
        return json.loads(done.stdout)

    def connected(self, node: Any) -> set[str]:
        """The nodes to which this one has a working connection."""
        address = self.ask("status", address=node["control"], degraded=True)["node"]["metrics_address"]
        with urllib.request.urlopen(f"http://{address}/metrics") as page:
            lines = page.read().decode().splitlines()
        return {
            line.partition('node="')[2].partition('"')[0]
            for line in lines
            if line.startswith("iomesh_peer_connected{") and line.endswith(" 1.0")
        }

    def processes(self) -> list[str]:
        """Command lines of processes that name the directory."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes()
            except OSError:
                continue
            if os.fsencode(self.directory) in words:
                found.append(words.replace(b"\0", b" ").decode())
        return found


@pytest.fixture
def cluster(room: Path) -> Iterator[Cluster]:
    yield Cluster(room / "trial")
    subprocess.run([iomesh_command(), "trial", "down", "--dir", str(room / "trial")], capture_output=True, check=False)


def states(document: Any) -> list[tuple[str, str]]:
    return [(node["name"], node["state"]) for node in document["nodes"]]


def listens(control: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(control)
        except OSError:
            return False
        return True


def test_three_nodes_from_up_to_down(cluster: Cluster) -> None:
    made = cluster("up", "--nodes", "3", "--devices", "2", *SMALL)
    assert states(made) == [("a", "running"), ("b", "running"), ("c", "running")]
    a, b, c = made["nodes"]
    (volume,) = made["volumes"]
    assert volume["owner"] == "a"
    assert volume["uri"] == f"nbd+unix:///trial?socket={cluster.directory}/a/nbd.sock"
    assert cluster("status") == made
    assert cluster("env")["environment"] == {"IOMESH_ADDRESS": a["control"], "IOMESH_TRIAL_URI": volume["uri"]}
    for node in made["nodes"]:
        devices = cluster.ask("device", "list", address=node["control"])["devices"]
        assert {device["path"] for device in devices} == set(node["devices"])
        assert {device["cluster"] for device in devices} == {made["cluster"]}
        assert cluster.ask("status", address=node["control"])["node"]["node"] == node["name"]

    killed = cluster("kill", "b")
    assert killed["nodes"] == [a, {**b, "pid": None, "state": "stopped"}, c]
    assert not alive(b["pid"]) and not listens(b["control"])
    assert killed["volumes"] == made["volumes"]

    again = cluster("start")
    assert states(again) == states(made)
    assert again["nodes"][0] == a and again["nodes"][2] == c and alive(again["nodes"][1]["pid"])
    assert again["recovered"] == [], "it has no volume"
    assert cluster.ask("status", address=b["control"])["health"] == "ready"
    (theirs,) = cluster.ask("volume", "list", address=b["control"])["volumes"]
    assert (theirs["name"], theirs["state"], theirs["owner"]) == ("trial", "elsewhere", "a")

    paused = cluster("pause", "a")
    assert paused["nodes"][0] == {**a, "state": "paused"}
    assert paused["volumes"] == [{**volume, "uri": None, "owner": None}], "nobody answers for it"
    assert "a is paused" in cluster("pause", "a", code=5)["error"]["message"]
    assert "`iomesh trial resume" in cluster("start", "a", code=5)["error"]["message"]
    assert cluster("resume", "a")["nodes"][0] == a
    assert cluster("status")["volumes"] == made["volumes"]

    assert states(cluster("stop", "a")) == [("a", "stopped"), ("b", "running"), ("c", "running")]
    assert states(cluster("stop", "a")) == [("a", "stopped"), ("b", "running"), ("c", "running")]
    assert [one["volume"] for one in cluster("start", "a")["recovered"]] == ["trial"]
    cluster("pause", "c")
    assert cluster("down") == {"directory": str(cluster.directory), "removed": True}
    assert not cluster.directory.exists()
    assert cluster.processes() == []


def test_the_nodes_connect_to_each_other(cluster: Cluster) -> None:
    made = cluster("up", "--nodes", "3", *SMALL)
    a = made["nodes"][0]
    keys = [cluster.directory / name / "cluster" / "cluster.key" for name in "abc"]
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}
    (key,) = {key.read_text() for key in keys}
    assert len(bytes.fromhex(key)) == 32
    everywhere = [{"b", "c"}, {"a", "c"}, {"a", "b"}]

    def all_connected() -> bool:
        return [cluster.connected(node) for node in made["nodes"]] == everywhere

    eventually(all_connected, what="each node is connected to the two others")
    for end, again in (("kill", "start"), ("pause", "resume")):
        cluster(end, "c")
        eventually(lambda: cluster.connected(a) == {"b"}, what=f"a misses c after {end}")
        cluster(again, "c")
        eventually(all_connected, what=f"the nodes are connected after {again}")


def test_a_single_node_listens_for_no_others(cluster: Cluster) -> None:
    (node,) = cluster("up", *SMALL)["nodes"]
    assert not (cluster.directory / "a" / "cluster").exists()
    assert "peers" not in Path(node["config"]).read_text()


def test_the_volumes_of_all_nodes_are_listed_with_their_owners(cluster: Cluster) -> None:
    made = cluster("up", "--nodes", "2", *SMALL)
    other = cluster.ask("volume", "create", "another", "16Mi", "--export", address=made["nodes"][1]["control"])
    (uri,) = other["exports"][0]["uris"]
    assert cluster("status")["volumes"] == [
        *made["volumes"],
        {"name": "another", "size": 16 << 20, "uri": uri, "owner": "b"},
    ]
    cluster("kill")
    started = cluster("start")
    assert {one["volume"] for one in started["recovered"]} == {"trial", "another"}
    cluster.ask("volume", "unexport", "trial", address=made["nodes"][0]["control"])
    assert [(one["owner"], one["uri"]) for one in cluster("status")["volumes"]] == [("a", None), ("b", uri)]
    assert "is not exported at present" in cluster("env", code=9)["error"]["message"]


def test_a_volume_has_at_most_as_many_replicas_as_there_are_nodes(cluster: Cluster) -> None:
    a, b = cluster("up", "--nodes", "2", "--replicas", "2", *SMALL)["nodes"]
    assert cluster.ask("volume", "show", "trial", address=a["control"])["policy"]["replicas"] == 2
    create = ("volume", "create", "another", "16Mi", "--replicas")
    error = cluster.ask(*create, "3", address=b["control"], code=9)["error"]["message"]
    assert error == (
        "volume another with 3 replicas needs 3 nodes, and 2 of this cluster run (a, b): start more, or choose fewer "
        "replicas"
    )
    made = cluster.ask(*create, "2", address=b["control"])
    assert made["policy"]["replicas"] == 2
    assert cluster.ask(*create, "2", address=b["control"])["id"] == made["id"]
    assert "2 replica(s)" in cluster.ask(*create, "1", address=b["control"], code=4)["error"]["message"]


def test_a_node_that_does_not_start_keeps_no_other_from_starting(cluster: Cluster) -> None:
    made = cluster("up", "--nodes", "3", *SMALL)
    cluster("stop")
    config = Path(made["nodes"][1]["config"])
    config.write_text(config.read_text() + "\n[nonsense]\n")
    error = cluster("start", code=9)["error"]["message"]
    assert "the daemon b ended during its start" in error and "there is no key 'nonsense'" in error
    found = cluster("status")
    assert states(found) == [("a", "running"), ("b", "stopped"), ("c", "running")]
    assert found["volumes"] == made["volumes"]
