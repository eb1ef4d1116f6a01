"""`make model`: checks the model of ownership (ownership.pml), and that breaking each of its rules is found.

python -m model                       everything
python -m model FORGET_SPARE leases   some of it
python -m model --trace FORGET_SPARE  a short history that breaking this rule allows
"""

import argparse
import dataclasses
import json
import sys

from rich.console import Console
from rich.table import Table

from model.check import Check, CheckError, Outcome, all_checks, run, run_all

HEADINGS = {"bounds": "bounds", "rule": "broken rule", "situation": "situation"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m model", description="Checks the model of ownership with spin.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of bounds, rules or situations; all unless given")
    parser.add_argument("--sample", action="store_true", help="only what `make test` checks")
    parser.add_argument("--trace", metavar="NAME", help="a short history in which this is found")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.add_argument("--processes", type=int, default=2, help="at once (2); the largest search takes 1 GB")
    given = parser.parse_args()
    try:
        if given.trace:
            return show_trace(chosen([given.trace])[0])
        checks = chosen(given.names) if given.names else all_checks(sample=given.sample)
        outcomes = watch(checks, given.processes)
    except CheckError as error:
        print(error, file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps([as_json(outcome) for outcome in outcomes], indent=2))
    else:
        show(outcomes)
    return 0 if all(outcome.good for outcome in outcomes) else 1


def chosen(names: list[str]) -> list[Check]:
    checks = {check.name: check for check in all_checks()}
    if unknown := [name for name in names if name not in checks]:
        raise CheckError(f"the model has no {unknown[0]!r}; there are {', '.join(checks)}")
    return [checks[name] for name in names]


def watch(checks: list[Check], processes: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with Console(stderr=True).status("") as status:
        results = run_all(checks, processes)
        for number, check in enumerate(checks, 1):
            status.update(f"{number} of {len(checks)}: {check.name}")
            outcomes.append(next(results))
    return outcomes


def show(outcomes: list[Outcome]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    for kind, heading in HEADINGS.items():
        rows = [outcome for outcome in outcomes if outcome.check.kind == kind]
        if not rows:
            continue
        table = Table()
        for column in (heading, "" if kind != "bounds" else "of them"):
            table.add_column(column)
        for column in ("states", "seconds"):
            table.add_column(column, justify="right")
        table.add_column("outcome")
        for outcome in rows:
            style = "green" if outcome.good else "bold red"
            told = f": {outcome.violated}" if outcome.violated and kind != "situation" else ""
            table.add_row(
                outcome.check.name,
                outcome.check.words,
                f"{outcome.states:,}",
                f"{outcome.seconds:.1f}",
                f"[{style}]{outcome.word}[/]{told}",
            )
        console.print(table)
    states, seconds = sum(outcome.states for outcome in outcomes), sum(outcome.seconds for outcome in outcomes)
    console.print(f"{len(outcomes)} searches, {states:,} states, {seconds:.0f} s")
    for outcome in outcomes:
        if not outcome.good:
            console.print(f"{outcome.check.name}: {outcome.word}", *outcome.trace, sep="\n  ", highlight=False)


def show_trace(check: Check) -> int:
    outcome = run(check, short=True)
    print(*outcome.trace, sep="\n")
    print(f"{check.name}: {outcome.word}, {outcome.states:,} states")
    return 0 if outcome.good else 1


def as_json(outcome: Outcome) -> dict[str, object]:
    return {
        **dataclasses.asdict(outcome.check),
        "outcome": outcome.word,
        "good": outcome.good,
        "states": outcome.states,
        "seconds": round(outcome.seconds, 2),
        "violated": outcome.violated,
        "steps": len(outcome.trace),
    }


if __name__ == "__main__":
    sys.exit(main())
