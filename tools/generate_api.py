"""Writes the Python modules of the .proto files, and their stubs; --check only reports whether they are up to date.

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
PROTOS = (
    "iomesh/api/iomesh.proto",
    "iomesh/csi/csi.proto",
    "iomesh/csi/registration.proto",
    "iomesh/metadata/etcd.proto",
)


def main() -> int:
    with tempfile.TemporaryDirectory() as target:
        plugin = Path(sysconfig.get_path("scripts")) / "protoc-gen-mypy"
        arguments = [
            "protoc",
            f"-I{ROOT / 'src'}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"-I{files('google.rpc') / '../..'}",  # what an error has, of googleapis-common-protos
            f"--python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--plugin=protoc-gen-mypy={plugin}",
            *PROTOS,
        ]
        if protoc.main(arguments):
            return 1
        written = [proto.removesuffix(".proto") + end for proto in PROTOS for end in ("_pb2.py", "_pb2.pyi")]
        stale = [
            name
            for name in written
            if not (ROOT / "src" / name).exists()
            or not filecmp.cmp(Path(target) / name, ROOT / "src" / name, shallow=False)
        ]
        if "--check" in sys.argv[1:]:
            for name in stale:
                print(f"src/{name} is not what its .proto says: run python tools/generate_api.py", file=sys.stderr)
            return 1 if stale else 0
        for name in stale:
            shutil.copyfile(Path(target) / name, ROOT / "src" / name)
            print(f"wrote src/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
