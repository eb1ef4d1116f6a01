"""What a volume tells of itself in the node's log."""

from iomesh.node.volume import QUIET_SECONDS, Phase


def test_a_phase_begins_once_and_again_after_quiet() -> None:
    phase = Phase()
    assert phase.begins(1000.0), "the first time is new, whenever it is"
    assert not any(phase.begins(1000.0 + at) for at in (0.0, 0.1, 30.0, 60.0, 100.0)), "it was never away for long"
    assert phase.begins(1100.0 + QUIET_SECONDS + 0.1)
