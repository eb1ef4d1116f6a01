"""CPU time and memory are read from /proc as the kernel writes it."""

import os
import time

from iomesh_perf import process

STAT = (
    "4242 (a ) (b c) S 1 4242 4242 0 -1 4194560 100 200 0 0 1234 567 9 8 20 0 3 0 8000 100000 2000 18446744073709551615"
)


def test_a_name_with_spaces_and_parentheses_does_not_move_the_fields() -> None:
    cpu = process.parse_stat(STAT)
    assert (cpu.user * process.TICKS_PER_SECOND, cpu.system * process.TICKS_PER_SECOND) == (1234, 567)
    assert process.parse_born(STAT) == 8000 / process.TICKS_PER_SECOND


def test_only_sizes_are_taken_from_status() -> None:
    assert process.parse_memory("Name:\tx y\nVmHWM:\t    2048 kB\nVmRSS:\t1024 kB\nThreads:\t7\n") == {
        "VmHWM": 2 << 20,
        "VmRSS": 1 << 20,
    }


def test_bytes_read_and_written_are_those_of_storage() -> None:
    text = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\ncancelled_write_bytes: 7\n"
    assert process.parse_io(text) == process.Storage(read=5, written=6)


def test_our_own_process_spends_the_time_that_it_spends() -> None:
    before = process.cpu(os.getpid())
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    spent = (process.cpu(os.getpid()) - before).total
    assert spent >= 0.15, f"0.2 s were used, /proc says {spent}"


def test_a_process_was_born_before_now_and_is_alive() -> None:
    assert 0 < process.born(os.getpid()) <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert process.alive(os.getpid())
    assert not process.alive(2**22 + 1)


def test_our_own_memory_is_not_nothing() -> None:
    sizes = process.memory(os.getpid())
    assert sizes["VmHWM"] >= sizes["VmRSS"] > 1 << 20
