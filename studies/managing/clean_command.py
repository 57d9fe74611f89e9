"""``python -m studies clean``: removes the checkpoints that nothing needs, and what Ray Tune has left.

Only trials that have ended for good (finished, stopped, diverged) can lose theirs: a trial in any other state resumes
from them. The best trial of each stratum keeps its own, and so does every trial from whose weights a study starts.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nfnet_ray.analysis import best_per_stratum
from nfnet_ray.analysis.record import study_record
from nfnet_ray.command_line.terminal import say
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.places import in_words
from nfnet_ray.printable import printable
from nfnet_ray.recipe import split_weights
from nfnet_ray.study.added_trials import added_trials, left_out_trials
from nfnet_ray.study.study import TRIALS_FOLDER, Study, Trial
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.running_lock import alone_with
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import ENDED_FOR_GOOD
from nfnet_ray.wording import count, storage_size
from studies.managing.folders import StudyFolder, bytes_below, read_folder, read_storage

CHECKPOINTS_FOLDER = "checkpoints"  # nfnet_ray/cluster/messages/configs.py
TUNE_FOLDER = "tune"  # nfnet_ray/cluster/driver.py


@dataclass
class Leftovers:
    """The folders of a study that can be removed, with their sizes, or the reason why none can.

    Attributes:
        kept: how many trials keep their checkpoints.
    """

    directory: Path
    checkpoints: dict[Path, int] = field(default_factory=dict)
    tune: int = 0
    kept: int = 0
    why_not: str = ""

    @property
    def bytes(self) -> int:
        return sum(self.checkpoints.values()) + self.tune

    def folders(self) -> list[Path]:
        return [*self.checkpoints, *([self.directory / TUNE_FOLDER] if self.tune else [])]


def clean_studies(
    storage: Path, directories: Sequence[Path] | None, console: Console, *, only_plan: bool
) -> None:
    """Cleans studies, by default all of a storage; with ``only_plan`` it says what would go.

    Raises:
        UserError: there is no such storage, a study that was named cannot be cleaned, or a file cannot be removed.
    """
    if directories is None:
        # An export has no checkpoints.
        folders = [one for one in read_storage(storage) if one.condition != "no study" and not one.is_export]
    else:
        folders = [read_folder(directory) for directory in directories]
    storages = dict.fromkeys([storage, *(folder.directory.parent for folder in folders)])
    needed = {weights for place in storages for weights in weights_of_studies(place)}
    found = [leftovers(folder, needed) for folder in folders]
    if directories is not None:
        for left in found:
            if left.why_not:
                raise UserError(f"nothing was removed: {left.directory.name} {left.why_not}")
    if not only_plan:
        found = [_clean(left, needed) if left.bytes else left for left in found]
    _say(found, console, only_plan)


def leftovers(folder: StudyFolder, needed: Set[Path]) -> Leftovers:
    """The removable files in a study's folder. ``needed`` are files of weights from which studies start."""
    left = Leftovers(folder.directory)
    if folder.condition == "running":
        left.why_not = "is running, so it is left alone"
        return left
    if folder.state is None or folder.started is None:
        left.why_not = f"is left alone: {folder.problem}"
        return left
    try:
        study = Study.from_event(folder.started).grown(folder.state)
        trials = study.trials()
        best = _best_of_strata(trials, folder.state) | _best_of_answers(folder.state, folder.started)
        trials += added_trials(study, folder.state) + left_out_trials(study, folder.state)
        states = {trial.name: folder.state.trials[trial.name].state for trial in trials}
    except (UserError, KeyError, TypeError, ValueError) as error:
        left.why_not = f"is left alone: its trials cannot be told ({error})"
        return left
    for trial in trials:
        place = folder.directory / TRIALS_FOLDER / trial.name / CHECKPOINTS_FOLDER
        if place.is_symlink() or not place.is_dir():
            continue
        is_needed = any(_are_below(weights, place) for weights in needed)
        if trial.name in best or is_needed or states[trial.name] not in ENDED_FOR_GOOD:
            left.kept += 1
        else:
            left.checkpoints[place] = bytes_below(place)
    tune = folder.directory / TUNE_FOLDER
    if tune.is_dir() and not tune.is_symlink():
        left.tune = bytes_below(tune)
    if left.bytes and not os.access(folder.directory, os.W_OK):
        return Leftovers(
            folder.directory, why_not="belongs to somebody else and cannot be written, so it is left alone"
        )
    return left


def weights_of_studies(storage: Path) -> Iterator[Path]:
    """The files of weights from which the trials of a storage's studies start, absolute."""
    for journal in sorted(storage.glob(f"*/{JOURNAL_FILE}")):
        try:
            state, started = StudyState.read(journal.parent, last_epochs_only=True)
            plans = [*state.plans.values(), *started["study"].get("points", ())]
            texts = {started["study"]["recipe"].get("model.weights")}
            texts |= {plan.get("point", plan).get("model.weights") for plan in plans}
            texts |= set(_texts_in(started["study"]["space"].get("model.weights")))
        except (UserError, KeyError, TypeError, AttributeError):
            continue
        for text in texts:
            if isinstance(text, str):
                yield Path(split_weights(text)[0]).resolve()


def _are_below(weights: Path, checkpoints: Path) -> bool:
    """Whether a file of weights is one of a trial's checkpoints, by the names of study and trial.

    Another machine may have had the same storage under another path, and a storage may have been moved.
    """
    names = checkpoints.parts[-4:]  # STUDY/trials/TRIAL/checkpoints
    return any(weights.parts[at : at + len(names)] == names for at in range(len(weights.parts)))


def _texts_in(value: Any) -> Iterator[str]:
    """All texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(item)


def _best_of_strata(trials: Sequence[Trial], state: StudyState) -> set[str]:
    """The name of the best trial of each stratum: of those that finished, or else of those that were stopped early."""
    best: dict[str, tuple[tuple[bool, float], str]] = {}
    for trial in trials:
        progress = state.trials[trial.name]
        top1 = progress.last(METRIC)
        if progress.state not in ("finished", "stopped") or top1 is None or math.isnan(top1):
            continue
        rank = progress.state == "finished", top1
        if trial.stratum not in best or rank > best[trial.stratum][0]:  # of equals, the first one
            best[trial.stratum] = rank, trial.name
    return {name for _, name in best.values()}


def _best_of_answers(state: StudyState, started: StudyStarted) -> set[str]:
    """The best trial of each setting that the study's answers name; a search that learns has one stratum alone."""
    record = study_record(state, started, with_epochs=False)
    finished = record.trials[record.trials["state"] == "finished"]
    names = set()
    for answer in best_per_stratum(record):
        point = answer.best.point
        repetitions = [
            (trial["last_top1"], trial["trial"])
            for trial in finished.to_dict("records")
            if all(trial[name] == value for name, value in point.items())
        ]
        names.add(str(max(repetitions, key=lambda repetition: repetition[0])[1]))
    return names


def _clean(planned: Leftovers, needed: Set[Path]) -> Leftovers:
    """Removes what nothing needs, while nobody else runs the study. Raises UserError."""
    directory = planned.directory
    try:
        with alone_with(directory):
            left = leftovers(read_folder(directory, is_ours=True), needed)  # it may have run meanwhile
            for folder in left.folders():
                shutil.rmtree(folder)
            return left
    except OSError as error:
        raise UserError(
            f"{printable(error.filename or directory)} cannot be removed ({in_words(error)}); fix that and "
            "repeat the command"
        ) from error


def _say(found: Sequence[Leftovers], console: Console, only_plan: bool) -> None:
    removed = [left for left in found if left.folders()]
    if removed:
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("study", no_wrap=True)
        for title in ("checkpoints of", "kept of", "checkpoints", "Ray Tune", "together"):
            table.add_column(title, justify="right", no_wrap=True)
        for left in removed:
            cells = (
                left.directory.name,
                count(len(left.checkpoints), "trial"),
                count(left.kept, "trial"),
                storage_size(sum(left.checkpoints.values())),
                storage_size(left.tune),
                storage_size(left.bytes),
            )
            table.add_row(*(Text(printable(cell)) for cell in cells))
        console.print(table)
        console.print()
    for left in found:
        if left.why_not:
            say(console, f"{left.directory.name} {left.why_not}.")
    size = storage_size(sum(left.bytes for left in removed))
    if not removed:
        say(console, "There is nothing to remove.")
    elif only_plan:
        say(console, f"{size} would be freed. Nothing was removed; without --plan it is.")
    else:
        say(console, f"Freed {size}.")
