"""The three targets of fio: the raw file, iomesh over NBD, qemu-storage-daemon over NBD on the raw file.

The raw file and iomesh's device file are on the same file system, and every block was written before the measurement: a
file's first write allocates extents or converts unwritten ones, which would measure the file system instead.
"""

import subprocess
import time
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Protocol, Self

from iomesh_perf import fio, process
from iomesh_perf.nbd import served_after
from iomesh_perf.trial import Trial

MIB = 1 << 20
GIB = 1 << 30
FILL = fio.Workload("write", random=False, block_bytes=MIB, depth=8)
RAW, IOMESH, QEMU = "raw", "iomesh", "qemu"


class Target(Protocol):
    name: str

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    @property
    def endpoint(self) -> fio.Endpoint: ...
    @property
    def server_pid(self) -> int | None:
        """The serving process; None: only the kernel."""

    def make_room(self, bytes_to_write: int) -> None:
        """Called before a run that writes this much."""


def write_through(path: Path, size_bytes: int) -> None:
    """Create `path` as a file whose blocks are all allocated and written."""
    path.unlink(missing_ok=True)
    fio.run(FILL, fio.File(path), fio.Extent(size_bytes, seed=7))


class RawFile:
    """The file itself."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.name = RAW
        self.path, self.size_bytes = path, size_bytes

    def __enter__(self) -> Self:
        write_through(self.path, self.size_bytes)
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)

    @property
    def endpoint(self) -> fio.Endpoint:
        return fio.File(self.path)

    @property
    def server_pid(self) -> int | None:
        return None

    def make_room(self, bytes_to_write: int) -> None:
        pass


class Qemu:
    """qemu-storage-daemon on a file, with direct I/O, one export on a unix socket.

    `aio` is qemu's I/O method for the file. The export runs in the main loop: in Debian 12's version, an export in an
    iothread aborts when its client disconnects (blockdev-nbd.c asserts that this happens in the main thread).
    """

    def __init__(self, path: Path, aio: str) -> None:
        self.name = QEMU
        self.path, self.aio = path, aio

    def __enter__(self) -> Self:
        self._directory = Path(mkdtemp(prefix="iomesh-perf-"))
        socket = self._directory / "qemu.sock"
        words = ["qemu-storage-daemon"]
        words += ["--blockdev", f"driver=file,node-name=raw,filename={self.path},cache.direct=on,aio={self.aio}"]
        words += ["--nbd-server", f"addr.type=unix,addr.path={socket}"]
        words += ["--export", "type=nbd,id=raw,node-name=raw,name=raw,writable=on"]
        try:
            self._process = subprocess.Popen(words)
        except FileNotFoundError:
            raise fio.FioError("qemu-storage-daemon is not installed: apt-get install qemu-system-common") from None
        self._uri = f"nbd+unix:///raw?socket={socket}"
        try:
            served_after(self._uri, time.monotonic(), timeout_seconds=20)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        (self._directory / "qemu.sock").unlink(missing_ok=True)
        self._directory.rmdir()

    @property
    def endpoint(self) -> fio.Endpoint:
        return fio.Nbd(self._uri)

    @property
    def server_pid(self) -> int | None:
        return self._process.pid

    def make_room(self, bytes_to_write: int) -> None:
        pass


class Iomesh:
    """A volume of `size_bytes` on a device file large enough for every run of this benchmark.

    Overwriting a log takes new space; dead space is freed when a whole segment is dead. So before a run that might not
    fit, the volume is written once sequentially, which leaves everything older dead, and then the random-overwrite
    pattern that reads are measured on is written again. If that frees too little, the trial is recreated.
    """

    def __init__(self, directory: Path, size_bytes: int, device_bytes: int) -> None:
        self.name = IOMESH
        self.directory, self.size_bytes, self.device_bytes = directory, size_bytes, device_bytes

    def __enter__(self) -> Self:
        self._up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.trial.__exit__(kind, error, trace)

    @property
    def endpoint(self) -> fio.Endpoint:
        return fio.Nbd(self.trial.uri)

    @property
    def server_pid(self) -> int | None:
        return self.trial.pid

    def make_room(self, bytes_to_write: int) -> None:
        if self.trial.free_bytes() >= bytes_to_write:
            return
        self._up_again()

    def new_trial(self) -> Trial:
        return Trial(self.directory, device_bytes=self.device_bytes, volume_bytes=self.size_bytes, prewrite=True)

    def _up(self) -> None:
        self.trial = self.new_trial().__enter__()
        self.precondition()

    def _up_again(self) -> None:
        self.trial.__exit__(None, None, None)
        self._up()

    def precondition(self) -> None:
        """Writes every block in order, then a quarter of as many at random."""
        fio.run(FILL, self.endpoint, fio.Extent(self.size_bytes, seed=11))
        scatter = fio.Workload("write", random=True, block_bytes=4096, depth=128)
        fio.run(scatter, self.endpoint, fio.Extent(self.size_bytes, most_bytes=self.size_bytes // 4, seed=13))


def better_aio(path: Path, span_bytes: int, seconds: float) -> tuple[str, dict[str, float]]:
    """qemu's faster I/O method for the file: the highest sum of random writes and reads per second at depth 32."""
    iops = {}
    for aio in ("io_uring", "native"):
        with Qemu(path, aio) as qemu:
            runs = [
                fio.run(
                    fio.Workload(direction, random=True, block_bytes=4096, depth=32),
                    qemu.endpoint,
                    fio.Extent(span_bytes, seconds),
                )
                for direction in ("write", "read")
            ]
        iops[aio] = sum(run.iops for run in runs)
    return max(iops, key=lambda aio: iops[aio]), iops


def measured(target: Target, workload: fio.Workload, extent: fio.Extent) -> tuple[fio.Run, process.Cpu | None]:
    """One run, and the serving process's CPU time for it."""
    pid = target.server_pid
    before = process.cpu(pid) if pid is not None else None
    run = fio.run(workload, target.endpoint, extent)
    spent = process.cpu(pid) - before if pid is not None and before is not None else None
    return run, spent
