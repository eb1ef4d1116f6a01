"""Regressions of the fuzzer: each input of tests/fuzz/corpus is read once by the engine under test."""

import pytest

from fuzz.targets import CORPUS, NAMES, target


@pytest.mark.parametrize("name", NAMES)
def test_what_was_found_is_read_without_harm(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs, f"{CORPUS / name} holds no input"
    for path in inputs:
        print(path.name)  # the last one printed is the one that failed
        target(name).fuzz_one(path.read_bytes())
