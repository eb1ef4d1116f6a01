"""Which seeds are run: those of a day, and those that have found a fault (seeds.toml)."""

import datetime
import random
import tomllib
from pathlib import Path

PER_DAY = 500
LARGEST = 1_000_000_000

_RECORDED = tomllib.loads((Path(__file__).parent / "seeds.toml").read_text())
FAULTS: dict[int, str] = {int(seed): found for seed, found in _RECORDED["faults"].items()}
PLANTED: dict[str, int] = _RECORDED["planted"]
CLUSTER_FAULTS: dict[int, str] = {int(seed): found for seed, found in _RECORDED["cluster_faults"].items()}
CLUSTER_PLANTED: dict[str, int] = _RECORDED["cluster_planted"]
PLANTED_BEFORE: dict[str, list[int]] = _RECORDED["planted_before"]


def today() -> str:
    """Today's date as `of_day` takes it; in UTC, so that every machine draws the same."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def of_day(day: str, count: int = PER_DAY) -> list[int]:
    """The seeds of a day such as "2026-11-30": the first `count` of them, without repetition. Raises ValueError if it
    is no date.
    """
    draw = random.Random(datetime.date.fromisoformat(day).isoformat())
    return draw.sample(range(LARGEST), count)


def recorded() -> dict[int, str]:
    """Every seed that has found a fault, and the fault."""
    before = {seed: f"planted: {bug}" for bug, seeds in PLANTED_BEFORE.items() for seed in seeds}
    return before | {seed: f"planted: {bug}" for bug, seed in PLANTED.items()} | FAULTS
