"""The cluster's key is read from a file that not everybody may read, and is long enough."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from iomesh.errors import ConfigError, IomeshError, NotFound, PermissionDenied
from iomesh.node.peers.key import read_key

KEY = bytes(range(1, 41))


def written(folder: Path, text: bytes, mode: int = 0o600) -> str:
    path = folder / "key"
    path.write_bytes(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        KEY.hex().encode(),
        KEY.hex().upper().encode() + b"\n",
        base64.b64encode(KEY),
        base64.encodebytes(KEY),
        b"\n" + base64.b64encode(KEY) + b"\r\n",
    ],
)
def test_a_key_is_hexadecimal_or_base64(tmp_path: Path, text: bytes) -> None:
    assert read_key(written(tmp_path, text)) == KEY


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o640, 0o600])
def test_its_user_and_group_may_read_it(tmp_path: Path, mode: int) -> None:
    assert read_key(written(tmp_path, KEY.hex().encode(), mode)) == KEY


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o777])
def test_a_file_that_is_open_to_everybody_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path, KEY.hex().encode(), mode)
    with pytest.raises(PermissionDenied, match=f"{path} is open to every user of this machine .mode {mode:04o}.: run"):
        read_key(path)


@pytest.mark.parametrize("text", [b"", b"no key at all", KEY, b"q" * 4097, KEY.hex().encode() * 100])
def test_what_is_no_key_is_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ConfigError, match=r"key_file: .*make (a key|one) with `head -c 32"):
        read_key(written(tmp_path, text))


def test_a_short_key_is_refused_with_its_length(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 31 bytes, and at least 32 are needed"):
        read_key(written(tmp_path, bytes(31).hex().encode()))


def test_a_file_that_is_missing_or_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"key_file: {tmp_path}/absent does not exist: every node"):
        read_key(f"{tmp_path}/absent")
    with pytest.raises(IomeshError, match=f"key_file: {tmp_path} cannot be read: Is a directory"):
        read_key(str(tmp_path))
