"""The parameters of a StorageClass, and those of a VolumeAttributesClass, which may be changed later (`window`)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from iomesh.csi import csi_pb2 as pb
from iomesh.csi.filesystems import check_kind
from iomesh.errors import InvalidArgument
from iomesh.times import TimeError, parse_span

KUBERNETES = "csi.storage.k8s.io/"  # added by the sidecars: names of the claim and the volume
REPLICAS, WINDOW, FS_TYPE = "replicas", "window", "fsType"
KNOWN = (REPLICAS, WINDOW, FS_TYPE)
MUTABLE = (WINDOW,)
REPLICAS_MAX = 4


@dataclass(frozen=True)
class Parameters:
    replicas: int | None  # None: not given
    window_seconds: int | None
    fs_type: str  # empty: not given

    @property
    def context(self) -> dict[str, str]:
        """What the node needs of it."""
        return {FS_TYPE: self.fs_type} if self.fs_type else {}


def parse(
    given: Mapping[str, str], mutable: Mapping[str, str], capabilities: list[pb.VolumeCapability] | None = None
) -> Parameters:
    """Raises InvalidArgument for what is unknown, wrong or contradictory."""
    _refuse_unknown(given, KNOWN, "parameter of a StorageClass")
    later = parse_mutable(mutable)
    if WINDOW in given and later is not None and _window(given[WINDOW]) != later:
        raise InvalidArgument(
            f"{WINDOW} is {given[WINDOW]} in the StorageClass and {mutable[WINDOW]} in the VolumeAttributesClass: "
            "give it in one of them"
        )
    fs_type = given.get(FS_TYPE, "")
    if FS_TYPE in given:
        check_kind(fs_type)
        for capability in capabilities or []:
            other = capability.mount.fs_type
            if other and other != fs_type:
                raise InvalidArgument(
                    f"{FS_TYPE} is {fs_type} and {KUBERNETES}fstype is {other} in one StorageClass: give one of them"
                )
    return Parameters(
        replicas=_replicas(given[REPLICAS]) if REPLICAS in given else None,
        window_seconds=_window(given[WINDOW]) if WINDOW in given else later,
        fs_type=fs_type,
    )


def parse_mutable(given: Mapping[str, str]) -> int | None:
    """The seconds of the restore window; None: not given."""
    _refuse_unknown(given, MUTABLE, "parameter of a VolumeAttributesClass")
    return _window(given[WINDOW]) if WINDOW in given else None


def refuse_any(given: Mapping[str, str], what: str) -> None:
    """For classes without parameters. what: "parameter of a VolumeSnapshotClass"."""
    _refuse_unknown(given, (), what)


def _refuse_unknown(given: Mapping[str, str], known: tuple[str, ...], what: str) -> None:
    for name in given:
        if name in known or name.startswith(KUBERNETES):
            continue
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}" if known else "there is none"
        raise InvalidArgument(f"{name!r} is no {what}: {hint}")


def _replicas(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= REPLICAS_MAX:
        return int(text)
    raise InvalidArgument(f"{REPLICAS} is {text!r}: write a number from 1 to {REPLICAS_MAX}")


def _window(text: str) -> int:
    try:
        return parse_span(text)
    except TimeError as error:
        raise InvalidArgument(f"{WINDOW}: {error}") from None
