"""The entry point: finds the command, runs it, and turns an error into one line (or one JSON document) and an exit
code.

A command's module is imported when the command is named and not before, so that `iomesh --help` and completion are
quick.
"""

import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from iomesh.cli.documents import Error, ErrorDetails
from iomesh.cli.output import Output, Unwritten
from iomesh.errors import InvalidArgument, IomeshError, from_errno, meaning

LONG_WORD = re.compile(r"\S{301,}")  # a name that was pasted by mistake: its beginning tells which
WORD_SHOWN = 100

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # or its notes get in between: every error is answered anyway

COMMANDS: dict[str, tuple[str, str]] = {
    "daemon": ("iomesh.cli.daemon", "Run the node daemon of this machine."),
    "cluster": ("iomesh.cli.cluster", "Make a cluster of nodes, let nodes join it, and show them."),
    "device": ("iomesh.cli.device", "Format devices; attach, detach and show those of a node."),
    "volume": ("iomesh.cli.volume", "Create, show, grow, export, clone, restore and delete volumes."),
    "snapshot": ("iomesh.cli.snapshot", "Make, show, export and delete snapshots."),
    "operation": ("iomesh.cli.operation", "Show long work of the cluster, and wait for it."),
    "status": ("iomesh.cli.status", "Show the state of a node, its devices and volumes."),
    "top": ("iomesh.cli.top", "Watch a node's volumes live."),
    "check": ("iomesh.cli.check", "Check whether this machine has what iomesh needs."),
    "tune": ("iomesh.cli.tune", "Find settings of this machine that slow iomesh down, and change them."),
    "bench": ("iomesh.cli.bench", "Measure what a volume does under the load of a database."),
    "csi": ("iomesh.cli.csi", "Run the CSI driver, through which Kubernetes uses volumes."),
    "inspect": ("iomesh.cli.inspect.commands", "Print what is on a device at rest, structure by structure."),
    "trial": ("iomesh.cli.trial.commands", "Run a throw-away installation on this machine."),
    "completion": ("iomesh.cli.completion", "Print the completion script of a shell."),
}


class Commands(click.Group):
    """The commands, each imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(
                f"there is no command {args[0]!r}{nearest(args[0], COMMANDS)}: `iomesh --help` lists them", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="iomesh", message="%(prog)s %(version)s")
def iomesh() -> None:
    """Block volumes for databases, from user space.

    Start with `iomesh trial up`: an installation of its own in one directory, with a volume served over NBD.
    """


def nearest(word: str, known: Sequence[str] | dict[str, tuple[str, str]]) -> str:
    """ ", did you mean ...?", or an empty string."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (iomesh.errors has the table)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:  # it was closed: nobody wants the answer, only the exit code
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (until the end)
    try:
        outcome = iomesh.main(words, prog_name="iomesh", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(error.format_message() + "\n")
        return meaning(InvalidArgument("")).exit_code
    except click.ClickException as error:
        return report(as_iomesh_error(error), words)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        discard_output()
        return 141
    except Unwritten as error:
        discard_output()
        return report(error, [])
    except IomeshError as error:
        return report(error, words)
    except OSError as error:
        if error.errno is None:
            raise
        return report(from_errno(error.errno, f"{error.filename or 'the system'}: {error.strerror}"), words)
    return outcome if isinstance(outcome, int) else 0  # an Exit raised by a command is returned as its code


def as_iomesh_error(error: click.ClickException) -> IomeshError:
    message = error.format_message().rstrip(".").replace("is not a valid integer range", "is not a whole number")
    context = getattr(error, "ctx", None)
    if (
        isinstance(error, click.NoSuchOption)
        and error.option_name in ("--address", "--json")
        and context is not None
        and context.parent is None
    ):
        return InvalidArgument(f"{error.option_name} goes after the command, as in `iomesh status {error.option_name}`")
    if context is not None and "--help" not in message:
        message += f": `{context.command_path} --help` shows the usage"
    return InvalidArgument(message)


def discard_output() -> None:
    """After an answer that could not be written, or the interpreter complains when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(error: IomeshError, words: Sequence[str]) -> int:
    """Prints the error in the requested form."""
    code, message = meaning(error).exit_code, LONG_WORD.sub(lambda word: f"{word[0][:WORD_SHOWN]}…", error.message)
    if "--json" in words:
        details = ErrorDetails(kind=type(error).__name__, message=message, exit_code=code)
        try:
            Output(as_json=True).document(Error(error=details))
            return code
        except Unwritten:  # who asked sees stderr at least
            discard_output()
    sys.stderr.write(f"iomesh: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
