"""Container images without a registry: small ones of busybox for pods of tests, and those of images/ (`make images`).

`python -m support.kubernetes.images base` sees to the base of the Containerfile: it is pulled, or, if no registry can
be reached, made from Debian's packages.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

BUSYBOX = "/bin/busybox"
CHART = Path(__file__).parents[3] / "charts" / "iomesh"
BUILT = Path(__file__).parents[3] / "build" / "images"
OURS = ("node", "operator", "csi", "postgresql")
REGISTRY = "docker.io/iomesh"
BASE, SUITE, MIRROR = "docker.io/library/debian:bookworm-slim", "bookworm", "http://deb.debian.org/debian"


def archives(*names: str) -> list[Path]:
    """Those of `make images`; all, or these."""
    return [BUILT / f"{name}.tar" for name in names or OURS]


def tag() -> str:
    """Of the images of this tree: the chart's appVersion."""
    return str(yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"])


def missing() -> str:
    """Why tests cannot use them; empty: they can."""
    absent = [path.name for path in archives() if not path.exists()]
    return f"{', '.join(absent)}: not built; make images builds them" if absent else ""


def ensure_base() -> None:
    def buildah(*arguments: str) -> str:
        return subprocess.run(["buildah", *arguments], check=True, capture_output=True, text=True).stdout.strip()

    if buildah("images", "--quiet", "--filter", f"reference={BASE}"):
        return
    if subprocess.run(["buildah", "pull", "--quiet", BASE], capture_output=True).returncode == 0:
        return
    print(f"no registry has {BASE}: making it with debootstrap", flush=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("IOMESH_TEST_FOLDER", "/var/tmp")) as folder:
        packages = "--include=ca-certificates,python3"
        subprocess.run(["debootstrap", "--variant=minbase", packages, SUITE, folder, MIRROR], check=True)
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, folder, "/")
        buildah("commit", "--quiet", container, BASE)
        buildah("rm", container)


def make_image(
    target: Path,
    names: Sequence[str],
    command: Sequence[str] = (),
    *,
    add: Mapping[str, str] | None = None,
    entry: Sequence[str] = (),
) -> None:
    """An image of nothing but busybox, every applet linked, and of programs of this machine (place -> source) with the
    libraries that they are linked to."""
    files = {BUSYBOX: BUSYBOX}
    for place, source in (add or {}).items():
        files |= {path: path for path in _libraries(source)} | {place: source}
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for folder in ("bin", "etc", "data", "mnt", "root"):
            _member(tar, folder, kind=tarfile.DIRTYPE)
        _member(tar, "tmp", kind=tarfile.DIRTYPE, mode=0o1777)
        for place, source in files.items():
            _member(tar, place, Path(source).read_bytes())
        for applet in subprocess.check_output([BUSYBOX, "--list"], text=True).split():
            if f"/bin/{applet}" not in files:
                _member(tar, f"bin/{applet}", kind=tarfile.SYMTYPE, link="busybox")
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    settings = {"Entrypoint": list(entry), "Cmd": list(command), "Env": ["PATH=/bin"]}
    root = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": root, "config": settings}).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": list(names), "Layers": [f"{digest}.tar"]}]
    with tarfile.open(target, "w") as tar:
        _member(tar, config_name, config)
        _member(tar, f"{digest}.tar", layer.getvalue())
        _member(tar, "manifest.json", json.dumps(manifest).encode())


def _member(
    tar: tarfile.TarFile,
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o755,
) -> None:
    info = tarfile.TarInfo(name.lstrip("/"))
    info.type, info.linkname, info.mode, info.size = kind, link, mode, len(data)
    tar.addfile(info, io.BytesIO(data))


def _libraries(program: str) -> list[str]:
    return re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", program], capture_output=True, text=True).stdout)


if __name__ == "__main__":
    if sys.argv[1:] != ["base"]:
        sys.exit(__doc__)
    ensure_base()
