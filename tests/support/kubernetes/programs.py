"""Kubernetes, its CSI sidecars, containerd and helm, compiled from the Go modules in tests/kubernetes/programs.

`python -m support.kubernetes.programs [MODULE...]` compiles what is missing; without an argument, of all modules but
ON_REQUEST. A module with a Go test gives a program that runs it, such as e2e.test. Programs
are kept outside the checkout, in $XDG_CACHE_HOME/iomesh/kubernetes (~/.cache), in a folder per module whose name has a
hash of the module's versions: a change of go.mod compiles that module anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

MODULES = Path(__file__).parents[2] / "kubernetes" / "programs"
ON_REQUEST = ("e2e",)
REMEDY = "make test-kubernetes compiles it (25 minutes of one core the first time)"


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iomesh" / "kubernetes"


@cache
def modules() -> dict[str, list[str]]:
    """The Go packages that each module compiles, its tests among them."""
    files = sorted(MODULES.glob("*/go.mod"))
    return {path.parent.name: _tools(path.read_text()) + _tests(path.parent) for path in files}


def _tools(text: str) -> list[str]:
    blocks = re.findall(r"^tool \((.*?)^\)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^tool ([^(\s]+)$", text, re.MULTILINE) + [tool for block in blocks for tool in block.split()]


def _tests(module: Path) -> list[str]:
    return [f"{module.name}.test"] if any(module.glob("*_test.go")) else []


def _name(package: str) -> str:
    """Of its program."""
    return package.rsplit("/", 1)[-1]


@cache
def folder(module: str) -> Path:
    """Where the programs of a module are, or will be."""
    digest = hashlib.sha256()
    for path in sorted((MODULES / module).glob("*")):
        digest.update(path.read_bytes())
    return cache_folder() / f"{module}-{digest.hexdigest()[:12]}"


@cache
def places() -> dict[str, Path]:
    """Every program by its name, compiled or not."""
    return {_name(tool): folder(module) / _name(tool) for module, tools in modules().items() for tool in tools}


def missing(*names: str, commands: Sequence[str] = ()) -> str:
    """Which of these programs are not compiled, or which commands the machine lacks, with the remedy; empty: all are
    there. No name: all programs but those of ON_REQUEST."""
    later = {name for module in ON_REQUEST for name in map(_name, modules()[module])}
    absent = [name for name in names or sorted(places().keys() - later) if not places()[name].exists()]
    if absent:
        return f"{', '.join(absent)}: not compiled; {REMEDY}"
    absent = [name for name in commands if shutil.which(name, path=search_path()) is None]
    return f"{', '.join(absent)}: missing; tools/packages kubernetes installs them" if absent else ""


def without_api_server() -> str:
    """Why there is no API server for the tests of the metadata in Kubernetes; empty: there is one."""
    return missing("kube-apiserver", "kubectl", commands=["etcd", "openssl"])


def program(name: str) -> str:
    return str(places()[name])


def search_path() -> str:
    """PATH with all compiled programs in front."""
    return os.pathsep.join(
        [*dict.fromkeys(str(path.parent) for path in places().values()), os.environ["PATH"], "/usr/sbin", "/sbin"]
    )


def source(module: str, package: str) -> Path:
    """The folder of a Go module that `module` requires."""
    command = ["go", "list", "-m", "-f", "{{.Dir}}", package]
    found = subprocess.run(command, cwd=MODULES / module, check=True, capture_output=True, text=True)
    return Path(found.stdout.strip())


def compile_module(module: str) -> None:
    place = folder(module)
    for tool in modules()[module]:
        name = _name(tool)
        if (place / name).exists():
            continue
        if shutil.which("go") is None:
            sys.exit(f"{name} is compiled with Go, which is not there: install Go 1.26 or newer (https://go.dev/dl)")
        print(f"compiling {name}", flush=True)
        place.mkdir(parents=True, exist_ok=True)
        part = place / f".{name}.part"
        build = ["test", "-c"] if name == f"{module}.test" else ["build"]
        package = "." if name == f"{module}.test" else tool
        command = ["go", *build, "-trimpath", "-mod=readonly", "-ldflags", _stamp(module), "-o", str(part), package]
        subprocess.run(command, cwd=MODULES / module, env=os.environ | {"CGO_ENABLED": "0"}, check=True)
        part.rename(place / name)  # an interrupted build leaves nothing that looks like a program
    for old in cache_folder().glob(f"{module}-*"):
        if old != place:
            shutil.rmtree(old)


def _stamp(module: str) -> str:
    """Linker flags. Kubernetes' programs refuse to work together without a version, which its own build stamps."""
    found = re.search(r"k8s\.io/kubernetes v(\d+)\.(\d+)\.(\d+)", (MODULES / module / "go.mod").read_text())
    if not found:
        return "-s -w"
    package = "k8s.io/component-base/version"
    values = {"gitVersion": found[0].split()[1], "gitMajor": found[1], "gitMinor": found[2]}
    return " ".join(["-s -w", *(f"-X {package}.{key}={value}" for key, value in values.items())])


if __name__ == "__main__":
    for wanted in sys.argv[1:] or [name for name in modules() if name not in ON_REQUEST]:
        compile_module(wanted)
