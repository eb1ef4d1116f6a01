"""A block device without a volatile write cache whose requests can hang: a loop device over nbdkit's file."""

from pathlib import Path

import pytest

from support.failing import FailingDevice
from support.run import run


class StallingDisk(FailingDevice):
    """Replaces the file `device` by a block device until `remove`. freeze() and thaw() as for a FailingDevice."""

    def __init__(self, device: Path, room: Path) -> None:
        super().__init__(device, room)
        done = run(["losetup", "--show", "-f", "--direct-io=on", self._mount / "disk"], succeeds=False)
        self._loop = done.stdout.strip() if done.returncode == 0 else ""
        if not self._loop:
            self.remove()
            pytest.skip("needs a loop device")
        # The daemon then knows that completed writes are stable.
        Path(f"/sys/block/{Path(self._loop).name}/queue/write_cache").write_text("write through")
        device.unlink()
        device.symlink_to(self._loop)

    def remove(self) -> None:
        self.thaw()
        if self._loop:
            run(["losetup", "-d", self._loop], succeeds=False)
        super().remove()
