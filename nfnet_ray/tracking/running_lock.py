"""The lock of a study: only one process, on all machines that share the storage, may run or change it at a time."""

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
# The errors of NFS 3 without a lock daemon, and of file systems without locks: flock(2), nfs(5).
_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def alone_with(directory: Path) -> Generator[None]:
    """Locks the study in ``directory``, which is created if it is missing, against other processes.

    Raises UserError if another process holds the lock, if the directory cannot be written, or if the file system has no
    locks.
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
    """Raises UserError if another process runs the study in ``directory`` at this moment. Changes no files."""
    if is_running(directory):
        raise _is_run_by_another(directory)


def _is_run_by_another(directory: Path) -> UserError:
    return UserError(f"another process is running {directory.name}: wait until it has ended, or stop it")


def is_running(directory: Path) -> bool:
    """Whether a process holds the lock of the study in ``directory``. Changes no files.

    A shared lock is acquired and released at once, so that two processes that check at the same time do not disturb
        each other.
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
        except OSError:  # a file system without locks, on which no process can hold one
            return False
        fcntl.flock(stream, fcntl.LOCK_UN)
    return False


def wait_until_free(directory: Path, seconds: float, say: Callable[[str], object]) -> None:
    """Waits, for ``seconds`` at most, until no process holds the lock of a study. ``say`` shows a message."""
    deadline = time.monotonic() + seconds
    if is_running(directory):
        say(
            f"Another process is running {directory.name}: waiting up to {seconds:.0f} s for it to save and to end."
        )
    while is_running(directory) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
