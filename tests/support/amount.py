"""How much of the long tests is run: a sample by default, all with --soak."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Amount:
    soak: bool
    kills: int
    database_kills: int
