"""The node's own certificate is renewed well before it expires, and used without a restart.

The key stays the same, so the certificate is one file, replaced atomically: by this daemon, which has the cluster's
authority, or by `iomesh cluster certificate --renew`. New connections use the new one; those that are open stay.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from iomesh.certificates.authority import expires_at
from iomesh.certificates.files import NODE_CERTIFICATE, Identity, read_identity, renew_node
from iomesh.errors import IomeshError
from iomesh.node.logs import logger
from iomesh.node.supervisor import SupervisedTask, Supervisor, in_thread

if TYPE_CHECKING:
    from iomesh.node.node import Node

log = logger("certificates")
RENEW = datetime.timedelta(days=365)  # before it expires
WARN = datetime.timedelta(days=60)
LOOK_SECONDS = 2.0  # between two looks whether the file is another


class Renewal:
    def __init__(self, node: Node, use: Callable[[Identity], None]) -> None:
        """use: makes new connections use it."""
        self._node = node
        self._use = use
        self._task: SupervisedTask | None = None
        self._reason = ""  # why the last attempt failed

    def start(self, supervisor: Supervisor) -> None:
        if self._node.certificates is not None:
            self._task = supervisor.start("renew the certificate", self._run)

    async def stop(self) -> None:
        if self._task is not None:
            await self._task.stop()
            self._task = None

    @property
    def problem(self) -> str:
        """For users; empty: there is none."""
        found = self._node.certificates
        if found is None or (expires := expires_at(found.certificate.certificate)) - now() > WARN:
            return ""
        verb = "expires" if expires > now() else "expired"
        return (
            f"the certificate of node {found.node} {verb} at {expires:%Y-%m-%dT%H:%M:%SZ}, and other nodes and clients "
            f"refuse it then; it could not be renewed ({self._reason or 'it was not tried yet'}): then run "
            "`iomesh cluster certificate --renew` on this node"
        )

    async def look(self) -> None:
        """Renews the certificate if it is time, and uses one that was renewed."""
        folder = Path(self._node.config.certificates)
        used = self._node.certificates
        assert used is not None
        try:
            if (await in_thread((folder / NODE_CERTIFICATE).read_bytes)) != used.certificate.certificate:
                found = await in_thread(lambda: read_identity(folder))
            elif expires_at(used.certificate.certificate) - now() < RENEW:
                found = await in_thread(lambda: renew_node(folder))
            else:
                return
        except (IomeshError, OSError) as error:
            reason = error.message if isinstance(error, IomeshError) else str(error)
            if reason != self._reason:
                log.warning("certificate not renewed", node=used.node, reason=reason)
            self._reason = reason
            return
        self._reason = ""
        if found.node != used.node or found.cluster != used.cluster:
            return  # the next start refuses it
        self._node.certificates = found
        self._use(found)
        log.info("certificate renewed", node=found.node, expires=str(expires_at(found.certificate.certificate)))

    async def _run(self, task: SupervisedTask) -> None:
        while True:
            await self.look()
            task.progress()
            await asyncio.sleep(LOOK_SECONDS)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
