"""The cluster's key, from a file: nodes prove to each other that they have it (docs/protocols.md, "Handshake")."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from pathlib import Path

from iomesh.errors import ConfigError, IomeshError, NotFound, PermissionDenied
from iomesh.peers.handshake import KEY_BYTES_MIN

HEX = re.compile(rb"(?:[0-9A-Fa-f]{2})+")
FILE_BYTES_MAX = 4096
NEW_KEY = "head -c 32 /dev/urandom | base64"


def read_key(path: str) -> bytes:
    """Hexadecimal or base64 text. Raises an IomeshError for a file that is missing, open to everybody, or no key."""
    try:
        with Path(path).open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFound(
            f"peers.key_file: {path} does not exist: every node of the cluster needs the same key; make one with "
            f"`{NEW_KEY}`"
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if mode & stat.S_IRWXO:
        raise PermissionDenied(
            f"peers.key_file: {path} is open to every user of this machine (mode {mode:04o}): run `chmod o= {path}`, "
            "and consider whether the key is still secret"
        )
    key = _decode(text.strip())
    if key is None or len(text) > FILE_BYTES_MAX:
        raise ConfigError(f"peers.key_file: {path} is neither hexadecimal nor base64 text: make a key with `{NEW_KEY}`")
    if len(key) < KEY_BYTES_MIN:
        raise ConfigError(
            f"peers.key_file: the key in {path} has {len(key)} bytes, and at least {KEY_BYTES_MIN} are needed: make "
            f"one with `{NEW_KEY}`"
        )
    return key


def _unreadable(path: str, error: OSError) -> IomeshError:
    if isinstance(error, PermissionError):
        return PermissionDenied(f"peers.key_file: {path} is not readable: it must belong to the daemon's user or group")
    return ConfigError(f"peers.key_file: {path} cannot be read: {error.strerror}")


def _decode(text: bytes) -> bytes | None:
    if HEX.fullmatch(text):
        return bytes.fromhex(text.decode())
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        return None
