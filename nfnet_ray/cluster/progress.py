"""A study as it runs: a table of its trials that a person can read, with the time that is left."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nfnet_ray.cluster.journal import StudyProgress, TrialProgress
from nfnet_ray.cluster.progress_file import noted_progress
from nfnet_ray.cluster.study import METRIC, Study
from nfnet_ray.tracking.labels import short_names, value_label
from nfnet_ray.wording import clock_time

STATE_STYLES = {
    "running": "bold cyan",
    "finished": "green",
    "stopped": "yellow",
    "diverged": "red",
    "failed": "bold red",
    "interrupted": "yellow",
}


def trial_table(
    study: Study, progress: StudyProgress, epochs_done: Callable[[TrialProgress], float]
) -> Table:
    """A row for each trial: what is swept, top-1, epochs, training seconds, images per second, state."""
    titles = short_names(study.space)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in titles.values():
        table.add_column(title.replace("_", " "), justify="right")
    if len(study.seeds) > 1:
        table.add_column("seed", justify="right")
    for title in ("top-1", "epochs", "train s", "images/s"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=False, overflow="fold")
    for trial in study.trials():
        state = progress.trials[trial.name]
        cells = [value_label(trial.point[name]) for name in titles]
        if len(study.seeds) > 1:
            cells.append(str(trial.recipe.seed))
        cells += [
            _number(state.last(METRIC), "{:.1%}"),
            f"{_epochs(epochs_done(state))}/{study.epochs}",
            _number(state.last("train_seconds"), "{:.1f}"),
            _number(state.last("images_per_second"), "{:,.0f}"),
        ]
        table.add_row(*cells, _state(state))
    return table


def reported_epochs(trial: TrialProgress) -> float:
    """The epochs of a trial that have been reported."""
    return trial.epoch


def _epochs(epochs: float) -> str:
    """``3`` at the end of an epoch, ``3.4`` within one."""
    return f"{math.floor(10 * epochs) / 10:g}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _state(trial: TrialProgress) -> Text:
    style = STATE_STYLES.get(trial.state or "", "dim")
    text = Text(trial.state or "waiting", style=style)
    if trial.reason and trial.state != "stopped":
        text.append(f": {trial.reason}", style="default")
    damaged = sum(trial.last(f"damaged_{split}_images") or 0 for split in ("train", "validation"))
    if damaged:
        text.append(f"; without {damaged:.0f} damaged image{'s' * (damaged != 1)}", style="default")
    return text


class StudyDisplay:
    """Shows a study while it runs: a live table on a terminal, a line for each event and minute elsewhere.

    ``trials`` is the folder in which each trial has one of its own name.
    """

    def __init__(
        self,
        study: Study,
        progress: StudyProgress,
        trials: Path,
        footnote: Callable[[], str],
        console: Console,
    ) -> None:
        self._study, self._progress, self._trials, self._footnote = study, progress, trials, footnote
        self._console = console
        self._closed = threading.Event()
        self._started = time.monotonic()
        self._epochs_before = {name: trial.epoch for name, trial in progress.trials.items()}
        self._shown: dict[str, tuple[str | None, int]] = {}
        self._note = ""
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=2, transient=True, screen=False
        )

    def __enter__(self) -> StudyDisplay:
        if self._console.is_terminal:
            self._live.start()
        else:
            threading.Thread(target=self._say_every_minute, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._console.is_terminal:
            self._live.stop()

    def note(self, text: str) -> None:
        """Says something once, below the table."""
        self._note = text
        if not self._console.is_terminal:
            self._console.print(f"[{clock_time(self._elapsed)}] {text}", markup=False, soft_wrap=True)

    def update(self) -> None:
        """Takes notice that the progress has changed."""
        if self._console.is_terminal:
            return
        for trial in self._progress.trials.values():
            seen = (trial.state, trial.epoch)
            if self._shown.get(trial.name, (None, self._epochs_before[trial.name])) != seen:
                self._shown[trial.name] = seen
                self._console.print(self._line(trial), markup=False, soft_wrap=True)

    def _line(self, trial: TrialProgress) -> str:
        what = f"epoch {trial.epoch}/{self._study.epochs}" if trial.state == "running" else str(trial.state)
        if trial.state == "running" and trial.epoch == self._epochs_before[trial.name]:
            what = "started"
        top1 = trial.last(METRIC)
        figures = (
            f", top-1 {top1:.1%}, {trial.last('train_seconds') or 0:.1f} s of training"
            if top1 is not None
            else ""
        )
        reason = f" ({trial.reason})" if trial.reason else ""
        return f"[{clock_time(self._elapsed)}] {trial.name}: {what}{reason}{figures}; {self._time_left()}"

    def _say_every_minute(self) -> None:
        while not self._closed.wait(60):
            running = [trial for trial in self._progress.trials.values() if trial.state == "running"]
            told = ", ".join(f"{trial.name} {_epochs(self._epochs_done(trial))}" for trial in running)
            self._console.print(
                f"[{clock_time(self._elapsed)}] epochs of {self._study.epochs}: {told or 'none runs'}; "
                f"{self._time_left()}",
                markup=False,
                soft_wrap=True,
            )

    def _epochs_done(self, trial: TrialProgress) -> float:
        """With the fraction of the running epoch; a number of before a restart may stand in the file."""
        noted = noted_progress(self._trials / trial.name) if trial.state == "running" else 0.0
        return max(trial.epoch, min(noted, trial.epoch + 0.99))

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _time_left(self) -> str:
        """Time for all epochs that are left at the pace so far; trials that are stopped early make it less."""
        trials = self._progress.trials.values()
        done = sum(self._epochs_done(trial) - self._epochs_before[trial.name] for trial in trials)
        if not done:
            return "time left: not known yet"
        left = sum(
            self._study.epochs - self._epochs_done(trial)
            for trial in trials
            if trial.state not in ("finished", "stopped", "diverged", "failed")
        )
        return f"at most {clock_time(self._elapsed / done * left)} left"

    def _render(self) -> RenderableType:
        states = [trial.state for trial in self._progress.trials.values()]
        over = sum(state in ("finished", "stopped", "diverged", "failed") for state in states)
        footer = (
            f"{over} of {len(states)} trials done, {states.count('running')} running; "
            f"{clock_time(self._elapsed)} gone, {self._time_left()}. Ctrl-C stops and keeps what is done."
        )
        notes = [Text(self._note, style="bold yellow")] if self._note else []
        return Group(
            trial_table(self._study, self._progress, self._epochs_done),
            Text(),
            Text(footer, style="bold"),
            Text(self._footnote(), style="dim"),
            *notes,
        )
