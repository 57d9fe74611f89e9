"""``python -m studies delete NAME…``: the folders of studies, and their runs in MLflow.

MLflow comes first and the journal last, so that a deletion that was interrupted anywhere can be repeated.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nfnet_ray.cluster.connection.job import home_folder
from nfnet_ray.command_line.terminal import say
from nfnet_ray.errors import UserError
from nfnet_ray.printable import display_path, printable
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE
from nfnet_ray.tracking.destination.choice import tracking_uri_for
from nfnet_ray.tracking.destination.uri import NOT_RECORDED
from nfnet_ray.tracking.events import StudyStarted, study_id
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events
from nfnet_ray.tracking.running_lock import LOCK_FILE, alone_with
from nfnet_ray.tracking.runs.deletion import TrackedRuns, delete_runs, find_runs
from nfnet_ray.training.checkpoints.storage import without_secrets
from nfnet_ray.wording import count, storage_size
from studies.managing.folders import StudyFolder, bytes_below, read_folder

_LAST = (SPOOL_FILE, JOURNAL_FILE)
"""The files that are needed to repeat an interrupted deletion, in the order in which they are removed."""


@dataclass(frozen=True)
class Doomed:
    """A study that is to be deleted, with its runs in MLflow; None if they are to stay."""

    folder: StudyFolder
    bytes: int
    runs: TrackedRuns | None

    def sentence(self) -> str:
        trials = sum(self.folder.trial_states.values())
        parts: list[str] = [self.folder.condition]
        if self.folder.started:
            parts.append(count(trials, "trial"))
        parts.append(storage_size(self.bytes))
        if self.runs is not None:
            parts.append(f"{count(len(self.runs.run_ids), 'run')} in MLflow")
        return f"{display_path(self.folder.directory)}: {', '.join(parts)}"


def delete_studies(
    directories: Sequence[Path], console: Console, *, tracking_uri: str | None, asks: bool, keep_mlflow: bool
) -> None:
    """Deletes studies: all of them, or none if one of them cannot be deleted.

    Raises:
        UserError: a study is running, MLflow cannot be reached, nobody can be asked, or a file cannot be removed.
    """
    locks: dict[Path, ExitStack] = {}
    with ExitStack() as all_locks:
        for directory in directories:
            _check_folder(directory)
            locks[directory] = all_locks.enter_context(ExitStack())
            locks[directory].enter_context(alone_with(directory))
        doomed = [_doomed(directory, tracking_uri, keep_mlflow) for directory in directories]
        for one in doomed:
            say(console, one.sentence())
        if asks and not _is_agreed(len(doomed), console):
            say(console, "Nothing was deleted.")
            return
        for one in doomed:
            if one.runs is not None:
                delete_runs(one.runs)
            _remove_folder(one.folder.directory, locks[one.folder.directory].close)
    in_mlflow = sum(len(one.runs.run_ids) for one in doomed if one.runs is not None)
    size = storage_size(sum(one.bytes for one in doomed))
    said = f"Deleted {count(len(doomed), 'study')}: {size} of files"
    if in_mlflow:
        said += (
            f", and {count(in_mlflow, 'run')} in MLflow, which keeps deleted runs until you call mlflow gc"
        )
    say(console, f"{said}.")
    for one in doomed:
        if elsewhere := _checkpoints_elsewhere(one.folder):
            say(console, f"The checkpoints of {one.folder.name} in {elsewhere} are still there.")


def _checkpoints_elsewhere(folder: StudyFolder) -> str:
    """Where a training keeps its checkpoints, if not in its own folder."""
    place = folder.started["study"].get("checkpoints") if folder.started else None
    if not place or Path(place).is_relative_to(folder.directory):
        return ""
    return without_secrets(place)


def _check_folder(directory: Path) -> None:
    if not os.access(directory, os.W_OK) or not os.access(directory.parent, os.W_OK):
        raise UserError(
            f"{display_path(directory)} cannot be removed: it, or the folder around it, cannot be written"
        )


def _doomed(directory: Path, tracking_uri: str | None, keep_mlflow: bool) -> Doomed:
    folder, size = read_folder(directory, is_ours=True), bytes_below(directory)
    if keep_mlflow:
        return Doomed(folder, size, None)
    started = folder.started or _first_event(directory)
    if started is None:
        if folder.condition == "not begun":
            return Doomed(folder, size, TrackedRuns(""))
        raise UserError(
            f"{directory.name}: its journal does not say under which id MLflow has it, so its runs cannot be found; "
            "delete its folder alone with --keep-mlflow"
        )
    uri = tracking_uri_for(tracking_uri, directory.parent, home_folder(), directory.name)
    if uri == NOT_RECORDED:
        return Doomed(folder, size, TrackedRuns(""))
    try:
        return Doomed(folder, size, find_runs(uri, study_id(started)))
    except UserError as error:
        raise UserError(
            f"nothing was deleted: {error}; or delete the folder alone with --keep-mlflow"
        ) from error


def _first_event(directory: Path) -> StudyStarted | None:
    """The first line of a journal that is damaged further down."""
    try:
        event = next(read_events(directory / JOURNAL_FILE))[0]
        if event["event"] == "study_started":
            study_id(event)
            return event
    except (StopIteration, UserError, KeyError, TypeError, AttributeError):
        pass
    return None


def _is_agreed(studies: int, console: Console) -> bool:
    """Whether a person says yes. Raises UserError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise UserError("nobody can answer here: give --yes to delete without asking")
    what = "it" if studies == 1 else f"these {studies:,} studies"
    try:
        answer = console.input(f"Delete {what} for good? [y/N] ", markup=False)
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")


def _remove_folder(directory: Path, unlock: Callable[[], None]) -> None:
    """Removes a study's folder, the journal last. Raises UserError if something cannot be removed.

    ``unlock`` gives the study's lock back. NFS keeps a file that is open under another name in its folder, which then
    cannot be removed, so the lock goes after it was given back; under a name that no study has, for by then another
    process may begin a study in its place.
    """
    try:
        for entry in os.scandir(directory):
            if entry.name in (*_LAST, LOCK_FILE):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        for name in _LAST:
            (directory / name).unlink(missing_ok=True)
        empty = directory.with_name(f".{directory.name}.deleted-{os.getpid()}")
        directory.rename(empty)
        unlock()
        (empty / LOCK_FILE).unlink(missing_ok=True)
        empty.rmdir()
    except OSError as error:
        raise UserError(
            f"{printable(error.filename or directory)} cannot be removed ({error.strerror}); fix that and repeat "
            "the command"
        ) from error
