"""No file of the repository contains a path of its author's machine: `make lint` searches for such absolute paths."""

import re
import subprocess
import sys
from pathlib import Path

PLACES = re.compile(r"(?<![\w.])/(?:home|root|Users|work|workspace|builds)/[\w.]+")


def main() -> int:
    here = str(Path.cwd())
    files = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout.split("\0")
    faults = []
    for path in map(Path, filter(None, files)):
        if not path.is_file() or path.is_symlink():
            continue
        data = path.read_bytes()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
            found = PLACES.search(line)
            if found or here in line:
                faults.append(f"{path}:{number}: {found[0] if found else here}: a path of one machine")
    print(*faults, sep="\n", end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
