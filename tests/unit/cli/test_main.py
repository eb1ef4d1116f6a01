"""The command line as a whole: help for every command; one line, an exit code and optional JSON for bad input."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from iomesh.cli.main import COMMANDS
from iomesh.cli.main import iomesh as root
from support.trial import iomesh_command
from unit.cli.ran import Run


def commands(group: click.Group = root, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*before, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))


EVERY = list(commands())


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_explains_itself(iomesh: Run, words: tuple[str, ...]) -> None:
    ran = iomesh(*words, "--help")
    assert ran.code == 0
    assert f"Usage: iomesh {' '.join(words)}" in ran.out
    assert ran.err == ""


@pytest.mark.parametrize(
    "words",
    [
        words
        for words in EVERY
        if words not in [("daemon", "run"), ("completion",)] and len(words) + (words[0] in ("status", "top")) == 2
    ],
    ids=" ".join,
)
def test_every_command_that_answers_takes_json(iomesh: Run, words: tuple[str, ...]) -> None:
    assert "--json" in iomesh(*words, "--help").out


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_an_option_that_does_not_exist_is_named_with_the_way_to_the_usage(iomesh: Run, words: tuple[str, ...]) -> None:
    ran = iomesh(*words, "--colour")
    assert ran.code == 2
    assert ran.out == ""
    assert "--colour" in ran.err
    assert f"`iomesh {' '.join(words)} --help` shows the usage" in ran.err
    assert ran.err.count("\n") == 1


def test_the_help_lists_every_command_without_loading_it(iomesh: Run) -> None:
    ran = iomesh("--help")
    assert all(f"  {name}  " in ran.out for name in COMMANDS)


def test_no_command_shows_the_help_and_fails(iomesh: Run) -> None:
    ran = iomesh()
    assert ran.code == 2
    assert "Commands:" in ran.err
    assert ran.out == ""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("volum",), 2, "there is no command 'volum', did you mean 'volume'?"),
        (("volume", "creat"), 2, "Did you mean 'create'?"),
        (("volume", "create"), 2, "Missing argument 'NAME': `iomesh volume create --help` shows the usage"),
        (("volume", "create", "db"), 2, "Missing argument 'SIZE'"),
        (("volume", "create", "db", "10Q"), 2, "SIZE: '10Q' has the unknown unit 'Q'"),
        (("volume", "create", "db", "--", "-5G"), 2, "SIZE: '-5G' is negative"),
        (("volume", "create", "db", "9999999P"), 2, "SIZE: '9999999P' is too large"),
        (("volume", "create", "db", "1G", "--segment-size", "x"), 2, "--segment-size: 'x' is not a size"),
        (("volume", "grow", "db", "+"), 2, "SIZE: an empty text is not a size"),
        (
            ("volume", "list", "--address", "nonsense"),
            2,
            "'nonsense' is neither the path of a unix socket nor host:port",
        ),
        (("volume", "list", "--address", "/nowhere/control.sock"), 9, "no daemon answers at /nowhere/control.sock ("),
        (("status", "--address", "/nowhere/control.sock"), 9, "no daemon answers"),
        (("top", "--once", "--address", "/nowhere/control.sock"), 9, "no daemon answers"),
        (("top", "--interval", "0"), 2, "--interval"),
        (("device", "format", "/dev/null"), 2, "--cluster is missing"),
        (("device", "format", "/dev/null", "--cluster", "mine"), 2, "--cluster: 'mine' is not a UUID"),
        (("device", "format", "x", "--cluster", "new", "--tier", "tape"), 2, "'tape' is not one of"),
        (("device", "format", "x", "--cluster", "new", "--prewrite"), 2, "give its --size too"),
        (("device", "format", "/nowhere/x", "--cluster", "new", "--size", "64Mi"), 3, "/nowhere is not a directory"),
        (
            ("device", "format", "x", "--cluster", "new", "--size", "10K"),
            2,
            "--size: '10K' has the unit 'K', which is read in different ways",
        ),
        (("inspect", "superblock", "/nowhere/x"), 3, "/nowhere/x cannot be opened: No such file or directory"),
        (("inspect", "record", "/dev/null", "5"), 2, "ADDRESS: '5' is not SEGMENT:BLOCK"),
        (("inspect", "record", "/dev/null", "1:-1"), 2, "ADDRESS: '1:-1' is not SEGMENT:BLOCK"),
        (("inspect", "segment", "/dev/null", "x"), 2, "'x' is not a whole number"),
        (("inspect", "superblock", "/dev/null"), 2, "/dev/null is neither a block device nor a file"),
        (("inspect", "superblock", "/"), 2, "/ is neither a block device nor a file"),
        (("--address", "/x", "status"), 2, "--address goes after the command, as in `iomesh status --address`"),
        (("inspect", "node", "/dev/null"), 2, "name either the ADDRESS"),
        (("trial", "status"), 3, "start one with `iomesh trial up`"),
        (("trial", "kill"), 3, "there is no trial in"),
        (("trial", "start"), 3, "there is no trial in"),
        (("trial", "down"), 3, "there is no trial in"),
        (("trial", "up", "--devices", "0"), 2, "--devices"),
        (("trial", "up", "--nodes", "10"), 2, "--nodes"),
        (("trial", "up", "--nodes", "2", "--replicas", "3"), 2, "needs 3 nodes, and there are to be 2: add --nodes 3"),
        (("volume", "create", "db", "1G", "--replicas", "5"), 2, "--replicas"),
        (("trial", "up", "--device-size", "1G+1"), 2, "--device-size: '1G+1' has the unknown unit 'G+1'"),
        (("daemon", "run", "--check", "--set", "engine.reactors"), 2, "--set: 'engine.reactors' is not KEY=VALUE"),
        (("daemon", "run", "--check", "--set", "engine.reactor=2"), 2, "did you mean 'engine.reactors'?"),
        (("daemon", "run", "--check", "--mode", "lazy"), 2, "engine.mode"),
        (("daemon", "run", "--check", "--map-cache", "much"), 2, "'much' is not a size"),
        (("daemon", "run", "--config", "/nowhere/node.toml"), 3, "/nowhere/node.toml does not exist"),
        (("daemon", "run", "--check", "--map-cache", "100Pi"), 2, "this machine's memory"),
        (("top", "--interval", "nan"), 2, "'nan' is not a number of seconds"),
        (
            ("device", "format", "x", "--cluster", "new", "--size", "1Gi", "--label", "a\nb"),
            2,
            r"the label 'a\nb' has a",
        ),
        (("completion", "tcsh"), 2, "'tcsh' is not one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_gets_one_line_and_an_exit_code(iomesh: Run, words: tuple[str, ...], code: int, said: str) -> None:
    ran = iomesh(*words)
    assert said in ran.err
    assert ran.err.startswith("iomesh: ")
    assert ran.err.count("\n") == 1
    assert ran.out == ""
    assert ran.code == code
    if words[0] != "completion" and words[-1] not in ("volum", "creat"):
        told = iomesh(
            *words[: words.index("--")] if "--" in words else words,
            "--json",
            *words[words.index("--") :] if "--" in words else (),
        )
        assert told.code == code
        assert set(told.document) == {"error"}
        assert told.document["error"]["exit_code"] == code
        assert told.document["error"]["message"] in ran.err
        assert told.document["error"]["kind"]
        assert told.err == ""


def test_a_name_that_was_pasted_by_mistake_is_not_repeated_whole(iomesh: Run) -> None:
    ran = iomesh("completion", "x" * 5000)
    assert ran.code == 2
    assert "x" * 90 + "…" in ran.err
    assert len(ran.err) < 500


@pytest.mark.parametrize("words", [("daemon", "run", "--check"), ("status", "--json")])
def test_an_answer_that_cannot_be_written_is_an_error_without_a_traceback(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run([iomesh_command(), *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode != 0
    assert ran.stderr.startswith("iomesh: ")
    assert ran.stderr.count("\n") == 1


def test_a_closed_stdout_leaves_the_exit_code() -> None:
    ran = subprocess.run(
        ["sh", "-c", 'exec "$0" daemon run --check >&-', iomesh_command()], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    ("shell", "says"),
    [("bash", "complete -o nosort -F"), ("zsh", "#compdef iomesh"), ("fish", "complete --no-files --command iomesh")],
)
def test_completion_scripts_are_printed(iomesh: Run, shell: str, says: str) -> None:
    ran = iomesh("completion", shell)
    assert ran.code == 0
    assert says in ran.out


def test_the_daemons_flags_go_before_its_file(iomesh: Run, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('name = "of-the-file"\nrun_dir = "/run/of-the-file"\n[engine]\nreactors = 7\nmode = "busy"\n')
    flags = (
        "--name",
        "of-the-flag",
        "--reactors",
        "2",
        "--map-cache",
        "64Mi",
        "--poll-us",
        "9",
        "--checkpoint-bytes",
        "32Mi",
        "--iopoll",
    )
    more = (
        "--device",
        "/dev/a",
        "--device",
        "/dev/b",
        "--nbd-listen",
        "127.0.0.1:1",
        "--metrics-listen",
        "",
        "--set",
        "log.level=debug",
    )
    held = iomesh("daemon", "run", "--check", "--config", str(file), *flags, *more, "--json").document
    assert (held["name"], held["run_dir"], held["devices"]) == ("of-the-flag", "/run/of-the-file", ["/dev/a", "/dev/b"])
    assert held["engine"] == {
        "reactors": 2, "mode": "busy", "poll_microseconds": 9, "map_cache_bytes": 64 << 20,
        "checkpoint_bytes": 32 << 20, "iopoll": True, "request_timeout_seconds": 30.0,
        "space_below_wait_seconds": 5.0, "register_buffers": True,
    }  # fmt: skip
    assert (held["nbd"]["listen"], held["metrics"]["listen"], held["log"]["level"]) == ("127.0.0.1:1", "", "debug")
    assert held["control"]["socket"] == "/run/of-the-file/control.sock"


def test_without_an_address_the_installed_daemon_is_asked_and_never_the_trial(
    iomesh: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("iomesh.api.client.DEFAULT_ADDRESS", str(tmp_path / "none.sock"))
    (tmp_path / "iomesh" / "trial").mkdir(parents=True)
    (tmp_path / "iomesh" / "trial" / "control.sock").touch()
    ran = iomesh("volume", "delete", "db", "--yes")
    assert ran.code == 9
    assert f"no daemon answers at {tmp_path}/none.sock, the default (" in ran.err
    for way in ("`iomesh daemon run`", "--address", "$IOMESH_ADDRESS", 'eval "$(iomesh trial env)"'):
        assert way in ran.err


def test_the_address_is_taken_from_the_environment_and_the_option_goes_before_it(
    iomesh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IOMESH_ADDRESS", "/of/the/environment.sock")
    assert "no daemon answers at /of/the/environment.sock (" in iomesh("status").err
    assert "no daemon answers at /of/the/option.sock (" in iomesh("status", "--address", "/of/the/option.sock").err
