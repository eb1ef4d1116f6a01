"""Reports the daemon's progress to systemd or a compatible service manager: sd_notify(3). Without NOTIFY_SOCKET nothing
is sent."""

from __future__ import annotations

import os
import socket


def notify(*assignments: str) -> bool:
    """Sends assignments such as "READY=1", "STATUS=recovering volumes". False if no service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or address[0] not in "/@":
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto("\n".join(assignments).encode(), address)
        except OSError:
            return False  # a missing service manager is no reason to fail
    return True
