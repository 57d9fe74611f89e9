"""A pool of threads that process batches row by row, and never keep a caller waiting forever.

A ``ThreadPoolExecutor`` that is closed waits for a thread that hangs; this pool leaves it behind. An exception in a
thread, a thread that has died, and a row that takes longer than the deadline raise an error that names the row.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from nfnet_ray.errors import UserError

ROW_DEADLINE_SECONDS = 30.0  # a decode takes milliseconds; network disks may pause for seconds
LOOK_SECONDS = 0.25  # between two looks at the threads while waiting
EXIT_SECONDS = 2.0  # for rows under way when the program ends

Task = Callable[[int], None]
"""A function that processes one row."""
Name = Callable[[int], str]
"""A function that names a row in an error: ``sample 7 of train.beton``."""


class Watch:
    """Measures how long a state lasts, from repeated looks at it.

    A process that is stopped (Ctrl-Z, a paused container) does not look. The thread that it waits for is stopped too,
    or has finished long ago. So the time between two looks counts at most twice as long as it should be.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._looked_at, self._seconds = 0.0, 0.0

    def look(self, since: float | None) -> float:
        """The seconds for which looks have found the state that began at ``since``. None means that there is none.

        Call it every :data:`LOOK_SECONDS`.
        """
        now = time.monotonic()
        if since is None or since != self._since:
            self._since, self._seconds = since, 0.0
        else:
            self._seconds += min(now - self._looked_at, 2 * LOOK_SECONDS)
        self._looked_at = now
        return self._seconds


class Job:
    """The rows 0 to ``rows - 1`` of a batch. The job is done when all rows are, or when one has failed."""

    def __init__(self, rows: int, task: Task, name: Name) -> None:
        self.name = name
        self._task, self._left, self._lock = task, rows, threading.Lock()
        self._done, self._cancelled = threading.Event(), False
        self._error: BaseException | None = None
        if not rows:
            self._done.set()

    def run(self, row: int) -> None:
        """Processes a row. A thread of the pool calls it."""
        if self._cancelled or self._error is not None:
            return
        try:
            self._task(row)
        except BaseException as error:
            self._error = error
            self._done.set()
            raise
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._done.set()

    def wait(self, seconds: float) -> bool:
        """Waits for at most ``seconds``. Returns whether the job is done. Raises a row's exception, if any."""
        is_done = self._done.wait(seconds)
        if isinstance(self._error, Exception):
            raise self._error
        if self._error is not None:  # for example SystemExit, which would end the main thread silently
            raise RuntimeError(f"a decoding thread was ended by {self._error!r}") from self._error
        return is_done

    def cancel(self) -> None:
        """Skips the rows that have not begun."""
        self._cancelled = True


@dataclass(eq=False)
class _Worker:
    """A thread, the row that it processes, and since when (monotonic clock)."""

    thread: threading.Thread | None = None
    job: Job | None = None
    row: int = 0
    since: float = 0.0
    is_busy: bool = False
    """It stays true until the thread has released the job."""
    watch: Watch = field(default_factory=Watch)
    """Measures how long the row takes."""


_Queue = queue.SimpleQueue[tuple[Job, int] | None]


class Pool:
    """``threads`` daemon threads, which start with the first batch and end when the pool is garbage-collected."""

    def __init__(self, threads: int, deadline_seconds: float = ROW_DEADLINE_SECONDS) -> None:
        self._count, self._deadline_seconds = threads, deadline_seconds
        self._queue: _Queue = queue.SimpleQueue()
        self._workers: list[_Worker] = []

    def submit(self, rows: int, task: Task, name: Name) -> Job:
        """Queues a batch. Jobs begin in the order in which they are submitted."""
        self._start()
        job = Job(rows, task, name)
        for row in range(rows):
            self._queue.put((job, row))
        return job

    def wait(self, job: Job) -> None:
        """Waits for a job.

        Raises:
            UserError: a row takes longer than the deadline, or a thread has died.
            Exception: the exception of a row; RuntimeError if the row raised something that is not an Exception.
        """
        while not job.wait(LOOK_SECONDS):
            self.check()

    def check(self) -> None:
        """Raises UserError if a row takes longer than the deadline, or if a thread has died.

        Call it every :data:`LOOK_SECONDS` while waiting.
        """
        for worker in self._workers:
            busy_with, row, since = worker.job, worker.row, worker.since
            what = busy_with.name(row) if busy_with else "no image"
            assert worker.thread is not None
            if not worker.thread.is_alive():
                raise UserError(f"decoding thread {worker.thread.name} has ended, at {what}; start again")
            watched = worker.watch.look(None if busy_with is None else since)
            if watched > self._deadline_seconds:
                raise UserError(
                    f"{what} has been decoding for {time.monotonic() - since:.0f} s, in {_place(worker.thread)}: "
                    "is the disk or the network file system stuck? Start again when it answers"
                )

    def _start(self) -> None:
        if self._workers:
            return
        for number in range(self._count):
            worker = _Worker()
            worker.thread = threading.Thread(
                target=_work, args=(self._queue, worker), name=f"decode-{number}", daemon=True
            )
            self._workers.append(worker)
            worker.thread.start()
            _all_workers.add(worker)
        weakref.finalize(self, _stop, self._queue, self._count).atexit = False


def _work(jobs: _Queue, worker: _Worker) -> None:
    while (item := jobs.get()) is not None:
        worker.is_busy = True
        if _ending.is_set():  # tested only now, when others see that it is busy
            worker.is_busy = False
            threading.Event().wait()  # never returns: releasing the job would call torch
        job, row = item
        worker.row, worker.since = row, time.monotonic()
        worker.job = job
        with contextlib.suppress(Exception):  # the job keeps the exception for the caller that waits
            job.run(row)
        del item, job  # otherwise an idle thread would keep the last batch in memory
        worker.job = None  # may free the batch
        worker.is_busy = False


def _stop(jobs: _Queue, threads: int) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            jobs.get_nowait()
    for _ in range(threads):
        jobs.put(None)


_ending = threading.Event()
_all_workers: weakref.WeakSet[_Worker] = weakref.WeakSet()


@atexit.register
def _wait_for_the_rows_under_way() -> None:
    """Waits for busy threads at exit, since one that returns from torch after it aborts the process."""
    _ending.set()
    deadline = time.monotonic() + EXIT_SECONDS
    while time.monotonic() < deadline and any(
        worker.is_busy and worker.thread is not None and worker.thread.is_alive()
        for worker in list(_all_workers)
    ):
        time.sleep(0.002)


def _place(thread: threading.Thread) -> str:
    """Where a thread is: file, line and function."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "an unknown place"
    last = traceback.extract_stack(frame)[-1]
    return f"{last.name} ({last.filename.rpartition('/')[2]}:{last.lineno})"
