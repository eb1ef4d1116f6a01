"""The CSI driver as a process, called as Kubernetes calls it; and what it may have left behind on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from iomesh.api.client import Client
from iomesh.api.model import Volume
from iomesh.csi import csi_pb2 as pb
from iomesh.csi import hooks
from iomesh.csi.attach.netlink import NbdFamily
from iomesh.csi.mounts import mounts
from support.run import end, eventually, run
from support.trial import iomesh_command

GIB = 1 << 30
_Mode = pb.VolumeCapability.AccessMode
_METHODS = {
    name: (service.full_name, method)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for name, method in service.methods_by_name.items()
}


class Refused(Exception):
    """The driver's error: its gRPC code and message."""

    def __init__(self, call: str, code: str, message: str) -> None:
        super().__init__(f"{call}: {code}: {message}")
        self.code = code
        self.message = message


class Driver:
    """controls: the addresses of the daemons, that of its own node first."""

    def __init__(self, folder: Path, controls: Sequence[str], *options: str) -> None:
        self.folder = folder
        self.socket = folder / "csi.sock"
        self.log = folder / "driver.log"
        self.kills = folder / "kills"  # the points at which the driver is still to be killed
        self.restarts = 0
        self._controls = controls
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None
        folder.mkdir()
        self.kills.touch()

    def start(self) -> None:
        addresses = [word for control in self._controls for word in ("--address", control)]
        command = [iomesh_command(), "csi", "serve", "--endpoint", str(self.socket), "--log-level", "debug"]
        command += ["--state-dir", str(self.folder / "state"), *addresses, *self._options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {hooks.VARIABLE: str(self.kills)}
            )
        self._channel = grpc.insecure_channel(f"unix:{self.socket}", options=[("grpc.use_local_subchannel_pool", 1)])
        grpc.channel_ready_future(self._channel).result(timeout=120)

    def kill(self) -> None:
        """SIGKILL; attached volumes stay."""
        assert self._process is not None
        end(self._process.pid)
        self._process.wait()

    def stop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=120)

    def call(self, name: str, request: Message) -> Any:
        """One call, and no repetition. Raises Refused."""
        assert self._channel is not None
        service, method = _METHODS[name]
        call = self._channel.unary_unary(
            f"/{service}/{name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        try:
            return call(request, timeout=300)
        except grpc.RpcError as error:
            raise Refused(name, error.code().name, error.details() or "") from None

    def until_done(self, name: str, request: Message) -> Any:
        """As Kubernetes calls: a driver that was killed is started again, and the call is repeated until it succeeds or
        fails for good."""
        for _ in range(100):
            try:
                return self.call(name, request)
            except Refused as refused:
                assert self._process is not None
                if refused.code == "UNAVAILABLE":
                    eventually(lambda: self.ended() or self._answers(), what="the driver ends or answers")
                if self.ended():
                    self.restarts += 1
                    self.start()
                elif refused.code not in ("ABORTED", "UNAVAILABLE"):
                    raise
                time.sleep(0.05)
        raise AssertionError(f"{name} does not succeed")

    def ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def health_address(self) -> str:
        """Where it serves its health, which its log says."""
        return self._logged("health")

    @property
    def method(self) -> str:
        """How it attaches volumes: nbd or nbdfuse, by this machine's kernel."""
        return self._logged("method")

    def _logged(self, word: str) -> str:
        lines = [line for line in self.log.read_text().splitlines() if f'"{word}"' in line]
        return str(json.loads(lines[-1])[word])

    def _answers(self) -> bool:
        try:
            self.call("GetPluginInfo", pb.GetPluginInfoRequest())
        except Refused:
            return False
        return True

    # what a test often does

    def create(self, name: str, size: int = GIB, **fields: Any) -> pb.Volume:
        fields = {"volume_capabilities": [mounted()], **fields}
        asked = pb.CreateVolumeRequest(name=name, capacity_range=pb.CapacityRange(required_bytes=size), **fields)
        volume: pb.Volume = self.until_done("CreateVolume", asked).volume
        return volume

    def delete(self, volume_id: str) -> None:
        self.until_done("DeleteVolume", pb.DeleteVolumeRequest(volume_id=volume_id))

    def snapshot(self, volume_id: str, name: str) -> pb.Snapshot:
        made: pb.Snapshot = self.until_done(
            "CreateSnapshot", pb.CreateSnapshotRequest(source_volume_id=volume_id, name=name)
        ).snapshot
        return made

    def delete_snapshot(self, snapshot_id: str) -> None:
        self.until_done("DeleteSnapshot", pb.DeleteSnapshotRequest(snapshot_id=snapshot_id))

    def staging(self, volume_id: str) -> Path:
        return self.folder / f"staged-{volume_id}"

    def target(self, volume_id: str, pod: str = "pod") -> Path:
        return self.folder / "pods" / f"{pod}-{volume_id}"

    def stage_request(
        self, volume: pb.Volume, capability: pb.VolumeCapability | None = None
    ) -> pb.NodeStageVolumeRequest:
        return pb.NodeStageVolumeRequest(
            volume_id=volume.volume_id,
            staging_target_path=str(self.staging(volume.volume_id)),
            volume_capability=capability or mounted(),
            volume_context=volume.volume_context,
        )

    def stage(self, volume: pb.Volume, capability: pb.VolumeCapability | None = None) -> Path:
        self.until_done("NodeStageVolume", self.stage_request(volume, capability))
        return self.staging(volume.volume_id)

    def publish(
        self,
        volume: pb.Volume,
        capability: pb.VolumeCapability | None = None,
        *,
        pod: str = "pod",
        readonly: bool = False,
    ) -> Path:
        asked = pb.NodePublishVolumeRequest(
            volume_id=volume.volume_id,
            staging_target_path=str(self.staging(volume.volume_id)),
            target_path=str(self.target(volume.volume_id, pod)),
            volume_capability=capability or mounted(),
            readonly=readonly,
        )
        self.until_done("NodePublishVolume", asked)
        return self.target(volume.volume_id, pod)

    def unpublish(self, volume_id: str, *, pod: str = "pod") -> None:
        asked = pb.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(self.target(volume_id, pod)))
        self.until_done("NodeUnpublishVolume", asked)

    def unstage(self, volume_id: str) -> None:
        asked = pb.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=str(self.staging(volume_id)))
        self.until_done("NodeUnstageVolume", asked)

    def expand(self, volume_id: str, size: int, *, pod: str = "pod", block: bool = False) -> None:
        """In the controller, then on the node, while it is in use."""
        wanted = pb.CapacityRange(required_bytes=size)
        asked = pb.ControllerExpandVolumeRequest(volume_id=volume_id, capacity_range=wanted)
        grown = self.until_done("ControllerExpandVolume", asked)
        assert grown.capacity_bytes >= size and grown.node_expansion_required
        path = str(self.target(volume_id, pod))
        self.until_done(
            "NodeExpandVolume",
            pb.NodeExpandVolumeRequest(
                volume_id=volume_id,
                volume_path=path,
                capacity_range=wanted,
                volume_capability=raw() if block else mounted(),
            ),
        )

    def described(self, volume_id: str) -> Volume:
        async def ask() -> Volume:
            async with Client(self._controls[0]) as node:
                return await node.volume(volume_id)

        return asyncio.run(ask())

    def owner_of(self, volume_id: str) -> str:
        return self.described(volume_id).owner

    def remains(self) -> list[str]:
        """What it has left on this machine: mounts, loop devices, processes, records."""
        place = str(self.folder.resolve())
        found = [f"mount {each.point}" for each in mounts() if each.point.startswith(place)]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                if place in backing.read_text():
                    found.append(f"loop device {backing.parts[3]}")
            except OSError:
                continue  # detached meanwhile
        found += [f"NBD device {each}" for each in self._nbd_devices()]
        found += [f"process {pid}" for pid in processes(place)]
        return found + [f"record {each}" for each in (self.folder / "state").glob("volumes/*")]

    def _nbd_devices(self) -> list[int]:
        instance = self.folder / "state" / "instance"
        mine = f"iomesh:{instance.read_text()}:" if instance.exists() else "none"
        files = [each for each in Path("/sys/block").glob("nbd*/backend") if each.read_text().startswith(mine)]
        return [int(each.parent.name.removeprefix("nbd")) for each in files]

    def clear(self) -> None:
        """Ends what a failed test has left."""
        place = str(self.folder.resolve())
        for index in self._nbd_devices():
            with NbdFamily() as family:
                family.disconnect(index)
        for each in reversed([each for each in mounts() if each.point.startswith(place)]):
            if not each.point.endswith("/fuse"):
                run(["umount", "-l", each.point], succeeds=False)
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            if place in backing.read_text():
                run(["losetup", "-d", f"/dev/{backing.parts[3]}"], succeeds=False)
        for each in reversed([each for each in mounts() if each.point.startswith(place)]):
            run(["umount", "-l", each.point], succeeds=False)


async def exports_of(controls: Iterable[str]) -> list[str]:
    """The names of exported volumes of all these daemons."""
    found = []
    for control in controls:
        async with Client(control) as node:
            found += [each.name for each in await node.volumes() if each.exports]
    return found


def exported(controls: Iterable[str]) -> list[str]:
    return asyncio.run(exports_of(controls))


def mounted(
    mode: pb.VolumeCapability.AccessMode.Mode.ValueType = _Mode.SINGLE_NODE_MULTI_WRITER, fs_type: str = ""
) -> pb.VolumeCapability:
    mount = pb.VolumeCapability.MountVolume(fs_type=fs_type)
    return pb.VolumeCapability(mount=mount, access_mode=_Mode(mode=mode))


def raw(
    mode: pb.VolumeCapability.AccessMode.Mode.ValueType = _Mode.SINGLE_NODE_MULTI_WRITER,
) -> pb.VolumeCapability:
    return pb.VolumeCapability(block=pb.VolumeCapability.BlockVolume(), access_mode=_Mode(mode=mode))


def from_snapshot(snapshot_id: str) -> pb.VolumeContentSource:
    return pb.VolumeContentSource(snapshot=pb.VolumeContentSource.SnapshotSource(snapshot_id=snapshot_id))


def from_volume(volume_id: str) -> pb.VolumeContentSource:
    return pb.VolumeContentSource(volume=pb.VolumeContentSource.VolumeSource(volume_id=volume_id))


def processes(place: str) -> list[int]:
    """Whose command line names this folder, without drivers and attach servers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if place in words and "csi serve" not in words and "csi attach-server" not in words:
                found.append(int(entry.name))
    return found
