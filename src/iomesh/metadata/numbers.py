"""Numbers of devices: a device gets one when it is first attached to its cluster, and no other ever gets it.

One record, `numbers/devices`, has the highest number given, and only grows. A number is taken from it by a
compare-and-swap, and only then written to the device's record and superblock: a crash in between wastes the number.
"""

from __future__ import annotations

import contextlib

from iomesh.errors import Conflict, Unsupported
from iomesh.metadata.protocol import Metadata
from iomesh.metadata.records import DEVICE_NUMBERS_KEY, DeviceNumbersRecord, decode, put_device_numbers

DEVICE_NUMBER_MAX = 2**32 - 1


async def take_device_number(metadata: Metadata) -> int:
    """A number that was never given. Raises Unsupported if none is left; as `decode` does."""
    while True:
        last, version = await _read(metadata)
        if last >= DEVICE_NUMBER_MAX:
            raise Unsupported(f"all {DEVICE_NUMBER_MAX} numbers of devices of this cluster have been given")
        with contextlib.suppress(Conflict):  # another node was first
            await metadata.commit(put_device_numbers(DeviceNumbersRecord(last=last + 1), version))
            return last + 1


async def keep_device_number(metadata: Metadata, number: int) -> None:
    """Ensures that a number which a device has already is not given again: the service may have been restored from an
    older copy. Raises as `decode` does."""
    while True:
        last, version = await _read(metadata)
        if last >= number:
            return
        with contextlib.suppress(Conflict):
            await metadata.commit(put_device_numbers(DeviceNumbersRecord(last=number), version))
            return


async def _read(metadata: Metadata) -> tuple[int, int]:
    """The highest number given, and the record's version."""
    entry = await metadata.get(DEVICE_NUMBERS_KEY)
    if entry is None:
        return 0, 0
    record, version = decode(DeviceNumbersRecord, entry)
    return record.last, version
