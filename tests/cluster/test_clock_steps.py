"""Steps of the wall clock: a time names the state it stood for, or is refused, and no restore window ends."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import datetime

import pytest

from iomesh.api.client import Client
from iomesh.errors import InvalidArgument
from iomesh.times import exact_time, time_of
from support.clock import SECOND_NS, WallClock
from support.contents import everything, fill
from support.daemon import MIB, Daemon

SIZE = 4 * MIB
HOUR = 3600
DAYS = 3 * 86400
APART_SECONDS = 0.01  # so that a point in time lies between two writes
ASKED_WITHIN_SECONDS = 1.0
LOOKS_SECONDS = 2.5  # the node checks its restore windows more than once in it


class Volume:
    """A volume that texts are written to, with the daemon's wall-clock time of each."""

    def __init__(self, client: Client, uri: str, clock: WallClock) -> None:
        self.client, self.uri, self._clock = client, uri, clock
        self._looks = 0

    async def step(self, seconds: int) -> None:
        """Steps the clock, and waits for the restore point that records the step."""
        points = await self._points()
        self._clock.step(seconds)
        async with asyncio.timeout(60):
            while await self._points() == points:  # noqa: ASYNC110 (the daemon looks once a second)
                await asyncio.sleep(0.05)

    async def _points(self) -> int:
        return len(await self.client.snapshots("db", hidden=True))

    async def holds(self, text: bytes) -> int:
        """Writes the text. Returns a Unix time at which the volume has it; log time advances before the next event."""
        await fill(self.uri, text)
        await asyncio.sleep(APART_SECONDS)
        at_ns = self._clock.now_ns()
        await asyncio.sleep(APART_SECONDS)
        await fill(self.uri, b"between.")
        return at_ns

    async def held(self, *, at_ns: int = 0, ago_ns: int | None = None) -> bytes:
        """The text at that time."""
        name = f"look{self._looks}"
        self._looks += 1
        await self.client.clone_volume("db", "", name, at_ns=at_ns, ago_ns=ago_ns)
        try:
            found = await everything((await self.client.export_volume(name)).uris[0])
        finally:
            await self.client.delete_volume(name, force=True)
        assert found == found[:8] * (SIZE // 8)
        return found[:8]


@pytest.fixture
def clock(daemon: Daemon) -> WallClock:
    """The clock of the daemon, which is started with it."""
    clock = WallClock(daemon.directory)
    daemon.variables = clock.variables
    daemon.start()
    return clock


async def make(client: Client, clock: WallClock, *, window_seconds: int = HOUR) -> Volume:
    await client.create_volume("db", SIZE, window_seconds=window_seconds)
    return Volume(client, (await client.export_volume("db")).uris[0], clock)


def offered(message: str) -> list[tuple[datetime, datetime]]:
    """The available times that a refusal lists."""
    times = [
        datetime.fromisoformat(one)
        for one in re.findall(r"\d{4}-\d\d-\d\dT[\d:.]+Z", message.partition("choose a time in ")[2])
    ]
    return list(zip(times[::2], times[1::2], strict=True))


async def test_clock_steps_never_lead_to_another_state_than_the_requested_one(daemon: Daemon, clock: WallClock) -> None:
    async with daemon.client() as client:
        volume = await make(client, clock)
        before = await volume.holds(b"monday..")
        await volume.step(DAYS)
        ahead = await volume.holds(b"tuesday.")
        await volume.step(-DAYS)
        after = await volume.holds(b"friday..")
        await fill(volume.uri, b"saturday")
        assert await volume.held(at_ns=before) == b"monday.."
        assert await volume.held(at_ns=ahead) == b"tuesday."
        assert await volume.held(at_ns=after) == b"friday.."
        assert await volume.held(at_ns=clock.now_ns()) == b"saturday"
        with pytest.raises(InvalidArgument, match="in the future"):
            await volume.held(at_ns=before + HOUR * SECOND_NS)
        # The volume itself, too.
        done = await client.restore_volume("db", "", at_ns=after, discard=True, force=True)
        assert done.at == time_of(after)
        assert (await everything(volume.uri))[:8] == b"friday.."


async def test_a_time_that_never_came_is_refused_with_those_that_did(daemon: Daemon, clock: WallClock) -> None:
    async with daemon.client() as client:
        volume = await make(client, clock)
        before = await volume.holds(b"monday..")
        await volume.step(HOUR)
        after = await volume.holds(b"tuesday.")
        never = before + HOUR // 2 * SECOND_NS
        with pytest.raises(
            InvalidArgument, match=f"db at {re.escape(exact_time(never))}.*stepped.*never came"
        ) as refused:
            await volume.held(at_ns=never)
        ranges = offered(refused.value.message)
        for one in (before, after):
            assert any(first <= time_of(one) <= last for first, last in ranges), refused.value.message
        assert not any(first <= time_of(never) <= last for first, last in ranges)
        for number, end in enumerate(end for one in ranges for end in one):
            await client.clone_volume("db", "", f"end{number}", at_ns=int(end.timestamp() * 1000) * 10**6)


async def test_a_time_that_came_twice_is_refused_and_how_long_ago_is_not(daemon: Daemon, clock: WallClock) -> None:
    async with daemon.client() as client:
        volume = await make(client, clock)
        async with asyncio.timeout(300):
            while True:  # until the node sees the step before that time comes again
                first = await volume.holds(b"monday..")
                began = time.monotonic_ns()
                await asyncio.sleep(ASKED_WITHIN_SECONDS)
                newest = clock.now_ns()
                await volume.step(-2)
                if clock.now_ns() < first:
                    break
                while clock.now_ns() < newest:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        await volume.holds(b"tuesday.")
        async with asyncio.timeout(60):
            while clock.now_ns() < first + SECOND_NS:  # noqa: ASYNC110 (until that time has come again)
                await asyncio.sleep(0.05)
        await volume.holds(b"friday..")
        with pytest.raises(InvalidArgument, match=r"stepped.*(came|may have come) more than once"):
            await volume.held(at_ns=first)
        async with asyncio.timeout(60):
            while True:  # until the query is early enough to still name this state
                asked = time.monotonic_ns()
                held = await volume.held(ago_ns=asked - began)
                if time.monotonic_ns() - asked < ASKED_WITHIN_SECONDS * SECOND_NS:
                    break
        assert held == b"between."


async def test_a_clock_that_is_days_off_ends_no_window(daemon: Daemon, clock: WallClock) -> None:
    async with daemon.client() as client:
        volume = await make(client, clock)
        before = await volume.holds(b"monday..")
        reach = (await client.volume("db")).window_from
        for step in (DAYS, -2 * DAYS):
            await volume.step(step)
            await volume.holds(b"tuesday.")
            await asyncio.sleep(LOOKS_SECONDS)
        await volume.step(DAYS)
        assert (await client.volume("db")).window_from == reach
        assert await volume.held(at_ns=before) == b"monday.."
        after = await volume.holds(b"friday..")
        assert await volume.held(at_ns=after) == b"friday.."


async def test_a_clock_that_is_days_off_at_a_start_ends_no_window(daemon: Daemon, clock: WallClock) -> None:
    """And back at the next start, after a kill and after a stop."""
    uri = ""
    times = {}
    for text, step, stop in (
        (b"monday..", 0, daemon.kill),
        (b"tuesday.", DAYS, daemon.stop),
        (b"friday..", -DAYS, daemon.kill),
    ):
        if text != b"monday..":
            clock.step(step)
            daemon.start()
        async with daemon.client() as client:
            if text == b"monday..":
                await make(client, clock)
                uri = (await client.export_volume("db")).uris[0]
            times[text] = await Volume(client, uri, clock).holds(text)
            await asyncio.sleep(LOOKS_SECONDS)
        stop()
    daemon.start()
    async with daemon.client() as client:
        volume = Volume(client, uri, clock)
        for text, at_ns in times.items():
            assert await volume.held(at_ns=at_ns) == text


async def test_a_time_at_which_the_volume_was_closed_is_the_state_in_which_it_was(
    daemon: Daemon, clock: WallClock
) -> None:
    """However long it was closed: the clock advances by an hour while the daemon is not running."""
    async with daemon.client() as client:
        volume = await make(client, clock)
        await fill(volume.uri, b"monday..")
    daemon.kill()
    clock.step(HOUR // 2)
    closed = clock.now_ns() - HOUR // 4 * SECOND_NS
    clock.step(HOUR // 2)
    daemon.start()
    async with daemon.client() as client:
        volume.client = client
        after = await volume.holds(b"tuesday.")
        assert await volume.held(at_ns=closed) == b"monday.."
        assert await volume.held(ago_ns=HOUR // 2 * SECOND_NS) == b"monday.."
        assert await volume.held(at_ns=after) == b"tuesday."
