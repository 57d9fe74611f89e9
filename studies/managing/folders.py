"""The folders of a storage as studies: each journal is read once, and one that cannot be read says why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from nfnet_ray.analysis.files.exported import is_exported, read_exported
from nfnet_ray.cluster.connection.job import home_folder
from nfnet_ray.errors import UserError
from nfnet_ray.places import in_words, resolved
from nfnet_ray.printable import display_path
from nfnet_ray.study.contenders import LEAST_CONTENDERS
from nfnet_ray.tracking.destination.database import ARTIFACTS_FOLDER
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.running_lock import is_running
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import ENDED_FOR_GOOD

StudyCondition = Literal[
    "running", "finished", "interrupted", "unfinished", "damaged", "not begun", "no study"
]
"""``unfinished``: its driver was killed. The last three have no state: ``problem`` says what is wrong."""

# What is used here of a journal's first event (nfnet_ray/tracking/events.py).
_DESCRIBED: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "question": str,
    "command": str,
    "space": dict,
    "seeds": list,
    "epochs": int,
    "recipe": dict,
    "data": dict,
    "hardware": dict,
    "versions": dict,
}
_DESCRIBED_BELOW = {
    "data": ("name", "fingerprint", "classes", "train_images", "validation_images"),
    "hardware": ("description",),
}


@dataclass(frozen=True)
class StudyFolder:
    """One folder of a storage, with what its journal says."""

    directory: Path
    condition: StudyCondition
    state: StudyState | None = None
    problem: str = ""
    is_export: bool = False
    """Whether it is what ``export`` wrote: a study to read, which cannot be resumed."""

    @property
    def name(self) -> str:
        """The folder's name, which is the study's unless somebody has renamed it."""
        return self.directory.name

    @property
    def started(self) -> StudyStarted | None:
        """How the study began; None if that is not known."""
        return self.state.started if self.state else None

    @property
    def began(self) -> float:
        """Unix seconds: when the study began, or else when the folder was changed last."""
        return self.started["time"] if self.started else _changed(self.directory)

    @property
    def trial_states(self) -> dict[str, int]:
        """{state: number of trials}, ``waiting`` for those that have not begun."""
        trials = self.state.members if self.state else ()
        return dict(Counter(trial.state or "waiting" for trial in trials))

    @property
    def ended_trials(self) -> int:
        """How many trials have ended for good."""
        return sum(self.trial_states.get(state, 0) for state in ENDED_FOR_GOOD)

    @property
    def planned_trials(self) -> int:
        """How many trials there are, and, while a search may still add some, how many there may be."""
        known = sum(self.trial_states.values()) + self._trials_to_add
        search = self.started["study"].get("search") if self.started else None
        if search is None or self.started is None or self.condition == "finished":
            return known
        return max(known, search["settings"] * len(self.started["study"]["seeds"]) + self._trials_to_add)

    @property
    def _trials_to_add(self) -> int:
        """The fewest trials that contenders and winners are given, while it is not known yet which these are."""
        if self.state is None or self.started is None:
            return 0
        told = self.started["study"]
        further = 0 if self.state.has_contenders else LEAST_CONTENDERS * len(told.get("more_seeds", ()))
        return further + (0 if self.state.has_winners else told.get("confirm", 0))

    def known(self) -> tuple[StudyState, StudyStarted]:
        """State and first event. Raises UserError if the journal cannot be read."""
        if self.state is None or self.state.started is None:
            raise UserError(f"{display_path(self.directory)}: {self.problem}")
        return self.state, self.state.started


def storage_at(given: Path) -> Path:
    """The absolute path of ``--storage``; a relative one starts where the studies' does. It need not exist."""
    return resolved(home_folder() / given, "--storage")


def read_folder(directory: Path, *, is_ours: bool = False, is_brief: bool = False) -> StudyFolder:
    """Classifies a folder. Its content never causes an exception.

    Args:
        is_ours: this process holds the study's lock, so nobody is running it.
        is_brief: of each trial, the last epoch is enough.
    """
    journal = directory / JOURNAL_FILE
    try:
        if not journal.exists():
            return StudyFolder(
                directory, "no study", problem=f"it has no {JOURNAL_FILE}, so it is not a study"
            )
        if not journal.stat().st_size:
            return StudyFolder(directory, "not begun", problem="its journal is still empty")
        state, started = StudyState.read(directory, last_epochs_only=is_brief)
        missing = _missing(started)
    except UserError as error:
        return StudyFolder(directory, "damaged", problem=str(error).replace(f"{directory}/", ""))
    except (AttributeError, KeyError, TypeError, ValueError):
        return StudyFolder(directory, "damaged", problem="its journal is not that of a study")
    except OSError as error:
        return StudyFolder(directory, "damaged", problem=f"it cannot be read ({in_words(error)})")
    if missing:
        return StudyFolder(directory, "damaged", problem=f"the first line of its journal has no {missing}")
    if not is_ours and is_running(directory):
        return StudyFolder(directory, "running", state)
    return StudyFolder(directory, state.ended["state"] if state.ended else "unfinished", state)


def read_storage(storage: Path) -> list[StudyFolder]:
    """All folders of a storage, exports too, newest first; trials have their last epochs.

    Raises UserError if there is no such storage.
    """
    try:
        names = [
            entry.name
            for entry in os.scandir(storage)
            if entry.is_dir() and entry.name != ARTIFACTS_FOLDER and not entry.name.startswith(".")
        ]
    except FileNotFoundError:
        raise UserError(
            f"there is no folder {display_path(storage)}: the first study makes it; --storage names another one"
        ) from None
    except OSError as error:
        raise UserError(f"--storage: {display_path(storage)} cannot be read ({in_words(error)})") from None
    folders = [_read_in_storage(storage / name) for name in names]
    return sorted(folders, key=lambda folder: (-folder.began, folder.name))


def _read_in_storage(directory: Path) -> StudyFolder:
    """A study or an export. Never raises because of what is in the folder."""
    folder = read_folder(directory, is_brief=True)
    if folder.condition != "no study" or not is_exported(directory):
        return folder
    try:
        return read_folder_or_export(directory)
    except UserError as error:
        problem = str(error).replace(f"{directory} is", "it is").removeprefix(f"{directory}: ")
        return StudyFolder(directory, "damaged", problem=problem, is_export=True)


def find_directory(storage: Path, text: str) -> Path:
    """The folder of the study of this name in the storage; with a slash in it, ``text`` is a path.

    Raises UserError if there is none, with the names that are near.
    """
    directory = Path(text) if "/" in text else storage / text
    if text in ("", ".", "..") or not directory.is_dir():
        raise UserError(f"no study {text!r} in {display_path(storage)}{_suggestion(storage, text)}")
    if not (directory / JOURNAL_FILE).exists():
        raise UserError(f"{display_path(directory)} is not a study's folder: it has no {JOURNAL_FILE}")
    return directory.resolve()


def find_studies(storage: Path, texts: Sequence[str]) -> list[Path]:
    """The folder of each study, each once. Raises UserError, before anything is done, if one is not there."""
    return list(dict.fromkeys(find_directory(storage, text) for text in texts))


def files_below(directory: Path) -> Iterator[os.DirEntry[str]]:
    """All files below a folder. Links are files, and not followed. What cannot be read is left out."""
    waiting = [str(directory)]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                yield entry


def bytes_below(directory: Path) -> int:
    """The sizes of all files below a folder, added up. Of a file that vanishes meanwhile, nothing."""
    total = 0
    for entry in files_below(directory):
        try:
            total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total


def read_folder_or_export(directory: Path) -> StudyFolder:
    """The study in a folder, which may be one that ``export`` wrote. Raises UserError for an export that is damaged."""
    if (directory / JOURNAL_FILE).exists() or not is_exported(directory):
        return read_folder(directory)
    state, _ = read_exported(directory)
    condition = state.ended["state"] if state.ended else "unfinished"
    return StudyFolder(directory, condition, state, is_export=True)


def _missing(started: StudyStarted) -> str:
    """The first key that every version writes to a journal's first event and that is missing here; empty if none is."""
    if not isinstance(started["time"], int | float):
        return "time"
    if not isinstance(started["trials"], list):
        return "trials"
    told = started["study"]
    for name, kind in _DESCRIBED.items():
        if not isinstance(told.get(name), kind):
            return name
    search: Any = told.get("search", {"settings": 0})
    if not isinstance(search, dict) or not isinstance(search.get("settings"), int):
        return "search.settings"
    for section, names in _DESCRIBED_BELOW.items():
        for name in names:
            if name not in cast(dict[str, Any], told)[section]:
                return f"{section}.{name}"
    if not all(
        isinstance(plan["point"], dict) and isinstance(plan["recipe"], dict) for plan in started["trials"]
    ):
        return "point and recipe of a trial"
    return ""


def _suggestion(storage: Path, text: str) -> str:
    from difflib import get_close_matches

    try:
        names = [entry.name for entry in os.scandir(storage) if (Path(entry.path) / JOURNAL_FILE).is_file()]
    except OSError:
        return "; python -m studies list shows those that are there"
    near = get_close_matches(text, names, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    if not names:
        return ", which holds none; --storage names another folder"
    return "; python -m studies list shows those that are there"


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
