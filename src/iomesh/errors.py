"""All errors that a user of iomesh can get, and the one table of their external codes: a gRPC code and an exit code.

A message names the object, the reason and, where there is one, the remedy: it is printed as it is, without a traceback.
An exception that is not an IomeshError is a bug, and is shown as one.
"""

from __future__ import annotations

import errno
from typing import NamedTuple


class IomeshError(Exception):
    """Base of all errors of the world. Raised itself only where no subclass fits."""

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class InvalidArgument(IomeshError):
    """The request is invalid: an impossible size, a name with a slash."""


class ConfigError(InvalidArgument):
    """The configuration file or a flag is wrong."""


class NotFound(IomeshError):
    """The volume, device or path does not exist."""


class AlreadyExists(IomeshError):
    """Something different has the name already."""


class InUse(IomeshError):
    """It is held: a device by another daemon, a volume by a client, a socket path by a live process."""


class Foreign(IomeshError):
    """A device's contents must not be touched: a filesystem, another cluster's data, anything but iomesh's."""


class Damaged(IomeshError):
    """Data on a device fails its checks."""


class NoSpace(IomeshError):
    """There is not enough free space."""


class DeviceFailed(IomeshError):
    """A device returned an I/O error."""


class Unavailable(IomeshError):
    """No answer at that address, or not yet."""


class Unreachable(Unavailable):
    """No process listens at the address of a daemon's control API."""

    def __init__(self, message: str, *, address: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.address = address
        self.reason = reason  # the system's message


class Unsupported(IomeshError):
    """This machine, kernel or version does not support it; the message names the requirement."""


class Conflict(IomeshError):
    """It was changed concurrently; it has to be read again."""


class PermissionDenied(IomeshError):
    """The operating system denies access."""


class Meaning(NamedTuple):
    grpc_code: str  # name of a grpc.StatusCode
    exit_code: int  # of a command that ends with it; documented in docs/api.md


MEANINGS: dict[type[IomeshError], Meaning] = {
    IomeshError: Meaning("INTERNAL", 1),
    InvalidArgument: Meaning("INVALID_ARGUMENT", 2),
    ConfigError: Meaning("INVALID_ARGUMENT", 2),
    NotFound: Meaning("NOT_FOUND", 3),
    AlreadyExists: Meaning("ALREADY_EXISTS", 4),
    InUse: Meaning("FAILED_PRECONDITION", 5),
    Foreign: Meaning("FAILED_PRECONDITION", 6),
    Damaged: Meaning("DATA_LOSS", 7),
    NoSpace: Meaning("RESOURCE_EXHAUSTED", 8),
    Unavailable: Meaning("UNAVAILABLE", 9),
    Unsupported: Meaning("UNIMPLEMENTED", 10),
    Conflict: Meaning("ABORTED", 11),
    DeviceFailed: Meaning("INTERNAL", 12),
    PermissionDenied: Meaning("PERMISSION_DENIED", 13),
}

_BY_ERRNO: dict[int, type[IomeshError]] = {
    errno.EINVAL: InvalidArgument,
    errno.ENOENT: NotFound,
    errno.ENODEV: NotFound,
    errno.ENXIO: NotFound,
    errno.ENOTDIR: NotFound,
    errno.EEXIST: AlreadyExists,
    errno.EBUSY: InUse,
    errno.EMEDIUMTYPE: Foreign,
    errno.EUCLEAN: Damaged,
    errno.ENOSPC: NoSpace,
    errno.EIO: DeviceFailed,
    errno.EPROTONOSUPPORT: Unsupported,
    errno.EOPNOTSUPP: Unsupported,
    errno.ENOSYS: Unsupported,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.ESHUTDOWN: Unavailable,
    errno.ESTALE: Conflict,
}


def meaning(error: BaseException) -> Meaning:
    """The codes of an exception. One that is not an IomeshError is a bug: INTERNAL, exit code 1."""
    return next((MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS), MEANINGS[IomeshError])


def from_errno(number: int, message: str) -> IomeshError:
    """The error for an errno of the engine or the operating system."""
    return _BY_ERRNO.get(abs(number), IomeshError)(message)


def from_wire(kind: str, grpc_code: str, message: str) -> IomeshError:
    """The error that a node sent: by the name of its class, or, if a newer node sent an unknown class, by its gRPC
    code."""
    for error in MEANINGS:
        if error.__name__ == kind:
            return error(message)
    for error, (code, _) in MEANINGS.items():
        if code == grpc_code:
            return error(message)
    return Unavailable(message) if grpc_code in ("DEADLINE_EXCEEDED", "CANCELLED") else IomeshError(message)
