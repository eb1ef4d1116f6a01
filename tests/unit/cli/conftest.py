"""Runs the command line as its users do, but in this process: arguments in, exit code and both streams out."""

import pytest

from iomesh.cli.main import main
from unit.cli.ran import Ran, Run


@pytest.fixture
def iomesh(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    monkeypatch.delenv("IOMESH_ADDRESS", raising=False)

    def run(*arguments: str) -> Ran:
        code = main(arguments)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run
