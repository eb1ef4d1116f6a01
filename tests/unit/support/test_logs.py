"""What the tests take for a bug in a daemon's log."""

import shutil
from pathlib import Path

import pytest

from support import logs

BUG = '{"event": "internal error", "call": "Create", "exception": "Traceback (most recent call last): ..."}'


def test_a_bug_in_a_log_fails_and_other_lines_do_not(tmp_path: Path) -> None:
    log = tmp_path / "state" / "node.log"
    log.parent.mkdir()
    log.write_text('{"event": "ready"}\n{"event": "device missing", "level": "error"}\n')
    logs.check(tmp_path)
    log.write_text(f'{{"event": "ready"}}\n{BUG}\n')
    with pytest.raises(AssertionError, match="shows a bug"):
        logs.check(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-30T12:00:00Z [error    ] stop step failed               step=metrics",
        "invariant broken in __pyx_f_6iomesh_6engine_3log_3log_3Log_commit: records commit in order",
        "Fatal Python error: Segmentation fault",
        "Task exception was never retrieved",
        "sys:1: RuntimeWarning: coroutine 'Node.stop' was never awaited",
    ],
)
def test_these_lines_show_a_bug(line: str) -> None:
    assert logs.complaints(f"ready\n{line}\n") == [line]


def test_what_a_test_expects_is_no_complaint() -> None:
    assert logs.complaints(BUG, ["internal error"]) == []
    assert logs.complaints(f"{BUG}\ninvariant broken in f: x", ["internal error"]) == ["invariant broken in f: x"]


def test_logs_are_read_before_their_directory_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    folder.mkdir()
    log = folder / "node.log"
    log.write_text("ready\n")

    def end() -> None:
        log.write_text(BUG)
        shutil.rmtree(folder)

    with pytest.raises(AssertionError, match="shows a bug"):
        logs.check_after(end, folder)
