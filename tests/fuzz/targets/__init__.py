"""What is fuzzed: a module for each, with one function, fuzz_one(data), that raises when something that must hold does
not.

`make fuzz` runs them under a coverage-guided fuzzer; test_corpus.py replays what that has found, on the engine that all
other tests use.
"""

from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

CORPUS = Path(__file__).parent.parent / "corpus"  # a folder of inputs for each
NAMES = ("structures", "journal", "recovery", "handshake", "nbd", "peer", "peer_handshake")


class Target(Protocol):
    MAX_BYTES: int  # of an input

    def fuzz_one(self, data: bytes) -> None: ...
    def seeds(self) -> list[bytes]: ...


def target(name: str) -> Target:
    return cast(Target, import_module(f"fuzz.targets.{name}"))
