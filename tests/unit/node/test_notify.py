"""sd_notify: what a service manager that listens gets to hear."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from iomesh.node.notify import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_notifications_reach_the_service_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = str(tmp_path / "notify.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        assert notify("READY=1", "STATUS=serving 2 volume(s)")
        assert manager.recv(4096) == b"READY=1\nSTATUS=serving 2 volume(s)"


@pytest.mark.parametrize("address", ["", "relative.sock", "/nowhere/notify.sock"])
def test_without_one_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")
