"""Simulation runs, in this process or in many. A violated invariant ends the process; the parent reports the seed."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUN_SECONDS = 120  # processor time, so independent of machine load; a longer run counts as hanging
CLUSTER_RUNS_EACH = 100
END_SECONDS = 30  # for an idle process to end
# Reuse memory: new pages are slow.
KEEPS_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}
SCRIPT = "from simulation.runs import serve; serve()"


@dataclass
class Outcome:
    seed: int
    wrong: str | None
    digest: int = 0
    told: dict[str, int] = field(default_factory=dict)
    drawn: dict[str, Any] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.wrong or 'nothing went wrong'} (digest {self.digest:016x})"


def run_seed(seed: int, operations: int | None = None, *, cluster: bool = False, trace: int = 0) -> Outcome:
    """cluster: of several nodes."""
    from iomesh.engine.simulation.cluster import Cluster  # the engine on PYTHONPATH
    from iomesh.engine.simulation.simulation import PLANTABLE, Simulation

    if os.environ.get("IOMESH_PLANTED") and not PLANTABLE:
        raise RuntimeError(
            "no bug can be planted in this build of the engine: `make planted` makes one for PYTHONPATH=build/planted"
        )
    simulation = (Cluster if cluster else Simulation)(seed, operations)
    wrong = simulation.run()
    events = simulation.trace(trace) if trace else []
    return Outcome(seed, wrong, simulation.digest, simulation.told, simulation.drawn, events)


def serve() -> None:
    """Main loop of a child: one line of JSON in, one line out."""
    for line in sys.stdin:
        seed, operations, cluster = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, RUN_SECONDS)  # SIGPROF ends the process, whatever the engine is doing
        outcome = run_seed(seed, operations, cluster=cluster)
        print(json.dumps([outcome.seed, outcome.wrong, outcome.digest, outcome.told]), flush=True)


class Child:
    """A process that executes simulation runs. `seed`: the current run; None: idle."""

    def __init__(self, environment: dict[str, str], cluster: bool) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the child
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )
        self.cluster = cluster
        self.seed: int | None = None
        self.runs = 0

    def ask(self, seed: int, operations: int | None) -> None:
        assert self.process.stdin
        self.seed = seed
        self.process.stdin.write(json.dumps([seed, operations, self.cluster]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Outcome:
        assert self.process.stdout and self.seed is not None
        line = self.process.stdout.readline()
        if line:
            seed, wrong, digest, told = json.loads(line)
            outcome = Outcome(seed, wrong, digest, told)
        else:
            outcome = Outcome(self.seed, self.last_words())
        self.seed = None
        return outcome

    def last_words(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()
        if code == -signal.SIGPROF:
            return f"the run does not end within {RUN_SECONDS} s of processor time"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{said[-1] if said else 'no words'} ({how})"

    def end(self) -> None:
        """An idle child exits by itself, so it writes its coverage counts (coverage.py); any other is killed."""
        if self.process.stdin and self.seed is None and self.process.poll() is None:
            self.process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            if file:
                file.close()


def run_all(
    seeds: Iterable[int],
    processes: int = 2,
    operations: int | None = None,
    *,
    cluster: bool = False,
    planted: str = "",
    engine: Path | None = None,
    runs_each: int = 0,
) -> Iterator[Outcome]:
    """Yields outcomes in order of completion. engine: folder of another build; planted: the bug to plant (planted.py).
    runs_each: runs per process before it is replaced; 0: unlimited. cluster: runs of several nodes, which abandon tasks
    with what they have allocated, so that a process makes CLUSTER_RUNS_EACH of them.
    """
    runs_each = runs_each or (CLUSTER_RUNS_EACH if cluster else 0)
    folders = [str(engine) if engine else "", os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent.parent)]
    environment = os.environ | {"PYTHONPATH": ":".join(filter(None, folders)), "IOMESH_PLANTED": planted} | KEEPS_MEMORY
    wanted = iter(seeds)
    children: list[Child] = []
    try:
        children = [Child(environment, cluster) for _ in range(processes)]
        for child in children:
            give(child, wanted, operations)
        while any(child.seed is not None for child in children):
            busy = {
                child.process.stdout: child for child in children if child.seed is not None and child.process.stdout
            }
            ready, _, _ = select.select(list(busy), [], [])
            for stream in ready:
                child = busy[stream]
                yield child.answer()
                child.runs += 1
                if child.process.poll() is not None or child.runs == runs_each:
                    child.end()
                    children[children.index(child)] = child = Child(environment, cluster)
                give(child, wanted, operations)
    finally:
        for child in children:
            child.end()


def give(child: Child, seeds: Iterator[int], operations: int | None) -> None:
    seed = next(seeds, None)
    if seed is not None:
        child.ask(seed, operations)
