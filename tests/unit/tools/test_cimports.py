"""The order of the engine's parts: cimports go one way, and io_uring stays in its file."""

from pathlib import Path

import cimports
import pytest

ORDER = '[tool.iomesh]\nparts = ["io", "uring", "store"]\n'


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text(ORDER)
    Path("ext").mkdir()
    return Path("ext")


def test_what_stands_before_may_be_used(engine: Path) -> None:
    (engine / "store.pyx").write_text("from iomesh.engine.io cimport Io\n")
    (engine / "uring.pyx").write_text("from iomesh.engine.io cimport Io\ncdef extern from '<liburing.h>':\n    void io_uring_submit()\n")
    assert cimports.main() == 0


@pytest.mark.parametrize(
    "line", ["from iomesh.engine.store cimport Store", "cimport iomesh.engine.store", "from iomesh.engine cimport uring, store as s"]
)
def test_what_stands_behind_may_not(engine: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    (engine / "io.pxd").write_text(line + "\n")
    assert cimports.main() == 1
    assert "ext/io.pxd:1: io stands before store and must not know it" in capsys.readouterr().out


def test_a_new_part_needs_a_place(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (engine / "scrub.pyx").write_text("")
    assert cimports.main() == 1
    assert "scrub has no place in the order" in capsys.readouterr().out


def test_io_uring_is_known_to_one_part(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (engine / "store.pyx").write_text("    void io_uring_submit()\n")
    assert cimports.main() == 1
    assert "ext/store.pyx:1: io_uring_submit: io_uring is known to uring.pyx alone" in capsys.readouterr().out
