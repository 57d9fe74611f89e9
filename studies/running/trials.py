"""A study of many trials: how it is asked for, and how Ray runs its trials, as many at once as fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.digits import DigitsPart, describe_digits
from nfnet_ray.cluster.connection.resources import Resources, WorkerResources
from nfnet_ray.cohorts import company_of, why_alone
from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import with_published_values
from nfnet_ray.recipe import Overrides, Recipe
from nfnet_ray.study.contenders import Contenders
from nfnet_ray.study.decisions import most_epochs
from nfnet_ray.study.extension import UNNAMED, points_within
from nfnet_ray.study.halving import Halving, Schedule, parse_halving
from nfnet_ray.study.search.first_points import best_points
from nfnet_ray.study.search.upcoming import has_more
from nfnet_ray.study.space import Point, Space, has_range
from nfnet_ray.study.space.asked import asked_points, asked_space, question_of
from nfnet_ray.study.space.points import count_settings
from nfnet_ray.study.study import MOST_SETTINGS, Study
from nfnet_ray.tracking.descriptions import StudyDescription
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.labels import value_label
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.study_directory import find_study
from nfnet_ray.wording import count
from studies.base_recipe import with_network
from studies.running.checks import DATA_FOLDER
from studies.running.names import name_for_run
from studies.running.program import MadeWeights, StudyProgram
from studies.running.request import Request
from studies.running.runner import EXIT_FAILED_TRIALS, Ending, Runner, RunningStudy, WorkerDemand


@dataclass(frozen=True, kw_only=True)
class StudyRequest(Request):
    """A study of ``program``, with what was said of its trials. ``own`` are the study's own flags by name."""

    program: StudyProgram
    own: Mapping[str, Any] = field(default_factory=dict)
    sweep: Space = field(default_factory=dict)
    """{dotted name of a Recipe field: its domain}, of ``--sweep``."""
    trials: int | None = None
    seeds: int | None = None
    are_seeds_for_all: bool = False
    """Whether each setting is trained with all seeds; else only the contenders with more than the first one."""
    search: str | None = None
    earlier: str | None = None
    """The name or the folder of an earlier study whose best settings are tried first."""
    early_stopping: str | Halving | None = None
    """As a text of ``--early-stopping``, or in Python as what that says."""
    schedule: Schedule | None = None
    equal_within: float | None = None
    """In points."""
    holdout: float | None = None
    """A share, 0 to 1."""
    confirm: int | None = None
    """With how many fresh seeds the winner is rerun."""
    workers_per_trial: tuple[int, int] | None = None
    """(least, most)."""
    trials_at_once: int | None = None
    cohorts: int | None = None
    """How many trials are trained as one program at most."""

    @property
    def program_file(self) -> Path | None:
        return self.program.file

    @property
    def digits(self) -> DigitsPart:
        return self.program.digits

    @property
    def made_weights(self) -> MadeWeights | None:
        return self.program.made_weights

    @property
    def can_extend(self) -> bool:
        return True

    def fixed(self) -> dict[str, Any]:
        return {
            "--data": self.data,
            "--trials": self.trials,
            "--epochs": self.epochs,
            "--seeds": self.seeds,
            "--search": self.search,
            "--from": self.earlier,
            "--early-stopping": self.early_stopping,
            "--schedule": self.schedule,
            "--equal-within": self.equal_within,
            "--holdout": self.holdout,
            "--confirm": self.confirm,
            "--set": self.settings or None,
            "--sweep": self.sweep or None,
            "--workers-per-trial": self.workers_per_trial,
            "--cpus-per-worker": self.cpus_per_worker,
            "--gpus-per-worker": self.gpus_per_worker,
            **{f"--{name}": value for name, value in self.own.items()},
        }

    def values(self) -> dict[str, Any]:
        return dict(self.settings)

    def new_study(self, data: DatasetSummary, values: dict[str, Any], *, is_built_in: bool) -> Study:
        """The program's study with these values, seeds and trials. Raises RecipeError for a value that is wrong."""
        del is_built_in
        epochs = values.pop("schedule.epochs", None) or self.epochs
        own = dict(self.own)
        if self.program.takes_model and "model.name" in values:
            own["model"] = values["model.name"]
        study = self.program.study(data, epochs, **own)
        recipe = self._for_the_networks_of(values, study.recipe).with_values(values)
        space, points = dict(study.space), study.points
        if points is None:
            space = asked_space(space, recipe, values, self.sweep)
        else:
            points = asked_points(points, recipe, values, self.sweep)
        question = study.question
        if self.program.is_open:
            if not space:
                raise UserError(
                    "there is nothing to sweep: give --sweep FIELD=VALUES, such as "
                    "--sweep optimizer.agc.clip_factor=0.01,0.02,none"
                )
            question = question_of(space)
        seeds, more_seeds = study.seeds, study.more_seeds
        # A Study without seeds of its own has (0,): its Recipe's seed is meant.
        if self.seeds or "seed" in values or seeds == (0,):
            # The settings of short budgets could not be the best, and are what is asked about.
            has_budgets = "schedule.epochs" in (*space, *(name for point in points or () for name in point))
            seeds = tuple(range(recipe.seed, recipe.seed + (self.seeds or 1)))
            seeds, more_seeds = (seeds, ()) if has_budgets else self._in_turn(seeds)
        study = replace(
            study,
            name=self.name or name_for_run(study.name),
            question=question,
            recipe=recipe,
            space=space,
            points=points,
            seeds=seeds,
            more_seeds=more_seeds,
            halving=self._new_halving(study.halving),
            trial_limit=self.trials or study.trial_limit,
            search=self.search or study.search,
            equal_within=study.equal_within if self.equal_within is None else self.equal_within / 100,
            holdout=self.holdout or study.holdout,
            confirm=self.confirm or study.confirm,
        )
        return replace(study, first_points=self._first_points(study)) if self.earlier else study

    def _for_the_networks_of(self, values: Mapping[str, Any], recipe: Recipe) -> Recipe:
        """The Recipe without its overrides where other networks are asked for: they are made for its own."""
        if "model.name" in self.sweep:
            return replace(recipe, model=replace(recipe.model, overrides=Overrides()))
        return with_network(recipe, values.get("model.name", recipe.model.name))

    def extended(self, study: Study, data: DatasetSummary) -> Study:
        """The study with the changes of this request; from Python, a whole Study.

        Raises UserError for what cannot change.
        """
        values = self.values()
        epochs = values.pop("schedule.epochs", None) or self.epochs or study.epochs
        if self.program.is_whole:
            return replace(self.new_study(data, self.values(), is_built_in=False), name=study.name)
        self._check_question(study)
        if epochs != study.epochs and any("schedule.epochs" in point for point in study.points or ()):
            raise UserError(
                f"--epochs {epochs}: each point of {study.name} has epochs of its own, which an extension cannot "
                "change; start a new study"
            )
        recipe = study.recipe.with_values({"schedule.epochs": epochs})
        self._check_values(study, recipe.with_values(values))
        space, points = dict(study.space), study.points
        if points is None:
            space = asked_space(space, recipe.with_values(values), values, self.sweep)
        else:
            points = asked_points(points, recipe.with_values(values), values, self.sweep)
        seeds, more_seeds = self._more_seeds(study)
        is_generated = bool(study.space) and study.question == question_of(study.space)
        return replace(
            study,
            question=question_of(space) if is_generated else study.question,
            recipe=recipe,
            space=space,
            points=points,
            seeds=seeds,
            more_seeds=more_seeds,
            halving=self._halving(study, recipe),
            trial_limit=self._trial_limit(study, space, points, recipe),
            search=self.search or study.search,
            first_points=points_within(space, recipe, study.first_points),
            equal_within=study.equal_within if self.equal_within is None else self.equal_within / 100,
            holdout=self.holdout or study.holdout,
            confirm=self.confirm or study.confirm,
            **UNNAMED,
        )

    def _check_question(self, study: Study) -> None:
        """Raises UserError if the program asks something else than the study."""
        if self.program.is_open:
            return
        own = self.program.study(describe_digits(DATA_FOLDER / self.digits.name, self.digits), None)
        if own.question != study.question:
            raise UserError(
                f"{study.name} asks a different question ({study.question!r}) from {own.name}: extend it with the "
                "program that started it"
            )

    def _check_values(self, study: Study, recipe: Recipe) -> None:
        """Raises UserError if a field is set that is not swept, and has another value in the study."""
        had, has = study.recipe.to_values(), recipe.to_values()
        for name in self.settings:
            if name not in (*study.space, *study.fields, "schedule.epochs") and has[name] != had[name]:
                raise UserError(
                    f"--set {name}={value_label(has[name])}: {study.name} has {value_label(had[name])}, and only "
                    "fields that it sweeps can be set with --extend; start a new study"
                )

    def _in_turn(self, seeds: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The seeds of all settings, and those of contenders alone."""
        return (tuple(seeds), ()) if self.are_seeds_for_all else (tuple(seeds[:1]), tuple(seeds[1:]))

    def _more_seeds(self, study: Study) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The same of an extended study: the first ones of its seeds, or all of them and the next ones.

        Where each setting has several seeds already, each is given the new ones.
        """
        had = (*study.seeds, *study.more_seeds)
        if self.seeds is None:
            return study.seeds, study.more_seeds
        seeds = (*had, *range(max(had) + 1, max(had) + 1 + self.seeds - len(had)))[: self.seeds]
        return (seeds, ()) if len(study.seeds) > 1 or study.has_budgets else self._in_turn(seeds)

    def _halving(self, study: Study, recipe: Recipe) -> Halving | None:
        """Early stopping as it is asked for, or as it was. A first rung that was the default one stays that."""
        if self.early_stopping or self.schedule:
            asked = self._new_halving(study.halving)
            if asked and study.halving and asked.unit == "money":
                asked = replace(asked, money_seconds=study.halving.money_seconds)
            return asked
        if study.halving is None:
            return None
        if study.halving.in_seconds:  # they have no default
            return study.halving
        default = replace(study.halving, first_rung=None)
        was_default = default.first_rung_of(study.recipe.schedule) == study.halving.first_rung
        return default if was_default and recipe.schedule != study.recipe.schedule else study.halving

    def _trial_limit(
        self, study: Study, space: Space, points: Sequence[Mapping[str, Any]] | None, recipe: Recipe
    ) -> int | None:
        """The number of settings: as it is asked for, or as it was; all values of a new space, if it has no ranges.

        Raises UserError where a study has the first settings of its space alone, and would not have all of a new one:
        which of them belong to it nobody has said.
        """
        limit = self.trials or study.trial_limit
        if (
            self.trials
            or study.draws_points
            or limit is None
            or (space, points) == (study.space, study.points)
        ):
            return limit
        had = count_settings(study.space, study.points, study.recipe, MOST_SETTINGS)
        has = count_settings(space, points, recipe, MOST_SETTINGS)
        if limit < min(had, has) and not has_range(space):
            raise UserError(
                f"{study.name} has only the first {limit:,} of the {_number(had)} settings of its space: say with "
                f"--trials N how many of the new space it is to have, which has {_number(has)}"
            )
        return None

    def _new_halving(self, own: Halving | None) -> Halving | None:
        """Early stopping as it was asked for; ``own`` is the study's."""
        halving = own
        if isinstance(self.early_stopping, Halving):
            halving = self.early_stopping
        elif self.early_stopping:
            halving = parse_halving(self.early_stopping)
            if halving and own:
                halving = replace(halving, schedule=own.schedule)
        if self.schedule is None:
            return halving
        if halving is None and self.schedule == "stretched":
            raise UserError(
                "--schedule stretched needs rungs, and no trial of this study is stopped early: give --early-stopping "
                "synchronous"
            )
        return halving and replace(halving, schedule=self.schedule)

    def _first_points(self, study: Study) -> tuple[Point, ...]:
        """The best points of the earlier study. Raises UserError if there are none in the space of this one."""
        assert self.earlier is not None
        named = self.storage / self.earlier
        earlier, _ = StudyState.read(named if (named / JOURNAL_FILE).is_file() else find_study(self.earlier))
        points = best_points(study.space, study.recipe, study.settings, earlier)
        if not points:
            raise UserError(
                f"--from {self.earlier}: no setting of it that came out well lies in the space of {study.name}: "
                "leave it out, or widen the space"
            )
        return points

    def resumed(self, study: Study, progress: StudyState) -> Study:
        """As it is. Raises UserError for a training."""
        if progress.started is not None and "checkpoints" in progress.started["study"]:
            raise UserError(f"{study.name} is a training run: resume it with studies/train.py")
        return study

    def demand(self, before: WorkerDemand | None) -> WorkerDemand:
        if before is not None:
            return replace(before, trials_at_once=self.trials_at_once)
        if self.trials_at_once and None in (self.cpus_per_worker, self.gpus_per_worker):
            raise UserError(
                "--trials-at-once needs --cpus-per-worker and --gpus-per-worker: "
                "the size of nodes that are not up yet is unknown"
            )
        least, most = self.workers_per_trial or (1, 1)
        return WorkerDemand(
            most,
            self.cpus_per_worker,
            self.gpus_per_worker,
            least if least < most else None,
            trials_at_once=self.trials_at_once,
        )

    def runner(self, _home: Path, started: StudyStarted | None) -> Runner:
        before = started["study"].get("cohorts") if started else None
        if self.cohorts or not before:
            return TuneRunner(self.cohorts or 1)
        return TuneRunner(before, f"the study was started with --cohorts {before}: give --cohorts 1")


class TuneRunner:
    """A :class:`~studies.running.runner.Runner` for the trials of a study.

    Up to ``lanes`` of them are trained as one program; ``to_do_without`` says what to do where that is impossible.
    """

    def __init__(self, lanes: int = 1, to_do_without: str = "leave --cohorts out") -> None:
        self._lanes, self._to_do_without = lanes, to_do_without

    workers_flag = "--workers-per-trial"
    stopping = (
        "Stopping: the running trials keep a checkpoint of this step. Press Ctrl-C again to quit at once."
    )

    def check(self, study: Study, demand: WorkerDemand) -> None:
        if self._lanes == 1:
            return
        if demand.workers > 1:
            raise UserError("--cohorts trains several trials in one worker: leave --workers-per-trial out")
        if study.is_adaptive:
            raise UserError(
                "--cohorts needs settings that are known beforehand: give --search grid, sobol or random"
            )
        if study.halving is not None and study.halving.in_seconds:
            raise UserError("--cohorts needs rungs in epochs: leave unit= out of --early-stopping")
        recipes = [with_published_values(trial.recipe) for trial in study.trials()]
        reasons = [why_alone(recipe) for recipe in recipes]
        if reasons and all(reasons):
            raise UserError(f"--cohorts: {reasons[0]}; {self._to_do_without}")
        companies = Counter(map(company_of, recipes))
        if companies and all(own is None or trials == 1 for own, trials in companies.items()):
            raise UserError(
                "--cohorts: no two trials of this study differ only in what lanes may differ in (docs/cohorts.md); "
                f"{self._to_do_without}"
            )

    def extent(self, study: Study, trials: int, _data: DatasetSummary) -> str:
        return f"{count(trials, 'trial')} of at most {count(most_epochs(study), 'epoch')}"

    def worker(self, resources: Resources, demand: WorkerDemand) -> WorkerResources:
        from nfnet_ray.cluster.connection.resources import worker_resources

        return worker_resources(resources, demand.workers, demand.cpus, demand.gpus, demand.min_workers)

    def trials_at_once(
        self, trials: int, resources: Resources, demand: WorkerDemand, worker: WorkerResources
    ) -> int:
        from nfnet_ray.cluster.connection.resources import concurrent_trials

        return min(demand.trials_at_once or concurrent_trials(resources, worker), trials)

    def shape(self, _worker: WorkerResources, trials_at_once: int) -> str:
        if self._lanes > 1:
            return (
                f"cohorts side by side: {trials_at_once}, of at most {self._lanes} trials each (experimental)"
            )
        return f"trials side by side: {trials_at_once}"

    def describe(self, description: StudyDescription) -> None:
        if self._lanes > 1:
            description["cohorts"] = self._lanes

    def run(self, running: RunningStudy) -> None:
        from nfnet_ray.cluster.connection.placement import waiting_is_explained
        from nfnet_ray.cluster.driver import run_trials

        def wanted() -> int:
            least = running.worker.min_workers or running.worker.workers
            return min(running.trials_at_once, len(running.progress.unfinished)) * least

        with waiting_is_explained(wanted, running.worker, running.note, running.recorder.mark_cut_off):
            run_trials(
                running.study,
                running.data,
                running.recorder,
                running.directory,
                running.trials_at_once,
                running.worker,
                running.note,
                running.stop,
                _find_contenders,
                _find_winners,
                self._lanes,
            )

    def results(self, _study: Study, _directory: Path) -> list[str]:
        return []

    def ending(self, study: Study, progress: StudyState) -> Ending:
        states = {trial.state for trial in progress.members}
        all_ended = not states & {None, "running", "paused", "interrupted"}
        if not all_ended or ("failed" not in states and has_more(study, progress)):
            return Ending(EXIT_INTERRUPTED, "Stopped; what was finished is kept. Resume with:")
        if "failed" in states:
            return Ending(EXIT_FAILED_TRIALS, "Some trials failed. Run them again with:")
        return Ending(0)


def _number(settings: int) -> str:
    """A number of settings that were counted up to the most that a study may have."""
    return f"{settings:,} or more" if settings == MOST_SETTINGS else f"{settings:,}"


def _find_contenders(state: StudyState) -> Contenders:
    """The settings that may be the best by what their first seeds show."""
    from nfnet_ray.analysis.answer import contenders
    from nfnet_ray.analysis.record import study_record

    assert state.started is not None
    return Contenders(*contenders(study_record(state, state.started, with_epochs=False)))


def _find_winners(state: StudyState) -> list[dict[str, Any]]:
    """The winners that the answer names, by their points."""
    from nfnet_ray.analysis.answer import winners
    from nfnet_ray.analysis.record import study_record

    assert state.started is not None
    return winners(study_record(state, state.started, with_epochs=False))
