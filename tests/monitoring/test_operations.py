"""docs/operations.md has a section for each alert, and names only commands that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from generate_schema import commands

from support.monitoring import alerts

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "operations.md").read_text()
COMMANDS = {" ".join(words): command for words, command in commands()}


def sections() -> dict[str, str]:
    """By title, of the third level."""
    parts = re.split(r"^### (.+)$", TEXT, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def lines_of_commands(text: str) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def test_each_alert_has_its_section_with_commands_and_no_section_is_left_over() -> None:
    assert list(sections()) == list(alerts()), "in another order, or one is missing"
    for title, text in sections().items():
        assert lines_of_commands(text), f"{title} names no command"


def test_each_command_exists() -> None:
    lines = lines_of_commands(TEXT)
    inline = re.findall(r"`((?:iomesh|kubectl|helm) [^`]+)`", TEXT)
    assert len(lines) > len(alerts())
    for line in [*lines, *inline]:
        within = line.rpartition(" -- ")[2]
        program, _, words = (within if within.startswith("iomesh ") else line).partition(" ")
        assert program in ("iomesh", "kubectl", "helm"), line
        if program == "iomesh" and words != "...":
            name = next((name for name in COMMANDS if f"{words} ".startswith(f"{name} ")), None)
            assert name is not None, f"{line}: no such command"
            given = shlex.split(words.removeprefix(name))
            COMMANDS[name].make_context(name, given, resilient_parsing=True)  # raises if an option does not exist


def test_links_within_the_manual_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    links = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert links and set(links) <= anchors, set(links) - anchors
    for file in re.findall(r"\]\(([^#)]+\.md)", TEXT):
        assert (DOCS / file).exists(), file
