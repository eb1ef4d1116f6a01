"""Profiles of perf and callgrind are read whole, and summed up by the part of the engine."""

import shutil
import subprocess
from pathlib import Path

import pytest

from iomesh_perf import callgrind, parts, profiler

PERF = """\
# Overhead|Shared Object       |Symbol
 50.00% |log.cpython-311-x86_64-linux-gnu.so|[.] __pyx_f_6iomesh_6engine_3log_3Log_append
 25.00% |[kernel.kallsyms]   |[k] _raw_spin_unlock_irqrestore
 12.50% |libisal.so.2.0.30   |[.] crc32_iscsi_by16_10
 12.50% |nbd.cpython-311-x86_64-linux-gnu.so|[.] __pyx_f_6iomesh_6engine_3log_3Log_append
"""

CALLGRIND = """\
positions: line
events: Ir
summary: 1100
ob=(1) /lib/iomesh/engine/log.cpython-311-x86_64-linux-gnu.so
fl=(1) log.c
fn=(1) __pyx_f_6iomesh_6engine_3log_3Log_append
10 100
+1 200
cob=(2) /lib/libisal.so.2
cfi=(2) ???
cfn=(2) crc32_iscsi_by16_10
calls=3 0
* 700
+4 50
fn=(3) static_helper
-2 50

ob=(2)
fl=(2)
fn=(2)
0 700
"""


def test_samples_of_one_function_in_several_objects_are_of_its_own_part() -> None:
    shares = profiler.parse_report(PERF)
    assert parts.by_part(shares) == {"log": 0.625, "kernel": 0.25, "libisal": 0.125}


def test_a_profile_without_samples_is_an_error() -> None:
    with pytest.raises(Exception, match="no sample"):
        profiler.parse_report("# nothing\n")


def test_callgrind_counts_each_instruction_once_though_calls_repeat_them() -> None:
    counted = callgrind.instructions([CALLGRIND])
    assert counted.total() == 1100
    assert parts.by_part(counted) == {"libisal": 700, "log": 400}


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_a_real_dump_adds_up_to_what_callgrind_says_itself(tmp_path: Path) -> None:
    dumped = tmp_path / "out"
    subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={dumped}", "/bin/true"], check=True, capture_output=True)
    text = dumped.read_text()
    totals = next(line for line in text.splitlines() if line.startswith("totals:"))
    assert callgrind.instructions([text]).total() == int(totals.split()[1])


@pytest.mark.parametrize(
    ("mangled", "words"),
    [
        ("__pyx_f_6iomesh_6engine_3log_3Log_append", "Log.append"),
        ("__pyx_f_6iomesh_6engine_8segments_born_done", "born_done"),
        ("io_submit_sqes", "io_submit_sqes"),
    ],
)
def test_names_are_shown_as_the_source_has_them(mangled: str, words: str) -> None:
    assert parts.short(mangled) == words
