"""Profiles and counts are whole, and summed up by the part of the engine."""

import platform
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from iomesh_perf import instructions, parts, process, profiler

PERF = """\
# Overhead|Shared Object       |Symbol
 50.00% |log.cpython-311-x86_64-linux-gnu.so|[.] __pyx_f_6iomesh_6engine_3log_3Log_append
 25.00% |[kernel.kallsyms]   |[k] _raw_spin_unlock_irqrestore
 12.50% |libisal.so.2.0.30   |[.] crc32_iscsi_by16_10
 12.50% |nbd.cpython-311-x86_64-linux-gnu.so|[.] __pyx_f_6iomesh_6engine_3log_3Log_append
"""

MAPS = """\
7f0000000000-7f0000001000 r--p 00000000 fe:00 11  /lib/iomesh/engine/log.cpython-311-x86_64-linux-gnu.so
7f0000001000-7f0000003000 r-xp 00001000 fe:00 11  /lib/iomesh/engine/log.cpython-311-x86_64-linux-gnu.so
7f0000004000-7f0000005000 r-xp 00000000 00:00 0
7ffff0000000-7ffff0002000 r-xp 00000000 00:00 0   [vdso]
"""

# A thread that does one known thing over and over: the loop is four instructions a round.
LOOP = """
#include <stdio.h>
#include <unistd.h>
int main(void) {
    printf("%d\\n", getpid());
    fflush(stdout);
    for (;;) {
        for (long rounds = 250; rounds; rounds--) __asm__ volatile("nop; nop");
        usleep(1);
    }
}
"""


def test_samples_of_one_function_in_several_objects_are_of_its_own_part() -> None:
    shares = profiler.parse_report(PERF)
    assert parts.by_part(shares) == {"log": 0.625, "kernel": 0.25, "libisal": 0.125}


def test_a_profile_without_samples_is_an_error() -> None:
    with pytest.raises(Exception, match="no sample"):
        profiler.parse_report("# nothing\n")


def test_an_address_is_attributed_to_the_file_mapped_there() -> None:
    mappings = instructions.Mappings(MAPS)
    assert mappings.file_at(0x7F0000002FFF).endswith("/log.cpython-311-x86_64-linux-gnu.so")
    assert mappings.file_at(0x7FFFF0000010) == "[vdso]"
    assert mappings.file_at(0x7F0000004000) == "?"
    assert mappings.file_at(0x7F0000003000) == "?"
    assert mappings.file_at(0) == "?"


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("gcc") is None, reason="steps x86-64 and needs gcc")
def test_stepping_sees_every_instruction_and_leaves_the_thread_running(tmp_path: Path) -> None:
    (tmp_path / "loop.c").write_text(LOOP)
    subprocess.run(["gcc", "-O1", "-static", "-no-pie", "-o", tmp_path / "loop", tmp_path / "loop.c"], check=True)
    program = subprocess.Popen([tmp_path / "loop"], stdout=subprocess.PIPE)
    assert program.stdout is not None
    try:
        pid = int(program.stdout.readline())
        for seconds in (0.3, 1, 4, 16):  # however slowly a busy machine steps
            at: Counter[int] = Counter()
            with instructions.traced(pid, pid):
                ender = threading.Timer(seconds, process.signal_thread, [pid, pid, signal.SIGSTOP])
                ender.start()
                instructions.step_until_stopped(pid, at)
                ender.join()
            inner = [times for _, times in at.most_common(4)]
            if inner[3:] > [250]:
                break
        assert inner[3] > 250, f"the loop of four instructions was hardly seen: {at.most_common(6)}"
        assert inner[0] - inner[3] <= 1, f"the four instructions of one loop were not counted equally: {inner}"
        before = process.cpu(pid)
        deadline = time.monotonic() + 30
        while process.cpu(pid).total == before.total:
            assert time.monotonic() < deadline, "it does not run any more"
            time.sleep(0.01)
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("123456,,instructions:u,1000,100.00,,\n", 123456),
        ("<not supported>,,instructions:u,0,100.00,,\n", None),
        ("<not counted>,,instructions:u,0,100.00,,\n", None),
        ("", None),
    ],
)
def test_perf_stat_returns_a_count_or_none(text: str, counted: int | None) -> None:
    assert instructions.parse_stat(text) == counted


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
