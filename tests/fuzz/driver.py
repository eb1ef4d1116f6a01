"""An engine in this process, for one command at a time. The test is the metadata service and moves checkpoints."""

import os
import select
import socket
import tempfile
from pathlib import Path
from typing import Any

from iomesh.engine.engine import POINTER_DONE, SEGMENT_NUMBER_MAX, Answer, Engine, Event, Pointer
from support.wire import Wire

CLUSTER, DEVICE, VOLUME = b"cluster-of-fuzz-", b"device-of-fuzzer", b"volume-of-fuzzer"
SECONDS = 60.0  # until something that is asked for and does not come is a finding


class Driver:
    """`wait` ends with the answer to a ticket; of checkpoints the newest pointer is kept."""

    def __init__(self, *, checkpoint_bytes: int = 1 << 30) -> None:
        self.engine = Engine(
            mode="sleep",
            map_cache_bytes=1 << 20,
            checkpoint_bytes=checkpoint_bytes,
            register_buffers=False,
            poll_microseconds=0,
        )
        self.engine.start()
        self.pointer: Pointer | None = None
        self._answers: dict[int, Answer] = {}

    def wait(self, ticket: int) -> Answer:
        while ticket not in self._answers:
            assert select.select([self.engine.fileno()], [], [], SECONDS)[0], f"ticket {ticket} is not answered"
            self.collect()
        return self._answers.pop(ticket)

    def done(self, ticket: int) -> Any:
        """Its value; an error is one of the test's."""
        answer = self.wait(ticket)
        assert not answer.error, f"{os.strerror(answer.error)}: {answer.reason}"
        return answer.value

    def collect(self) -> None:
        for happened in self.engine.collect():
            if isinstance(happened, Answer):
                self._answers[happened.ticket] = happened
            elif happened.kind == "checkpoint":
                self._move(happened)
            elif happened.kind == "numbers" and happened.volume is not None:
                self.engine.checkpoint_moved(happened.volume, 0, POINTER_DONE, SEGMENT_NUMBER_MAX)

    def _move(self, event: Event) -> None:
        assert event.volume is not None
        self.pointer = event.value["pointer"]
        self.engine.checkpoint_moved(event.volume, event.value["sequence"], POINTER_DONE, SEGMENT_NUMBER_MAX)

    def connect(
        self, *, structured: bool = False, context: bool = False, read_only: bool = False
    ) -> tuple[socket.socket, int]:
        """A client's socket, and the ticket that is answered when the connection ends."""
        ours, theirs = socket.socketpair()
        ours.settimeout(SECONDS)
        ticket = self.engine.serve_nbd(
            VOLUME, theirs.detach(), structured=structured, context_id=1 if context else None, read_only=read_only
        )
        return ours, ticket

    def wire(self, **how: bool) -> tuple[Wire, int]:
        ours, ticket = self.connect(**how)
        return Wire.over(ours, structured=how.get("structured", False)), ticket


def new_device(size: int) -> tuple[Path, int]:
    """A file of zeros in a folder of its own, and a descriptor of it."""
    path = scratch() / "device"
    with path.open("wb") as file:
        file.truncate(size)
    return path, os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)


_folders: list[tempfile.TemporaryDirectory[str]] = []


def scratch() -> Path:
    """A folder for this process. `make fuzz` passes one that outlives it: libFuzzer ends its process at once."""
    _folders.append(
        tempfile.TemporaryDirectory(prefix="iomesh-fuzz-", dir=os.environ.get("IOMESH_TEST_FOLDER", "/var/tmp"))
    )
    return Path(_folders[-1].name)
