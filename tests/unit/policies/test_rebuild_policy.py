"""The rebuild policy chooses sources and targets so that copies end up on different nodes, where there is space."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from iomesh.engine.engine import COPIES_ROW
from iomesh.policies.rebuild import BLOCK_BYTES, CopyProgress, CopyState, Devices, Drop, Rebuild, plan

NODES = {1: "a", 2: "b", 3: "b", 4: "c", 5: "d"}
BLOCKS = 256
BYTES = BLOCKS * BLOCK_BYTES
WORKS, SILENT, FAILED, LEAVING = CopyState.WORKS, CopyState.SILENT, CopyState.FAILED, CopyState.LEAVING


def rows(*segments: dict[int, CopyState], progress: CopyProgress = CopyProgress.SETTLED) -> NDArray[Any]:
    """Segments 1, 2, ... with the states of their copies by device."""
    found = np.zeros(len(segments), COPIES_ROW)
    for row, copies in zip(found, segments, strict=True):
        row["blocks"], row["progress"] = BLOCKS, progress
        for at, (device, state) in enumerate(copies.items()):
            row["devices"][at], row["states"][at] = device, state
    found["segment"] = range(1, len(segments) + 1)
    return found


def devices(free: dict[int, int] | None = None, unsuitable: tuple[int, ...] = ()) -> Devices:
    return Devices(free or {2: 10 * BYTES, 3: 9 * BYTES, 4: 8 * BYTES, 5: 7 * BYTES}, NODES.__getitem__, unsuitable)


def never(device: int) -> bool:
    return False


def test_a_missing_copy_is_made_on_the_emptiest_device_of_a_node_without_one() -> None:
    found = plan(rows({1: WORKS, 2: FAILED}), 2, devices(), never)
    assert found.rebuilds == [Rebuild(1, 1, BYTES, source=1, target=2)], "node b has none that works"
    found = plan(rows({1: WORKS, 2: WORKS}), 3, devices(), never)
    assert found.rebuilds == [Rebuild(1, 2, BYTES, source=1, target=4)], "not on device 3, beside the copy on device 2"
    assert (found.exposed_segments, found.exposed_bytes) == (1, BYTES)


def test_the_most_exposed_segments_come_first() -> None:
    found = plan(rows({1: WORKS, 4: WORKS}, {1: WORKS}, {1: WORKS, 5: WORKS}), 3, devices(), never)
    assert [each.segment for each in found.rebuilds] == [2, 2, 1, 3]
    assert found.exposed_bytes == 4 * BYTES


def test_sources_and_space_are_shared_out() -> None:
    found = plan(rows(*[{1: WORKS, 2: WORKS}] * 6), 3, devices({4: 3 * BYTES + 1, 5: 3 * BYTES + 1}), never)
    assert sorted(each.source for each in found.rebuilds) == [1, 1, 1, 2, 2, 2]
    assert sorted(each.target for each in found.rebuilds) == [4, 4, 4, 5, 5, 5]


def test_a_device_that_may_come_back_is_waited_for() -> None:
    found = plan(rows({1: WORKS, 2: SILENT}), 2, devices(), lambda device: device == 2)
    assert (found.rebuilds, found.awaited, found.exposed_segments) == ([], 1, 1)
    found = plan(rows({1: WORKS, 2: SILENT}), 3, devices(), lambda device: device == 2)
    assert [each.target for each in found.rebuilds] == [4], "one copy is missing besides, and node b counts"
    assert plan(rows({1: WORKS, 2: SILENT}), 2, devices(), never).rebuilds[0].target == 2


def test_without_a_device_there_is_a_reason() -> None:
    found = plan(rows({1: WORKS}), 2, devices({4: BYTES}), never)
    assert (found.rebuilds, found.homeless) == ([], 1), "the space must be more than the copy takes"
    found = plan(rows({1: WORKS}), 2, devices(unsuitable=(2, 3, 4, 5)), never)
    assert (found.rebuilds, found.homeless) == ([], 1)


def test_a_segment_behind_the_checkpoint_waits_for_the_next_one() -> None:
    found = plan(rows({1: WORKS}, progress=CopyProgress.NEEDED), 2, devices(), never)
    assert (found.rebuilds, found.unsettled, found.exposed_segments) == ([], 1, 1)
    found = plan(rows({1: WORKS}, progress=CopyProgress.WRITTEN), 2, devices(), never)
    assert (found.rebuilds, found.unsettled, found.written, found.exposed_segments) == ([], 0, 1, 1)


def test_copies_that_are_too_many_are_dropped_but_never_the_owners() -> None:
    assert plan(rows({1: WORKS, 2: WORKS, 4: WORKS}), 2, devices(), never).drops == [Drop(1, 4)], "the fuller one"
    assert plan(rows({1: WORKS, 2: WORKS, 4: WORKS}), 2, devices(unsuitable=(2,)), never).drops == [Drop(1, 2)]
    assert plan(rows({1: WORKS, 2: WORKS, 4: SILENT}), 2, devices(), never).drops == []


def test_a_copy_on_a_drained_device_is_made_elsewhere_and_then_dropped() -> None:
    found = plan(rows({1: WORKS, 2: LEAVING}), 2, devices(unsuitable=(2, 3)), never)
    assert [(each.target, each.source) for each in found.rebuilds] == [(4, 1)]
    assert (found.exposed_bytes, found.moving_bytes, found.drops) == (0, BYTES, []), "two copies work"
    found = plan(rows({1: WORKS, 2: LEAVING, 4: WORKS}), 2, devices(unsuitable=(2, 3)), never)
    assert (found.rebuilds, found.drops) == ([], [Drop(1, 2)])


def test_the_owner_of_a_drained_node_has_copies_made_and_keeps_its_own() -> None:
    found = plan(rows({1: LEAVING, 2: WORKS}), 2, devices(unsuitable=(1,)), never)
    assert [each.target for each in found.rebuilds] == [4]
    found = plan(rows({1: LEAVING, 2: WORKS, 4: WORKS}), 2, devices(unsuitable=(1,)), never)
    assert (found.rebuilds, found.drops) == ([], [])
