"""The output of commands: a table for people, or one JSON document on stdout.

Always so: with `--json` stdout holds JSON and nothing else; progress and hints go to stderr, and only when a person is
likely to read them. An error is one line with the object, the reason and the remedy, or {"error": {...}} with `--json`.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import msgspec
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from iomesh.errors import IomeshError

PIPE_COLUMNS = 4000


class Unwritten(IomeshError):
    """The answer could not be written to stdout."""


def jsonable(value: Any) -> Any:
    """`value` with bytes as hexadecimal and named tuples as objects."""
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if hasattr(value, "_asdict"):
        return jsonable(value._asdict())
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [jsonable(item) for item in value]
    if isinstance(value, datetime):
        return msgspec.to_builtins(value)
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


class Output:
    """The destination of one command's answer. json: a document on stdout instead of tables."""

    def __init__(self, *, as_json: bool = False, console: Console | None = None, errors: Console | None = None) -> None:
        self.as_json = as_json
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
        self.errors = errors or Console(stderr=True, highlight=False, soft_wrap=True)

    def answer(self, value: Any, *renderables: RenderableType) -> None:
        """The command's one answer: `value` for programs, `renderables` for people."""
        if self.as_json:
            self.document(value)
        else:
            for renderable in renderables:
                self.show(renderable)

    def show(self, renderable: RenderableType) -> None:
        """Output to a pipe is not wrapped, cut or padded: other programs read it."""
        if self.console.is_terminal:
            self.console.print(renderable)
            return
        with self.console.capture() as captured:
            self.console.print(renderable)
        _write("\n".join(line.rstrip() for line in captured.get().split("\n")))

    def document(self, value: Any) -> None:
        _write(json.dumps(jsonable(value), indent=2 if sys.stdout.isatty() else None, ensure_ascii=False) + "\n")

    def line(self, value: Any) -> None:
        """One of many documents, on a line of its own."""
        _write(json.dumps(jsonable(value), ensure_ascii=False) + "\n")

    def note(self, text: str) -> None:
        """Prints useful information besides the answer."""
        if not self.as_json:
            self.errors.print(Text(text, style="dim"))

    def warn(self, text: str) -> None:
        self.errors.print(Text.assemble(("warning: ", "yellow"), text))

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A step that takes a while; shown while it runs."""
        if self.as_json or not self.errors.is_terminal:
            yield
            return
        with self.errors.status(Text(text)):
            yield

    @contextmanager
    def bytes_progress(self) -> Iterator[Progress]:
        """Progress bars in bytes, for long work; invisible with --json or without a terminal."""
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self.errors,
            transient=True,
            disable=self.as_json or not self.errors.is_terminal,
        ) as progress:
            yield progress

    @contextmanager
    def steps_progress(self) -> Iterator[Progress]:
        """Progress bars in steps, each with the field `step`, the one under way; shown as bytes_progress is."""
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[step]}"),
            console=self.errors,
            transient=True,
            disable=self.as_json or not self.errors.is_terminal,
        ) as progress:
            yield progress


def local_time(time: datetime | None) -> str:
    """A time for people, in their time zone."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z") if time else "never"


def table(*columns: str, title: str | None = None, rows: Iterable[Sequence[Any]] = ()) -> Table:
    """A plain table. A column whose name begins with ">" holds numbers: right-aligned."""
    result = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        header_style="bold",
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for column in columns:
        result.add_column(
            column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold", no_wrap=False
        )
    for row in rows:
        result.add_row(*(cell_of(value) for value in row))
    return result


def fields(rows: Iterable[tuple[str, Any]], title: str | None = None) -> Table:
    """Names and values below each other: one object with all its fields."""
    result = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    result.add_column(style="dim")
    result.add_column(overflow="fold")
    for name, value in rows:
        result.add_row(name, cell_of(value))
    return result


def cell_of(value: Any) -> Text:
    """A value as the text of a cell, without terminal control sequences (the value may come from a damaged device)."""
    if isinstance(value, Text):
        return value
    return Text("".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in str(value)))


def _write(text: str) -> None:
    """Raises BrokenPipeError when nobody reads any more, else Unwritten."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritten(f"the answer cannot be written to stdout: {error.strerror}") from None
