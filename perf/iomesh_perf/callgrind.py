"""User-space instructions by function, as valgrind's callgrind counts them.

Hardware counters would do (`perf stat -e instructions:u`), but few virtual machines have any; callgrind executes every instruction itself
and counts. It is some fifty times slower, so the engine is never idle at depth 32 and polling for nothing is not part of the figure. The
kernel is not counted, nor is it slowed: that is what makes the records as full as under real load.
"""

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from iomesh_perf import fio, process
from iomesh_perf.nbd import served_after
from iomesh_perf.trial import Trial, TrialError

_NAME = re.compile(r"^(fn|ob|cfn|cob|fl|fi|fe|cfi|cfl)=(?:\((\d+)\))?\s*(.*)$")


def instructions(dumps: Iterable[str]) -> Counter[tuple[str, str]]:
    """Instructions by (object file, function), each function's own, summed over callgrind's dumps."""
    total: Counter[tuple[str, str]] = Counter()
    for dump in dumps:
        # Names are written once and then referred to by number; objects and functions are numbered apart.
        names: dict[str, dict[str, str]] = {"ob": {}, "fn": {}, "fl": {}}
        here, function, called = "", "", False
        for line in dump.splitlines():
            if match := _NAME.match(line):
                key, number, text = match.groups()
                table = names["ob" if key in ("ob", "cob") else "fn" if key in ("fn", "cfn") else "fl"]
                if number is not None and text:
                    table[number] = text
                name = text or table.get(number or "", "?")
                if key == "ob":
                    here = name
                elif key == "fn":
                    function = name
            elif line.startswith("calls="):
                called = True  # the next line is what the call cost, which is the callee's and not ours
            elif line[:1].isdigit() or line[:1] in "+-*":
                words = line.split()
                if not called and len(words) >= 2:
                    total[here, function] += int(words[-1])
                called = False
    return total


def count(trial: Trial, writes: int, workload: fio.Workload, span_bytes: int, scratch: Path) -> Counter[tuple[str, str]]:
    """Restart the trial's node under callgrind, let fio write, and return where the instructions went. The node is gone afterwards."""
    words = Path(f"/proc/{trial.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    environment = dict(pair.split(b"=", 1) for pair in Path(f"/proc/{trial.pid}/environ").read_bytes().split(b"\0") if b"=" in pair)
    directory = Path(f"/proc/{trial.pid}/cwd").readlink()
    process.end(trial.pid)
    scratch.mkdir(parents=True, exist_ok=True)
    dumped = scratch / "callgrind.out"
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes", f"--callgrind-out-file={dumped}"]
    with (scratch / "valgrind.log").open("wb") as log:
        try:
            node = subprocess.Popen([*map(os.fsencode, command), *words], env=environment, cwd=directory, stdout=log, stderr=log)
        except FileNotFoundError:
            raise TrialError("valgrind is not installed: apt-get install valgrind") from None
        try:
            served_after(trial.uri, time.monotonic(), patience_seconds=300)
            door = fio.Nbd(trial.uri)
            fio.run(workload, door, fio.Extent(span_bytes, most_bytes=max(writes // 4, 4096) * workload.block_bytes, seed=2))
            _control(node.pid, "on")
            fio.run(workload, door, fio.Extent(span_bytes, most_bytes=writes * workload.block_bytes, seed=3))
            _control(node.pid, "off")
        except BaseException:
            node.kill()
            node.wait()
            raise
        node.terminate()
        node.wait()
    dumps = sorted(scratch.glob("callgrind.out*"))
    if not dumps:
        raise TrialError(f"callgrind left no dump: {(scratch / 'valgrind.log').read_text(errors='replace')[-500:]}")
    return instructions(path.read_text(errors="replace") for path in dumps)


def _control(pid: int, what: str) -> None:
    subprocess.run(["callgrind_control", "-i", what, str(pid)], check=True, capture_output=True)
