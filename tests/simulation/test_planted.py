"""Bugs planted in the engine: the simulated world finds every one, and a build for use has none."""

import re
import subprocess
import sys

import pytest

from simulation.lives import run_all
from simulation.planted import BUGS, ENGINE, ROOT, SEEDS_MAX, find, in_sources
from support.amount import Amount

# Those that few seeds find: one that did is tried first. With another simulation it may not, and then the test takes minutes.
TRIED_FIRST = {
    "adopt_without_flush": 261,
    "changed_under_checkpoint": 202,
    "cleaned_by_newest_nodes": 142,
    "cleaned_without_flush": 29,
    "cut_before_checkpoint": 41,
    "empty_record_kept": 1586,
    "fua_not_passed_on": 29,
    "half_undone_served": 125,
    "idle_flush_twice": 191,
    "order_in_record_reversed": 63,
    "told_while_applied": 221,
    "window_cleaned": 89,
}


@pytest.fixture(scope="module", autouse=True)
def planted_build() -> None:
    assert plantable(str(ENGINE)), "`make planted` builds the engine that bugs can be planted in"


@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_found(bug: str, amount: Amount) -> None:
    seeds = list(range(SEEDS_MAX))
    if not amount.soak and bug in TRIED_FIRST:
        seeds.insert(0, TRIED_FIRST[bug])
    outcome, lives = find(bug, seeds)
    assert outcome, f"{lives} lives did not show that {BUGS[bug]}"
    assert outcome.wrong and "Error" not in outcome.wrong, f"found by the simulation, not by its failure: {outcome}"


def test_without_a_bug_the_same_build_finds_none() -> None:
    assert [str(outcome) for outcome in run_all(range(20), engine=ENGINE) if outcome.wrong] == []


def test_the_list_of_bugs_is_what_the_sources_plant() -> None:
    assert in_sources() == set(BUGS)


def test_the_build_for_use_has_no_planted_bug() -> None:
    from iomesh.engine.simulation import simulation

    assert not simulation.PLANTABLE and not plantable("")
    for library in ROOT.glob(".venv/lib/python*/site-packages/iomesh/engine/*.so"):
        content = library.read_bytes()
        assert b"iomesh_planted" not in content and b"IOMESH_PLANTED" not in content, library
        # Cython's names of constants that are gone, such as __pyx_k_flush_skipped, stay in what is there for debuggers.
        assert [bug for bug in BUGS if bug.encode() in content and re.search(rb"(?<!\w)" + bug.encode(), content)] == [], library


def plantable(engine: str) -> bool:
    script = "from iomesh.engine.simulation.simulation import PLANTABLE; print(PLANTABLE)"
    environment = {"PYTHONPATH": engine} if engine else {}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True).stdout == "True\n"
