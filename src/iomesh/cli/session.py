"""The shared parts of commands: `--json`, `--address`, sizes, completed names, and the connection to the daemon."""

import asyncio
import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from iomesh.cli.output import Output
from iomesh.errors import InvalidArgument, PermissionDenied, Unreachable
from iomesh.sizes import exact_size, parse_size, whole_blocks
from iomesh.times import RequestedTime, parse_span, parse_time

if TYPE_CHECKING:
    from iomesh.api.client import Client

Answer = TypeVar("Answer")
Value = TypeVar("Value")
P = ParamSpec("P")


class Session:
    """One run of one command."""

    def __init__(
        self,
        *,
        as_json: bool,
        address: str | None = None,
        certificates: str | None = None,
        timeout_seconds: float | None = 120.0,
    ) -> None:
        """address: of the daemon's control API; None: the socket of a daemon that is installed on this machine.
        certificates: a directory with those of a client; None: the daemon needs none."""
        self.output = Output(as_json=as_json)
        self.address = address
        self.certificates = certificates
        self.timeout_seconds = timeout_seconds

    def ask(self, question: Callable[["Client"], Awaitable[Answer]]) -> Answer:
        """Connects to the daemon, sends one request, and returns the answer."""

        async def conversation() -> Answer:
            async with self.connect(self.timeout_seconds) as node:
                return await question(node)

        return asyncio.run(conversation())

    def whole_blocks(self, size: int) -> int:
        """`size` rounded up to a valid size of a volume or device (iomesh.sizes), with a note if it changed."""
        whole = whole_blocks(size)
        if whole != size:
            self.output.note(f"{size} bytes are rounded up to {exact_size(whole)}")
        return whole

    @asynccontextmanager
    async def connect(self, timeout_seconds: float | None) -> AsyncIterator["Client"]:
        """A client of the daemon. Raises Unreachable, which explains how to name another address, when nothing listens
        there."""
        from iomesh.api.client import DEFAULT_ADDRESS, Client, Credentials

        credentials = Credentials.read(self.certificates) if self.certificates else None
        address = self.address or DEFAULT_ADDRESS
        if credentials is not None:
            refuse_expired(credentials.certificate, str(self.certificates))
        try:
            async with Client(address, timeout_seconds=timeout_seconds, credentials=credentials) as node:
                yield node
        except Unreachable as error:
            tried = "" if self.address else ", the default"
            raise Unreachable(
                f"no daemon answers at {error.address}{tried} ({error.reason}): start one with `iomesh daemon run`, "
                "or name another "
                'address with --address or $IOMESH_ADDRESS; for the trial\'s: eval "$(iomesh trial env)"',
                address=error.address,
                reason=error.reason,
            ) from None


def refuse_expired(certificate: bytes, directory: str) -> None:
    """Raises PermissionDenied: a node only ends the connection."""
    from iomesh.certificates.authority import expires_at

    if (expires := expires_at(certificate)) <= datetime.now(UTC):
        raise PermissionDenied(
            f"the certificate in {directory} expired at {expires:%Y-%m-%dT%H:%M:%SZ}: renew it on a node of the "
            "cluster (`iomesh cluster certificate NAME DIRECTORY --renew`)"
        )


Command = Callable[Concatenate[Session, P], None]


def answers(document: Any) -> Callable[[Command[P]], Callable[P, None]]:
    """Gives a command `--json` and, as its first argument, a Session that must not contact a daemon.

    document: the type of the command's JSON output, one of iomesh.cli.documents or of the control API. It is stored as
    the command's `document`; None: the output is not JSON.
    """

    def decorated(command: Command[P]) -> Callable[P, None]:
        @click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
        @functools.wraps(command)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            as_json = bool(kwargs.pop("as_json"))
            command(Session(as_json=as_json), *args, **kwargs)

        return documented(wrapped, document)

    return decorated


def asks(document: Any) -> Callable[[Command[P]], Callable[P, None]]:
    """Gives a command `--json`, `--address` and a Session that may contact the daemon there. document: as for
    answers()."""

    def decorated(command: Command[P]) -> Callable[P, None]:
        @click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
        @click.option(
            "--address",
            metavar="ADDRESS",
            envvar="IOMESH_ADDRESS",
            show_envvar=True,
            help="Address of the daemon: the path of a unix socket, or host:port.  [default: /run/iomesh/control.sock]",
        )
        @click.option(
            "--certificates",
            metavar="DIR",
            envvar="IOMESH_CERTIFICATES",
            show_envvar=True,
            help="Certificates of a client, for a daemon at host:port that asks for them.",
        )
        @functools.wraps(command)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            as_json, address, certificates = (kwargs.pop(name) for name in ("as_json", "address", "certificates"))
            session = Session(
                as_json=bool(as_json),
                address=str(address) if address else None,
                certificates=str(certificates) if certificates else None,
            )
            command(session, *args, **kwargs)

        return documented(wrapped, document)

    return decorated


def documented(command: Callable[P, None], document: Any) -> Callable[P, None]:
    command.document = document  # type: ignore[attr-defined]
    return command


class Written(click.ParamType[Value], ABC):
    """A value with a text form of its own: `read` parses it, and raises a ValueError that describes what is wrong."""

    @abstractmethod
    def read(self, text: str) -> Value: ...

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Value:
        if not isinstance(value, str):
            return cast(Value, value)  # a default, or converted already
        try:
            return self.read(value)
        except ValueError as error:
            option = param is not None and param.opts[0].startswith("-")
            place = (
                param.opts[0]
                if param is not None and option
                else (param.name or "").upper()
                if param is not None
                else self.name
            )
            raise InvalidArgument(f"{place}: {error}") from None


class Size(Written[int]):
    """In bytes; see iomesh.sizes."""

    name = "size"

    def __init__(self, *, least: int = 0) -> None:
        self.least = least

    def read(self, text: str) -> int:
        return parse_size(text, least=self.least)


class Span(Written[int]):
    """A span of time, in seconds; see iomesh.times."""

    name = "span"

    def read(self, text: str) -> int:
        return parse_span(text)


class PointInTime(Written[RequestedTime]):
    """A point in time; see iomesh.times."""

    name = "time"

    def read(self, text: str) -> RequestedTime:
        return parse_time(text, time.time_ns())


class Seconds(click.FloatRange):
    """A number within bounds, which Python's nan is for FloatRange."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return number


class VolumeName(click.ParamType[str]):
    """The name of a volume that exists, completed from the daemon."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [
            CompletionItem(one.name)
            for one in names(ctx, lambda node: node.volumes())
            if one.name.startswith(incomplete)
        ]


class DeviceName(click.ParamType[str]):
    """A device that the daemon has, by path, label or UUID; its path is completed."""

    name = "device"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        known = [one.path for one in names(ctx, lambda node: node.devices()) if one.path.startswith(incomplete)]
        return [CompletionItem(path) for path in known] or [CompletionItem(incomplete, type="file")]


def names(ctx: click.Context, question: Callable[["Client"], Awaitable[list[Answer]]]) -> list[Answer]:
    """The names that the daemon reports, or none: completion shows no errors and never waits long."""
    try:
        return Session(
            as_json=True,
            address=ctx.params.get("address"),
            certificates=ctx.params.get("certificates"),
            timeout_seconds=1.0,
        ).ask(question)
    except Exception:
        return []
