"""Which reactor a volume is opened on."""

from iomesh.node.reactors import WINDOW_SECONDS, ReactorLoads


def seen(*busy: float, seconds: float = 10.0) -> ReactorLoads:
    """Loads after one window in which the reactors were busy for these shares of it."""
    loads = ReactorLoads(len(busy))
    loads.sample(100.0, [1.0] * len(busy))
    loads.sample(100.0 + seconds, [1.0 + share * seconds for share in busy])
    return loads


def test_volumes_that_are_opened_at_once_are_spread_evenly() -> None:
    loads, volumes = ReactorLoads(3), [0, 0, 0]
    for number in range(9):
        loads.sample(5.0 + number / 100, [0.0, 0.0, 0.0])
        reactor = loads.choose(volumes)
        loads.opened(5.0 + number / 100, reactor)
        volumes[reactor] += 1
        assert max(volumes) - min(volumes) <= 1
    assert volumes == [3, 3, 3]


def test_the_reactor_that_worked_least_is_chosen_even_if_it_has_more_volumes() -> None:
    assert seen(0.8, 0.1).choose([1, 5]) == 1
    assert seen(0.1, 0.8).choose([5, 1]) == 0


def test_where_the_load_is_alike_the_fewest_volumes_decide_and_then_the_number() -> None:
    assert seen(0.52, 0.55, 0.50).choose([2, 1, 3]) == 1
    assert seen(0.0, 0.0).choose([0, 0]) == 0


def test_a_volume_that_was_just_opened_counts_until_its_load_is_seen() -> None:
    loads = seen(0.0, 0.15)
    assert loads.choose([3, 3]) == 0
    for _ in range(3):
        loads.opened(110.0, 0)
    assert loads.choose([6, 3]) == 1
    loads.sample(110.0 + WINDOW_SECONDS, [1.0, 2.5])
    assert loads.loads() == [0.0, 0.0], "nothing happened since"
    assert loads.choose([6, 3]) == 1


def test_load_is_that_of_the_last_seconds() -> None:
    loads = ReactorLoads(2)
    for second in range(60):  # the first is busy for half a minute, the second afterwards
        loads.sample(float(second), [min(second, 30), max(0, second - 30)])
    assert loads.busy() == [0.0, 1.0]


def test_at_first_a_reactor_counts_as_idle() -> None:
    loads = ReactorLoads(2)
    assert loads.loads() == [0.0, 0.0]
    loads.sample(7.0, [3.0, 0.0])
    assert loads.loads() == [0.0, 0.0]
    loads.sample(7.0 + WINDOW_SECONDS / 10, [3.0 + WINDOW_SECONDS / 10, 0.0])
    assert loads.loads() == [0.1, 0.0], "busy all the time, for a tenth of the window"
