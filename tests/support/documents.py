"""The JSON Schema of command output, for tests: closed, so a key that no type lists is an error."""

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
    """The schema's time format: UTC, as in all documents."""
    return RFC_3339.fullmatch(str(value)) is not None and bool(datetime.fromisoformat(str(value)))


def validator(command: str) -> Draft202012Validator:
    """The schema of a command's document ("volume list"); "error" is the document of a failed command."""
    whole = schema(documents())
    for name, found in whole["$defs"].items():
        if "properties" in found and name not in {kind.__name__ for kind in OPEN}:
            found["additionalProperties"] = False
    rooted = {"$schema": whole["$schema"], "$defs": whole["$defs"], **whole["properties"][command]}
    Draft202012Validator.check_schema(rooted)
    return Draft202012Validator(rooted, format_checker=FORMATS)


def faults(command: str, document: Any) -> list[str]:
    """Violations of the command's schema in a document."""
    return [f"{error.json_path}: {error.message}" for error in validator(command).iter_errors(document)]
