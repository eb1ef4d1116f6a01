"""From an export to a block device of this node. One interface, several methods; the node's kernel decides which.

Always so: `attach` and `detach` can be repeated after a crash at any line, and leave a device that works, or nothing.
An attached device outlives the driver.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from iomesh.csi.attach.record import Attachment


class Attacher(Protocol):
    name: str  # as the node's status shows it

    def lacking(self) -> str:
        """Why this node cannot attach in this way; empty: it can."""

    def device(self, volume_id: str) -> Path | None:
        """The volume's block device, if it is attached; it may have failed."""

    def present(self, volume_id: str) -> bool:
        """Whether anything of it is left on this node."""

    def failed(self, volume_id: str) -> bool:
        """Whether something of it is left that will never work again, because a process of it has ended."""

    async def attach(self, attachment: Attachment, uri: str, size_bytes: int) -> Path:
        """Returns the device, of that size. What has failed is detached first."""

    async def resize(self, volume_id: str, size_bytes: int) -> Path:
        """Of an attached volume, which has that size already. Returns its device."""

    async def detach(self, volume_id: str) -> None:
        """Nothing may use the device. Nothing is left afterwards."""
