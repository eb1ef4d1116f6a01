"""A sample of `make model`: ownership.pml holds, and a rule that is broken is found."""

import re

import pytest

from model.check import MODEL, USUAL, Check, CheckError, all_checks, run
from model.rules import BOUNDS, RULES, SITUATIONS
from support.run import tool


@pytest.fixture(scope="module", autouse=True)
def spin() -> str:
    return tool("spin", "spin")


@pytest.mark.parametrize("check", all_checks(sample=True), ids=lambda check: check.name)
def test_the_model_does_what_is_expected(check: Check) -> None:
    outcome = run(check)
    assert outcome.good, f"{check.name} ({check.words}): {outcome.word}\n" + "\n".join(outcome.trace)


def test_the_model_has_each_switch_and_no_other() -> None:
    switches = set(re.findall(r"^#ifndef (\w+)", MODEL.read_text(), re.MULTILINE))
    bounds = {name for values in BOUNDS.values() for name in values}
    assert {switch.name for switch in RULES + SITUATIONS} | bounds == switches


def test_bounds_that_are_not_given_are_those_of_the_model() -> None:
    assert {name: int(value) for name, value in re.findall(r"#define (\w+) (\d)", bounds_of_the_model())} == USUAL


def test_the_documentation_lists_each_rule_in_the_words_of_the_table() -> None:
    page = (MODEL.parent.parent.parent / "docs" / "ownership.md").read_text()
    rows = re.findall(r"^\| (\w*) ?\| `(\w+)` \| (.+) \|$", page, re.MULTILINE)
    rule, listed = "", []
    for number, name, words in rows:
        rule = number or rule
        listed.append((name, f"{rule}: {words}"))
    assert listed == [(switch.name, switch.words) for switch in RULES]


def test_rules_are_broken_within_bounds_that_are_checked_without() -> None:
    assert {switch.bounds for switch in RULES + SITUATIONS} <= BOUNDS.keys()


def test_a_trace_ends_with_what_is_violated() -> None:
    check = next(check for check in all_checks() if check.name == "FORGET_SPARE")
    outcome = run(check)
    assert outcome.violated == outcome.trace[-1]
    assert any(re.fullmatch(r"owner 1 gives up node \d and goes on in fragment 1", line) for line in outcome.trace)


def test_a_broken_rule_that_is_not_found_is_no_success() -> None:
    outcome = run(Check("DOUBTFUL_FLUSHES", "breaks nothing where nothing is flushed", "smallest", "rule"))
    assert (outcome.word, outcome.good, outcome.trace) == ("NOT FOUND", False, ())


def test_a_search_without_a_result_is_an_error_not_an_outcome() -> None:
    with pytest.raises(CheckError, match="ended with"):
        run(Check("proctype", "makes the model no Promela", "smallest", "rule"))


def bounds_of_the_model() -> str:
    return MODEL.read_text().partition("/* Bounds. */")[2].partition("/* The rules.")[0]
