"""What the driver is told at its start (`iomesh csi serve`)."""

from __future__ import annotations

from typing import Literal

import msgspec

Mode = Literal["controller", "node", "both"]
DRIVER = "csi.iomesh.dev"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    socket: str
    mode: Mode
    addresses: list[str]  # of control APIs; of a node: its own daemon's first
    certificates: str = ""  # a directory, for addresses at host:port; empty: none
    state_dir: str
    driver: str = DRIVER
    registration_dir: str = ""  # the kubelet's plugins_registry; empty: no kubelet
    registered_socket: str = ""  # as the kubelet sees it; empty: the same path
    health_listen: str = ""  # host:port; empty: none
    volumes_max: int = 0  # of a node; 0: no limit
    retry_seconds: int = 300
    attach_status: str = ""  # a file; empty: none
    attach_server: str = ""  # its socket; empty: the driver starts what serves an attached volume itself
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"


class AttachServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    state_dir: str
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"


class AttachStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the file `attach_status` says."""

    attach: str  # the method
    reason: str = ""  # why no better one, or none
