"""One table says what every error means outside."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import grpc
import pytest

from iomesh import errors
from iomesh.errors import MEANINGS, IomeshError, from_errno, from_wire, meaning
from iomesh.metadata import HistoryLost


def all_errors(kind: type[IomeshError] = IomeshError) -> list[type[IomeshError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in all_errors(below))]


def test_every_error_has_a_grpc_code_that_exists_and_an_exit_code() -> None:
    for kind in all_errors():
        code, exit_code = meaning(kind("words"))
        assert code in grpc.StatusCode.__members__, kind
        assert 1 <= exit_code < 64, kind


def test_each_kind_of_error_has_its_exit_code() -> None:
    codes = [MEANINGS[kind].exit_code for kind in MEANINGS if kind is not errors.ConfigError]
    assert len(codes) == len(set(codes))
    assert MEANINGS[errors.ConfigError] == MEANINGS[errors.InvalidArgument]


def test_an_error_below_one_of_the_table_means_the_same() -> None:
    assert meaning(HistoryLost("gone")) == MEANINGS[errors.Conflict]


def test_what_is_not_ours_is_a_bug() -> None:
    assert meaning(ValueError("x")) == MEANINGS[IomeshError]


@pytest.mark.parametrize("kind", MEANINGS)
def test_an_error_keeps_its_type_over_the_wire(kind: type[IomeshError]) -> None:
    arrived = from_wire(kind.__name__, meaning(kind("x")).grpc_code, "volume db: no")
    assert type(arrived) is kind
    assert arrived.message == "volume db: no"


def test_an_error_of_a_newer_node_is_known_by_its_code() -> None:
    assert type(from_wire("QuotaExceeded", "RESOURCE_EXHAUSTED", "full")) is errors.NoSpace
    assert type(from_wire("", "DEADLINE_EXCEEDED", "late")) is errors.Unavailable
    assert type(from_wire("", "DATA_LOSS", "bad")) is errors.Damaged
    assert type(from_wire("Whatever", "OUT_OF_RANGE", "far")) is IomeshError


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, errors.NoSpace),
        (-errno.EIO, errors.DeviceFailed),
        (errno.EUCLEAN, errors.Damaged),
        (errno.EMEDIUMTYPE, errors.Foreign),
        (errno.EBUSY, errors.InUse),
        (errno.EPROTONOSUPPORT, errors.Unsupported),
        (12345, IomeshError),
    ],
)
def test_errnos_of_the_engine_have_names(number: int, kind: type[IomeshError]) -> None:
    error = from_errno(number, "/dev/x: words")
    assert type(error) is kind
    assert error.message == "/dev/x: words"


def test_the_documentation_has_the_same_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    documented = {
        name.strip("` "): (code, int(exit_code)) for names, code, exit_code in rows for name in names.split(",")
    }
    assert documented == {kind.__name__: tuple(means) for kind, means in MEANINGS.items() if kind is not IomeshError}
