"""Threads that work through batches, row by row, and never keep a caller waiting forever.

A ``ThreadPoolExecutor`` waits for a thread that hangs when it is closed; these threads are left behind. What one of
them raises, a thread that is gone, and a row that takes longer than the deadline become errors that name the row.
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
"""Does the work of one row."""
Name = Callable[[int], str]
"""What a row is called in an error: ``sample 7 of train.beton``."""


class Watch:
    """How long something has been seen to last, look after look.

    A process that is stopped (Ctrl-Z, a paused container) does not look. What it waits for is stopped too, or was done
    long ago. So of the time between two looks no more than twice what it should be counts.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._looked_at, self._seconds = 0.0, 0.0

    def look(self, since: float | None) -> float:
        """Seconds for which looks, :data:`LOOK_SECONDS` apart, have found what began at ``since``; None: nothing."""
        now = time.monotonic()
        if since is None or since != self._since:
            self._since, self._seconds = since, 0.0
        else:
            self._seconds += min(now - self._looked_at, 2 * LOOK_SECONDS)
        self._looked_at = now
        return self._seconds


class Job:
    """The rows 0 to ``rows - 1`` of one batch. It is done when all rows are, or when one has failed."""

    def __init__(self, rows: int, task: Task, name: Name) -> None:
        self.name = name
        self._task, self._left, self._lock = task, rows, threading.Lock()
        self._done, self._cancelled = threading.Event(), False
        self._error: BaseException | None = None
        if not rows:
            self._done.set()

    def run(self, row: int) -> None:
        """Called by a thread of the pool."""
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
        """Whether the job is done, at the latest after ``seconds``. Raises what a row has raised."""
        is_done = self._done.wait(seconds)
        if isinstance(self._error, Exception):
            raise self._error
        if self._error is not None:  # such as SystemExit, which would end the main thread without a word
            raise RuntimeError(f"a decoding thread was ended by {self._error!r}") from self._error
        return is_done

    def cancel(self) -> None:
        """Skips the rows that have not begun."""
        self._cancelled = True


@dataclass(eq=False)
class _Worker:
    """A thread, and the row that it is busy with since a time of the monotonic clock."""

    thread: threading.Thread | None = None
    job: Job | None = None
    row: int = 0
    since: float = 0.0
    is_busy: bool = False
    """Until the row's job is let go of, too."""
    watch: Watch = field(default_factory=Watch)
    """Of the row."""


_Queue = queue.SimpleQueue[tuple[Job, int] | None]


class Pool:
    """``threads`` daemon threads, started with the first batch; they end when the pool is no longer referred to."""

    def __init__(self, threads: int, deadline_seconds: float = ROW_DEADLINE_SECONDS) -> None:
        self._count, self._deadline_seconds = threads, deadline_seconds
        self._queue: _Queue = queue.SimpleQueue()
        self._workers: list[_Worker] = []

    def submit(self, rows: int, task: Task, name: Name) -> Job:
        """Queues a batch; jobs are begun in the order in which they come."""
        self._start()
        job = Job(rows, task, name)
        for row in range(rows):
            self._queue.put((job, row))
        return job

    def wait(self, job: Job) -> None:
        """Waits for a job.

        Raises:
            UserError: a row takes longer than the deadline, or a thread is gone.
            Exception: what a row has raised; RuntimeError where it was no Exception.
        """
        while not job.wait(LOOK_SECONDS):
            self.check()

    def check(self) -> None:
        """Raises UserError where a row takes longer than the deadline, or a thread is gone.

        To be called every :data:`LOOK_SECONDS` while somebody waits.
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
        if _ending.is_set():  # looked at after it is known to be busy
            worker.is_busy = False
            threading.Event().wait()  # to let go of the job would be to enter torch
        job, row = item
        worker.row, worker.since = row, time.monotonic()
        worker.job = job
        with contextlib.suppress(Exception):  # the job keeps it for the one who waits
            job.run(row)
        del item, job  # or an idle thread would keep the last batch in memory
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
    """A thread that comes back from torch when the interpreter has gone aborts the process."""
    _ending.set()
    deadline = time.monotonic() + EXIT_SECONDS
    while time.monotonic() < deadline and any(
        worker.is_busy and worker.thread is not None and worker.thread.is_alive()
        for worker in list(_all_workers)
    ):
        time.sleep(0.002)


def _place(thread: threading.Thread) -> str:
    """The position of a thread: file, line and function."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "an unknown place"
    last = traceback.extract_stack(frame)[-1]
    return f"{last.name} ({last.filename.rpartition('/')[2]}:{last.lineno})"
