"""Line and branch coverage of the engine by simulation runs, per part. Needs a build that counts (`make covered`).

A process adds its counts to files beside the objects when it exits normally. The compiler's gcov reads them; the
generated C names the lines of the .pyx.
"""

import json
import subprocess
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

ROOT = Path(__file__).parent.parent.parent
ENGINE = ROOT / "build" / "covered"
OBJECTS = ROOT / "build" / "cover"
# Not part of simulation runs, or Python's view of a part.
ELSEWHERE = {
    "engine",
    "base.uring",
    "exports.nbd.connection",
    "exports.nbd.read",
    "exports.nbd.replies",
    "store.token_bucket",
    "store.scrub",
    "history.difference",
    "volume.space",
    "format.structures",
    "views.world",
    "views.store",
    "views.map",
}
NOGIL = "__pyx_f_"  # prefix of Cython's C functions ...
SET_UP = "__Pyx_"  # ... and of module initialization


class Part(NamedTuple):
    """Total count, and how many of them were reached."""

    name: str
    lines: int
    lines_reached: int
    branches: int
    branches_reached: int


def forget() -> None:
    """Delete earlier counts."""
    for file in OBJECTS.rglob("*.gcda"):
        file.unlink()


def parts() -> list[Part]:
    """Coverage of the engine parts that simulation runs use; in each, the functions that run without Python.
    The compiler attributes module initialization to the same file: a few lines may seem reached that were not.
    """
    lines: dict[str, dict[int, bool]] = defaultdict(dict)
    branches: dict[str, list[bool]] = defaultdict(list)
    for counts in OBJECTS.rglob("*.gcda"):
        done = subprocess.run(
            ["gcov", "--json-format", "--stdout", "--branch-probabilities", str(counts)],
            capture_output=True,
            cwd=OBJECTS,
            check=True,
        )
        for file in json.loads(done.stdout)["files"]:
            part = dotted(Path(file["file"]))
            if part in ELSEWHERE or not part:
                continue
            starts = sorted(
                (each["start_line"], each["name"]) for each in file["functions"] if not each["name"].startswith(SET_UP)
            )
            for line in file["lines"]:
                number, place = line["line_number"], bisect_right(starts, (line["line_number"], "~")) - 1
                if place < 0 or not starts[place][1].startswith(NOGIL):
                    continue
                lines[part][number] = lines[part].get(number, False) or line["count"] > 0
                branches[part] += [branch["count"] > 0 for branch in line["branches"]]
    return [
        Part(name, len(lines[name]), sum(lines[name].values()), len(branches[name]), sum(branches[name]))
        for name in sorted(lines)
    ]


def dotted(source: Path) -> str:
    """ext/store/journal.pyx is `store.journal`; any other file is an empty string."""
    if source.suffix != ".pyx" or "ext" not in source.parts:
        return ""
    return ".".join(source.with_suffix("").parts[source.parts.index("ext") + 1 :])


def table(found: Iterable[Part]) -> Table:
    result = Table("part", "lines", "reached", "branches", "reached", box=None, pad_edge=False, header_style="bold")
    for column in result.columns[1:]:
        column.justify = "right"
    found = list(found)
    together = (
        Part("all", *(sum(numbers) for numbers in zip(*(part[1:] for part in found), strict=True))) if found else None
    )
    for part in [*found, *([together] if together else [])]:
        result.add_row(
            part.name,
            str(part.lines),
            share(part.lines_reached, part.lines),
            str(part.branches),
            share(part.branches_reached, part.branches),
        )
    return result


def share(some: int, of_all: int) -> str:
    return f"{some / of_all:.0%}" if of_all else "-"
