"""Tells systemd, or whatever stands in for it, how far the daemon is: sd_notify(3). Without NOTIFY_SOCKET nothing is sent."""

from __future__ import annotations

import os
import socket


def notify(*assignments: str) -> bool:
    """Sends assignments such as "READY=1", "STATUS=recovering volumes". False if nobody wanted to know."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or address[0] not in "/@":
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto("\n".join(assignments).encode(), address)
        except OSError:
            return False  # a service manager that is gone is no reason to fail
    return True
