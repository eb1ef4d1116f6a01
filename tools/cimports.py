"""Checks the order of the engine's folders, and of the parts in each: a part cimports only earlier parts.

The order is `[tool.iomesh.engine]` in pyproject.toml; "." is ext/ itself. io_uring appears in one part only, so that
another Io can replace it.
"""

import re
import sys
import tomllib
from pathlib import Path

ENGINE = Path("ext")
KNOWS_IO_URING = "base.uring"

CIMPORT = re.compile(
    r"^\s*(?:from\s+iomesh\.engine\.([\w.]+)\s+cimport|cimport\s+iomesh\.engine\.([\w.]+)|from\s+iomesh\.engine\s+cimport\s+(.+))"
)
IO_URING = re.compile(r"\bio_uring_\w+|\bIORING_\w+|\bliburing\.h")


def main() -> int:
    folders: dict[str, list[str]] = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["iomesh"]["engine"]
    place = {part: number for number, part in enumerate(ordered(folders))}
    faults = []
    for path in sorted([*ENGINE.rglob("*.pyx"), *ENGINE.rglob("*.pxd")]):
        part = dotted(path)
        if part not in place:
            faults.append(f"{path}: {part} has no place in the order: add it to [tool.iomesh.engine] in pyproject.toml")
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for used in cimported(line):
                if used not in place:
                    faults.append(f"{path}:{number}: cimports {used}, which has no place in the order")
                elif place[used] > place[part]:
                    faults.append(f"{path}:{number}: {part} stands before {used} and must not know it")
            found = IO_URING.search(line.split("# ")[0])
            if found and part != KNOWS_IO_URING:
                faults.append(f"{path}:{number}: {found[0]}: io_uring is known to {KNOWS_IO_URING} alone; ask an Io")
    print(*faults, sep="\n", end="\n" if faults else "")
    return 1 if faults else 0


def ordered(folders: dict[str, list[str]]) -> list[str]:
    """The dotted names of all parts, first to last."""
    return [
        part if folder == "." else f"{folder.replace('/', '.')}.{part}"
        for folder, parts in folders.items()
        for part in parts
    ]


def dotted(path: Path) -> str:
    """ext/store/journal.pyx is `store.journal`."""
    return ".".join(path.relative_to(ENGINE).with_suffix("").parts)


def cimported(line: str) -> list[str]:
    found = CIMPORT.match(line)
    if not found:
        return []
    if found[3]:
        return [name.split()[0] for name in found[3].split(",")]
    return [found[1] or found[2]]


if __name__ == "__main__":
    sys.exit(main())
