"""The lock of a study: one process at a time, on any machine that shares the storage, runs or changes it."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from nfnet_ray.errors import UserError
from nfnet_ray.places import in_words, remedy_for

LOCK_FILE = "running.lock"
LOOK_SECONDS = 0.5
# Of NFS 3 without a lock daemon, and of file systems that know no locks: flock(2), nfs(5).
_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def alone_with(directory: Path) -> Generator[None]:
    """Inside the block no other process runs or changes the study in ``directory``, which is made if it is missing.

    Raises UserError if another one does, if nothing can be written there, or if the file system has no locks.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(directory / LOCK_FILE, timeout=0)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise _is_run_by_another(directory) from None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise UserError(
                f"{directory} cannot be written ({in_words(error)}); {remedy_for(error)}, then repeat the command"
            ) from error
        raise UserError(
            f"{directory / LOCK_FILE}: cannot be locked ({in_words(error)}): mount that file system with locks (NFS 4 "
            "has them), or give another --storage"
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_not_running(directory: Path) -> None:
    """Raises UserError if another process runs the study in ``directory`` at this moment. Leaves nothing behind."""
    if is_running(directory):
        raise _is_run_by_another(directory)


def _is_run_by_another(directory: Path) -> UserError:
    return UserError(f"another process is running {directory.name}: wait until it has ended, or stop it")


def is_running(directory: Path) -> bool:
    """Whether a process holds the lock of the study in ``directory``. Leaves nothing behind.

    A shared lock is tried, and given back at once: two processes that ask at the same time do not disturb each other.
    """
    try:
        stream = (directory / LOCK_FILE).open("rb")
    except OSError:
        return False
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks, on which nobody can hold one
            return False
        fcntl.flock(stream, fcntl.LOCK_UN)
    return False


def wait_until_free(directory: Path, seconds: float, say: Callable[[str], object]) -> None:
    """Waits until no process holds the lock of the study in ``directory``, at most so long. ``say`` tells a person."""
    deadline = time.monotonic() + seconds
    if is_running(directory):
        say(
            f"Another process is running {directory.name}: waiting up to {seconds:.0f} s for it to save and to end."
        )
    while is_running(directory) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
