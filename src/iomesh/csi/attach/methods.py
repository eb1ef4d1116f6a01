"""Which method a node attaches with, and which one each attached volume was attached with: after a change of the kernel
or the driver, volumes in use keep theirs."""

from __future__ import annotations

from pathlib import Path

from iomesh.csi.attach import Attacher
from iomesh.csi.attach.record import Attachment, Records
from iomesh.errors import Unsupported


class Methods:
    """The best method first. The first one that works is chosen, once; the last one if none does."""

    def __init__(self, records: Records, methods: list[Attacher]) -> None:
        self._records = records
        self._methods = {each.name: each for each in methods}
        self._chosen = methods[-1]
        self.reasons: dict[str, str] = {}  # why each better method is not used
        for method in methods:
            if not (lacking := method.lacking()):
                self._chosen = method
                break
            self.reasons[method.name] = lacking

    @property
    def name(self) -> str:
        """Of the chosen one."""
        return self._chosen.name

    def lacking(self) -> str:
        """Why this node cannot attach a volume; empty: it can."""
        reason = self._chosen.lacking()
        better = [f"{name}: {why}" for name, why in self.reasons.items() if name != self.name]
        return "; ".join([f"{self.name}: {reason}", *better]) if reason else ""

    def of(self, volume_id: str) -> Attacher:
        """The method of this volume: its own while anything of it is left on this node, else the chosen one."""
        known = self._records.get(volume_id)
        if known is None:
            return self._chosen
        method = self._methods.get(known.method)
        if method is None:
            raise Unsupported(
                f"volume {volume_id} is attached by {known.method}, which this version of the driver does not know: "
                "run the version that attached it, or restart the node"
            )
        return method if method is self._chosen or method.present(volume_id) else self._chosen

    def device(self, volume_id: str) -> Path | None:
        return self.of(volume_id).device(volume_id)

    def present(self, volume_id: str) -> bool:
        return self.of(volume_id).present(volume_id)

    def failed(self, volume_id: str) -> bool:
        return self.of(volume_id).failed(volume_id)

    async def attach(self, attachment: Attachment, uri: str, size_bytes: int) -> Path:
        return await self._methods[attachment.method].attach(attachment, uri, size_bytes)

    async def resize(self, volume_id: str, size_bytes: int) -> Path:
        return await self.of(volume_id).resize(volume_id, size_bytes)

    async def detach(self, volume_id: str) -> None:
        await self.of(volume_id).detach(volume_id)
