"""`make simulate`: complete simulation runs, one for each seed.

python -m simulation --seed 7 --trace 200        one run and its last events
python -m simulation --seeds 0..1999             many runs; the exit code is 1 if any of them failed
python -m simulation --seeds-of 2026-11-30       the seeds that `make test` draws on a day
python -m simulation --soak                      new seeds until stopped; --covered: with `make simulate-soak`'s build
python -m simulation --planted NAME --seed 7     with a planted bug (planted.py), in the build of `make planted`
python -m simulation --cluster --seed 7          likewise with the others: several nodes and a replicated volume
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterable

from simulation import coverage
from simulation.runs import run_all, run_seed
from simulation.seeds import of_day

PROGRESS_SECONDS = 10
COVERAGE_SECONDS = 300
RUNS_EACH = 50  # runs per process; a process writes its coverage counts when it exits


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m simulation", description="Simulation runs: histories of volumes in the simulated world."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="one run, and what happened in it")
    which.add_argument("--seeds", metavar="A..B", help="all from A to B")
    which.add_argument(
        "--seeds-of", metavar="DAY", type=of_day, help="those that `make test` draws on a day, such as 2026-11-30"
    )
    which.add_argument("--soak", action="store_true", help="until stopped, from a seed on that the clock gives")
    parser.add_argument("--cluster", action="store_true", help="runs of several nodes")
    parser.add_argument("--processes", type=int, default=2, help="at once (2)")
    parser.add_argument("--operations", type=int, help="of each run; drawn unless given")
    parser.add_argument(
        "--trace",
        type=int,
        default=0,
        metavar="N",
        help="with --seed: the last N events (a run that goes wrong shows 60)",
    )
    parser.add_argument(
        "--covered", action="store_true", help="with --soak: tell now and then what of the engine was reached"
    )
    parser.add_argument(
        "--planted", metavar="NAME", default="", help="a bug that is planted in the engine (`make planted`)"
    )
    given = parser.parse_args()
    if given.planted:
        plant(given.planted)
    if given.seed is not None:
        return one(given.seed, given.operations, given.trace, cluster=given.cluster)
    wanted = given.seeds_of or (seeds(given.seeds) if given.seeds else itertools.count(int(time.time()) * 1000))
    return many(wanted, given.processes, given.operations, cluster=given.cluster, covered=given.covered)


def plant(bug: str) -> None:
    """Re-execute as a process in which this bug is planted."""
    from simulation.planted import BUGS, CLUSTER_BUGS, ENGINE

    known = sorted([*BUGS, *CLUSTER_BUGS])
    if bug not in known:
        raise SystemExit(f"no bug is called {bug!r}; there are {', '.join(known)}")
    if not (ENGINE / "iomesh").is_dir():
        raise SystemExit("`make planted` builds the engine that bugs can be planted in; it is missing")
    if os.environ.get("IOMESH_PLANTED") != bug:
        environment = os.environ | {"IOMESH_PLANTED": bug, "PYTHONPATH": f"{ENGINE}:{os.environ.get('PYTHONPATH', '')}"}
        os.execve(sys.executable, [sys.executable, "-m", "simulation", *sys.argv[1:]], environment)


def seeds(words: str) -> Iterable[int]:
    first, dots, last = words.partition("..")
    if not dots or not first.isdigit() or not last.isdigit():
        raise SystemExit(f"--seeds is two numbers with two dots between them, such as 0..1999, not {words!r}")
    return range(int(first), int(last) + 1)


def one(seed: int, operations: int | None, trace: int, *, cluster: bool) -> int:
    outcome = run_seed(seed, operations, cluster=cluster, trace=max(trace, 60))
    if trace or outcome.wrong:
        print(*outcome.trace, sep="\n")
    print(f"drawn: {outcome.drawn}")
    print(f"told: {outcome.told}")
    print(outcome)
    return 1 if outcome.wrong else 0


def many(wanted: Iterable[int], processes: int, operations: int | None, *, cluster: bool, covered: bool) -> int:
    began = told = looked = time.monotonic()
    runs = done = wrong = 0
    which = "--cluster " if cluster else ""
    how = (
        {"engine": coverage.ENGINE, "runs_each": RUNS_EACH}
        if covered
        else {"planted": os.environ.get("IOMESH_PLANTED", "")}
    )
    if covered:
        coverage.forget()
    try:
        for outcome in run_all(wanted, processes, operations, cluster=cluster, **how):
            runs += 1
            done += outcome.told.get("operations", 0)
            if outcome.wrong:
                wrong += 1
                print(f"{outcome}\n  again: python -m simulation {which}--seed {outcome.seed}", flush=True)
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                print(summary(runs, done, wrong, told - began), flush=True)
            if covered and time.monotonic() - looked > COVERAGE_SECONDS:
                tell_coverage()
                looked = time.monotonic()
    except KeyboardInterrupt:
        pass
    print(summary(runs, done, wrong, time.monotonic() - began))
    if covered:
        tell_coverage()
    return 1 if wrong else 0


def tell_coverage() -> None:
    from rich.console import Console

    Console(width=100).print(coverage.table(coverage.parts()))


def summary(runs: int, operations: int, wrong: int, seconds: float) -> str:
    speed = f"{runs / seconds:.1f} runs/s, {operations / seconds * 60:,.0f} operations/min"
    return f"{runs} runs, {operations} operations in {seconds:.0f} s ({speed}), {wrong} wrong"


if __name__ == "__main__":
    sys.exit(main())
