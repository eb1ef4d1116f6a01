"""The outcome of the checks."""

from __future__ import annotations

import enum

import msgspec


class State(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"  # iomesh works, but less well, or not in every respect
    FAILED = "failed"  # it does not work
    SKIPPED = "skipped"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """message: what was found; of one that failed, with the remedy."""

    name: str
    state: State
    message: str


class DiskCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A whole disk of the machine. usable: it is empty, and nothing uses it. reason: why it is not."""

    path: str
    size_bytes: int
    usable: bool
    reason: str


class NodeCheck(msgspec.Struct, frozen=True, kw_only=True):
    """ready: no check has failed."""

    node: str
    ready: bool
    checks: list[Check]
    disks: list[DiskCheck]


def ok(name: str, message: str) -> Check:
    return Check(name=name, state=State.OK, message=message)


def warning(name: str, message: str) -> Check:
    return Check(name=name, state=State.WARNING, message=message)


def failed(name: str, message: str) -> Check:
    return Check(name=name, state=State.FAILED, message=message)


def skipped(name: str, message: str) -> Check:
    return Check(name=name, state=State.SKIPPED, message=message)
