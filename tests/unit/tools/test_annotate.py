"""make annotate finds nogil functions that would call into Python, in the C that Cython writes, and nothing else."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import annotate
import pytest

Findings = Callable[[str], tuple[int, str]]

CALM = """
cdef class Counter:
    cdef long count

    def __init__(self, start):
        self.count = int(str(start))

    cdef void add(self, long amount, long* into) noexcept nogil:
        cdef long i
        for i in range(amount):
            self.count += into[i]

    cdef long longest(self, long first,
                      long second) noexcept nogil:      # a header on two lines
        return first if first > second else second

cdef inline long twice(long number) noexcept nogil:
    return 2 * number

def shown(long number):
    return [twice(number)]
"""

SPEAKS = """
cdef void speak(long number) noexcept nogil:
    if number:
        with gil:
            print(number)
"""

RAISES = """
cdef long half(long number) except -1 nogil:
    return number // 2

cdef long quarter(long number) noexcept nogil:
    return half(half(number))
"""


@pytest.fixture
def findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Findings:
    """Compiles source text as a part of the engine and returns annotate's exit code and what it printed."""

    def compiled(source: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        Path("ext").mkdir()
        Path("ext/part.pyx").write_text(source)
        output = Path("build/ext/part.p/part.pyx.c")
        output.parent.mkdir(parents=True)
        command = [
            sys.executable,
            "-m",
            "cython",
            "-3",
            "--module-name",
            "iomesh.engine.part",
            "ext/part.pyx",
            "-o",
            str(output),
        ]
        subprocess.run(command, check=True, capture_output=True)
        monkeypatch.setattr(sys, "argv", ["annotate", "build"])
        code = annotate.main()
        return code, capsys.readouterr().out

    return compiled


def test_functions_without_python_pass(findings: Findings) -> None:
    code, printed = findings(CALM)
    assert (code, printed) == (0, "3 nogil functions of the engine were read, 0 calls into Python found\n")


def test_a_block_that_takes_the_gil_is_found_with_its_line(findings: Findings) -> None:
    code, printed = findings(CALM + SPEAKS)
    line = (CALM + SPEAKS).split("\n").index("        with gil:") + 1
    assert code == 1
    assert f"ext/part.pyx:{line}: speak calls __Pyx_PyGILState_Ensure" in printed


def test_a_callee_that_may_raise_is_found(findings: Findings) -> None:
    code, printed = findings(RAISES)
    assert code == 1
    assert "quarter calls __Pyx_WriteUnraisable" in printed


def test_a_function_that_was_not_compiled_is_not_passed_over(findings: Findings) -> None:
    findings(CALM)
    with Path("ext/part.pyx").open("a") as file:
        file.write(SPEAKS)
    assert annotate.main() == 1
