"""Simulation runs of several nodes: no random history of a replicated volume breaks a promise of docs/ownership.md."""

import pytest

from simulation import seeds
from simulation.runs import Outcome, run_all, run_seed
from support.amount import Amount

SLICES = 5  # as in test_runs.py
SEEDS_SOAK = 20_000
EVERY_KIND = 100  # number of seeds in which, with the recorded ones, every kind of event occurs
HAPPENED = (
    "read write zero flush checkpoint failures vanished kills power_cuts pauses cuts partitions outages silences late "
    "openings refusals take_overs usurpations contentions lost_rights fragments fetched completed connections "
    "reconciled rebuilt dropped moves equal lapses losses struck scenes"
)


def wrong(outcomes: list[Outcome], wanted: list[int], where: str) -> list[str]:
    """All failures, each with the command that repeats it. Also checks that every seed ran once and reads were
    compared.
    """
    assert sorted(outcome.seed for outcome in outcomes) == sorted(wanted), "every seed is run once"
    again = 'make simulate ARGS="--cluster --seed {}" runs it again; it goes into seeds.toml ({})'
    failed = [f"{outcome}: {again.format(outcome.seed, where)}" for outcome in outcomes if outcome.wrong]
    compared = sum(outcome.told.get("compared", 0) for outcome in outcomes)
    assert failed or compared > 200 * len(wanted), f"reads are compared ({compared})"
    return failed


@pytest.mark.timeout(7200)
def test_no_recorded_seed_finds_a_fault_and_everything_occurs(processes: int) -> None:
    wanted = sorted(seeds.CLUSTER_FAULTS.keys() | set(range(EVERY_KIND)))
    outcomes = list(run_all(wanted, processes, cluster=True))
    assert wrong(outcomes, wanted, "recorded") == [], {seed: seeds.CLUSTER_FAULTS.get(seed) for seed in wanted}
    told = {name: sum(outcome.told[name] for outcome in outcomes) for name in outcomes[0].told}
    assert [name for name in HAPPENED.split() if not told[name]] == [], told


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(SLICES))
def test_no_seed_of_the_day_finds_a_fault(part: int, day: str, processes: int, amount: Amount) -> None:
    wanted = seeds.of_day(day, SEEDS_SOAK if amount.soak else seeds.PER_DAY)[part::SLICES]
    assert wrong(list(run_all(wanted, processes, cluster=True)), wanted, f"--seeds-of {day}") == []


def test_a_seed_gives_the_same_run_again() -> None:
    for seed in (3, 11):
        first, second = run_seed(seed, cluster=True), run_seed(seed, cluster=True)
        assert (first.digest, first.told) == (second.digest, second.told)
    assert run_seed(3, cluster=True).digest != run_seed(4, cluster=True).digest
