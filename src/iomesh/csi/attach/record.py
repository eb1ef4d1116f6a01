"""What a node has to remember of a volume that is attached to it: one file for each, written before the first step, so
that what a crash leaves behind is found. Everything else is read from the system."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import msgspec

from iomesh.errors import Damaged

FILE = "attachment.json"


class Attachment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: int = 1
    volume_id: str
    volume: str  # its name
    read_only: bool
    method: str  # of the attachers
    uri: str = ""  # of the export; empty: the method does not need it


class Records:
    """The folder of each attached volume, by its id; and what distinguishes this node's devices from those of another
    one on the same machine."""

    def __init__(self, state: Path) -> None:
        self.path = state / "volumes"
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.instance = _instance(state / "instance")

    def folder(self, volume_id: str) -> Path:
        return self.path / volume_id

    def get(self, volume_id: str) -> Attachment | None:
        """None: the volume is not attached, and nothing of it is left."""
        return self._read(self.folder(volume_id) / FILE)

    def put(self, attachment: Attachment) -> None:
        folder = self.folder(attachment.volume_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(folder / FILE, msgspec.json.encode(attachment))

    def remove(self, volume_id: str) -> None:
        """The record goes first: a folder without one has nothing that has to be ended."""
        folder = self.folder(volume_id)
        (folder / FILE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def all(self) -> list[Attachment]:
        found = (self._read(path) for path in sorted(self.path.glob(f"*/{FILE}")))
        return [each for each in found if each is not None]

    def _read(self, path: Path) -> Attachment | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Attachment)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise Damaged(f"{path}: {error}: detach the volume by hand, then remove the folder") from None


def _instance(file: Path) -> str:
    """Chosen once for this state directory."""
    try:
        return file.read_text()
    except FileNotFoundError:
        chosen = secrets.token_hex(4)
        _write(file, chosen.encode())
        return chosen


def _write(path: Path, content: bytes) -> None:
    """Atomically, and durably."""
    made = path.with_name(path.name + ".new")
    with made.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    made.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
