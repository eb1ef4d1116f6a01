"""A socket's path is taken over from the dead and never from the living."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from iomesh.errors import InUse, NotFound
from iomesh.node.sockets import claim_unix_socket, listen_error, restrict


def test_a_free_path_stays_free_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "run" / "iomesh" / "control.sock"
    claim_unix_socket(str(path), "control.socket")
    assert path.parent.is_dir()
    assert not path.exists()


def test_a_stale_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
    claim_unix_socket(str(path), "control.socket")
    assert not path.exists()


def test_a_live_socket_is_left_and_named(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(InUse, match=rf"control\.socket: a process listens on {path}"):
            claim_unix_socket(str(path), "control.socket")
        assert path.exists()


def test_a_live_socket_whose_backlog_is_full_is_left_too(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))
        with pytest.raises(InUse):
            claim_unix_socket(str(path), "control.socket")


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, make: object) -> None:
    path = tmp_path / "control.sock"
    assert callable(make)
    make(path)
    with pytest.raises(InUse, match="not a socket"):
        claim_unix_socket(str(path), "nbd.socket")
    assert path.exists()


def test_a_path_that_is_not_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(NotFound, match="is not a directory"):
        claim_unix_socket(str(tmp_path / "run" / "control.sock"), "control.socket")


def test_only_its_user_and_group_may_connect(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        restrict(str(path))
    assert os.stat(path).st_mode & 0o777 == 0o660  # noqa: PTH116


def test_a_taken_address_is_named_with_its_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.socket() as second:
        with pytest.raises(OSError, match="in use") as raised:
            second.bind(first.getsockname())
        error = listen_error(raised.value, "metrics.listen: 127.0.0.1:9742")
    assert isinstance(error, InUse)
    assert error.message.startswith("metrics.listen: 127.0.0.1:9742: another process listens there")
