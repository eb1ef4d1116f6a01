"""Whether the daemon's sockets are free."""

from __future__ import annotations

import socket
from pathlib import Path

from iomesh.errors import IomeshError
from iomesh.node.config import Config, parse_address
from iomesh.node.sockets import claim_unix_socket, listen_error
from iomesh.preflight.findings import Check, failed, ok, skipped
from iomesh.preflight.places import why_unusable


def check_ports(config: Config, *, runs: bool) -> list[Check]:
    """runs: a daemon has them."""
    addresses = {
        "control.listen": config.control.listen,
        "nbd.listen": config.nbd.listen,
        "metrics.listen": config.metrics.listen,
        "peers.listen": config.peers.listen,
    }
    paths = {"control.socket": config.control.socket, "nbd.socket": config.nbd.socket}
    if runs:
        return [
            skipped(key, f"{value}: a daemon runs here and has it")
            for key, value in (paths | addresses).items()
            if value
        ]
    return [
        *(_path(key, path) for key, path in paths.items()),
        *(_address(key, address) for key, address in addresses.items() if address),
    ]


def _path(key: str, path: str) -> Check:
    folder = Path(path).absolute().parent
    if why := why_unusable(folder):
        return failed(key, f"{key}: {path} cannot be made: {why}")
    if not folder.exists():
        return ok(key, f"{path}: the daemon makes the directory")
    try:
        claim_unix_socket(path, key)
    except IomeshError as error:
        return failed(key, error.message)
    return ok(key, f"{path} is free")


def _address(key: str, address: str) -> Check:
    host, port = parse_address(address, key)
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(place)
                listener.listen()
    except OSError as error:
        return failed(key, listen_error(error, f"{key}: {address}").message)
    return ok(key, f"{address} is free")
