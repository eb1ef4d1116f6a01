"""Every error that a user of iomesh can meet, and the one table of what each means outside: a gRPC code and an exit code.

A message names the thing, says the reason and, where there is one, the remedy: it is printed as it is, without a traceback. What is
not an IomeshError is a bug, and is shown as one.
"""

from __future__ import annotations

import errno
from typing import NamedTuple


class IomeshError(Exception):
    """Base of all errors of the world. Raised itself only for what has no better name."""

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class InvalidArgument(IomeshError):
    """What was asked for makes no sense: a size that is none, a name with a slash."""


class ConfigError(InvalidArgument):
    """The configuration file or a flag is wrong."""


class NotFound(IomeshError):
    """There is no such volume, device or path."""


class AlreadyExists(IomeshError):
    """The name is taken by something different."""


class InUse(IomeshError):
    """Somebody holds it: another daemon a device, a client a volume, a live process a socket path."""


class Foreign(IomeshError):
    """A device holds something that is not ours to touch: a filesystem, another cluster's data, nothing of iomesh at all."""


class Damaged(IomeshError):
    """What is on a device fails its checks."""


class NoSpace(IomeshError):
    """Nothing is free for it."""


class DeviceFailed(IomeshError):
    """A device answered with an I/O error."""


class Unavailable(IomeshError):
    """Nobody answers at that address, or not yet."""


class Unreachable(Unavailable):
    """No process listens at the address of a daemon's control API."""

    def __init__(self, message: str, *, address: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.address = address
        self.reason = reason  # what the system says of it


class Unsupported(IomeshError):
    """This machine, kernel or version cannot do it; the message says what is needed."""


class Conflict(IomeshError):
    """Somebody else changed it first; what was read has to be read again."""


class PermissionDenied(IomeshError):
    """The operating system does not let us."""


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
    """What an exception means outside. One that is not ours is a bug: INTERNAL, exit code 1."""
    return next((MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS), MEANINGS[IomeshError])


def from_errno(number: int, message: str) -> IomeshError:
    """The error for an errno of the engine or the operating system."""
    return _BY_ERRNO.get(abs(number), IomeshError)(message)


def from_wire(kind: str, grpc_code: str, message: str) -> IomeshError:
    """The error that a node sent: by the name of its class, or, from a newer node that knows more of them, by its gRPC code."""
    for error in MEANINGS:
        if error.__name__ == kind:
            return error(message)
    for error, (code, _) in MEANINGS.items():
        if code == grpc_code:
            return error(message)
    return Unavailable(message) if grpc_code in ("DEADLINE_EXCEEDED", "CANCELLED") else IomeshError(message)
