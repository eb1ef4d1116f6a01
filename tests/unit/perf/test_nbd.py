"""The small NBD client speaks with a real server."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iomesh_perf.nbd import Client, NbdError, served_after


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    if shutil.which("nbdkit") is None:
        pytest.skip("needs nbdkit")
    socket = tmp_path / "socket"
    server = subprocess.Popen(
        ["nbdkit", "--foreground", "--unix", str(socket), "--exportname", "disk", "pattern", "1M"]
    )
    try:
        uri = f"nbd+unix:///disk?socket={socket}"
        served_after(uri, time.monotonic(), timeout_seconds=20)
        yield uri
    finally:
        server.terminate()
        server.wait()


def test_a_client_learns_the_size_and_reads(served: str) -> None:
    with Client(served) as client:
        assert client.size_bytes == 1 << 20
        assert client.read(4096, 16) == (4096).to_bytes(8, "big") + (4104).to_bytes(8, "big")


def test_an_error_of_the_server_is_an_error_here(served: str) -> None:
    with Client(served) as client, pytest.raises(OSError, match="reading"):
        client.read(1 << 20, 4096)


def test_a_missing_server_is_reported_after_the_timeout(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="not served"):
        served_after(f"nbd+unix:///x?socket={tmp_path / 'none'}", time.monotonic(), timeout_seconds=0.1)


def test_other_schemes_are_refused() -> None:
    with pytest.raises(NbdError, match="nbd"):
        Client("http://localhost/")
