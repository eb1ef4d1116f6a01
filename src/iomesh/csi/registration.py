"""Makes the driver known to the kubelet, without a sidecar for it.

The kubelet watches a folder; when a socket appears there, it asks what the plugin is, calls the driver at its own
socket, and reports whether that worked. A kubelet that refuses the driver ends it, so that it is started, and tried,
again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from iomesh.csi import registration_pb2 as pb
from iomesh.csi.server import Server
from iomesh.errors import IomeshError
from iomesh.node.logs import logger

log = logger("registration")

SERVICE = pb.DESCRIPTOR.services_by_name["Registration"]
CSI_VERSION = "1.0.0"  # its major version: the kubelet compares no more


class Registration:
    def __init__(self, folder: Path, driver: str, endpoint: str) -> None:
        """endpoint: the path of the driver's socket as the kubelet sees it."""
        self._driver = driver
        self._endpoint = endpoint
        self._server = Server(str(folder / f"{driver}-reg.sock"), {SERVICE: self})
        self.refused: asyncio.Future[IomeshError] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        """The kubelet deregisters the driver: it starts no pods with its volumes until it is back."""
        await self._server.stop()

    async def get_info(self, request: pb.InfoRequest) -> pb.PluginInfo:
        return pb.PluginInfo(
            type="CSIPlugin", name=self._driver, endpoint=self._endpoint, supported_versions=[CSI_VERSION]
        )

    async def notify_registration_status(self, request: pb.RegistrationStatus) -> pb.RegistrationStatusResponse:
        if request.plugin_registered:
            log.info("registered", driver=self._driver)
        elif not self.refused.done():
            self.refused.set_result(IomeshError(f"the kubelet did not register the driver: {request.error}"))
        return pb.RegistrationStatusResponse()
