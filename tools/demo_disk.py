"""A volume as a local disk with XFS on it: through the kernel's NBD client where available, else nbdfuse and a loop
device.

Each setup step is recorded before the next is tried, so `give_up` can remove any partial setup. `give_up` works when
the server has ended and every I/O fails; that is its purpose.
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
    """The demonstration cannot continue; the message is the reason."""


def run(*words: str | Path, check: bool = True, user: str | None = None, seconds: float = COMMAND_SECONDS) -> str:
    """Runs a program to completion and returns its output. Raises DemoError with its output if it fails."""
    command = [str(word) for word in words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds, user=user, group=user, cwd="/"
        )
    except subprocess.TimeoutExpired:
        if not check:
            return ""
        raise DemoError(f"{' '.join(command)} has not ended within {seconds:g} s") from None
    if check and done.returncode:
        raise DemoError(
            f"{' '.join(command)} failed with status {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}"
        )
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
        # In its own session: Ctrl-C is for the demonstration, which then unmounts first.
        self.nbdfuse = subprocess.Popen(
            ["nbdfuse", "-C", "4", str(file), self.uri],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        wait_for(
            file.exists,
            "nbdfuse shows the volume as a file",
            lambda: self.nbdfuse is None or self.nbdfuse.poll() is None,
        )
        self.device = Path(run("losetup", "--direct-io=on", "--show", "-f", file).strip())
        return self.device

    def make_filesystem(self) -> None:
        assert self.device is not None
        run("mkfs.xfs", "-q", "-f", self.device)

    def mount(self) -> Path:
        assert self.device is not None
        self.mount_point.mkdir(exist_ok=True)
        # A clone has the same UUID as its parent.
        run("mount", "-t", "xfs", "-o", "nouuid", self.device, self.mount_point)
        return self.mount_point

    def unmount(self) -> None:
        """Removes all layers in order, after writing everything back."""
        run("umount", self.mount_point)
        self.detach()

    def give_up(self) -> None:
        """Removes whatever was set up, whether or not I/O works."""
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
    """A free kernel NBD device, if the machine has the driver and nbd-client."""
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
    """Reads the kernel's list: a filesystem that lost its disk may not answer."""
    return any(line.split(" ")[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def wait_for(
    condition: Callable[[], bool], what: str, alive: Callable[[], bool] = lambda: True, seconds: float = 30.0
) -> None:
    """Polls until the condition holds. Raises DemoError after the timeout, or when `alive` turns false."""
    deadline = time.monotonic() + seconds
    while not condition():
        if not alive() or time.monotonic() > deadline:
            raise DemoError(f"waited in vain until {what}")
        time.sleep(0.02)


def end_processes_in(directory: Path) -> None:
    """Kills every process that works in a directory of our own."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(directory):
                os.kill(int(entry.name), signal.SIGKILL)
