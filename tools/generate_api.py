"""Writes iomesh_pb2.py and its stub from iomesh.proto; --check only reports whether they are up to date.

They are committed, so that type checkers and editors see them without a build. The generator is pinned in
pyproject.toml (dev).
"""

from __future__ import annotations

import filecmp
import shutil
import sys
import sysconfig
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = "iomesh/api/iomesh.proto"
WRITTEN = ("iomesh/api/iomesh_pb2.py", "iomesh/api/iomesh_pb2.pyi")


def main() -> int:
    with tempfile.TemporaryDirectory() as target:
        plugin = Path(sysconfig.get_path("scripts")) / "protoc-gen-mypy"
        arguments = [
            "protoc",
            f"-I{ROOT / 'src'}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--plugin=protoc-gen-mypy={plugin}",
            PROTO,
        ]
        if protoc.main(arguments):
            return 1
        stale = [
            name
            for name in WRITTEN
            if not (ROOT / "src" / name).exists()
            or not filecmp.cmp(Path(target) / name, ROOT / "src" / name, shallow=False)
        ]
        if "--check" in sys.argv[1:]:
            for name in stale:
                print(f"src/{name} is not what src/{PROTO} says: run python tools/generate_api.py", file=sys.stderr)
            return 1 if stale else 0
        for name in stale:
            shutil.copyfile(Path(target) / name, ROOT / "src" / name)
            print(f"wrote src/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
