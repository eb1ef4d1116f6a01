"""Owns every background task of the daemon: no task is started anywhere else.

A *task* runs as long as the daemon does: cleaning, restore windows, scrub. It reports each round that succeeded with
`progress()`. When it raises, or returns without having been stopped, the supervisor logs the reason, counts it, and
restarts it after a pause that doubles from BACKOFF_SECONDS to BACKOFF_MAX_SECONDS. The task is *down* from the failure
until its next successful round; while a task is down, the node is not ready.

A *job* ends by itself: one pass of compaction, the record of one checkpoint. Its starter may await it. A failure is
logged and counted whether it is awaited or not.

`settle` replaces asyncio.gather: all work runs to its end, even when some of it fails, and only then the failure is
raised.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from iomesh.errors import IomeshError
from iomesh.node.hooks import Hooks
from iomesh.node.logs import logger

log = logger("supervisor")

BACKOFF_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 30.0
STABLE_SECONDS = 60.0  # without a failure: the next pause is the shortest again
STOP_SECONDS = 10.0  # for a cancelled task to end

ResultT = TypeVar("ResultT")


class TaskState(NamedTuple):
    """Of all tasks of one name. `up`: none of them is down."""

    up: bool
    restarts: int
    reason: str


class Stopped(Exception):
    """A task returned without having been stopped."""


@dataclass(eq=False)
class SupervisedTask:
    """Created by Supervisor.start. `until_done`: the task has an end of its own, and returning is no failure."""

    name: str
    work: Callable[[SupervisedTask], Awaitable[None]]
    until_done: bool
    about: Mapping[str, str]
    hooks: Hooks
    restarted: Callable[[], None]
    reason: str = ""  # why it is down; empty: it is up
    handle: asyncio.Task[None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.handle = asyncio.create_task(self.run(), name=" ".join([self.name, *self.about.values()]))

    @property
    def ended(self) -> bool:
        return self.handle.done()

    def progress(self) -> None:
        """A round has succeeded: the task is up."""
        self.hooks.fail(self.name)
        if self.reason:
            log.info("background task has recovered", task=self.name, **self.about)
            self.reason = ""

    async def stop(self) -> None:
        """Cancels it and waits until it has ended, STOP_SECONDS at most. Idempotent."""
        await end_all([self.handle])

    async def run(self) -> None:
        pause = BACKOFF_SECONDS
        while True:
            begun = time.monotonic()
            try:
                self.hooks.fail(self.name)
                await self.work(self)
                if self.until_done:
                    self.reason = ""
                    return
                raise Stopped("it ended although nobody stopped it")
            except asyncio.CancelledError:
                if _is_cancelled():
                    raise
                error: Exception = Stopped("something that it waited for was cancelled")
            except Exception as failure:
                error = failure
            if time.monotonic() - begun >= STABLE_SECONDS:
                pause = BACKOFF_SECONDS
            self.reason = describe(error)
            self.restarted()
            log.error(
                "background task failed; restarting it",
                task=self.name,
                **self.about,
                reason=self.reason,
                pause_seconds=pause,
                exc_info=error if not isinstance(error, IomeshError | Stopped) else None,
            )
            await asyncio.sleep(pause)
            pause = min(2 * pause, BACKOFF_MAX_SECONDS)


class Supervisor:
    """Belongs to the running event loop."""

    def __init__(self, hooks: Hooks | None = None) -> None:
        self._hooks = hooks or Hooks()
        self._tasks: list[SupervisedTask] = []
        self._jobs: set[asyncio.Task[Any]] = set()
        self._known: dict[str, None] = {}  # names of tasks, in the order of their first start
        self._restarts: Counter[str] = Counter()
        self.failed_jobs: Counter[str] = Counter()  # by name

    def start(
        self, name: str, work: Callable[[SupervisedTask], Awaitable[None]], *, until_done: bool = False, **about: str
    ) -> SupervisedTask:
        """Starts a task. Several may have one name; `about` distinguishes them in the log."""

        def restarted() -> None:
            self._restarts[name] += 1

        self._known[name] = None
        task = SupervisedTask(name, work, until_done, about, self._hooks, restarted)
        task.handle.add_done_callback(lambda _: self._tasks.remove(task))
        self._tasks.append(task)
        return task

    def spawn(self, name: str, work: Coroutine[Any, Any, ResultT], **about: str) -> asyncio.Task[ResultT]:
        """Starts a job, which the caller may await."""
        job = asyncio.create_task(work, name=" ".join([name, *about.values()]))
        self._jobs.add(job)

        def ended(_: asyncio.Task[ResultT]) -> None:
            self._jobs.discard(job)
            if job.cancelled() or (error := job.exception()) is None:
                return
            self.failed_jobs[name] += 1
            if isinstance(error, IomeshError):  # an error of the world: the awaiting caller handles it
                log.info("job failed", job=name, **about, reason=error.message)
            else:
                log.error("job failed", job=name, **about, reason=describe(error), exc_info=error)

        job.add_done_callback(ended)
        return job

    async def carry_through(self, name: str, work: Coroutine[Any, Any, ResultT], **about: str) -> ResultT:
        """Runs a job and returns its result. If the caller is cancelled, the job continues under the supervisor."""
        return await asyncio.shield(self.spawn(name, work, **about))

    def tasks(self) -> dict[str, TaskState]:
        """By name; also those that have ended."""
        states = {}
        for name in self._known:
            reasons = [task.reason for task in self._tasks if task.name == name and task.reason]
            states[name] = TaskState(not reasons, self._restarts[name], "; ".join(reasons))
        return states

    async def close(self) -> None:
        """Cancels all tasks and jobs, and waits until they have ended, STOP_SECONDS at most."""
        await end_all([*(task.handle for task in self._tasks), *self._jobs])


async def settle(work: Iterable[Coroutine[Any, Any, ResultT]], *, at_once: int = 16) -> list[ResultT]:
    """Runs all of it, `at_once` at a time, each to its end: the failure of one neither cancels the others nor leaves
    them behind.

    Returns the results in order. Raises the failure if there was one; of several IomeshErrors, the first, which names
    the number of the others; else an ExceptionGroup. If the caller is cancelled, all are cancelled and awaited.
    """
    pending = list(work)
    turn = asyncio.Semaphore(at_once)
    failures: list[Exception] = []

    async def outcome(one: Coroutine[Any, Any, ResultT]) -> list[ResultT]:
        try:
            async with turn:
                return [await one]
        except Exception as error:
            failures.append(error)
            return []
        finally:
            one.close()  # one cancelled before its turn was never started

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(outcome(one)) for one in pending]
    if not failures:
        return [result for task in tasks for result in task.result()]
    first = failures[0]
    if len(failures) == 1:
        raise first
    if isinstance(first, IomeshError) and all(isinstance(failure, IomeshError) for failure in failures):
        raise type(first)(f"{first.message} (and {len(failures) - 1} more failed)") from ExceptionGroup(
            "all of them", failures
        )
    raise ExceptionGroup(f"{len(failures)} of {len(pending)} failed", failures)


async def end_all(tasks: Iterable[asyncio.Task[Any]], seconds: float = STOP_SECONDS) -> None:
    """Cancels these and waits for their end; those that have not ended in time are logged and left."""
    left = {task for task in tasks if not task.done()}
    for task in left:
        task.cancel()
    if left:
        _, left = await asyncio.wait(left, timeout=seconds)
    for task in left:
        log.error("task has not ended although it was cancelled", task=task.get_name(), seconds=seconds)


async def in_thread(work: Callable[[], ResultT], *, discard: Callable[[ResultT], None] | None = None) -> ResultT:
    """Runs blocking work in a thread of its own, which does not keep the process from ending.

    If the caller is cancelled, it waits for the thread, STOP_SECONDS at most: what `work` uses is in use until then.
    With `discard` it does not wait, and `discard` receives a later result.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ResultT] = loop.create_future()

    def done(result: ResultT | None, error: BaseException | None) -> None:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(done, result, failure)
        except RuntimeError:  # the event loop is closed: no caller waits
            if discard is not None and failure is None:
                discard(result)  # type: ignore[arg-type]

    threading.Thread(target=run, name="in_thread", daemon=True).start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if discard is not None:
            future.add_done_callback(lambda late: None if late.exception() else discard(late.result()))
        else:
            await asyncio.wait((future,), timeout=STOP_SECONDS)
            # Retrieves the exception: the future has no other reader.
            future.add_done_callback(asyncio.Future.exception)
        raise


def describe(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
