"""Lives of volumes in the simulated world: whatever was drawn, nothing that was promised is broken."""

import pytest

from simulation import lives
from simulation.lives import live, run_all
from support.amount import Amount

SEEDS = 2000
SEEDS_SOAK = 20_000

# Seeds that found a bug of the engine, as it was drawn then; kept although what they draw changes when the simulation does.
FOUND = {
    2: "a record's buffer that came back woke an append that began the same record before it was let go of, and "
    "a checkpoint's index in a segment younger than the table made the checkpoint invalid",
    240: "whoever waited for the first part of a record was told before the rest of it was in the map, and cleaning or a merge that read "
    "the map at once wrote the block's old content again, over an acknowledged write",
    168: "a record of the open segment was lost before a checkpoint, no later header told of it, and recovery cut off what was behind it, "
    "the checkpoint and its snapshots",
    299: "the model took zeros for the wrong trim of two (its own bug)",
    454: "a segment that came after the walk was compared with it (its own bug)",
    329: "a clone that had written nothing could not have its map copied: a node was to be changed before the first record",
    473: "of a detached clone's restore window a mark went and an older one stayed, from which the log led past a restore",
    5358: "records of a segment that was given back were taken for those of a later one with its number and slabs",
    1586: "a record that was begun, and had nothing to hold after all, kept its buffer while other volumes' writes waited for one",
    32152: "a record that was written again after an error was whole in the segment of the error, torn in the next, "
    "and recovery took the torn one",
    32103: "a clone that was recorded and found no space for its first segment could not be opened after the crash",
    32426: "a clone of a moment was recorded before the parent's log was on stable media, and a power cut took the end of "
    "what it was to follow",
    38689: "a clone was let go of its parent by what its head counted, while its newest checkpoint still counted a block that it inherited",
    42252: "a segment whose footer the device could not be made to keep was sealed in the journal all the same",
    58589: "recovery ended the log at a record that was lost in the segment before the checkpoint's, and cut off the checkpoint's nodes",
    60482: "who waited for space was woken in the midst of an append, and the record that it began was forgotten",
    62150: "a slot was given to a new clone while the detaching of the one before had not ended (the model's own bug)",
    2066: "a footer that recovery wrote was not on stable media when the journal said that the segment had one",
}


@pytest.mark.parametrize("seed", sorted(FOUND))
def test_a_seed_that_found_a_bug_finds_none(seed: int) -> None:
    assert [outcome for outcome in run_all([seed], processes=1) if outcome.wrong] == []


def test_lives_keep_every_promise(amount: Amount) -> None:
    seeds = range(SEEDS_SOAK if amount.soak else SEEDS)
    outcomes = list(run_all(seeds))
    assert sorted(outcome.seed for outcome in outcomes) == list(seeds), "every seed is lived once"
    assert [str(outcome) for outcome in outcomes if outcome.wrong] == []
    told = {name: sum(outcome.told[name] for outcome in outcomes) for name in outcomes[0].told}
    happened = (
        "crashes power_cuts stops moves refusals damages astray excused struck read "
        "write zero flush grow snapshot delete look restores clones hidden drops rewinds undone unmade detached compacted "
        "walks walked comparisons asked vanished"
    )
    assert [name for name in happened.split() if not told[name]] == [], told
    assert told["compared"] > 1000 * len(seeds) and told["ambiguous"], (
        f"reads are compared, and after crashes there is something to decide: {told}"
    )


def test_a_life_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "SCRIPT", "from simulation import lives; lives.LIFE_SECONDS = 0.01; lives.serve()")
    (outcome,) = lives.run_all([7], processes=1)
    assert outcome.seed == 7
    assert outcome.wrong == f"the life does not end within {lives.LIFE_SECONDS} s of processor time"


def test_a_seed_lives_the_same_life_again() -> None:
    for seed in (3, 11):
        first, second = live(seed, 200), live(seed, 200)
        assert (first.digest, first.told) == (second.digest, second.told)
    assert live(3, 200).digest != live(4, 200).digest
