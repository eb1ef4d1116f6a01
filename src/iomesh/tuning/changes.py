"""Applies proposals and takes them back.

The state file names every change before it is made: path, the value before, and the value set. A file is only restored
while it still has the value that was set here; what someone else changed since stays. Values live until the next boot,
so a state file of an earlier boot has nothing to restore.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from iomesh.errors import Damaged, InUse, IomeshError, PermissionDenied, from_errno
from iomesh.tuning.findings import Finding, selected
from iomesh.tuning.machine import Machine
from iomesh.tuning.rules import Goal

STATE_FILE = Path("/var/lib/iomesh/tuning.json")
BOOT_ID = "proc/sys/kernel/random/boot_id"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    before: str
    after: str


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """changes: of this call. state_file: has those of earlier calls too."""

    goal: Goal
    state_file: str
    changes: list[Change]


class Undone(msgspec.Struct, frozen=True, kw_only=True):
    """restored: have the value from before again. left: have a value that was not set here, and keep it."""

    restored: list[Change]
    left: list[Change]


class State(msgspec.Struct, frozen=True, kw_only=True):
    boot: str
    changes: list[Change]


def apply(machine: Machine, goal: Goal, findings: Sequence[Finding], state_file: Path = STATE_FILE) -> Applied:
    """Sets what is proposed. Raises PermissionDenied before the first write if one would be refused. If a write fails,
    those before it are restored; what could not be restored is named."""
    wanted = [Change(path=one.path, before=one.current, after=one.proposed) for one in findings if one.by == "apply"]
    if not wanted:
        return Applied(goal=goal, state_file=str(state_file), changes=[])
    refused = [one.path for one in wanted if not os.access(machine.root / one.path[1:], os.W_OK)]
    if refused:
        raise PermissionDenied(
            f"{refused[0]}{f' and {len(refused) - 1} more' if refused[1:] else ''}: this process may not write there, "
            "nothing was changed: run the command as root, and for a container on its host"
        )
    with locked(state_file):
        earlier = known(machine, state_file)
        firsts = {one.path: one.before for one in earlier}
        recorded = {one.path: one for one in earlier}
        for one in wanted:
            recorded[one.path] = msgspec.structs.replace(one, before=firsts.get(one.path, one.before))
        write_state(machine, state_file, list(recorded.values()))
        done: list[Change] = []
        try:
            for one in wanted:
                done.append(one)
                set_value(machine, one.path, one.after)
        except BaseException as error:
            stuck = []
            for one in reversed(done):
                try:
                    if value(machine, one.path) != one.before:
                        set_value(machine, one.path, one.before)
                except IomeshError:
                    stuck.append(one.path)
            kept = [one for one in recorded.values() if one.path in stuck]
            write_state(machine, state_file, [one for one in earlier if one.path not in stuck] + kept)
            if not isinstance(error, IomeshError):
                raise
            rest = f"; not restored: {', '.join(stuck)}" if stuck else "; what was changed before is restored"
            raise type(error)(f"{error.message}{rest}") from None
    return Applied(goal=goal, state_file=str(state_file), changes=wanted)


def undo(machine: Machine, state_file: Path = STATE_FILE) -> Undone:
    """Restores what apply() changed. If a write fails, the rest is restored, and the state file keeps that one."""
    if not state_file.exists():
        return Undone(restored=[], left=[])
    with locked(state_file):
        restored, left, failed, reason = [], [], [], None
        for one in known(machine, state_file):
            try:
                if value(machine, one.path) == one.after:
                    set_value(machine, one.path, one.before)
                    restored.append(one)
                else:
                    left.append(one)
            except IomeshError as error:
                failed.append(one)
                reason = reason or error
        if reason is not None:
            write_state(machine, state_file, failed)
            raise type(reason)(f"{reason.message}; {len(restored)} restored, {len(failed)} still to do: {state_file}")
        state_file.unlink()
    return Undone(restored=restored, left=left)


def known(machine: Machine, state_file: Path) -> list[Change]:
    """The changes of this boot."""
    try:
        state = msgspec.json.decode(state_file.read_bytes(), type=State)
    except FileNotFoundError:
        return []
    except msgspec.DecodeError as error:
        raise Damaged(
            f"{state_file} is not a record of changes ({error}): look at it, and move it away if it is not"
        ) from None
    return state.changes if state.boot == (machine.read(BOOT_ID) or "") else []


def write_state(machine: Machine, state_file: Path, changes: Sequence[Change]) -> None:
    """Replaces the state file in one step; without changes there is none."""
    if not changes:
        state_file.unlink(missing_ok=True)
        return
    new = state_file.with_suffix(".new")
    with new.open("wb") as file:
        file.write(
            msgspec.json.format(msgspec.json.encode(State(boot=machine.read(BOOT_ID) or "", changes=[*changes])))
        )
        file.flush()
        os.fsync(file.fileno())
    new.replace(state_file)


def value(machine: Machine, path: str) -> str:
    text = machine.read(path[1:])
    if text is None:
        raise from_errno(2, f"{path} is not there any more")
    return selected(text)


def set_value(machine: Machine, path: str, wanted: str) -> None:
    """Writes and reads back. Raises the system's error, or IomeshError if the kernel has another value then."""
    try:
        (machine.root / path[1:]).write_text(wanted)
    except OSError as error:
        raise from_errno(error.errno or 0, f"{path}: {wanted!r} was refused: {error.strerror}") from None
    if (now := value(machine, path)) != wanted:
        raise IomeshError(f"{path}: {wanted!r} was written, and it is {now!r}")


@contextmanager
def locked(state_file: Path) -> Iterator[None]:
    """Keeps a second apply or undo out. Raises InUse."""
    state_file.parent.mkdir(parents=True, exist_ok=True)
    with state_file.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{state_file}: another `iomesh tune` changes settings: wait until it has ended") from None
        yield
