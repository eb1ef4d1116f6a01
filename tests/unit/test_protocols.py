"""docs/protocols.md and the compiled frames say the same."""

import errno
import re
from pathlib import Path

import pytest
from iomesh.engine.replicas.server import credits

from iomesh.engine.format.peer import KINDS, frames, statuses
from iomesh.node.peers.server import CREDITS
from iomesh.peers.handshake import Credits

PAGE = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
ROW = re.compile(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", re.MULTILINE)
STATUS = re.compile(r"^\| (\d+) \| `(E\w+)` \|", re.MULTILINE)
KIND = re.compile(r"^\| (\d+) \| ([A-Z_]+) \|", re.MULTILINE)


def documented() -> dict[str, list[tuple[str, int, int]]]:
    """The tables below headings that are a structure's name."""
    parts = re.split(r"^### `(\w+)`\n", PAGE, flags=re.MULTILINE)[1:]
    return {
        name: [
            (field, int(offset), int(size))
            for offset, size, field in ROW.findall(re.split(r"^#", body, flags=re.MULTILINE)[0])
        ]
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def test_every_frame_is_documented() -> None:
    assert sorted(documented()) == sorted(frames())


@pytest.mark.parametrize("name", frames())
def test_every_field_is_documented_where_it_lies(name: str) -> None:
    assert documented()[name] == frames()[name]


def test_every_status_is_documented_with_its_error() -> None:
    assert {int(status): getattr(errno, name) for status, name in STATUS.findall(PAGE)} == {
        status: number for status, number in statuses().items() if status
    }


def test_every_kind_is_documented_with_its_number() -> None:
    assert {name.lower(): int(number) for number, name in KIND.findall(PAGE)} == dict(KINDS.items())


def test_the_credits_of_a_server_are_documented() -> None:
    requests, bytes_ = credits()
    assert Credits(requests, bytes_) == CREDITS, "what the handshake says is what the engine grants"
    assert f"Version 1 servers give {requests} requests and {bytes_ >> 20} MiB." in " ".join(PAGE.split())
