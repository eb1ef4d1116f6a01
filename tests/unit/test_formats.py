"""docs/formats.md and the compiled structures say the same."""

import re
from pathlib import Path

import pytest

from iomesh.engine.format.structures import structures

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
ROW = re.compile(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", re.MULTILINE)


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


def test_every_structure_is_documented() -> None:
    assert sorted(documented()) == sorted(structures())


@pytest.mark.parametrize("name", structures())
def test_every_field_is_documented_where_it_lies(name: str) -> None:
    assert documented()[name] == structures()[name]
