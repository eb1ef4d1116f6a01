"""Background tasks are restarted when they fail, jobs have an owner, and concurrent work all runs to its end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from iomesh.errors import IomeshError, NoSpace, Unavailable
from iomesh.node import supervisor as module
from iomesh.node.hooks import Hooks, InjectedFailure
from iomesh.node.supervisor import SupervisedTask, Supervisor, end_all, in_thread, settle


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    await supervisor.close()


async def until(condition: asyncio.Event) -> None:
    async with asyncio.timeout(60):
        await condition.wait()


@pytest.mark.parametrize(
    "failure", [RuntimeError("broken"), Unavailable("broken"), ExceptionGroup("broken", [KeyError("x")])]
)
async def test_a_task_that_raises_is_down_until_a_round_succeeds(supervisor: Supervisor, failure: Exception) -> None:
    failed, proceed, succeeded = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(task: SupervisedTask) -> None:
        if not failed.is_set():
            failed.set()
            raise failure
        await proceed.wait()
        task.progress()
        succeeded.set()
        await asyncio.Event().wait()

    supervisor.start("cleaning", work)
    assert supervisor.tasks()["cleaning"] == (True, 0, "")
    await until(failed)
    await asyncio.sleep(0)
    up, restarts, reason = supervisor.tasks()["cleaning"]
    assert not up and restarts == 1 and "broken" in reason
    proceed.set()
    await until(succeeded)
    assert supervisor.tasks()["cleaning"] == (True, 1, "")


async def test_a_task_that_returns_or_loses_what_it_waits_for_is_started_again(supervisor: Supervisor) -> None:
    rounds, third = 0, asyncio.Event()

    async def work(task: SupervisedTask) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            return
        if rounds == 2:
            lost = asyncio.get_running_loop().create_future()
            lost.cancel()
            await lost
        third.set()
        await asyncio.Event().wait()

    supervisor.start("scrub", work)
    await until(third)
    assert supervisor.tasks()["scrub"].restarts == 2


async def test_a_task_with_an_end_is_not_down_after_it(supervisor: Supervisor) -> None:
    async def work(task: SupervisedTask) -> None:
        if not task.reason:
            raise NoSpace("full")

    task = supervisor.start("flattening", work, until_done=True, volume="db")
    assert task.handle is not None
    async with asyncio.timeout(60):
        await task.handle
    assert supervisor.tasks()["flattening"] == (True, 1, "")
    assert task.ended


async def test_a_stopped_task_is_not_started_again_and_not_down(supervisor: Supervisor) -> None:
    begun = asyncio.Event()

    async def work(task: SupervisedTask) -> None:
        begun.set()
        raise RuntimeError("again and again")

    task = supervisor.start("windows", work)
    await until(begun)
    await task.stop()
    await task.stop()
    assert task.ended
    assert supervisor.tasks()["windows"].up


async def test_the_pause_before_a_restart_doubles_up_to_a_bound(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    enough = asyncio.Event()
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            enough.set()
            await asyncio.Event().wait()
        await sleep(0)

    async def work(task: SupervisedTask) -> None:
        raise RuntimeError("always")

    monkeypatch.setattr(asyncio, "sleep", note)
    supervisor.start("cleaning", work)
    await until(enough)
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == module.BACKOFF_MAX_SECONDS == max(pauses)


async def test_a_job_that_fails_is_counted_whether_anybody_awaits_it_or_not(supervisor: Supervisor) -> None:
    async def fails() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError):
        await supervisor.spawn("clean segments", fails(), volume="db")
    supervisor.spawn("clean segments", fails(), volume="db")
    for _ in range(3):
        await asyncio.sleep(0)
    assert supervisor.failed_jobs == {"clean segments": 2}


async def test_a_job_outlives_its_cancelled_caller_but_not_the_supervisor(supervisor: Supervisor) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    caller = asyncio.create_task(supervisor.carry_through("restore", work(), volume="db"))
    await until(begun)
    await end_all([caller])
    assert caller.cancelled() and not ended.is_set()
    await supervisor.close()
    assert ended.is_set()


async def test_no_piece_of_work_is_cancelled_or_left_behind_by_the_failure_of_another() -> None:
    ended: list[int] = []

    async def piece(number: int) -> int:
        if number == 0:
            raise Unavailable("the first")
        for _ in range(5):
            await asyncio.sleep(0)
        ended.append(number)
        return number

    assert await settle(piece(number) for number in range(1, 40)) == list(range(1, 40))
    ended.clear()
    with pytest.raises(Unavailable, match="the first"):
        await settle((piece(number) for number in range(8)), at_once=2)
    assert ended == list(range(1, 8)), "all others have run to their end before the failure is raised"


async def test_several_failures_are_raised_together() -> None:
    async def piece(error: Exception) -> None:
        raise error

    with pytest.raises(IomeshError, match=r"one \(and 1 more failed\)"):
        await settle([piece(NoSpace("one")), piece(Unavailable("two"))])
    with pytest.raises(ExceptionGroup) as raised:
        await settle([piece(NoSpace("one")), piece(KeyError("two"))])
    assert len(raised.value.exceptions) == 2


async def test_a_cancelled_caller_leaves_no_work_behind() -> None:
    running = 0
    begun = asyncio.Event()

    async def piece() -> None:
        nonlocal running
        running += 1
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            running -= 1

    callers = [asyncio.create_task(settle(piece() for _ in range(3)))]
    await until(begun)
    await end_all(callers)
    assert callers[0].cancelled() and running == 0


async def test_what_runs_in_a_thread_is_awaited_also_by_a_cancelled_caller(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    done: list[str] = []
    caller = asyncio.create_task(in_thread(lambda: done.append(fifo.read_text())))  # blocks until somebody writes
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    await asyncio.to_thread(fifo.write_text, "x")
    async with asyncio.timeout(60):
        await asyncio.wait([caller])
    assert caller.cancelled() and done == ["x"]


async def test_a_result_after_the_cancellation_of_its_caller_is_discarded(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    discarded = asyncio.Queue[str]()
    callers = [asyncio.create_task(in_thread(fifo.read_text, discard=discarded.put_nowait))]
    await asyncio.sleep(0)
    await end_all(callers)
    assert callers[0].cancelled() and discarded.empty()
    await asyncio.to_thread(fifo.write_text, "late")
    async with asyncio.timeout(60):
        assert await discarded.get() == "late"


def test_the_hook_for_tests_lets_the_tasks_fail_that_its_file_names(tmp_path: Path) -> None:
    file = tmp_path / "hooks"
    hooks = Hooks(str(file))
    hooks.fail("cleaning")
    file.write_text("fail cleaning\nhold scrub\n")
    for name in ("windows", "scrub"):
        hooks.fail(name)
    with pytest.raises(InjectedFailure):
        hooks.fail("cleaning")
