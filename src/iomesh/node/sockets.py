"""Paths of unix sockets: never taken from a live process, always taken over from a dead one."""

from __future__ import annotations

import errno
import socket
import stat
from pathlib import Path

from iomesh.errors import InUse, IomeshError, NotFound, PermissionDenied, from_errno

CONNECT_SECONDS = 2.0


def claim_unix_socket(path: str, key: str) -> None:
    """Makes the path free to bind to, its folder included. Raises InUse if a process listens there or it is something
    else than a socket; `key` is the configuration's, for the message."""
    place = Path(path)
    try:
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return
    except PermissionError:
        raise PermissionDenied(
            f"{key}: {place.parent} cannot be created or accessed: run as root, or set another path"
        ) from None
    except (FileExistsError, NotADirectoryError):
        raise NotFound(f"{key}: {place.parent} is not a directory") from None
    if not stat.S_ISSOCK(mode):
        raise InUse(f"{key}: {path} exists and is not a socket: set another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(CONNECT_SECONDS)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            place.unlink(missing_ok=True)  # the process that bound it has died
            return
        except PermissionError:
            raise PermissionDenied(f"{key}: {path} belongs to another user: set another path, or remove it") from None
        except OSError:
            pass  # a process listens there but is slow
    raise InUse(f"{key}: a process listens on {path} (another iomesh daemon?): stop it, or set another path")


def restrict(path: str) -> None:
    """Restricts connections to the daemon's user and group."""
    Path(path).chmod(0o660)


def release(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def listen_error(error: OSError, what: str) -> IomeshError:
    """Adds the address, which the system's message lacks."""
    if error.errno == errno.EADDRINUSE:
        return InUse(f"{what}: another process listens there: stop it, or set another address")
    return from_errno(error.errno or 0, f"{what}: {error.strerror or error}")
