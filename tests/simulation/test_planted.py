"""Planted bugs: the simulation finds every one, and a release build contains none."""

import re
import subprocess
import sys

import pytest

from simulation.planted import BUGS, CLUSTER_BUGS, ENGINE, ROOT, SEEDS_MAX, find, in_sources
from simulation.runs import run_all
from simulation.seeds import CLUSTER_PLANTED, PLANTED
from support.amount import Amount


@pytest.fixture(scope="module", autouse=True)
def planted_build() -> None:
    assert plantable(str(ENGINE)), "`make planted` builds the engine that bugs can be planted in"


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_found(bug: str, amount: Amount, processes: int) -> None:
    first = [PLANTED[bug]] if bug in PLANTED and not amount.soak else []
    outcome, runs = find(bug, [*first, *range(SEEDS_MAX)], processes)
    assert outcome, f"{runs} runs did not show that {BUGS[bug]}"
    assert outcome.wrong and "Error" not in outcome.wrong, f"found by the simulation, not by its failure: {outcome}"


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("bug", sorted(CLUSTER_BUGS))
def test_a_planted_bug_of_several_nodes_is_found(bug: str, amount: Amount, processes: int) -> None:
    if bug not in CLUSTER_PLANTED and not amount.soak:
        pytest.skip("seeds.toml has no seed that shows it quickly: --soak looks for one")
    first = [CLUSTER_PLANTED[bug]] if bug in CLUSTER_PLANTED and not amount.soak else []
    outcome, runs = find(bug, [*first, *range(SEEDS_MAX)], processes)
    assert outcome, f"{runs} runs did not show that {CLUSTER_BUGS[bug]}"
    assert outcome.wrong and "Error" not in outcome.wrong, f"found by the simulation, not by its failure: {outcome}"


@pytest.mark.parametrize("cluster", [False, True])
def test_without_a_bug_the_same_build_finds_none(cluster: bool, processes: int) -> None:
    outcomes = run_all(range(20), processes, cluster=cluster, engine=ENGINE)
    assert [str(outcome) for outcome in outcomes if outcome.wrong] == []


def test_the_list_of_bugs_is_what_the_sources_plant() -> None:
    assert in_sources() == BUGS.keys() | CLUSTER_BUGS.keys()
    assert PLANTED.keys() <= BUGS.keys(), "seeds.toml names a bug that is planted no more"
    assert CLUSTER_PLANTED.keys() <= CLUSTER_BUGS.keys(), "seeds.toml names a bug that is planted no more"


def test_the_build_for_use_has_no_planted_bug() -> None:
    from iomesh.engine.simulation import simulation

    assert not simulation.PLANTABLE and not plantable("")
    for library in ROOT.glob(".venv/lib/python*/site-packages/iomesh/engine/*.so"):
        content = library.read_bytes()
        assert b"iomesh_planted" not in content and b"IOMESH_PLANTED" not in content, library
        # Cython's names of removed constants, such as __pyx_k_flush_skipped, stay in the debug information.
        assert [
            bug
            for bug in [*BUGS, *CLUSTER_BUGS]
            if bug.encode() in content and re.search(rb"(?<!\w)" + bug.encode(), content)
        ] == [], library


def plantable(engine: str) -> bool:
    script = "from iomesh.engine.simulation.simulation import PLANTABLE; print(PLANTABLE)"
    environment = {"PYTHONPATH": engine} if engine else {}
    return (
        subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True).stdout
        == "True\n"
    )
