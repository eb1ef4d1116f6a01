"""A trial's daemon: started in the background, waited for, stopped, killed."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from iomesh.api.client import Client
from iomesh.api.model import NodeState, Volume, VolumeState
from iomesh.cli.trial.installation import Installation, TrialNode, birth
from iomesh.errors import IomeshError, Unavailable

LOG_LINES = 15


def start(trial: Installation, node: TrialNode) -> None:
    """Starts the daemon as a process in a session of its own, appends its output to the log, and records it in the
    marker."""
    with trial.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "iomesh.cli.main", "daemon", "run", "--config", str(trial.config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=trial.directory,
        )
    node.pid, node.born = process.pid, birth(process.pid)
    trial.save()


def wait_until_serving(
    trial: Installation, node: TrialNode, volumes: list[str], timeout_seconds: float
) -> list[Volume]:
    """Waits until the daemon is ready and serves these volumes. Raises Unavailable, with the log's tail, when it dies
    or at the timeout."""
    return asyncio.run(_until_serving(trial, node, volumes, timeout_seconds))


async def _until_serving(
    trial: Installation, node: TrialNode, volumes: list[str], timeout_seconds: float
) -> list[Volume]:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if not _alive(node):
            raise Unavailable(
                f"the daemon {node.name} ended during its start; the end of {trial.log}:\n{last_lines(trial.log)}"
            )
        there = await _volumes(node) if has_socket(node) else None
        wanted = [one for one in there or [] if one.name in volumes]
        failed = next((one for one in wanted if one.state is VolumeState.FAILED), None)
        if failed is not None:
            raise Unavailable(
                f"volume {failed.name} cannot be served: {failed.reason} (the daemon keeps running; log: {trial.log})"
            )
        if (
            there is not None
            and len(wanted) == len(volumes)
            and all(one.state is VolumeState.SERVING for one in wanted)
        ):
            return wanted
        await asyncio.sleep(0.01)
    raise Unavailable(
        f"the daemon {node.name} (process {node.pid}) was not ready within {timeout_seconds:g} s; "
        f"the end of {trial.log}:\n{last_lines(trial.log)}"
    )


async def _volumes(node: TrialNode) -> list[Volume] | None:
    """The daemon's volumes; None while it is not ready to list them."""
    try:
        async with Client(node.control, timeout_seconds=5.0) as client:
            return None if (await client.status()).state == NodeState.STARTING else await client.volumes()
    except Unavailable:
        return None


def stop(node: TrialNode, timeout_seconds: float) -> bool:
    """Asks the daemon to end; returns whether it did in time."""
    return _signal(node, signal.SIGTERM, timeout_seconds)


def kill(node: TrialNode) -> None:
    """Ends the daemon as a crash would; returns once it has ended."""
    if not _signal(node, signal.SIGKILL, 60.0):
        raise IomeshError(f"process {node.pid} survives SIGKILL: it hangs in the kernel; see /proc/{node.pid}/stack")


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
    with contextlib.suppress(ChildProcessError):
        os.waitpid(node.pid, os.WNOHANG)
    return node.alive


def _signal(node: TrialNode, number: signal.Signals, timeout_seconds: float) -> bool:
    """Uses a pidfd: the process that was checked is the one that is signalled."""
    try:
        pidfd = os.pidfd_open(node.pid)
    except ProcessLookupError:
        return True
    try:
        if not node.alive:
            return True
        signal.pidfd_send_signal(pidfd, number)
        ended, _, _ = select.select([pidfd], [], [], timeout_seconds)
        _alive(node)
        return bool(ended)
    except ProcessLookupError:
        return True
    finally:
        os.close(pidfd)
