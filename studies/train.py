"""Train one network, on one worker or on many, and come through whatever happens to them.

``python studies/train.py`` alone trains nfnet_pico on handwritten digits, in a minute. On a cluster:
``python studies/train.py --model nfnet_f0 --data PATH --workers 8 --address auto`` trains by the published Recipe
of that model; --set changes its fields. A worker that is lost is started again, and with --min-workers the run
goes on with fewer until machines are back: the batch and the order of the images stay the same. Ctrl-C keeps a
checkpoint of the very step; --resume goes on from it.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import argparse
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console

from nfnet_ray.cluster.connection.address import find_head, where_to_run
from nfnet_ray.cluster.connection.job import home_folder
from nfnet_ray.cluster.connection.session import Resources, ray_session
from nfnet_ray.command_line.arguments import above_zero, positive, shortened
from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED
from nfnet_ray.command_line.terminal import say, say_whole
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import published_recipe
from nfnet_ray.places import check_can_write, check_path, resolved
from nfnet_ray.printable import shown
from nfnet_ray.recipe import Recipe, parse_setting
from nfnet_ray.study.display import StudyDisplay
from nfnet_ray.study.plan import check_trials, estimate_cost
from nfnet_ray.study.state import StudyProgress
from nfnet_ray.study.study import TRIALS_FOLDER, Study, Trial
from nfnet_ray.tracking.choice import tracking_uri_for
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.wording import count
from studies.base_recipe import batch_size_for, recipe_for
from studies.running.checks import (
    MOST_BYTES_BELOW_A_TRIAL,
    BuiltInData,
    check_study_folder,
    check_tracking,
    check_weights,
    data_at,
    storage_folder,
    verify,
    with_weights,
)
from studies.running.flags import add_data, add_places, add_shares, new_parser, run_command
from studies.running.names import name_on_occasion
from studies.running.plan_text import print_plan
from studies.running.resuming import (
    check_same_data,
    go_on,
    has_begun,
    refuse_with_resume,
    resume_command,
    with_data_here,
)
from studies.running.run import EXIT_FAILED_TRIALS, StudyRun, WorkerDemand, on_images, say_question

if TYPE_CHECKING:
    from nfnet_ray.cluster.trainer import TrainingOptions
    from nfnet_ray.cluster.worker import WorkerResources
    from nfnet_ray.study.recorder import Recorder

DEFAULT_MODEL = "nfnet_pico"
EPOCHS_ON_DIGITS = 8
FIXED = ("data", "model", "workers", "checkpoints")
FIXED_UNLESS_FORCED = ("set", "epochs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code: 0, 1 if the training failed, 2 for an error of use, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    return run_command(Path(__file__), lambda console: _run(options, console), "the first step")


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(Path(__file__), __doc__)
    where = add_places(parser, "training")
    where.add_argument(
        "--checkpoints",
        metavar="PLACE",
        help="a path or URI (s3://bucket/folder) that all nodes share (default: in the training's folder)",
    )
    what = parser.add_argument_group("what it trains")
    what.add_argument("--model", metavar="NAME", help=f"default: {DEFAULT_MODEL}")
    add_data(what)
    what.add_argument("--epochs", type=positive, metavar="N", help="default: the Recipe's")
    what.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="set a field of the Recipe"
    )
    shape = parser.add_argument_group("on what")
    shape.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="workers that share each batch; 2-8 is elastic (default: 1)",
    )
    shape.add_argument(
        "--min-workers", type=positive, metavar="N", help="resume with as few as N where machines are missing"
    )
    add_shares(shape, "all that the cluster has for it")
    guard = parser.add_argument_group("what it does against failures")
    guard.add_argument(
        "--checkpoint-minutes",
        type=above_zero,
        metavar="M",
        help="minutes between checkpoints within an epoch (default: 10)",
    )
    guard.add_argument(
        "--hang-seconds",
        type=above_zero,
        metavar="S",
        help="restart a worker that has given no sign of life for S seconds (default: 600)",
    )
    guard.add_argument(
        "--force", action="store_true", help="with --resume: allow other settings or other data"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print what would run and what it costs; start nothing"
    )
    return parser


def _workers(text: str) -> tuple[int, int]:
    """``8`` or ``2-8`` as (least, most)."""
    least, dash, most = text.partition("-")
    bounds = positive(least), positive(most if dash else least)
    if bounds[0] > bounds[1]:
        raise argparse.ArgumentTypeError(f"{shortened(text)}: write the smaller number first")
    return bounds


def _run(options: argparse.Namespace, console: Console) -> int:
    home = home_folder()
    storage = storage_folder(home, options)
    tracking_uri = tracking_uri_for(options.tracking_uri, storage, home, options.resume or options.name)
    settings = dict(parse_setting(text) for text in options.set)
    Recipe().with_values(settings)
    if options.epochs:
        settings["schedule.epochs"] = options.epochs
    options.address = where_to_run(options.address)
    if options.address is not None:
        find_head(options.address)
    if not options.plan:
        check_tracking(tracking_uri)
    started: StudyStarted | None = None
    if options.resume:
        refuse_with_resume(options, FIXED if options.force else (*FIXED, *FIXED_UNLESS_FORCED))
        directory = storage / options.resume
        progress, started = StudyProgress.read(directory)
        study = Study.from_event(started)
        study = replace(study, recipe=study.recipe.with_values(progress.changed | settings))
        study = with_data_here(study, started, home)
        data = data_at(home, study.recipe.data.path, options.plan, BuiltInData())
        if not options.force:
            check_same_data(data, started)
        demand = _demand(WorkerDemand(**started["study"]["worker"]), options)
        checkpoints = started["study"].get("checkpoints")
    else:
        if options.force:
            raise UserError(
                "--force goes with --resume NAME: a new training has nothing to be forced against"
            )
        path = settings.pop("data.path", None) or options.data
        data = data_at(home, path, options.plan, BuiltInData())
        model = settings.pop("model.name", None) or options.model or DEFAULT_MODEL
        recipe = _recipe(model, data, is_built_in=not path).with_values(settings)
        study = Study(
            name=options.name or name_on_occasion(model),
            question=f"How well does {model} do on {data.path.stem}?",
            recipe=recipe,
            space={},
            seeds=(recipe.seed,),
        )
        directory = storage / study.name
        progress = StudyProgress.waiting(study)
        least, most = options.workers or (1, 1)
        demand = _demand(WorkerDemand(most, None, None, least if least < most else None), options)
        checkpoints = options.checkpoints
    if options.verify == "full" and (options.data or options.resume or not options.plan):
        verify(data.path)
    check_trials(study.trials(), data, demand.workers)
    study = with_weights(study, None, options.plan, console)
    if not options.resume and not options.plan and has_begun(directory):
        progress, demand = go_on(study, data, demand, directory, options)
    trials = study.trials()
    check_study_folder(directory, trials)
    check_weights(trials, len(data.class_names), console)
    if options.plan:
        print_plan(study, trials, data, demand.workers, console)
        return 0
    run = TrainingRun(
        study,
        data,
        directory,
        tracking_uri,
        resume_command(Path(__file__), options, study.name),
        progress,
        verifies=options.verify == "full",
        changed=settings if options.resume else {},
        options=_training_options(home, options, checkpoints),
        own_ray=options.address is None,
    )
    return run.execute(options.address, demand, console)


def _demand(before: WorkerDemand, options: argparse.Namespace) -> WorkerDemand:
    """What was asked for before, and now."""
    demand = WorkerDemand(
        before.workers,
        options.cpus_per_worker or before.cpus,
        before.gpus if options.gpus_per_worker is None else options.gpus_per_worker,
        options.min_workers or before.min_workers,
    )
    if demand.min_workers and demand.min_workers > demand.workers:
        raise UserError(f"--min-workers {demand.min_workers} is more than the {demand.workers} of --workers")
    return demand


def _recipe(model: str, data: DatasetSummary, *, is_built_in: bool) -> Recipe:
    """The published Recipe of the model; on the built-in digits the one of the studies, which takes seconds."""
    if not is_built_in:
        return published_recipe(model).with_values({"data.path": str(data.path)})
    values = {"model.name": model, "batch_size": batch_size_for(data)}
    return recipe_for(data, EPOCHS_ON_DIGITS).with_values(values)


def _training_options(home: Path, options: argparse.Namespace, checkpoints: str | None) -> TrainingOptions:
    from nfnet_ray.cluster.trainer import TrainingOptions

    if checkpoints:
        from nfnet_ray.training.checkpoints.storage import storage_at

        check_path(checkpoints, "--checkpoints", makes=MOST_BYTES_BELOW_A_TRIAL)
        if "://" not in checkpoints:
            checkpoints = str(resolved(home / checkpoints, "--checkpoints", makes=MOST_BYTES_BELOW_A_TRIAL))
        place = storage_at(checkpoints).place  # says so if it is no place
        if "://" not in place:
            check_can_write(Path(place), "--checkpoints")
    return TrainingOptions(
        checkpoints=checkpoints,
        checkpoint_seconds=options.checkpoint_minutes and 60 * options.checkpoint_minutes,
        hang_seconds=options.hang_seconds,
        force=options.force,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingRun(StudyRun):
    """A training: a study of one trial, which has the cluster for itself and no scheduler above it."""

    workers_flag: ClassVar[str] = "--workers"
    stopping: ClassVar[str] = "Stopping: the workers keep a checkpoint. Once more to leave at once."

    options: TrainingOptions
    own_ray: bool
    last_word: dict[str, Any] = field(default_factory=dict)

    def _session(self, address: str | None, demand: WorkerDemand) -> AbstractContextManager[Resources]:
        del demand
        return ray_session(address, train_in_tune=False)

    def _greet(self, trials: int, console: Console) -> None:
        del trials
        study = self.study
        cost = estimate_cost(study, study.trials(), self.data)
        say_question(study, console)
        network = f"{study.recipe.model.name} ({cost.parameters:,} parameters)"
        say(console, f"{network}, {count(study.epochs, 'epoch')} {on_images(self.data)}.")
        self._say_places(console)

    def _each_worker(self, resources: Resources, demand: WorkerDemand) -> WorkerResources:
        from nfnet_ray.cluster.connection.resources import training_resources

        return training_resources(resources, demand.workers, demand.min_workers, demand.cpus, demand.gpus)

    def _worker(
        self, trials: list[Trial], resources: Resources, demand: WorkerDemand, console: Console
    ) -> WorkerResources:
        del trials
        worker = self._each_worker(resources, demand)
        told = f"{worker.workers} x ({count(worker.cpus, 'core')}" + (
            f", {worker.gpus:g} GPU)" if worker.gpus else ")"
        )
        if worker.min_workers:
            told += f", at least {worker.min_workers}"
        say(console, f"Ray: {resources.description}; workers: {told}.")
        console.print()
        return worker

    def _train(
        self,
        trials: list[Trial],
        recorder: Recorder,
        resources: Resources,
        demand: WorkerDemand,
        worker: WorkerResources,
        stop: threading.Event,
        display: StudyDisplay,
    ) -> None:
        from nfnet_ray.cluster.connection.placement import waiting_is_explained
        from nfnet_ray.cluster.trainer import run_training, worker_config

        del resources, demand
        trial = trials[0]
        config = worker_config(
            trial, self.data.fingerprint, self._trial_directory, worker, self.options, through_tune=False
        )
        least = worker.min_workers or worker.workers
        with waiting_is_explained(lambda: least, worker, display.note):
            self.last_word.update(run_training(config, recorder, display.note, stop, own_ray=self.own_ray))

    @property
    def _trial_directory(self) -> Path:
        return self.directory / TRIALS_FOLDER / self.study.trials()[0].name

    def _started_event(self, resources: Resources, worker: WorkerResources) -> StudyStarted:
        event = super()._started_event(resources, worker)
        event["study"]["checkpoints"] = self.options.checkpoints
        return event

    def _say_result(self, console: Console) -> None:
        super()._say_result(console)
        place = self.options.checkpoints or shown(self._trial_directory / "checkpoints")
        say_whole(console, f"Weights: {place}")

    def _exit_code(self, console: Console) -> int:
        trial = self.progress.trials[self.study.trials()[0].name]
        if trial.state in (None, "running", "interrupted"):
            say(console, "Stopped; a checkpoint is kept. Resume with:")
            say_whole(console, f"  {self.command}")
            return EXIT_INTERRUPTED
        if self.last_word.get("refused"):
            raise UserError(str(trial.reason))
        if trial.state == "failed":
            say(console, "It failed. Resume with:")
            say_whole(console, f"  {self.command}")
            return EXIT_FAILED_TRIALS
        return 0


if __name__ == "__main__":
    sys.exit(main())
