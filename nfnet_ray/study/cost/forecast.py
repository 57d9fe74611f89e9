"""Forecasts how long a study will take and what it will need, from its rungs and the measured pace of trials."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.contenders import further_to_run
from nfnet_ray.study.cost.earlier_runs import MeasuredTrial
from nfnet_ray.study.cost.plan import (
    behind_it,
    dearest,
    further_names,
    ladder_in_epochs,
    longest,
    makespan,
    multiply_adds,
    next_rung,
    rerun_group,
    trained_multiply_adds,
    training_multiply_adds,
)
from nfnet_ray.study.cost.probe_process import FIRST_STEPS, Probe
from nfnet_ray.study.decisions import Group, groups
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.state import StudyState

# The time from the start of a trial in a process that is already running to its first batch: 0.19 to 0.32 s on quiet
# cores (README.md), 0.5 to 1.6 s observed on busy ones.
LATER_STARTUP_SECONDS = 1.0
BYTES_OF_A_PARAMETER = {"float32": 4, "bfloat16": 4, "float64": 8}


@dataclass(frozen=True)
class Span:
    """An interval estimate, from ``low`` to ``high``."""

    low: float
    high: float

    def times(self, factor: float) -> Span:
        """Returns the interval with both ends multiplied by a factor."""
        return Span(self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Pace:
    """The pace of a trial; ``training`` is in seconds per multiply-add of the whole trial, over all workers."""

    training: Span
    eval_seconds: float
    """Seconds for each validation image."""
    checkpoint_seconds: float
    """Seconds for each epoch."""
    first_startup_seconds: float
    """Seconds for a trial that also starts its workers' processes."""
    later_startup: Span
    memory_bytes: float | None = None
    """The peak memory of a worker, or of its GPU."""
    watts: float | None = None
    """The power of all GPUs of a trial."""


def pace_of_earlier(trials: Sequence[MeasuredTrial]) -> Pace:
    """Returns the pace of earlier trials, at least one, of the same kind."""
    speeds = sorted(trial.seconds_per_multiply_add for trial in trials)
    startups = sorted(trial.startup_seconds for trial in trials)
    memory = [trial.memory_bytes for trial in trials if trial.memory_bytes is not None]
    watts = [trial.watts for trial in trials if trial.watts is not None]
    return Pace(
        training=Span(_quantile(speeds, 0.1), _quantile(speeds, 0.9)),
        eval_seconds=statistics.median(trial.eval_seconds for trial in trials),
        checkpoint_seconds=statistics.median(trial.checkpoint_seconds for trial in trials),
        first_startup_seconds=startups[-1],
        later_startup=Span(startups[0], statistics.median(startups)),
        memory_bytes=max(memory, default=None),
        watts=statistics.mean(watts) if watts else None,
    )


def pace_of_probe(probe: Probe, recipe: Recipe, classes: int, workers: int) -> Pace | None:
    """Returns the pace that a probe of ``recipe`` measured; None if the probe did not complete a step.

    The probe is one of ``workers`` workers, so the communication between workers is not included.
    """
    if not probe.step_seconds:
        return None
    steps = sorted(probe.step_seconds[FIRST_STEPS:] or probe.step_seconds)
    arithmetic = probe.images * training_multiply_adds(recipe, classes, probe.image_size) * workers
    startup = probe.startup_seconds or 0.0
    return Pace(
        training=Span(_quantile(steps, 0.1) / arithmetic, _quantile(steps, 0.9) / arithmetic),
        eval_seconds=probe.eval_seconds / max(1, probe.eval_images) / workers,
        checkpoint_seconds=probe.checkpoint_seconds or 0.0,
        first_startup_seconds=startup + (probe.process_seconds or 0.0),
        later_startup=Span(min(LATER_STARTUP_SECONDS, startup), startup),
        memory_bytes=probe.memory_bytes,
    )


@dataclass(frozen=True)
class Forecast:
    """The forecast of a study: ``trial_seconds`` summed over all trials, ``wall_seconds`` until the study ends.

    ``most_…`` are the values if no trial is stopped early. ``joules`` is the energy of the GPUs; None if unknown.
    """

    trial_seconds: Span
    wall_seconds: Span
    most_trial_seconds: float
    most_wall_seconds: float
    joules: Span | None
    memory_bytes: float | None


def forecast(
    study: Study,
    data: DatasetSummary,
    paces: Mapping[str, Pace],
    places: int,
    progress: StudyState | None = None,
) -> Forecast:
    """Forecasts a study; ``paces`` is {trial: its pace}, and ``places`` trials run at once.

    The ends of the intervals are those of the pace. At each rung the planned number of trials is assumed to continue,
    first those that have trained further. The low end assumes the smallest number of contenders. Settings that a search
    has yet to propose are assumed to cost as much as the first ones, and a rerun or a further seed as much as the most
    expensive setting. For a study that has begun, ``progress`` is the state of its trials, and only the remaining work
    is forecast.
    """
    certain, possible = further_names(study, progress)
    further, reruns = Group((*certain, *possible), (), longest(study)), rerun_group(study, progress)
    costs = _Costs.of(study, data, paces, added=[*further.trials, *reruns.trials])
    left: dict[str, _Left] = {}
    for group in (*groups(study), further, reruns):
        left.update(costs.left(group, progress))
    low = {name: 0.0 if name in possible else one.low for name, one in left.items()}
    high = {name: one.high for name, one in left.items()}
    most = [one.most for one in left.values()]
    if possible:  # without early stopping every setting may be a contender
        settings = study.settings if study.is_adaptive else len(study.trials_by_setting())
        others = settings * len(study.more_seeds) - len(further.trials)
        most += [costs.seconds(possible[0], further, further.end, 1).high] * others
    begin = max([0.0, *(pace.first_startup_seconds - pace.later_startup.high for pace in paces.values())])
    memory = [pace.memory_bytes for pace in paces.values() if pace.memory_bytes is not None]
    return Forecast(
        trial_seconds=Span(
            math.fsum(low.values()) + begin * places, math.fsum(high.values()) + begin * places
        ),
        wall_seconds=Span(
            begin + makespan([*low.values()], places), begin + makespan([*high.values()], places)
        ),
        most_trial_seconds=math.fsum(most) + begin * places,
        most_wall_seconds=begin + makespan(most, places),
        joules=costs.joules(low, high),
        memory_bytes=max(memory, default=None),
    )


@dataclass(frozen=True)
class _Left:
    """The remaining seconds of a trial: as planned, and at most, if the trial is not stopped early."""

    low: float
    high: float
    most: float


@dataclass(frozen=True)
class _Costs:
    """The costs of the trials of a study.

    Attributes:
        recipes, paces: {name: Recipe or pace} of the planned trials.
        alike: {trial: the planned trial whose cost it is assumed to have}.
    """

    data: DatasetSummary
    recipes: Mapping[str, Recipe]
    paces: Mapping[str, Pace]
    alike: Mapping[str, str]

    @classmethod
    def of(
        cls, study: Study, data: DatasetSummary, paces: Mapping[str, Pace], added: Sequence[str]
    ) -> _Costs:
        """Creates the costs; ``added`` are the trials that the study adds when its settings have been compared."""
        recipes = {trial.name: trial.recipe for trial in study.trials()}
        alike = dict(zip((name for _, name in study.names_to_come()), itertools.cycle(recipes), strict=False))
        alike |= {name: name for name in recipes}
        if added:
            most_arithmetic = dearest(study, data)
            like = next(name for name, recipe in recipes.items() if recipe == most_arithmetic)
            alike |= dict.fromkeys(added, like)
        return cls(data, recipes, paces, alike)

    def seconds(self, trial: str, group: Group, epochs: int, legs: int) -> Span:
        """Returns the seconds of a trial up to an epoch, in the given number of legs."""
        pace, recipe = self.paces[self.alike[trial]], self.recipes[self.alike[trial]]
        evaluations = 2 if recipe.optimizer.ema.decay is not None else 1
        each = pace.eval_seconds * evaluations * self.data.validation_images + pace.checkpoint_seconds
        training = pace.training.times(trained_multiply_adds(recipe, self.data, group, epochs))
        return Span(
            training.low + each * epochs + pace.later_startup.low * legs,
            training.high + each * epochs + pace.later_startup.high * legs,
        )

    def epoch_seconds(self, trial: str) -> float:
        """Returns the mean training seconds of an epoch."""
        pace, recipe = self.paces[self.alike[trial]].training, self.recipes[self.alike[trial]]
        epochs = recipe.schedule.epochs
        return (pace.low + pace.high) / 2 * multiply_adds(recipe, self.data, epochs) / epochs

    def left(self, group: Group, progress: StudyState | None) -> Iterator[tuple[str, _Left]]:
        """Yields the trials of a group that have not ended, each with its remaining seconds."""
        passed = [number for number, trials_there in enumerate(_given_up(group)) for _ in range(trials_there)]
        behind = {name: behind_it(name, progress) for name in group.trials}
        given_up_first = sorted(group.trials, key=lambda name: _place(*behind[name], group.end))
        for name, rungs in zip(given_up_first, passed, strict=True):
            done, has_ended = behind[name]
            if has_ended:
                continue
            ladder = ladder_in_epochs(group, self.epoch_seconds(name) if group.in_seconds else None)
            planned = [*(rung for rung, _ in ladder), group.end][rungs]
            epochs = max(planned, next_rung(done, ladder, group.end))
            legs = rungs + 1 - sum(rung <= done for rung, _ in ladder[:rungs]) if epochs > done else 0
            paid = self.seconds(name, group, done, 0)
            whole = self.seconds(name, group, epochs, legs)
            most = self.seconds(name, group, group.end, max(1, len(group.schedules)))
            yield name, _Left(whole.low - paid.low, whole.high - paid.high, most.high - paid.high)

    def joules(self, low: Mapping[str, float], high: Mapping[str, float]) -> Span | None:
        """Returns the energy of trials that take these seconds; None if the power of a planned trial is unknown."""
        watts = {name: pace.watts for name, pace in self.paces.items() if pace.watts is not None}
        if len(watts) < len(self.paces):
            return None
        ends = ([watts[self.alike[name]] * value for name, value in end.items()] for end in (low, high))
        return Span(*map(math.fsum, ends))


def trials_in_the_end(study: Study) -> int:
    """Returns the final number of trials, including those that an adaptive search proposes later, and all reruns."""
    further = len(study.more_seeds) * (len(study.trials()) + len(study.names_to_come()))
    return len(study.trials()) + len(study.names_to_come()) + further + study.confirm * study.winners


def rung_table(study: Study) -> list[tuple[float, int]]:
    """Returns (rung, number of trials that train up to it) for each rung and the end, over all strata, as planned.

    A rung is an epoch, the length of a stretched schedule, or seconds of training. If rungs are in seconds, the end is
    infinity.
    """
    reached: dict[float, int] = {}
    for group in groups(study):
        left = len(group.trials)
        rungs: list[float] = list(group.schedules) or [rung for rung, _ in group.ladder]
        if not group.schedules:
            rungs.append(math.inf if group.in_seconds else group.end)
        for rung, given_up in zip(rungs, _given_up(group), strict=True):
            reached[rung] = reached.get(rung, 0) + left
            left -= given_up
    return sorted(reached.items())


def complete_schedules(study: Study) -> int:
    """Returns the planned number of complete schedules of all trials, each of which keeps its own checkpoints."""
    if study.halving is None or not study.halving.is_stretched:
        return trials_in_the_end(study)
    _, further = further_to_run(study, study.waiting_state())
    return sum(number for _, number in rung_table(study)) + further + study.confirm * study.winners


def _place(done: int, has_ended: bool, end: int) -> tuple[int, int]:
    """A sort key for the trials of a group by expected progress: ended trials, training ones, finished ones."""
    return (2 if done >= end else 0 if has_ended else 1), done


def _given_up(group: Group) -> list[int]:
    """Returns the planned numbers of trials that end at each rung of a group and at its end."""
    continuing = [len(group.trials), *(kept for _, kept in group.ladder), 0]
    return [before - after for before, after in itertools.pairwise(continuing)]


def checkpoint_bytes(recipe: Recipe, parameters: int) -> int:
    """Returns the bytes of a checkpoint: the weights and the copies that optimiser, moving average and LookSAM keep."""
    optimizer = recipe.optimizer
    copies = 2 + (optimizer.name == "rmsprop") + (optimizer.ema.decay is not None)
    copies += optimizer.sam.rho is not None and optimizer.sam.method == "looksam"
    return copies * parameters * BYTES_OF_A_PARAMETER[recipe.precision]


def _quantile(values: Sequence[float], share: float) -> float:
    """Returns a quantile of sorted values by linear interpolation."""
    place = share * (len(values) - 1)
    low, high = values[math.floor(place)], values[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))
