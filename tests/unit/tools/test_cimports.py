"""The order of the engine's parts: cimports go one way, and io_uring stays in its file."""

from pathlib import Path

import cimports
import pytest

ORDER = '[tool.iomesh.engine]\nbase = ["io", "uring"]\nstore = ["slabs", "store"]\n"." = ["engine"]\n'


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text(ORDER)
    for folder in ("base", "store"):
        Path("ext", folder).mkdir(parents=True)
    return Path("ext")


def test_what_stands_before_may_be_used(engine: Path) -> None:
    (engine / "store/store.pyx").write_text("from iomesh.engine.base.io cimport Io\n")
    (engine / "base/uring.pyx").write_text(
        "from iomesh.engine.base.io cimport Io\ncdef extern from '<liburing.h>':\n    void io_uring_submit()\n"
    )
    assert cimports.main() == 0


@pytest.mark.parametrize(
    "line",
    [
        "from iomesh.engine.store.store cimport Store",
        "cimport iomesh.engine.store.store",
        "from iomesh.engine cimport engine as e",
    ],
)
def test_what_stands_behind_may_not(engine: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    (engine / "base/io.pxd").write_text(line + "\n")
    assert cimports.main() == 1
    assert "ext/base/io.pxd:1: base.io stands before " in capsys.readouterr().out


def test_the_order_holds_within_a_folder(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (engine / "store/slabs.pyx").write_text("from iomesh.engine.store.store cimport Store\n")
    assert cimports.main() == 1
    assert (
        "ext/store/slabs.pyx:1: store.slabs stands before store.store and must not know it" in capsys.readouterr().out
    )


def test_a_new_part_needs_a_place(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (engine / "store/scrub.pyx").write_text("")
    assert cimports.main() == 1
    assert "store.scrub has no place in the order" in capsys.readouterr().out


def test_io_uring_is_known_to_one_part(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (engine / "store/store.pyx").write_text("    void io_uring_submit()\n")
    assert cimports.main() == 1
    assert "ext/store/store.pyx:1: io_uring_submit: io_uring is known to base.uring alone" in capsys.readouterr().out
