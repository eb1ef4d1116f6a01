"""`make fuzz`: every target in turn under the fuzzer, and what it found kept.

    python -m fuzz [--seconds N] [target ...]

The seconds are shared out among the targets. What reaches code that no input of tests/fuzz/corpus reached becomes part
of it; an input that breaks something is written to build/fuzz-findings, and the exit code is 1: once the bug is mended,
it belongs into the corpus too.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fuzz.targets import CORPUS, NAMES, target

FINDINGS = Path("build/fuzz-findings")
HANG_SECONDS = 120  # for one input
INPUT_BYTES_MAX = 4500  # of the corpus: a larger one is hardly ever worth it
PROGRESS = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+)", re.MULTILINE)


@dataclass
class Run:
    name: str
    executions: int
    coverage: int
    features: int
    new_inputs: int
    findings: list[Path]

    def __str__(self) -> str:
        found = (
            f"{self.executions} executions, coverage {self.coverage}, features {self.features}, "
            f"{self.new_inputs} new corpus entries"
        )
        return f"{self.name}: {found}" + "".join(f"\n  finding: {path}" for path in self.findings)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz what is read from outside.")
    parser.add_argument("--seconds", type=int, default=300, help="shared out among the targets (300)")
    parser.add_argument("targets", nargs="*", choices=[*NAMES, []], help="all, unless named")
    given = parser.parse_args()
    names = given.targets or list(NAMES)
    runs = [fuzz(name, max(1, given.seconds // len(names))) for name in names]
    return 1 if any(run.findings for run in runs) else 0


def fuzz(name: str, seconds: int) -> Run:
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    FINDINGS.mkdir(parents=True, exist_ok=True)
    for seed in target(name).seeds() if not any(corpus.iterdir()) else ():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    with tempfile.TemporaryDirectory(
        prefix="iomesh-fuzz-", dir=os.environ.get("IOMESH_TEST_FOLDER", "/var/tmp")
    ) as folder:
        tried, merged = Path(folder) / "tried", Path(folder) / "merged"
        tried.mkdir()
        merged.mkdir()
        before = {path.name for path in FINDINGS.iterdir()}
        said = libfuzzer(
            name, folder, f"-max_total_time={seconds}", f"-artifact_prefix={FINDINGS / name}-", str(tried), str(corpus)
        )
        numbers = PROGRESS.findall(said)
        findings = [path for path in sorted(FINDINGS.iterdir()) if path.name not in before]
        if not numbers:
            raise SystemExit(f"the fuzzer does not run:\n{said}")
        for path in findings:
            (FINDINGS / f"{path.name}.log").write_text(said)
        for path in corpus.iterdir():
            shutil.copy(path, merged)
        libfuzzer(name, folder, "-merge=1", str(merged), str(tried))
        new = [
            path
            for path in merged.iterdir()
            if not (corpus / path.name).exists() and path.stat().st_size <= INPUT_BYTES_MAX
        ]
        for path in new:
            shutil.copy(path, corpus)
    executions, coverage, features = map(int, numbers[-1])
    run = Run(name, executions, coverage, features, len(new), findings)
    print(run, flush=True)
    return run


def libfuzzer(name: str, folder: str, *arguments: str) -> str:
    """All that it said."""
    command = [
        sys.executable,
        "-m",
        "fuzz.one",
        name,
        f"-max_len={target(name).MAX_BYTES}",
        f"-timeout={HANG_SECONDS}",
        *arguments,
    ]
    done = subprocess.run(
        command, env=os.environ | {"IOMESH_TEST_FOLDER": folder}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout.decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
