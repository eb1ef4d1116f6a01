"""Simulation runs of volumes: no random history breaks a guarantee."""

import pytest

from simulation import runs, seeds
from simulation.runs import Outcome, run_all, run_seed
from support.amount import Amount

SLICES = 5  # the day's seeds in slices, each a test, so that pytest-xdist spreads them over the cores
SEEDS_SOAK = 20_000
EVERY_KIND = 100  # number of seeds in which, with the recorded ones, every kind of event occurs
HAPPENED = (
    "crashes power_cuts stops moves refusals damages astray excused struck read "
    "write zero flush grow snapshot delete look restores clones hidden drops rewinds undone unmade detached compacted "
    "walks walked comparisons asked vanished drops_of_caches copied two_reactors "
    "messages stalls timeouts late full_below refused_below"
)


def wrong(outcomes: list[Outcome], wanted: list[int], where: str) -> list[str]:
    """All failures, each with the command that repeats it. Also checks that every seed ran once and reads were
    compared.
    """
    assert sorted(outcome.seed for outcome in outcomes) == sorted(wanted), "every seed is run once"
    again = 'make simulate ARGS="--seed {}" runs it again; it goes into seeds.toml ({})'
    failed = [f"{outcome}: {again.format(outcome.seed, where)}" for outcome in outcomes if outcome.wrong]
    compared = sum(outcome.told.get("compared", 0) for outcome in outcomes)
    ambiguous = sum(outcome.told.get("ambiguous", 0) for outcome in outcomes)
    assert failed or (compared > 1000 * len(wanted) and ambiguous), (
        f"reads are compared ({compared}), and after crashes there is something to decide ({ambiguous})"
    )
    return failed


@pytest.mark.timeout(7200)
def test_no_recorded_seed_finds_a_fault_and_everything_occurs(processes: int) -> None:
    recorded = seeds.recorded()
    wanted = sorted(recorded.keys() | set(range(EVERY_KIND)))
    outcomes = list(run_all(wanted, processes))
    assert wrong(outcomes, wanted, "recorded") == [], {seed: recorded.get(seed) for seed in wanted}
    told = {name: sum(outcome.told[name] for outcome in outcomes) for name in outcomes[0].told}
    assert [name for name in HAPPENED.split() if not told[name]] == [], told


@pytest.mark.timeout(7200)  # one seed in hundreds takes a minute of processor time
@pytest.mark.parametrize("part", range(SLICES))
def test_no_seed_of_the_day_finds_a_fault(part: int, day: str, processes: int, amount: Amount) -> None:
    wanted = seeds.of_day(day, SEEDS_SOAK if amount.soak else seeds.PER_DAY)[part::SLICES]
    assert wrong(list(run_all(wanted, processes)), wanted, f"--seeds-of {day}") == []


def test_a_day_draws_the_same_seeds_again_and_another_day_others() -> None:
    drawn = seeds.of_day("2026-11-30")
    assert len(set(drawn)) == seeds.PER_DAY
    assert drawn == seeds.of_day("2026-11-30") == seeds.of_day("2026-11-30", 2 * seeds.PER_DAY)[: seeds.PER_DAY]
    assert not set(drawn) & set(seeds.of_day("2026-12-01"))
    with pytest.raises(ValueError, match="yesterday"):
        seeds.of_day("yesterday")


def test_a_run_that_hangs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "import itertools; runs.run_seed = lambda *_, **__: all(map(lambda _: True, itertools.count()))"
    monkeypatch.setattr(
        runs, "SCRIPT", f"from simulation import runs; runs.RUN_SECONDS = 0.01; {endless}; runs.serve()"
    )
    (outcome,) = runs.run_all([7], processes=1)
    assert outcome.seed == 7
    assert outcome.wrong == f"the run does not end within {runs.RUN_SECONDS} s of processor time"


def test_a_seed_gives_the_same_run_again() -> None:
    for seed in (3, 11):
        first, second = run_seed(seed, 200), run_seed(seed, 200)
        assert (first.digest, first.told) == (second.digest, second.told)
    assert run_seed(3, 200).digest != run_seed(4, 200).digest
