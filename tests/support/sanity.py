"""csi-sanity, the test suite for CSI drivers, compiled from the Go module in tests/kubernetes/programs/sanity.

`python -m support.sanity` compiles it unless it is there. It is kept outside the checkout, in
$XDG_CACHE_HOME/iomesh/kubernetes (~/.cache), in a folder whose name has a hash of the module's versions.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

MODULE = Path(__file__).parents[1] / "kubernetes" / "programs" / "sanity"
PROGRAM = "csi-sanity"


def path() -> Path:
    """Where it is, or will be."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((MODULE / name).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "iomesh" / "kubernetes" / f"sanity-{digest.hexdigest()[:12]}" / PROGRAM


def missing() -> str:
    """Why it cannot run; empty: it can."""
    return "" if path().exists() else f"{PROGRAM} is not compiled; make test-csi compiles it (2 minutes)"


def build() -> None:
    place = path()
    if place.exists():
        return
    if shutil.which("go") is None:
        sys.exit(f"{PROGRAM} is compiled with Go, which is not there: install Go 1.26 or newer (https://go.dev/dl)")
    print(f"compiling {PROGRAM}", flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{PROGRAM}.part")
    command = ["go", "build", "-trimpath", "-mod=readonly", "-ldflags", "-s -w", "-o", str(part), "tool"]
    subprocess.run(command, cwd=MODULE, env=os.environ | {"CGO_ENABLED": "0"}, check=True)
    part.rename(place)  # an interrupted build leaves nothing that looks like a program


if __name__ == "__main__":
    build()
