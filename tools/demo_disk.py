"""A volume as a disk of this machine, with XFS on it: by the kernel's NBD client where there is one, else by nbdfuse and a loop device.

Always so: what was set up is remembered before the next thing is tried, so `give_up` can take down any half of it; and `give_up` works when
the server is dead and every I/O fails, because that is what it is for.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

COMMAND_SECONDS = 120


class DemoError(Exception):
    """The demonstration cannot go on; the message says why."""


def run(*words: str | Path, check: bool = True, user: str | None = None, seconds: float = COMMAND_SECONDS) -> str:
    """Runs a program to its end; what it printed. Raises DemoError with its own words."""
    command = [str(word) for word in words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, user=user, group=user, cwd="/")
    except subprocess.TimeoutExpired:
        if not check:
            return ""
        raise DemoError(f"{' '.join(command)} has not ended within {seconds:g} s") from None
    if check and done.returncode:
        raise DemoError(f"{' '.join(command)} failed with status {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


class Disk:
    """The volume behind `uri` as a block device (`attach`) with a filesystem mounted (`mount`)."""

    def __init__(self, uri: str, directory: Path) -> None:
        self.uri = uri
        self.device: Path | None = None
        self.mount_point = directory / "mnt"
        self.fuse = directory / "fuse"
        self.nbdfuse: subprocess.Popen[bytes] | None = None
        self.kernel = False

    @property
    def how(self) -> str:
        return "the kernel's NBD client" if self.kernel else "nbdfuse and a loop device with direct I/O"

    def attach(self) -> Path:
        free = free_nbd_device()
        if free is not None:
            self.kernel, self.device = True, free
            name, _, socket = self.uri.removeprefix("nbd+unix:///").partition("?socket=")
            run("nbd-client", "-unix", socket, free, "-N", name, "-connections", "4")
            return free
        self.fuse.mkdir(exist_ok=True)
        file = self.fuse / "disk"
        # In a session of its own: Ctrl-C is for the demonstration, which then unmounts first.
        self.nbdfuse = subprocess.Popen(
            ["nbdfuse", "-C", "4", str(file), self.uri], start_new_session=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wait_for(file.exists, "nbdfuse shows the volume as a file", lambda: self.nbdfuse is None or self.nbdfuse.poll() is None)
        self.device = Path(run("losetup", "--direct-io=on", "--show", "-f", file).strip())
        return self.device

    def make_filesystem(self) -> None:
        assert self.device is not None
        run("mkfs.xfs", "-q", "-f", self.device)

    def mount(self) -> Path:
        assert self.device is not None
        self.mount_point.mkdir(exist_ok=True)
        run("mount", "-t", "xfs", "-o", "nouuid", self.device, self.mount_point)  # a clone has the UUID of what it is one of
        return self.mount_point

    def unmount(self) -> None:
        """In order, with everything written back."""
        run("umount", self.mount_point)
        self.detach()

    def give_up(self) -> None:
        """Takes down what stands, as far as it stands, whether I/O works or not."""
        if is_mounted(self.mount_point):
            run("umount", self.mount_point, check=False, seconds=30)
        if is_mounted(self.mount_point):
            run("umount", "-l", self.mount_point, check=False, seconds=30)
        self.detach(check=False)

    def detach(self, *, check: bool = True) -> None:
        if self.device is not None:
            words = ("nbd-client",) if self.kernel else ("losetup",)
            run(*words, "-d", self.device, check=check)
            self.device = None
        if self.nbdfuse is not None:
            run("fusermount3", "-u", *([] if check else ["-z"]), self.fuse, check=False)
            try:
                self.nbdfuse.wait(10)
            except subprocess.TimeoutExpired:
                run("fusermount3", "-u", "-z", self.fuse, check=False)
                self.nbdfuse.kill()
                self.nbdfuse.wait()
            if self.nbdfuse.stderr is not None:
                self.nbdfuse.stderr.close()
            self.nbdfuse = None


def free_nbd_device() -> Path | None:
    """A kernel NBD device that nobody uses, if the machine has the driver and nbd-client."""
    if shutil.which("nbd-client") is None:
        return None
    if not Path("/sys/block/nbd0").exists():
        run("modprobe", "nbd", check=False)
    for entry in sorted(Path("/sys/block").glob("nbd*")):
        device = Path("/dev") / entry.name
        if not (entry / "pid").exists() and device.exists():
            return device
    return None


def is_mounted(path: Path) -> bool:
    """As the kernel lists it: a filesystem that lost its disk does not answer when it is asked itself."""
    return any(line.split(" ")[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def wait_for(condition: Callable[[], bool], what: str, alive: Callable[[], bool] = lambda: True, seconds: float = 30.0) -> None:
    """Polls until it holds. Raises DemoError when it does not in time, or who should bring it about has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        if not alive() or time.monotonic() > deadline:
            raise DemoError(f"waited in vain until {what}")
        time.sleep(0.02)


def end_processes_in(directory: Path) -> None:
    """Kills whoever works in a directory that is ours alone."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(directory):
                os.kill(int(entry.name), signal.SIGKILL)
