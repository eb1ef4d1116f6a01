"""`iomesh tune`: settings of this machine that slow iomesh down, and what to set instead."""

from pathlib import Path

import click
from rich.text import Text

from iomesh.cli.output import table
from iomesh.cli.session import Session, answers
from iomesh.tuning.changes import STATE_FILE, Applied, Undone
from iomesh.tuning.changes import apply as apply_changes
from iomesh.tuning.changes import undo as undo_changes
from iomesh.tuning.findings import Finding, Tuning, examine
from iomesh.tuning.machine import Machine
from iomesh.tuning.rules import GOALS, Goal

STYLES = {"apply": "yellow", "nothing": "green"}
WORDS = {
    "apply": "iomesh tune apply",
    "host": "only on the host",
    "boot": "kernel command line",
    "unit": "the daemon's unit",
    "nothing": "as proposed",
}

for_goal = click.option(
    "--for", "goal", type=click.Choice(GOALS), default="latency", show_default=True,
    help="What matters: short requests, many of them, or few wake-ups and little power.",
)  # fmt: skip
state_option = click.option(
    "--state", "state_file", type=click.Path(path_type=Path), default=STATE_FILE, show_default=True, metavar="FILE",
    help="Record of what was changed.",
)  # fmt: skip
root_option = click.option(
    "--root", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path("/"), metavar="DIR",
    help="Directory with the machine's sys and proc: of a container that has its host's there, or recorded.",
)  # fmt: skip


@click.group()
def tune() -> None:
    """Find settings of this machine that slow iomesh down, change them, and change them back."""


@tune.command("check")
@for_goal
@root_option
@answers(Tuning)
def check(session: Session, goal: Goal, root: Path) -> None:
    """Show every setting that matters, its value and the proposed one. Changes nothing."""
    found = examine(Machine(root), goal)
    rows = [
        (one.area, one.path, one.current, one.proposed, Text(WORDS[one.by], STYLES.get(one.by, "magenta")))
        for one in found.findings
    ]
    session.output.answer(found, table("AREA", "SETTING", "VALUE", "PROPOSED", "BY", rows=rows))
    notes(session, found)


@tune.command("plan")
@for_goal
@root_option
@answers(Tuning)
def plan(session: Session, goal: Goal, root: Path) -> None:
    """Show what `apply` would change, and what has to be changed elsewhere, each with the reason and the expected
    gain. Changes nothing."""
    found = examine(Machine(root), goal)
    found = Tuning(
        goal=goal, container=found.container, findings=[one for one in found.findings if one.by != "nothing"]
    )
    renderables = [words for one in found.findings for words in explained(one)]
    session.output.answer(found, *(renderables or [f"nothing to change for {goal}"]))
    notes(session, found)


@tune.command("apply")
@for_goal
@root_option
@state_option
@answers(Applied)
def apply(session: Session, goal: Goal, root: Path, state_file: Path) -> None:
    """Set what `plan` shows, until the next boot. `undo` takes it back."""
    machine = Machine(root)
    found = examine(machine, goal)
    done = apply_changes(machine, goal, found.findings, state_file)
    rows = [(one.path, one.before, one.after) for one in done.changes]
    session.output.answer(
        done, table("SETTING", "BEFORE", "NOW", rows=rows) if rows else f"nothing to change for {goal}"
    )
    notes(session, found)


@tune.command("undo")
@root_option
@state_option
@answers(Undone)
def undo(session: Session, root: Path, state_file: Path) -> None:
    """Restore what `apply` changed since the last boot. What someone else changed since then is left."""
    done = undo_changes(Machine(root), state_file)
    rows = [(one.path, one.after, one.before) for one in done.restored]
    session.output.answer(done, table("SETTING", "BEFORE", "NOW", rows=rows) if rows else "nothing to restore")
    for one in done.left:
        session.output.warn(f"{one.path} was changed since: it is left as it is; before `apply` it was {one.before!r}")


def explained(one: Finding) -> list[str]:
    return [
        f"{one.path}: {one.current} -> {one.proposed} ({WORDS[one.by]})",
        f"    why:    {one.reason}",
        f"    gain:   {one.gain}",
        f"    source: {one.source}",
    ]


def notes(session: Session, found: Tuning) -> None:
    if any(one.by == "host" for one in found.findings):
        session.output.note("this is a container whose /sys or /proc/sys may only be read: run the command on its host")
