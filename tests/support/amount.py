"""How much of the long tests runs: a sample by default, everything with --soak."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Amount:
    soak: bool
    kills: int
    database_kills: int
