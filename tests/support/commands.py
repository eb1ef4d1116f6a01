"""Concurrent commands of all kinds on one node, and a model of its registry that checks the outcome.

The model executes one command at a time. A round of concurrent commands is correct if it is linearizable: there is an
order that explains every answer and leads to the final state, and in which no command precedes one that had ended
before it began. A flattened clone may stop being a clone at any time after the command. A command may also be refused
because another command with the same name is in progress (`in_flux`); then it has had no effect.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from iomesh.errors import AlreadyExists, Conflict, InUse, InvalidArgument, IomeshError, NotFound, Unavailable
from iomesh.node.node import Node

MIB = 1 << 20
NAMES = ["a", "b", "c", "d"]
SNAPSHOTS = ["one", "two"]
SIZES = [4 * MIB, 8 * MIB, 16 * MIB]
WINDOWS = [0, 3600]
PAUSE_SECONDS = 0.004  # longest delay before a command, so that it overlaps with all steps of others
MAKES_AND_ENDS = {"create", "clone", "clone_at", "delete"}
CHANGES_MARKS = {"create", "set", "restore", "restore_at", *MAKES_AND_ENDS}


@dataclass(frozen=True)
class Snap:
    token: str  # unique, also when the name is reused
    size: int
    exported: bool = False


@dataclass(frozen=True)
class Vol:
    id: str
    size: int
    window: int = 0
    export: bool | None = None  # whether it is read-only; None: no export
    snaps: tuple[tuple[str, Snap], ...] = ()
    parent: tuple[str, str] | None = None  # volume id and snapshot token; the token is empty for a restore point
    flattening: bool = False

    def snap(self, name: str) -> Snap | None:
        return dict(self.snaps).get(name)

    def with_snap(self, name: str, snap: Snap | None) -> Vol:
        others = {each: other for each, other in self.snaps if each != name}
        return replace(self, snaps=tuple(sorted((others | ({name: snap} if snap else {})).items())))


@dataclass(frozen=True)
class State:
    volumes: tuple[tuple[str, Vol], ...] = ()
    hidden: tuple[Vol, ...] = ()

    def get(self, name: str) -> Vol | None:
        return dict(self.volumes).get(name)

    def put(self, name: str, volume: Vol | None) -> State:
        others = {each: other for each, other in self.volumes if each != name}
        return replace(self, volumes=tuple(sorted((others | ({name: volume} if volume else {})).items())))

    def clones(self, volume: Vol, token: str | None = None) -> list[Vol]:
        everything = [*dict(self.volumes).values(), *self.hidden]
        return [
            each
            for each in everything
            if each.parent and each.parent[0] == volume.id and token in (None, each.parent[1])
        ]

    def without(self, name: str) -> State:
        """Deletes the volume, or hides it for its clones. A hidden parent is deleted with its last clone."""
        volume = self.get(name)
        assert volume is not None
        left = self.put(name, None)
        if self.clones(volume):
            return replace(left, hidden=(*left.hidden, replace(volume, export=None, flattening=False)))
        return left.settled()

    def settled(self) -> State:
        needless = [volume for volume in self.hidden if not self.clones(volume)]
        if not needless:
            return self
        return replace(self, hidden=tuple(volume for volume in self.hidden if volume not in needless)).settled()

    def flattened(self, name: str) -> State:
        volume = self.get(name)
        assert volume is not None
        return self.put(name, replace(volume, parent=None, flattening=False)).settled()


@dataclass
class Command:
    kind: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    number: int = 0
    began: float = 0.0
    ended: float = 0.0
    answer: Any = None  # an IomeshError, or the result

    def touches(self, name: str) -> bool:
        return name in (self.name, self.arguments.get("new"), self.arguments.get("second"))

    @property
    def makes(self) -> str:
        return str(self.arguments.get("new", self.name))

    def __str__(self) -> str:
        words = " ".join(f"{key}={value}" for key, value in self.arguments.items())
        answer = (
            f"{type(self.answer).__name__}: {self.answer}"
            if isinstance(self.answer, Exception)
            else getattr(self.answer, "id", self.answer)
        )
        return f"{self.began:.6f}..{self.ended:.6f} {self.kind} {self.name} {words} -> {answer}"


def draw_commands(draw: random.Random, numbers: Iterator[int]) -> list[Command]:
    """The commands of one round: most of them use two names."""
    names = draw.sample(NAMES, 2)
    return [draw_command(draw, [*names, *names, draw.choice(NAMES)], next(numbers)) for _ in range(draw.randint(2, 5))]


def draw_command(draw: random.Random, names: list[str], number: int) -> Command:
    name, snapshot = draw.choice(names), draw.choice(SNAPSHOTS)
    kinds: dict[str, tuple[int, dict[str, Any]]] = {
        "create": (4, {"size": draw.choice(SIZES), "window": draw.choice(WINDOWS)}),
        "clone": (3, {"snapshot": snapshot, "new": draw.choice(names)}),
        "clone_at": (4, {"new": draw.choice(names)}),
        "delete": (3, {"snapshots": draw.random() < 0.7}),
        "snapshot": (4, {"snapshot": snapshot}),
        "snapshots": (1, {"snapshot": snapshot, "second": draw.choice([each for each in NAMES if each != name])}),
        "delete_snapshot": (2, {"snapshot": snapshot}),
        "restore": (1, {"snapshot": snapshot, "discard": draw.random() < 0.7}),
        "restore_at": (1, {}),
        "grow": (2, {"size": draw.choice(SIZES)}),
        "set": (1, {"window": draw.choice(WINDOWS)}),
        "export": (2, {"read_only": draw.random() < 0.3}),
        "unexport": (1, {}),
        "export_snapshot": (2, {"snapshot": snapshot}),
        "unexport_snapshot": (1, {"snapshot": snapshot}),
        "flatten": (2, {}),
    }
    kind = draw.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
    return Command(kind, name, kinds[kind][1], number)


async def give(node: Node, commands: list[Command], draw: random.Random) -> None:
    """Runs all concurrently, each after a short delay. Any exception but an IomeshError is a fault of the node."""

    async def one(command: Command, pause: float) -> None:
        await asyncio.sleep(pause)
        command.began = time.monotonic()
        try:
            command.answer = await ask(node, command)
        except IomeshError as error:
            command.answer = error
        command.ended = time.monotonic()

    async with asyncio.TaskGroup() as group:
        for command in commands:
            group.create_task(one(command, draw.random() * PAUSE_SECONDS))


def ask(node: Node, command: Command) -> Awaitable[Any]:
    name, given = command.name, command.arguments
    asks: dict[str, Callable[[], Awaitable[Any]]] = {
        "create": lambda: node.volumes.create(name, given["size"], window_seconds=given["window"]),
        "clone": lambda: node.volumes.clone(name, given["new"], snapshot=given["snapshot"]),
        "clone_at": lambda: node.volumes.clone(name, given["new"], at_ns=time.time_ns()),
        "delete": lambda: node.volumes.delete(name, snapshots=given["snapshots"]),
        "snapshot": lambda: node.snapshots.create([name], given["snapshot"]),
        "snapshots": lambda: node.snapshots.create([name, given["second"]], given["snapshot"]),
        "delete_snapshot": lambda: node.snapshots.delete(name, given["snapshot"]),
        "restore": lambda: node.snapshots.restore(name, given["snapshot"], discard=given["discard"]),
        "restore_at": lambda: node.windows.restore(name, time.time_ns(), discard=True),
        "grow": lambda: node.volumes.grow(name, given["size"]),
        "set": lambda: node.windows.set(name, given["window"]),
        "export": lambda: node.volumes.export(name, read_only=given["read_only"]),
        "unexport": lambda: node.volumes.unexport(name),
        "export_snapshot": lambda: node.snapshots.export(name, given["snapshot"]),
        "unexport_snapshot": lambda: node.snapshots.unexport(name, given["snapshot"]),
        "flatten": lambda: node.flattening.flatten(name),
    }
    return asks[command.kind]()


def carry_out(state: State, command: Command, others: list[Command]) -> Iterator[State]:
    """Possible states after this command, if its answer is correct. others: commands of the same round."""
    error = command.answer if isinstance(command.answer, Exception) else None
    if error is not None and in_flux(state, command, others):
        yield state
        return
    expected = consequences(state, command, others)
    for answer, after in expected:
        if answer is None and error is None:
            yield after
        elif answer is not None and isinstance(error, answer):
            yield state


def in_flux(state: State, command: Command, others: list[Command]) -> bool:
    """The command was refused because another one creates or deletes its object."""
    busy = [other for other in others if other.kind in MAKES_AND_ENDS]
    if isinstance(command.answer, Unavailable | Conflict):
        return any(
            other.touches(name)
            for other in busy
            for name in (command.name, command.arguments.get("second", command.name))
        )
    if isinstance(command.answer, AlreadyExists) and command.kind in ("create", "clone", "clone_at"):
        return any(other.touches(command.makes) for other in busy)
    return False


def consequences(
    state: State, command: Command, others: list[Command]
) -> Iterator[tuple[type[IomeshError] | None, State]]:
    """The errors that the command can meet, or None with the state after it."""
    name, given = command.name, command.arguments
    volume = state.get(name)
    if command.kind == "create":
        if volume is None:
            yield None, state.put(name, Vol(getattr(command.answer, "id", ""), given["size"], given["window"]))
        elif (volume.size, volume.window) == (given["size"], given["window"]):
            if getattr(command.answer, "id", "") == volume.id:
                yield None, state
        else:
            yield AlreadyExists, state
        return
    if command.kind == "delete" and any(
        other.kind == "delete" and other.name == name and other.answer is None for other in others
    ):
        yield None, state  # the other command has deleted it
    if volume is None:
        yield NotFound, state
        return
    snapshot = volume.snap(given.get("snapshot", ""))
    if "snapshot" in given and command.kind not in ("snapshot", "snapshots") and snapshot is None:
        yield NotFound, state
        return
    match command.kind:
        case "clone" | "clone_at":
            yield from _clone(state, command, volume, snapshot, others)
        case "delete":
            yield (InUse, state) if volume.snaps and not given["snapshots"] else (None, state.without(name))
        case "snapshot" | "snapshots":
            yield from _snapshot(state, command, [name, *([given["second"]] if "second" in given else [])])
        case "delete_snapshot":
            assert snapshot is not None
            in_use = state.clones(volume, snapshot.token)
            yield (InUse, state) if in_use else (None, state.put(name, volume.with_snap(given["snapshot"], None)))
        case "restore":
            kept = command.answer if isinstance(command.answer, str) else ""
            if bool(kept) != given["discard"]:
                yield (
                    None,
                    state.put(name, volume.with_snap(kept, Snap(f"{command.number}", volume.size)) if kept else volume),
                )
        case "restore_at":
            yield from _at(state, command, volume, others)
        case "grow":
            grown = state.put(name, replace(volume, size=given["size"]))
            yield (InvalidArgument, state) if given["size"] < volume.size else (None, grown)
        case "set":
            yield None, state.put(name, replace(volume, window=given["window"]))
        case "export":
            different = volume.export not in (None, given["read_only"])
            yield (
                (AlreadyExists, state)
                if different
                else (None, state.put(name, replace(volume, export=given["read_only"])))
            )
        case "unexport":
            yield None, state.put(name, replace(volume, export=None))
        case "export_snapshot" | "unexport_snapshot":
            assert snapshot is not None
            changed = replace(snapshot, exported=command.kind == "export_snapshot")
            yield None, state.put(name, volume.with_snap(given["snapshot"], changed))
        case "flatten":
            yield (
                (InvalidArgument, state)
                if volume.parent is None
                else (None, state.put(name, replace(volume, flattening=True)))
            )


def _at(
    state: State, command: Command, volume: Vol, others: list[Command]
) -> Iterator[tuple[type[IomeshError] | None, State]]:
    """A restore to a time: a window must reach back to it, and the window may have restarted in this round."""
    if not volume.window or any(other.kind in CHANGES_MARKS and other.touches(command.name) for other in others):
        yield InvalidArgument, state
    if volume.window:
        yield None, state


def _clone(
    state: State, command: Command, volume: Vol, snapshot: Snap | None, others: list[Command]
) -> Iterator[tuple[type[IomeshError] | None, State]]:
    token = snapshot.token if snapshot else ""
    allowed = list(_at(state, command, volume, others)) if snapshot is None else [(None, state)]
    for error, _ in allowed:
        there = state.get(command.makes)
        if error is not None:
            yield error, state
        elif there is None:
            identity = getattr(command.answer, "id", "")
            size = snapshot.size if snapshot else volume.size
            yield None, state.put(command.makes, Vol(identity, size, parent=(volume.id, token)))
        elif there.id == getattr(command.answer, "id", "") and there.parent == (volume.id, token):
            yield None, state
        else:
            yield AlreadyExists, state


def _snapshot(state: State, command: Command, names: list[str]) -> Iterator[tuple[type[IomeshError] | None, State]]:
    volumes = [state.get(name) for name in names]
    what = command.arguments["snapshot"]
    after, there = state, []
    for name, volume in zip(names, volumes, strict=True):
        if volume is None:
            yield NotFound, state
            return
        there.append(volume.snap(what))
        after = after.put(name, volume.with_snap(what, Snap(f"{command.number}", volume.size)))
    tokens = {snap.token if snap else None for snap in there}
    if tokens == {None}:
        yield None, after
    elif len(tokens) == 1:
        yield None, state
    else:
        yield AlreadyExists, state


def explain(before: State, commands: list[Command], is_right: Callable[[State], bool]) -> State | None:
    """A state that `is_right` accepts and that some order of these commands produces."""
    seen: set[tuple[State, frozenset[int]]] = set()

    def search(state: State, left: frozenset[int]) -> State | None:
        if (state, left) in seen:
            return None
        seen.add((state, left))
        if not left and not any(volume.flattening for _, volume in state.volumes):
            return state if is_right(state) else None
        for name, volume in state.volumes:
            if volume.flattening and (found := search(state.flattened(name), left)) is not None:
                return found
        for number in left:
            command = commands[number]
            if any(commands[other].ended < command.began for other in left):
                continue
            others = [other for other in commands if other is not command]
            for after in carry_out(state, command, others):
                if (found := search(after, left - {number})) is not None:
                    return found
        return None

    return search(before, frozenset(range(len(commands))))


async def observe(node: Node) -> dict[str, Any]:
    """The state visible to users once background work has ended, and the number of hidden volumes."""
    async with asyncio.timeout(60):
        while any(volume.flattening.running for volume in node.volumes.list()):  # noqa: ASYNC110  # the node sends no event for this
            await asyncio.sleep(0.002)
    seen: dict[str, Any] = {}
    for volume in node.volumes.list():
        assert volume.state.value == "serving", volume
        snapshots = {
            each.name: (each.size_bytes, bool(each.exports), each.clones)
            for each in await node.snapshots.list(volume.name)
        }
        export = volume.exports[0].read_only if volume.exports else None
        seen[volume.name] = (
            volume.id,
            volume.size_bytes,
            volume.policy.window_seconds,
            export,
            bool(volume.clone_of),
            snapshots,
        )
    seen["hidden"] = node.volumes.open_in_engine - len(seen)
    return seen


def view(state: State) -> dict[str, Any]:
    """The same state of the model."""
    seen: dict[str, Any] = {}
    for name, volume in state.volumes:
        snapshots = {
            each: (snap.size, snap.exported, len(state.clones(volume, snap.token))) for each, snap in volume.snaps
        }
        seen[name] = (volume.id, volume.size, volume.window, volume.export, volume.parent is not None, snapshots)
    seen["hidden"] = len(state.hidden)
    return seen
