"""Compares a machine with the rules."""

from __future__ import annotations

from typing import Literal

import msgspec

from iomesh.tuning.machine import CONDITIONS, Machine
from iomesh.tuning.rules import RULES, Goal, Means, Rule

By = Means | Literal["nothing"]  # "nothing": it is right


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One setting. proposed: the value to set; as `current` if that is right. by: what changes it."""

    area: str
    path: str
    current: str
    proposed: str
    by: By
    reason: str
    gain: str
    source: str


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """container: the daemon's machine is a container, so some settings belong to its host."""

    goal: Goal
    container: bool
    findings: list[Finding]


def examine(machine: Machine, goal: Goal) -> Tuning:
    """Every setting of this machine that a rule has a value for; reads only."""
    findings = [
        finding
        for rule in RULES
        if (wanted := getattr(rule, goal)) is not None
        for place in machine.places(rule.path)
        if CONDITIONS[rule.where](machine, place) and (finding := compare(machine, rule, place, wanted)) is not None
    ]
    return Tuning(goal=goal, container=machine.container(), findings=findings)


def compare(machine: Machine, rule: Rule, place: str, wanted: str) -> Finding | None:
    """The finding; None: the file cannot be read, or does not offer the value."""
    text = machine.read(place)
    if text is None or wanted not in (choices(machine, place, text) or [wanted]):
        return None
    current = selected(text)
    proposed = current if met(current, wanted) else wanted.lstrip("<>=")
    by: By = "nothing" if proposed == current else rule.means
    if by == "apply" and machine.read_only(place):
        by = "host"
    return Finding(
        area=rule.area,
        path=f"/{place}",
        current=current,
        proposed=proposed,
        by=by,
        reason=rule.reason,
        gain=rule.gain,
        source=rule.source,
    )


def selected(text: str) -> str:
    """The value of a file: the word in brackets where it shows a choice."""
    return next((word[1:-1] for word in text.split() if word.startswith("[") and word.endswith("]")), text)


def choices(machine: Machine, place: str, text: str) -> list[str]:
    """What the file can be set to; empty: anything."""
    if place.endswith("scaling_governor"):
        return (machine.read(place.replace("scaling_governor", "scaling_available_governors")) or "").split()
    return [word.strip("[]") for word in text.split()] if "[" in text else []


def met(current: str, wanted: str) -> bool:
    if wanted[:2] in (">=", "<="):
        if current == "unlimited":
            return wanted[0] == ">"
        number, bound = int(current), int(wanted[2:])
        return number >= bound if wanted[0] == ">" else number <= bound
    return current == wanted
