"""A trial's daemons: started in the background, waited for, paused, stopped, killed."""

import asyncio
import contextlib
import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from iomesh.api.client import Client
from iomesh.api.model import NodeState, Status, Volume, VolumeState
from iomesh.cli.output import Output
from iomesh.cli.trial.installation import Process, TrialNode, birth
from iomesh.errors import IomeshError, Unavailable

LOG_LINES = 15
POLL_SECONDS = 0.01
KILL_SECONDS = 60.0
PAUSE_SECONDS = 60.0
LOCK_SECONDS = 1.0  # a process that runs holds the metadata's lock for milliseconds


def start(node: TrialNode) -> None:
    """Starts the daemon as a process in a session of its own, appends its output to the log, and records it."""
    with node.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "iomesh.cli.main", "daemon", "run", "--config", str(node.config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=node.path,
        )
    node.record(Process(process.pid, birth(process.pid)))


def start_and_wait(nodes: Sequence[TrialNode], timeout_seconds: float, output: Output) -> list[Volume]:
    """Starts the daemons, all at once, and waits until each is ready and serves the volumes that it owns; returns
    these. Raises Unavailable, with the log's tail, for those that die or are late, once the others serve."""
    for node in nodes:
        start(node)
    with output.steps_progress() as progress:
        bars = {node.name: progress.add_task(node.name, total=None, step="starting") for node in nodes}

        def show(node: TrialNode, status: Status) -> None:
            step = status.step if status.state == NodeState.STARTING else str(status.state)
            progress.update(bars[node.name], completed=status.steps_done, total=status.steps, step=step)

        return asyncio.run(_all_serving(nodes, timeout_seconds, show))


async def _all_serving(
    nodes: Sequence[TrialNode], timeout_seconds: float, progress: Callable[[TrialNode, Status], object]
) -> list[Volume]:
    found = await asyncio.gather(
        *(_until_serving(node, timeout_seconds, progress) for node in nodes), return_exceptions=True
    )
    volumes, failures = list[Volume](), list[str]()
    for each in found:
        if isinstance(each, Unavailable):
            failures.append(each.message)
        elif isinstance(each, BaseException):
            raise each
        else:
            volumes += each
    if failures:
        raise Unavailable("\n".join(failures))
    return volumes


async def _until_serving(
    node: TrialNode, timeout_seconds: float, progress: Callable[[TrialNode, Status], object]
) -> list[Volume]:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if not _alive(node):
            raise Unavailable(
                f"the daemon {node.name} ended during its start; the end of {node.log}:\n{last_lines(node.log)}"
            )
        own = await _own_volumes(node, progress) if has_socket(node) else None
        failed = next((one for one in own or [] if one.state is VolumeState.FAILED), None)
        if failed is not None:
            raise Unavailable(
                f"volume {failed.name} cannot be served: {failed.reason} (the daemon keeps running; log: {node.log})"
            )
        if own is not None and all(one.state is VolumeState.SERVING for one in own):
            return own
        await asyncio.sleep(POLL_SECONDS)
    raise Unavailable(
        f"the daemon {node.name} (process {node.pid}) was not ready within {timeout_seconds:g} s; "
        f"the end of {node.log}:\n{last_lines(node.log)}"
    )


async def _own_volumes(node: TrialNode, progress: Callable[[TrialNode, Status], object]) -> list[Volume] | None:
    """The volumes that this daemon owns and is to serve; None while it is not ready to list them."""
    try:
        async with Client(node.control, timeout_seconds=5.0) as client:
            status = await client.status()
            progress(node, status)
            if status.state == NodeState.STARTING:
                return None
            return [
                one
                for one in await client.volumes()
                if one.owner == node.name and one.state is not VolumeState.DELETING
            ]
    except Unavailable:
        return None


def stop(nodes: Sequence[TrialNode], timeout_seconds: float) -> list[TrialNode]:
    """Asks the daemons to end, paused ones as well; returns those that did not in time."""
    return _end(nodes, [signal.SIGTERM, signal.SIGCONT], timeout_seconds)


def kill(nodes: Sequence[TrialNode]) -> None:
    """Ends the daemons as a crash would; returns once they have ended."""
    if left := _end(nodes, [signal.SIGKILL], KILL_SECONDS):
        pid = left[0].pid
        raise IomeshError(f"process {pid} survives SIGKILL: it hangs in the kernel; see /proc/{pid}/stack")


def pause(node: TrialNode, metadata: Path) -> None:
    """Stops the daemon's threads (SIGSTOP); returns once none of them runs. It is not stopped while it writes to the
    metadata: the others would wait for its lock, which they would not if the metadata were a service of its own."""
    with _opened(node) as pidfd:
        while pidfd is not None:
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            _wait_for_threads(node, paused=True)
            if not node.alive or not _is_locked(metadata):
                return
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            time.sleep(random.uniform(0, 2 * POLL_SECONDS))


def resume(node: TrialNode) -> None:
    """Lets a paused daemon run again (SIGCONT)."""
    with _opened(node) as pidfd:
        if pidfd is not None:
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            _wait_for_threads(node, paused=False)


def has_socket(node: TrialNode) -> bool:
    return Path(node.control).is_socket()


def last_lines(log: Path) -> str:
    try:
        return (
            "\n".join("  " + line for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:]) or "  (empty)"
        )
    except FileNotFoundError:
        return "  (there is none)"


def _alive(node: TrialNode) -> bool:
    """Also reaps the process if it is a child of this one."""
    process = node.process
    if process is not None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
    return node.alive


@contextlib.contextmanager
def _opened(node: TrialNode) -> Iterator[int | None]:
    """A pidfd of the node's daemon, so that the process that was checked is the one that is signalled. None: it does
    not run."""
    process = node.process
    try:
        pidfd = os.pidfd_open(process.pid) if process is not None else None
    except ProcessLookupError:
        pidfd = None
    if pidfd is None:
        yield None
        return
    try:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            yield pidfd if node.alive else None
    finally:
        os.close(pidfd)


def _end(nodes: Sequence[TrialNode], signals: list[signal.Signals], timeout_seconds: float) -> list[TrialNode]:
    """Sends the signals to all, then waits for all; returns those that did not end in time."""
    with contextlib.ExitStack() as opened:
        waiting = dict[int, TrialNode]()
        for node in nodes:
            pidfd = opened.enter_context(_opened(node))
            if pidfd is not None:
                waiting[pidfd] = node
                for number in signals:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, number)
        deadline = time.monotonic() + timeout_seconds
        while waiting:
            ended, _, _ = select.select(list(waiting), [], [], max(0.0, deadline - time.monotonic()))
            if not ended:
                break
            for pidfd in ended:
                _alive(waiting.pop(pidfd))
        return list(waiting.values())


def _is_locked(metadata: Path) -> bool:
    """Whether no other process can write to the metadata for LOCK_SECONDS."""
    if not metadata.exists():
        return False
    with contextlib.closing(sqlite3.connect(metadata, timeout=LOCK_SECONDS, isolation_level=None)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        database.execute("ROLLBACK")
        return False


def _wait_for_threads(node: TrialNode, *, paused: bool) -> None:
    """Until all of the daemon's threads are stopped, or none is. Raises Unavailable."""
    deadline = time.monotonic() + PAUSE_SECONDS
    while node.alive and any(state != paused for state in _threads_stopped(node)):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the daemon {node.name} (process {node.pid}) was not {'paused' if paused else 'resumed'} within "
                f"{PAUSE_SECONDS:g} s: /proc/{node.pid}/task shows its threads"
            )
        time.sleep(POLL_SECONDS)


def _threads_stopped(node: TrialNode) -> list[bool]:
    """Of each thread of the daemon, whether it is stopped."""
    found = []
    for thread in Path(f"/proc/{node.pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(thread.read_text().rpartition(")")[2].split()[0] == "T")
    return found
