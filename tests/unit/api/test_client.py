"""What a client says where no node answers, or nothing that could be asked."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from iomesh.api.channel import grpc_target
from iomesh.api.client import Client
from iomesh.errors import InvalidArgument, Unavailable


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("/run/iomesh/control.sock", "unix:/run/iomesh/control.sock"),
        ("./control.sock", "unix:./control.sock"),
        ("unix:/run/control.sock", "unix:/run/control.sock"),
        ("unix:///run/control.sock", "unix:/run/control.sock"),
        ("127.0.0.1:9740", "127.0.0.1:9740"),
        ("[::1]:9740", "[::1]:9740"),
    ],
)
def test_an_address_is_a_path_or_host_and_port(address: str, target: str) -> None:
    assert grpc_target(address) == target


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", "localhost:http"])
def test_what_is_neither_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgument, match="host:port"):
        Client(address)


async def test_a_socket_without_a_listener_is_named(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    for place, reason in ((path, "Connection refused"), (tmp_path / "absent.sock", "No such file or directory")):
        async with Client(str(place)) as node:
            with pytest.raises(
                Unavailable, match=rf"{place.name} \({reason}\): check that `iomesh daemon run` is running"
            ):
                await node.status()


@pytest.mark.parametrize("size", [-1, 1 << 70])
async def test_a_number_that_no_message_can_hold_is_refused_before_it_is_sent(tmp_path: Path, size: int) -> None:
    async with Client(str(tmp_path / "absent.sock")) as node:
        with pytest.raises(InvalidArgument, match=r"size_bytes .* out of range"):
            await node.create_volume("db", size)
        with pytest.raises(InvalidArgument, match=r"size_bytes .* out of range"):
            await node.grow_volume("db", size)


async def test_a_client_outside_its_context_manager_explains_its_use(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await Client(str(tmp_path / "absent.sock")).status()
