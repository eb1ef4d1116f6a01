"""The processes that serve an attached volume where the kernel has no NBD client: nbdkit and nbdfuse, one session of
processes for each volume, which ends when the file system of nbdfuse is unmounted.

Whether they live is seen from a lock on a file that they inherit, so no process id has to be remembered, and any
process on the machine sees it.

Processes end with the container in which they were started. So that the driver's container can be replaced while
volumes are in use, it does not start them itself in Kubernetes: it asks `iomesh csi attach-server`, which does nothing
else, in a pod of its own. What it is asked is one line of JSON on a unix socket (Server); the answer is one as well.
The pod is often older than the driver: a field that is added must have a default.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shlex
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import msgspec

from iomesh.csi import commands
from iomesh.errors import InvalidArgument, IomeshError, Unavailable
from iomesh.node.logs import logger

log = logger("servers")

CONNECTIONS = 4
FILE = "disk"
MOUNT_POINT = "fuse"  # in a volume's folder
VOLUMES = "volumes"  # in the state directory
GROWABLE = "+"  # behind an export's name
ANSWER_SECONDS = 30.0
# nbdkit with --run gets SIGTERM when its parent ends, so its parent is a shell that waits for it.
OUTLIVING = ("sh", "-c", '"$@"; exit $?', "sh")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOK_SECONDS = 0.5


class Server(msgspec.Struct, frozen=True, kw_only=True):
    volume_id: str
    uri: str
    read_only: bool
    retry_seconds: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    error: str = ""


def start(folder: Path, server: Server) -> None:
    """In the volume's folder; not if they run already: what started them may have been killed after this step."""
    point = folder / MOUNT_POINT
    point.mkdir(exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        (folder / "nbd.sock").unlink(missing_ok=True)
        fuse = [commands.find("nbdfuse"), "-C", str(CONNECTIONS), *(["-r"] if server.read_only else [])]
        words = [
            *(commands.find("nbdkit"), "--foreground", "--unix", str(folder / "nbd.sock")),
            *("--pidfile", str(folder / "nbdkit.pid"), *(["--readonly"] if server.read_only else [])),
            *("--filter=retry", "nbd", f"uri={growable(server.uri)}"),
            *(f"retries={server.retry_seconds}", "retry-delay=1", "retry-exponential=no"),
            *("--run", f'exec {shlex.join(fuse)} {shlex.quote(str(point / FILE))} "$uri"'),
        ]
        with (folder / "log").open("ab") as output:
            subprocess.Popen(
                [*OUTLIVING, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                pass_fds=(lock,),
                start_new_session=True,
            )
    finally:
        os.close(lock)


def alive(folder: Path) -> bool:
    """Whether a process of the volume holds the lock."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def kill(folder: Path) -> None:
    """SIGKILL to every process that has the lock open, whatever path it knows it by."""
    lock = (folder / "lock").stat()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            for each in (entry / "fd").iterdir():
                with suppress(OSError):  # closed meanwhile
                    if os.path.samestat(each.stat(), lock):
                        os.kill(int(entry.name), signal.SIGKILL)


def last_words(folder: Path) -> str:
    try:
        lines = (folder / "log").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return lines[-1] if lines else ""


def growable(uri: str) -> str:
    """The URI of the same export with room to grow: nbdfuse learns the size once."""
    path, mark, query = uri.partition("?")
    return path + GROWABLE + mark + query


# The attach server.


def socket_path(state: Path) -> Path:
    return state / "attach.sock"


async def ask(socket: Path, server: Server) -> None:
    """Has the attach server start them. Raises Unavailable."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(msgspec.json.encode(server) + b"\n")
                answer = msgspec.json.decode(await reader.readline(), type=Answer)
            finally:
                writer.close()
    except (OSError, msgspec.MsgspecError) as error:
        raise Unavailable(
            f"the attach server of this node does not answer at {socket}: {error or 'no answer'}: see the pod "
            "iomesh-attach of this node"
        ) from None
    if answer.error:
        raise Unavailable(answer.error)


class AttachServer:
    """`iomesh csi attach-server`: starts processes, and lives as long as they do."""

    def __init__(self, state: Path) -> None:
        self._volumes = state / VOLUMES
        self._socket = socket_path(state)

    async def run(self) -> None:
        """Until SIGTERM or SIGINT, and then until no volume is served any more."""
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, stopping.set)
        loop.add_signal_handler(signal.SIGCHLD, _reap)
        self._volumes.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._answer, self._socket)
        log.info("serving", socket=self._socket)
        await stopping.wait()
        while served := await asyncio.to_thread(self._served):
            log.warning("ends when these volumes are detached", volumes=served)
            await asyncio.sleep(LOOK_SECONDS)
        server.close()
        self._socket.unlink(missing_ok=True)
        log.info("stopped")

    def _served(self) -> list[str]:
        return sorted(folder.name for folder in self._volumes.iterdir() if alive(folder))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = Answer(error=await asyncio.to_thread(self._start, await reader.readline()))
                writer.write(msgspec.json.encode(answer) + b"\n")
                await writer.drain()
        except OSError as error:
            log.warning("a request was not answered", reason=str(error))
        finally:
            writer.close()

    def _start(self, line: bytes) -> str:
        """Returns why it cannot."""
        try:
            server = msgspec.json.decode(line, type=Server)
            folder = self._volumes / server.volume_id
            if "/" in server.volume_id or not folder.is_dir():
                raise InvalidArgument(f"there is no folder of volume {server.volume_id} in {self._volumes}")
            start(folder, server)
        except (OSError, msgspec.MsgspecError, IomeshError) as error:
            log.warning("not started", reason=str(error))
            return f"the attach server cannot start nbdkit: {error}"
        log.info("started", volume=server.volume_id)
        return ""


def _reap() -> None:
    """Processes that have ended: its own, and in a container those of others that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
