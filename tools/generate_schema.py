"""Writes docs/cli-schema.json, the JSON Schema of every command's --json output; --check only reports whether it is up
to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from iomesh.cli.documents import schema
from iomesh.cli.main import iomesh

WRITTEN = Path(__file__).resolve().parent.parent / "docs" / "cli-schema.json"


def commands(
    group: click.Group = iomesh, before: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that performs an action, by its words: ("volume", "list")."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


def documents() -> dict[str, Any]:
    """The type of each command's JSON output, by its words; commands without one are omitted."""
    return {
        " ".join(words): found
        for words, command in commands()
        if (found := getattr(command.callback, "document", None)) is not None
    }


def main() -> int:
    text = json.dumps(schema(documents()), indent=1) + "\n"
    if WRITTEN.exists() and WRITTEN.read_text() == text:
        return 0
    if "--check" in sys.argv[1:]:
        print(
            f"{WRITTEN.name} is not what iomesh.cli.documents says: run python tools/generate_schema.py",
            file=sys.stderr,
        )
        return 1
    WRITTEN.write_text(text)
    print(f"wrote {WRITTEN}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
