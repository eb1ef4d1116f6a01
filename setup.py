"""For tools that still call setup.py: pip does the work, from the one build definition, meson.build."""

import subprocess
import sys
from pathlib import Path

PIP = {"install": ["install"], "develop": ["install", "-e"], "bdist_wheel": ["wheel", "--no-deps", "-w", "dist"]}

if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in PIP:
        sys.exit(
            f"setup.py only knows {', '.join(PIP)} and hands them over to pip, which builds with meson.build (see "
            "pyproject.toml)"
        )
    sys.exit(subprocess.call([sys.executable, "-m", "pip", *PIP[command], str(Path(__file__).resolve().parent)]))
