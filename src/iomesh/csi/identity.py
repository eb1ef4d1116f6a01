"""The service Identity: which driver this is, and what it can do."""

from __future__ import annotations

from importlib.metadata import version

from iomesh.csi import csi_pb2 as pb
from iomesh.csi.cluster import Cluster
from iomesh.errors import Unavailable

_Service = pb.PluginCapability.Service
_Expansion = pb.PluginCapability.VolumeExpansion


class Identity:
    def __init__(self, driver: str, cluster: Cluster, *, controller: bool) -> None:
        self._driver = driver
        self._cluster = cluster
        self._controller = controller

    async def get_plugin_info(self, request: pb.GetPluginInfoRequest) -> pb.GetPluginInfoResponse:
        return pb.GetPluginInfoResponse(name=self._driver, vendor_version=version("iomesh"))

    async def get_plugin_capabilities(
        self, request: pb.GetPluginCapabilitiesRequest
    ) -> pb.GetPluginCapabilitiesResponse:
        """Topology only says where a volume is best made: each is accessible from all nodes."""
        services = [_Service.VOLUME_ACCESSIBILITY_CONSTRAINTS]
        if self._controller:
            services += [_Service.CONTROLLER_SERVICE, _Service.GROUP_CONTROLLER_SERVICE]
        found = [pb.PluginCapability(service=_Service(type=each)) for each in services]
        found.append(pb.PluginCapability(volume_expansion=_Expansion(type=_Expansion.ONLINE)))
        return pb.GetPluginCapabilitiesResponse(capabilities=found)

    async def probe(self, request: pb.ProbeRequest) -> pb.ProbeResponse:
        """Ready as long as a daemon answers."""
        answer = pb.ProbeResponse()
        try:
            async with self._cluster.connect():
                answer.ready.value = True
        except Unavailable:
            answer.ready.value = False
        return answer
