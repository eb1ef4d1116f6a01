"""PostgreSQL in a StatefulSet, and a ledger of what it acknowledged, outside of its volume."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from support.kubernetes import images, programs
from support.kubernetes.cluster import Cluster, inside
from support.kubernetes.work import Work

MANIFEST = Path(__file__).parents[3] / "docs" / "postgresql.yaml"
TABLE = "CREATE TABLE ledger (number int PRIMARY KEY, filling text NOT NULL)"
INSERT = "INSERT INTO ledger SELECT {0}, repeat(md5('{0}'), 8) RETURNING number;\n"
CHECK = "SELECT count(*), max(number), bool_and(filling = repeat(md5(number::text), 8)) FROM ledger"


def load_image(cluster: Cluster) -> None:
    """Under the name that the manifest gives it."""
    (manifest, _) = yaml.safe_load_all(MANIFEST.read_text())
    cluster.load(*images.archives("postgresql"))
    name = manifest["spec"]["template"]["spec"]["containers"][0]["image"]
    cluster.tag(f"{images.REGISTRY}/postgresql:{images.tag()}", name)


class Database:
    """The pod of a StatefulSet like that of the documentation."""

    def __init__(self, work: Work, name: str) -> None:
        self.work = work
        self.name = name
        self.pod = f"{name}-0"
        self.claim = f"data-{name}-0"

    def start(self, *, size: str = "1Gi", source: dict[str, str] | None = None) -> None:
        (manifest, _) = yaml.safe_load_all(MANIFEST.read_text())
        labels = {"app": self.name}
        manifest["metadata"]["name"] = self.name
        spec: dict[str, Any] = manifest["spec"]
        spec["selector"]["matchLabels"] = spec["template"]["metadata"]["labels"] = labels
        claim = spec["volumeClaimTemplates"][0]["spec"]
        claim |= {"storageClassName": "iomesh", "resources": {"requests": {"storage": size}}}
        if source:
            claim["dataSource"] = source
        self.work.apply(manifest)
        self.wait_ready()

    def wait_ready(self) -> None:
        cluster = self.work.cluster
        try:
            cluster.kubectl("rollout", "status", f"statefulset/{self.name}", "--timeout=10m")
        except AssertionError as error:
            raise AssertionError(cluster.kubectl("describe", "pod,pvc")) from error

    def delete(self) -> None:
        self.work.delete("statefulset", self.name)
        self.work.cluster.kubectl("wait", "--for=delete", f"pod/{self.pod}", "--timeout=5m")
        self.work.delete("pvc", self.claim)

    def ask(self, statement: str) -> str:
        return self.work.cluster.kubectl("exec", self.pod, "--", "psql", "-qAtX", "--command", statement).strip()

    def node(self) -> str:
        return str(self.work.cluster.get("pod", self.pod)["spec"]["nodeName"])

    def mib(self) -> int:
        shown = self.work.cluster.kubectl("exec", self.pod, "--", "df", "-P", "-m", "/var/lib/postgresql/data")
        return int(shown.splitlines()[-1].split()[1])

    def check(self, least: int, most: int) -> int:
        """The table is a prefix of the numbers, whole, with all that were acknowledged and none that were not begun;
        and every table and index is valid. Returns the last number."""
        count, last, whole = self.ask(CHECK).split("|")
        assert whole == "t", "every row is whole"
        assert count == last, "no number is missing"
        assert least <= int(last) <= most, f"{self.name} has {last} commits; {least} were acknowledged, {most} begun"
        check = ("pg_amcheck", "--install-missing", "--heapallindexed", "--username=postgres", "postgres")
        self.work.cluster.kubectl("exec", self.pod, "--", *check)
        return int(last)


class Ledger:
    """Commits the numbers 1, 2, 3, … one after the other in one session; knows which were begun and acknowledged."""

    def __init__(self, database: Database) -> None:
        self.begun = self.acknowledged = 0
        self.longest_seconds = 0.0  # between two acknowledgements
        self._database = database
        self._stop = threading.Event()
        self._failed = ""
        self._thread = threading.Thread(target=self._run, name="ledger")

    def __enter__(self) -> Ledger:
        cluster = self._database.work.cluster
        self._database.ask(TABLE)
        command = [
            programs.program("kubectl"), "--kubeconfig", str(cluster.kubeconfig), "exec", "--stdin", self._database.pod,
            "--", "stdbuf", "--output=L", "psql", "-qAtX", "--set=ON_ERROR_STOP=1",
        ]  # fmt: skip
        self._session = subprocess.Popen(
            inside(cluster.network, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, bufsize=1,
        )  # fmt: skip
        self._thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._stop.set()
        self._thread.join()
        _, said = self._session.communicate()
        assert not self._failed, f"{self._failed}: {said}"

    def wait_more(self, count: int = 20) -> None:
        """Until so many more commits are acknowledged."""
        wanted = self.acknowledged + count
        self._database.work.cluster.wait(
            f"{count} more commits", lambda: self.acknowledged >= wanted or bool(self._failed)
        )
        assert not self._failed, self._failed

    def _run(self) -> None:
        assert self._session.stdin is not None
        assert self._session.stdout is not None
        last = time.monotonic()
        while not self._stop.is_set():
            self.begun += 1
            try:
                self._session.stdin.write(INSERT.format(self.begun))
                answer = self._session.stdout.readline().strip()
            except OSError as error:
                answer = str(error)
            if answer != str(self.begun):
                self._failed = f"commit {self.begun} was answered with {answer!r}"
                return
            self.acknowledged = self.begun
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - last)
            last = time.monotonic()
