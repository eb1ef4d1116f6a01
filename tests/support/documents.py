"""The JSON Schema of what commands print, for tests: closed, so that a key which no type lists is an error too."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from generate_schema import documents
from jsonschema import Draft202012Validator, FormatChecker

from iomesh.cli.documents import OPEN, schema

FORMATS = FormatChecker(formats=())
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)


@FORMATS.checks("date-time", raises=ValueError)
def is_time(value: object) -> bool:
    """In UTC, as all times of documents are."""
    return RFC_3339.fullmatch(str(value)) is not None and bool(datetime.fromisoformat(str(value)))


def validator(command: str) -> Draft202012Validator:
    """Of the document of a command, "volume list"; "error" is that of one that fails."""
    whole = schema(documents())
    for name, found in whole["$defs"].items():
        if "properties" in found and name not in {kind.__name__ for kind in OPEN}:
            found["additionalProperties"] = False
    rooted = {"$schema": whole["$schema"], "$defs": whole["$defs"], **whole["properties"][command]}
    Draft202012Validator.check_schema(rooted)
    return Draft202012Validator(rooted, format_checker=FORMATS)


def faults(command: str, document: Any) -> list[str]:
    """What of a command's document is not as its schema says."""
    return [f"{error.json_path}: {error.message}" for error in validator(command).iter_errors(document)]
