"""Which marks of its restore window a clone that is being flattened gives up."""

from typing import Any

from iomesh.node.flattening import up_to_inheriting


def restore_points(*inherited: int) -> list[dict[str, Any]]:
    return [{"id": number, "inherited_blocks": blocks} for number, blocks in enumerate(inherited)]


def test_marks_go_up_to_the_newest_that_inherits() -> None:
    """One that does not may be older than one that does, when the volume went back to a snapshot in between."""
    assert up_to_inheriting([]) == up_to_inheriting(restore_points(0, 0)) == []
    assert [each["id"] for each in up_to_inheriting(restore_points(7, 0, 5, 0))] == [0, 1, 2]
    assert [each["id"] for each in up_to_inheriting(restore_points(0, 5))] == [0, 1]
