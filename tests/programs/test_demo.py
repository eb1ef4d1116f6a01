"""`make demo`'s script: says what it lacks, takes down what it set up, and (with --soak) runs to its end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.amount import Amount

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse: mounts"
)
DEMO = Path(__file__).parents[2] / "tools" / "demo.py"


def left_behind(room: Path) -> list[str]:
    """Files, mounts, loop devices and processes of a demonstration in `room`."""
    found = [str(entry) for entry in room.iterdir()]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(room) in line]
    found += [
        f"{file.parts[3]}: {text}"
        for file in Path("/sys/block").glob("loop*/loop/backing_file")
        if str(room) in (text := text_of(file))
    ]
    found += [
        words
        for entry in Path("/proc").glob("[0-9]*/cmdline")
        if str(room) in (words := text_of(entry).replace("\0", " "))
    ]
    return found


def text_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def demo(room: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DEMO), "--directory", str(room), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | environment,
    )


def test_one_message_lists_everything_that_is_missing(room: Path) -> None:
    process = demo(room / "nowhere", PATH=str(room))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    for word in ("fio", "xfsprogs", f"the directory {room / 'nowhere'}"):
        assert word in said
    assert "Traceback" not in said


@needs_root
@pytest.mark.parametrize("step", ["2/18", "5/18", "9/18"])
def test_an_interrupted_demonstration_leaves_nothing(room: Path, step: str) -> None:
    process = demo(room, "--seconds", "3")
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if step in line:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: everyone in the terminal's group
            break
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said + rest
    assert "Interrupted" in rest
    assert left_behind(room) == []


@needs_root
def test_the_demonstration_shows_that_no_commit_is_lost(room: Path, amount: Amount) -> None:
    if not amount.soak:
        pytest.skip("a minute and more: with --soak")
    process = demo(room, "--seconds", "4")
    said, _ = process.communicate(timeout=550)
    assert process.returncode == 0, said
    assert "Every committed transaction was there" in said
    assert left_behind(room) == []
