"""Numbers of devices: each is given once, whoever asks at the same time and whatever is answered."""

import asyncio

import pytest

from iomesh.errors import Unsupported
from iomesh.metadata import Metadata, MetadataUnavailable
from iomesh.metadata.numbers import DEVICE_NUMBER_MAX, keep_device_number, take_device_number
from support.faulty_metadata import Fault, FaultyMetadata


async def test_numbers_taken_at_once_are_all_different_and_leave_no_gap(metadata: Metadata) -> None:
    taken = await asyncio.gather(*(take_device_number(metadata) for _ in range(20)))
    assert sorted(taken) == list(range(1, 21))


@pytest.mark.parametrize("fault", Fault)
async def test_a_number_whose_outcome_is_unknown_is_wasted_or_free_but_never_given_twice(
    metadata: Metadata, fault: Fault
) -> None:
    faulty = FaultyMetadata(metadata)
    assert await take_device_number(faulty) == 1
    faulty.faults = [fault]
    with pytest.raises(MetadataUnavailable):
        await take_device_number(faulty)
    assert await take_device_number(faulty) == (3 if fault is Fault.DONE else 2)


async def test_a_number_that_a_device_has_already_is_not_given_again(metadata: Metadata) -> None:
    await asyncio.gather(keep_device_number(metadata, 7), keep_device_number(metadata, 9))
    await keep_device_number(metadata, 3)
    assert await take_device_number(metadata) == 10


async def test_when_all_have_been_given_it_says_so(metadata: Metadata) -> None:
    await keep_device_number(metadata, DEVICE_NUMBER_MAX)
    with pytest.raises(Unsupported, match="all 4294967295 numbers of devices"):
        await take_device_number(metadata)
