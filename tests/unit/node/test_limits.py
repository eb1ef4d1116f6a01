"""Segments are cut to the largest device."""

from __future__ import annotations

import pytest

from iomesh.errors import InvalidArgument
from iomesh.node.limits import choose_segment_bytes

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("device", "segment"),
    [
        (64 * MIB, MIB),
        (512 * MIB, MIB),
        (GIB, 2 * MIB),
        (GIB + 4096, 2 * MIB),
        (10 * GIB, 16 * MIB),
        (32 * GIB, 64 * MIB),
        (TIB, 64 * MIB),
    ],
)
def test_a_segment_is_at_most_a_512th_of_the_device_within_what_formats_allow(device: int, segment: int) -> None:
    assert choose_segment_bytes(0, device) == segment


def test_what_was_asked_for_is_taken_if_it_is_a_power_of_two_within_bounds() -> None:
    assert choose_segment_bytes(4 * MIB, GIB) == 4 * MIB
    for wrong in (1, MIB // 2, 3 * MIB, 128 * MIB):
        with pytest.raises(InvalidArgument, match="a power of two from 1Mi to 64Mi"):
            choose_segment_bytes(wrong, GIB)
