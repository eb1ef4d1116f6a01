"""The parts of the engine stand in one order, and each cimports only what stands before it: `make lint` holds them to it.

The order is `[tool.iomesh] parts` in pyproject.toml. Besides, io_uring appears in one part only, so that another Io can take its place.
"""

import re
import sys
import tomllib
from pathlib import Path

ENGINE = Path("ext")
KNOWS_IO_URING = "uring"

CIMPORT = re.compile(
    r"^\s*(?:from\s+iomesh\.engine\.(\w+)\s+cimport|cimport\s+iomesh\.engine\.(\w+)|from\s+iomesh\.engine\s+cimport\s+(.+))"
)
IO_URING = re.compile(r"\bio_uring_\w+|\bIORING_\w+|\bliburing\.h")


def main() -> int:
    parts: list[str] = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["iomesh"]["parts"]
    place = {part: number for number, part in enumerate(parts)}
    faults = []
    for path in sorted([*ENGINE.glob("*.pyx"), *ENGINE.glob("*.pxd")]):
        part = path.stem
        if part not in place:
            faults.append(f"{path}: {part} has no place in the order: add it to [tool.iomesh] parts in pyproject.toml")
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for used in cimported(line):
                if used not in place:
                    faults.append(f"{path}:{number}: cimports {used}, which has no place in the order")
                elif place[used] > place[part]:
                    faults.append(f"{path}:{number}: {part} stands before {used} and must not know it")
            found = IO_URING.search(line.split("# ")[0])
            if found and part != KNOWS_IO_URING:
                faults.append(f"{path}:{number}: {found[0]}: io_uring is known to {KNOWS_IO_URING}.pyx alone; ask an Io")
    print(*faults, sep="\n", end="\n" if faults else "")
    return 1 if faults else 0


def cimported(line: str) -> list[str]:
    found = CIMPORT.match(line)
    if not found:
        return []
    if found[3]:
        return [name.split()[0] for name in found[3].split(",")]
    return [found[1] or found[2]]


if __name__ == "__main__":
    sys.exit(main())
