"""The metrics of a PromQL query, and the labels that it uses of them, found without a grammar."""

from __future__ import annotations

import re
from typing import NamedTuple

GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{([^}]*)\})?")
OURS = re.compile(r"iomesh_\w+|process_\w+|up")
ADDED = {"job", "instance", "namespace"}  # by the scrape


class Used(NamedTuple):
    """matched: labels by metric. grouped: labels that the query groups by, of any of its metrics."""

    matched: dict[str, set[str]]
    grouped: set[str]


def used_by(query: str) -> Used:
    matched: dict[str, set[str]] = {}
    plain = STRING.sub('""', query)
    grouped = {label.strip() for labels in GROUPING.findall(plain) for label in labels.split(",") if label.strip()}
    for name, labels in SELECTOR.findall(GROUPING.sub(" ", plain)):
        if OURS.fullmatch(name):
            matched.setdefault(name, set()).update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels))
    return Used(matched, grouped)


def labels_shown(text: str) -> set[str]:
    """Those that an annotation ({{ $labels.x }}) or a legend ({{x}}) shows."""
    return set(re.findall(r"\{\{\s*\$labels\.(\w+)", text)) | set(re.findall(r"\{\{\s*(\w+)\s*\}\}", text))
