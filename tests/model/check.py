"""Runs spin on ownership.pml: translates it with some switches, compiles the result, and searches every state."""

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from model.rules import BOUNDS, RULES, SAMPLE_BOUNDS, SITUATIONS, Switch

MODEL = Path(__file__).parent / "ownership.pml"
MEMORY_MB = 4000  # limit of one search; the largest takes about 1 GB
STEPS_MAX = 10_000  # limit of a search's depth; the longest history has fewer than 100 steps
USUAL = {"RECORDS": 1, "EPOCHS": 2, "SWITCHES": 1, "CUTS": 1, "LEASES": 0, "FLUSHES": 0, "FAILED_FLUSHES": 0}  # bounds
HASH_BITS = 22  # of the table of states at the start; it grows


class CheckError(Exception):
    """spin or the compiler failed, or a search was not complete. Says nothing about the model."""


@dataclass(frozen=True)
class Check:
    """The model with these bounds, with one rule broken, or with one situation forbidden."""

    name: str
    words: str
    bounds: str
    kind: str  # "bounds", "rule" or "situation"

    @property
    def holds(self) -> bool:
        """What is expected: True if no state violates an assertion."""
        return self.kind == "bounds"

    @property
    def defines(self) -> list[str]:
        switch = {} if self.holds else {self.name: 1}
        return [f"-D{name}={value}" for name, value in {**BOUNDS[self.bounds], **switch}.items()]


@dataclass(frozen=True)
class Outcome:
    check: Check
    states: int  # that were visited
    seconds: float  # of the search, without the compilation
    violated: str  # what does not hold; empty if all does
    trace: tuple[str, ...]  # the steps to that

    @property
    def good(self) -> bool:
        return self.check.holds == (not self.violated)

    @property
    def word(self) -> str:
        words = {
            "bounds": ("holds", "VIOLATED"),
            "rule": ("NOT FOUND", "found"),
            "situation": ("NOT REACHED", "reached"),
        }
        return words[self.check.kind][bool(self.violated)]


def all_checks(*, sample: bool = False) -> list[Check]:
    """In the order of the table. With `sample`, those that take less than a second each."""
    bounds = [Check(name, words_of(name), name, "bounds") for name in (SAMPLE_BOUNDS if sample else BOUNDS)]
    kinds: list[tuple[str, Iterable[Switch]]] = [("rule", RULES), ("situation", SITUATIONS)]
    return bounds + [
        Check(switch.name, switch.words, switch.bounds, kind)
        for kind, switches in kinds
        for switch in switches
        if switch.sample or not sample
    ]


def words_of(bounds: str) -> str:
    values = BOUNDS[bounds]
    counts = {name: values.get(name, usual) for name, usual in USUAL.items()}
    words = [f"{name.lower().replace('_', ' ')} {count}" for name, count in counts.items() if count]
    return ", ".join(words)


def run_all(checks: Iterable[Check], processes: int) -> Iterator[Outcome]:
    """The outcomes in the order of the checks, each as soon as it is known."""
    with ThreadPoolExecutor(processes) as pool:
        yield from pool.map(run, checks)


def run(check: Check, *, short: bool = False) -> Outcome:
    """Raises CheckError unless the search was complete or found a violation. `short` finds a short trace, slowly."""
    with tempfile.TemporaryDirectory(prefix="iomesh-model-") as name:
        folder = Path(name)
        shutil.copy(MODEL, folder)
        execute(["spin", "-a", *check.defines, MODEL.name], folder)
        options = ["-DSAFETY", "-DNOFAIR", f"-DMEMLIM={MEMORY_MB}", *(["-DREACH"] if short else [])]
        execute(["gcc", "-O1", "-w", *options, "-o", "pan", "pan.c"], folder)
        began = time.monotonic()
        # -E: processes may wait for ever. -i: look for ever shorter histories
        report = execute(["./pan", "-E", *(["-i"] if short else []), f"-m{STEPS_MAX}", f"-w{HASH_BITS}"], folder)
        seconds = time.monotonic() - began
        errors = re.search(r"errors: (\d+)", report)
        states = re.search(r"(\d+) states, stored", report)
        if errors is None or states is None:
            raise CheckError(f"the search for {check.name} ended without a result:\n{report}")
        if errors[1] == "0":
            if "not completed" in report or "too small" in report:
                raise CheckError(f"the search for {check.name} was not complete:\n{report}")
            return Outcome(check, int(states[1]), seconds, "", ())
        trace = trace_of(check, folder)
        return Outcome(check, int(states[1]), seconds, trace[-1], trace)


def trace_of(check: Check, folder: Path) -> tuple[str, ...]:
    """The steps to the violation, and in the last line what is violated."""
    replay = execute(["spin", "-t", "-T", *check.defines, MODEL.name], folder)
    # Model and trail can be of the same second, which spin takes for a changed model
    replay = "\n".join(line for line in replay.splitlines() if not line.startswith("spin: warning, "))
    steps, failed, _ = replay.partition("spin: ")
    lines = tuple(line for line in steps.splitlines() if line)
    if not failed or not lines or not lines[-1].startswith(("violated: ", "reached: ")):
        raise CheckError(f"the search for {check.name} failed otherwise than by an assertion:\n{replay}")
    return (*lines[:-1], lines[-1].partition(": ")[2])


def execute(command: list[str], folder: Path) -> str:
    """The program's output. spin and its searches exit with 0 whatever they find."""
    try:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError as error:
        raise CheckError(f"{command[0]} is not installed: apt-get install {command[0]}") from error
    if done.returncode:
        raise CheckError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout
