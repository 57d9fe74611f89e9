"""Displays a running study as a live table with the time left, or as lines if the output is not a terminal."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console, ConsoleDimensions, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from nfnet_ray.command_line.terminal import can_redraw
from nfnet_ray.metric import METRIC
from nfnet_ray.printable import printable
from nfnet_ray.study.added_trials import added_trials, left_out_trials
from nfnet_ray.study.decisions import ends, most_epochs
from nfnet_ray.study.epochs_done import noted_progress
from nfnet_ray.study.live.time_left import TimeLeft
from nfnet_ray.study.study import Study, Trial
from nfnet_ray.tracking.labels import ABSENT, point_label, short_names, value_label
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import ENDED, LOST, TrialProgress
from nfnet_ray.wording import clock_time, count, speed

STATE_STYLES = {
    "running": "bold cyan",
    "paused": "blue",
    "finished": "green",
    "stopped": "yellow",
    "diverged": "red",
    "failed": "bold red",
    "interrupted": "yellow",
    "unfinished": "yellow",
}
# The least width, in characters, of a column of settings if the terminal has room for that. Longer values are cut.
_LEAST_WIDTH = 12
# A width in characters that exceeds every terminal's.
_WIDE = 10_000
# The largest share of the time that is spent on drawing. A frame of 1,000 trials takes a tenth of a second and more,
# and the driver has other work to do.
_LARGEST_SHARE = 0.05
_MOST_SECONDS_BETWEEN_FRAMES = 10.0
_NONE_IS_RUNNING = "no trial is running: workers are starting, or wait for room"
# The order of the states in the line that counts the trials that have no row.
_COUNTED = ("running", "paused", "waiting", *ENDED, "interrupted")


def trial_table(
    study: Study,
    state: StudyState,
    epochs_done: Callable[[TrialProgress], float],
    console: Console | None = None,
    *,
    is_cut_off: bool = False,
) -> Table:
    """Returns a table with a row for each trial: swept fields, top-1, epochs, training seconds, images/s, state.

    Further seeds of contenders and reruns of the winners follow, and trials that an extension has left out come last.
    If the terminal of ``console`` is too narrow for all columns, the speed and the seconds are omitted. ``is_cut_off``
    means that the driver disappeared without recording its end, so no trial runs, whatever the journal says.
    """
    study = study.grown(state)
    trials = study.trials() + added_trials(study, state) + left_out_trials(study, state)
    return _fitting(
        console,
        lambda measured, is_firm: _table(
            study, state, trials, epochs_done, measured, is_firm=is_firm, is_cut_off=is_cut_off
        ),
    )


def plan_table(study: Study, progress: StudyState | None, console: Console) -> Table:
    """Returns a table with a row for each planned trial; if the study has begun, the table of all its trials."""
    if progress is not None:
        return trial_table(study, progress, reported_epochs, console)
    return _table(study, study.waiting_state(), study.trials(), reported_epochs, ("epochs",))


def _fitting(console: Console | None, build: Callable[[Sequence[str], bool], Table]) -> Table:
    """Returns the table with as many measured columns as fit; accuracy and epochs are always shown.

    ``build`` is called with the measured columns, and whether the other columns keep a readable width.
    """
    measured = ["top-1", "epochs", "train s", "images/s"]
    if console is None:
        return build(measured, False)
    wide = console.options.update(width=_WIDE)  # else rich limits the width to the terminal's
    while True:
        table = build(measured, True)
        if console.measure(table, options=wide).minimum <= console.width:
            return table
        if not console.is_terminal or len(measured) <= 2:
            return build(measured, False)  # else rich would cut off the last columns
        measured.pop()


def _table(
    study: Study,
    state: StudyState,
    trials: Sequence[Trial],
    epochs_done: Callable[[TrialProgress], float],
    measured: Iterable[str],
    one_line: bool = False,
    is_firm: bool = False,
    is_cut_off: bool = False,
) -> Table:
    """Builds the table. ``one_line``: cut texts that are too long for their columns, so each trial takes one line.

    ``is_firm``: fields and states keep a readable width; else a narrow terminal may leave them less.
    """
    titles = short_names(study.fields)
    titles.pop("schedule.epochs", None)  # the column of epochs shows it
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    labels = {
        name: [printable(value_label(trial.point.get(name, ABSENT))) for trial in trials] for name in titles
    }
    for name, title in titles.items():
        least = min(_LEAST_WIDTH, max(map(len, labels[name]), default=0)) if is_firm else None
        table.add_column(title.replace("_", " "), justify="right", min_width=least)
    with_seeds = len(study.seeds) > 1 or len({trial.recipe.seed for trial in trials}) > 1
    if with_seeds:
        table.add_column("seed", justify="right", no_wrap=True)
    for title in measured:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column(
        "state", min_width=_state_width(state, trials, one_line, is_cut_off) if is_firm else None
    )
    outside = state.outside
    last_epochs = _different_ends(study)
    for row, trial in enumerate(trials):
        progress = state.trials[trial.name]
        cells = [_cell(labels[name][row], one_line) for name in titles]
        if with_seeds:
            cells.append(Text(str(trial.recipe.seed)))
        values = {
            "top-1": _number(progress.last(METRIC), "{:.1%}"),
            "epochs": f"{_epochs(epochs_done(progress))}/{last_epochs.get(trial.name, trial.recipe.schedule.epochs)}",
            "train s": _number(progress.last("train_seconds"), "{:.1f}"),
            "images/s": "" if (rate := progress.images_per_second) is None else speed(rate),
        }
        cells += [Text(values[title]) for title in measured]
        table.add_row(
            *cells,
            _state_cell(progress, one_line, trial.name in outside, trial.name in state.reruns, is_cut_off),
        )
    return table


def _state_word(trial: TrialProgress, is_cut_off: bool) -> str:
    return "unfinished" if is_cut_off and trial.state == "running" else trial.state or "waiting"


def _state_width(state: StudyState, trials: Sequence[Trial], one_line: bool, is_cut_off: bool) -> int:
    """Returns the width of the column of states: for a live table that of all states, else of those that occur."""
    words = (
        STATE_STYLES if one_line else [_state_word(state.trials[trial.name], is_cut_off) for trial in trials]
    )
    return max(map(len, words), default=0)


def _cell(text: str, one_line: bool) -> Text:
    return Text(text, no_wrap=one_line or None, overflow="ellipsis" if one_line else "fold")


def _different_ends(study: Study) -> dict[str, int]:
    """Returns {trial: its last epoch} for trials of several schedules, which exceeds the Recipe's epochs."""
    return ends(study) if study.halving and study.halving.is_stretched else {}


def reported_epochs(trial: TrialProgress) -> float:
    """Returns the number of epochs that a trial has reported."""
    return trial.epoch


def _epochs(epochs: float) -> str:
    """Formats epochs: ``3`` at the end of an epoch, ``3.4`` within one."""
    return f"{math.floor(10 * epochs) / 10:g}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _state_cell(
    trial: TrialProgress, one_line: bool, is_left_out: bool, is_rerun: bool, is_cut_off: bool
) -> Text:
    state = _state_word(trial, is_cut_off)
    style = "dim" if is_left_out else STATE_STYLES.get(state, "dim")
    text = Text(state, style, no_wrap=one_line or None, overflow="ellipsis" if one_line else "fold")
    if trial.reason:
        text.append(f": {printable(trial.reason)}", style="default")
    damaged = sum(trial.last(f"damaged_{split}_images") or 0 for split in ("train", "validation"))
    if damaged:
        text.append(f"; without {count(round(damaged), 'damaged image')}", style="default")
    if is_rerun:
        text.append(
            "; rerun of the winner" if not is_left_out else "; rerun of an earlier winner", style="default"
        )
    elif is_left_out:
        text.append("; not in the study any more", style="default")
    return text


def best_so_far(study: Study, state: StudyState) -> str:
    """Describes the best trial, such as ``Best so far: 81.2% after epoch 3 of 8: clip factor 0.02``; else empty."""
    best = _best(study, state)
    if best is None:
        return ""
    progress = state.trials[best.name]
    where = point_label(best.point, short_names(study.fields))
    if len(study.seeds) > 1:
        where = ", ".join(filter(None, [where, f"seed {best.recipe.seed}"]))
    top1 = progress.last(METRIC) or 0.0
    last = _different_ends(study).get(best.name, best.recipe.schedule.epochs)
    said = f"Best so far: {top1:.1%} after epoch {progress.epoch} of {last}"
    return printable(f"{said}: {where}" if where else said)


def _best(study: Study, state: StudyState) -> Trial | None:
    """Returns the trial with the highest accuracy after its last epoch, except diverged and failed trials."""

    def is_sound(progress: TrialProgress) -> bool:
        return bool(progress.epochs) and progress.state not in LOST

    sound = [trial for trial in study.grown(state).trials() if is_sound(state.trials[trial.name])]
    return max(sound, key=lambda trial: state.trials[trial.name].last(METRIC) or 0.0, default=None)


class StudyDisplay:
    """Displays a study while it runs: a live table on a terminal, else a line for each event and each minute.

    Args:
        trials: the folder that contains one folder for each trial, by name.
        footnote: returns a line to show below the table.
        work: {trial: arithmetic of one of its epochs}, to estimate the time left; by default all trials are equal.
    """

    def __init__(
        self,
        study: Study,
        state: StudyState,
        trials: Path,
        footnote: Callable[[], str],
        console: Console,
        work: Mapping[str, float] | None = None,
    ) -> None:
        self._study, self._state, self._trials, self._footnote = study, state, trials, footnote
        self._epochs = most_epochs(study)
        self._ends = ends(study) if study.has_budgets else {}
        self._console = console
        self._closed = threading.Event()
        self._started = time.monotonic()
        self._epochs_before = {name: trial.epoch for name, trial in state.trials.items()}
        self._time_left = TimeLeft(study, state, work or dict.fromkeys(state.trials, 1.0))
        self._left_lock = threading.Lock()
        self._is_updated = False
        self._left_at: float | None = None
        self._left_sentence = ""
        self._shown: dict[str, tuple[str | None, int, str | None]] = {}
        self._note = ""
        self._is_live = can_redraw(console)
        self.frame = _Frame(self._draw)
        """Returns what the terminal shows now, as a renderable for rich."""
        self._live = Live(
            _Frame(self._draw, _LARGEST_SHARE),
            console=console,
            refresh_per_second=2,
            transient=True,
            vertical_overflow="crop",
        )

    def __enter__(self) -> StudyDisplay:
        if self._is_live:
            self._live.start()
        else:
            threading.Thread(target=self._say_every_minute, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the display. It can be called from any thread."""
        self._closed.set()
        if self._is_live:
            self._live.stop()

    def note(self, text: str) -> None:
        """Shows a message below the table, until the next message."""
        self._note = printable(text)
        if not self._is_live:
            self._print(text)

    def update(self) -> None:
        """Shows what the latest event has changed; the first call shows the whole state."""
        latest = [self._state.latest] if self._state.latest else []
        changed = latest if self._is_updated else self._state.members
        self._is_updated = True
        with self._left_lock:
            self._time_left.observe(self._elapsed, changed)
        if self._is_live:
            return
        for trial in changed:
            seen = (trial.state, trial.epoch, trial.reason)
            before = self._shown.get(trial.name, (None, self._epochs_before.get(trial.name, 0), None))
            if before != seen:
                self._shown[trial.name] = seen
                self._print(self._line(trial, was=before[0]))

    def _print(self, line: str) -> None:
        text = Text(printable(f"[{clock_time(self._elapsed)}] {line}"))
        self._console.print(text, soft_wrap=True)

    def _line(self, trial: TrialProgress, was: str | None) -> str:
        last = self._ends.get(trial.name, self._epochs)
        what = f"epoch {trial.epoch}/{last}" if trial.state == "running" else str(trial.state)
        if trial.state == "running" and was == "paused":
            what = f"continues after epoch {trial.epoch}"
        elif trial.state == "running" and trial.epoch == self._epochs_before.get(trial.name, 0):
            what = "started"
        if trial.reason:
            what += f" ({trial.reason})"
        top1 = trial.last(METRIC)
        if top1 is not None:
            what += f", top-1 {top1:.1%}, {trial.last('train_seconds') or 0:.1f} s of training"
        return "; ".join(filter(None, [f"{trial.name}: {what}", self._left()]))

    def _say_every_minute(self) -> None:
        while not self._closed.wait(60):
            running = [trial for trial in self._state.trials.values() if trial.state == "running"]
            names = ", ".join(f"{trial.name} {_epochs(self._epochs_done(trial))}" for trial in running)
            most = "at most " if self._ends else ""
            done = f"{names} of {most}{count(self._epochs, 'epoch')}" if names else _NONE_IS_RUNNING
            self._print("; ".join(filter(None, [done, self._left()])))

    def _epochs_done(self, trial: TrialProgress) -> float:
        """Returns a trial's epochs with the fraction of the running one, which may be outdated after a restart."""
        noted = noted_progress(self._trials / trial.name) if trial.state == "running" else 0.0
        return max(trial.epoch, min(noted, trial.epoch + 0.99))

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _left(self) -> str:
        """The time left as a sentence, at most a second old, because computing it takes all trials into account."""
        with self._left_lock:  # events arrive in one thread, and the table is drawn in another
            now = self._elapsed
            if self._left_at is None or now - self._left_at >= 1:
                self._time_left.observe(now)
                self._left_at, self._left_sentence = now, self._time_left.sentence(self._epochs_done)
            return self._left_sentence

    def _draw(self, console: Console, options: ConsoleOptions) -> list[list[Segment]]:
        """Returns the lines of a frame that is one line lower than the terminal: rich cannot erase scrolled lines.

        The footer gets its lines first, and the table gets the rest, for the most important trials.
        """
        height = max(1, options.size.height - 1)
        footer = [
            line
            for text in self._footer()
            for line in console.render_lines(text, options.update(height=None), pad=False)
        ][:height]
        room = height - len(footer) - 2  # one line for the titles, and an empty one
        while room > 0:
            rows = Group(*self._rows(console, room))
            lines = console.render_lines(rows, options.update(height=None), pad=False)
            excess = len(lines) + 1 + len(footer) - height
            if excess <= 0:
                return [*lines, [], *footer]
            room -= excess  # titles of several words may take several lines
        return footer

    def _footer(self) -> list[Text]:
        states = Counter(trial.state or "waiting" for trial in self._state.members)
        over = sum(states[state] for state in ENDED)
        said = [f"{over} of {count(states.total(), 'trial')} done"]
        said += [f"{states[state]:,} {state}" for state in ("running", "paused", "waiting") if states[state]]
        times = ", ".join(filter(None, [f"{clock_time(self._elapsed)} gone", self._left()]))
        lines = [
            Text(f"{', '.join(said)}; {times}.", style="bold"),
            Text("Ctrl-C stops and keeps what is done.", style="bold"),
        ]
        best = best_so_far(self._study, self._state)
        if best and len(self._study.trials()) > 1:
            lines.append(Text(best))
        lines.append(Text(printable(self._footnote()), style="dim"))
        if self._note:
            lines.append(Text(self._note, style="bold yellow"))
        return lines

    def _rows(self, console: Console, room: int) -> list[Table | Text]:
        """Returns a table of at most ``room`` rows. If trials are left out, the last row is a line that counts them."""
        self._study = self._study.grown(self._state)
        trials = self._study.trials() + added_trials(self._study, self._state)
        shown = trials if len(trials) <= room else self._chosen(trials, room - 1)
        table = _fitting(
            console,
            lambda measured, is_firm: _table(
                self._study, self._state, shown, self._epochs_done, measured, one_line=True, is_firm=is_firm
            ),
        )
        if len(shown) == len(trials):
            return [table]
        names = {trial.name for trial in shown}
        rest = Counter(
            progress.state or "waiting" for progress in self._state.members if progress.name not in names
        )
        counts = ", ".join(f"{rest[state]:,} {state}" for state in _COUNTED if rest[state])
        return [table, Text(f"… {counts}", style="dim", no_wrap=True)]

    def _chosen(self, trials: list[Trial], room: int) -> list[Trial]:
        """Returns the ``room`` most important trials: the best so far, running, best ended, and next ones."""
        best = _best(self._study, self._state)

        def rank(trial: Trial) -> tuple[int, float]:
            progress = self._state.trials[trial.name]
            if best is not None and trial.name == best.name:
                return 0, 0.0
            if progress.state == "running":
                return 1, 0.0
            return (2, -(progress.last(METRIC) or 0.0)) if progress.state else (3, 0.0)

        chosen = {trial.name for trial in sorted(trials, key=rank)[:room]}
        return [trial for trial in trials if trial.name in chosen]


class _Frame:
    """A renderable for rich whose lines are drawn for the terminal's current size.

    At most ``largest_share`` of the time is spent on drawing. In between, the previous lines are shown again.
    """

    def __init__(
        self, draw: Callable[[Console, ConsoleOptions], list[list[Segment]]], largest_share: float = 1.0
    ) -> None:
        self._draw, self._largest_share = draw, largest_share
        self._lines: list[list[Segment]] = []
        self._size: ConsoleDimensions | None = None
        self._next_at = 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        began = time.monotonic()
        if began >= self._next_at or options.size != self._size:
            self._lines, self._size = self._draw(console, options), options.size
            seconds = time.monotonic() - began
            self._next_at = began + min(seconds / self._largest_share, _MOST_SECONDS_BETWEEN_FRAMES)
        for line in self._lines:
            yield from line
            yield Segment.line()
