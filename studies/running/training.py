"""One training: how it is asked for, and how Ray Train runs it, with the whole cluster for itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nfnet_ray.cluster.connection.resources import Resources, WorkerResources
from nfnet_ray.cluster.messages.configs import TrainingOptions, worker_config
from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import published_recipe
from nfnet_ray.places import check_can_write, check_path, resolved
from nfnet_ray.printable import display_path
from nfnet_ray.recipe import is_import_path
from nfnet_ray.study.cost.plan import estimate_cost
from nfnet_ray.study.study import TRIALS_FOLDER, Study
from nfnet_ray.tracking.descriptions import StudyDescription
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import ENDED_FOR_GOOD
from nfnet_ray.wording import count
from studies.base_recipe import batch_size_for, recipe_for, with_network
from studies.running.checks import MOST_BYTES_BELOW_A_TRIAL
from studies.running.names import name_for_run
from studies.running.request import Request
from studies.running.resuming import FROM_ITS_WEIGHTS
from studies.running.runner import EXIT_FAILED_TRIALS, Ending, Runner, RunningStudy, WorkerDemand

DEFAULT_MODEL = "nfnet_pico"
EPOCHS_ON_DIGITS = 8
TRAINING_FILE = Path(__file__).parents[1] / "train.py"


@dataclass(frozen=True, kw_only=True)
class TrainingRequest(Request):
    """A training, with what was said of its model, its workers and its safety. ``workers`` is (least, most)."""

    model: str | None = None
    checkpoints: str | None = None
    workers: tuple[int, int] | None = None
    min_workers: int | None = None
    checkpoint_minutes: float | None = None
    hang_seconds: float | None = None
    force: bool = False

    @property
    def program_file(self) -> Path | None:
        return TRAINING_FILE

    @property
    def allows_other_data(self) -> bool:
        return self.force

    def fixed(self) -> dict[str, Any]:
        always = {
            "--data": self.data,
            "--model": self.model,
            "--workers": self.workers,
            "--checkpoints": self.checkpoints,
        }
        unless_forced = {"--set": self.settings or None, "--epochs": self.epochs}
        return always if self.force else always | unless_forced

    def same_as(self) -> dict[str, tuple[str, Any]]:
        return super().same_as() | {"--model": ("model.name", self.model)}

    def values(self) -> dict[str, Any]:
        return dict(self.settings) | ({"schedule.epochs": self.epochs} if self.epochs else {})

    def new_study(self, data: DatasetSummary, values: dict[str, Any], *, is_built_in: bool) -> Study:
        """A study of one trial. Its Recipe is the model's published one. On the built-in digits, where it takes
        seconds, and for a network of one's own, it is that of the studies."""
        model = values.pop("model.name", None) or self.model or DEFAULT_MODEL
        if is_import_path(model) and not (is_built_in or "schedule.epochs" in values):
            raise UserError(f"--model {model}: nothing was published for a network of your own: say --epochs")
        if is_built_in or is_import_path(model):
            base = recipe_for(data, EPOCHS_ON_DIGITS)
            recipe = with_network(base, model).with_values({"batch_size": batch_size_for(data)})
        else:
            recipe = published_recipe(model).with_values(
                {"data.path": str(data.path), "memory_format": "auto", "grouped_convolutions": "auto"}
            )
        recipe = recipe.with_values(values)
        return Study(
            name=self.name or name_for_run(model.replace(":", ".")),
            question=f"How well does {model} do on {data.path.stem}?",
            recipe=recipe,
            space={},
            seeds=(recipe.seed,),
        )

    def resumed(self, study: Study, progress: StudyState) -> Study:
        """With what was forced upon it before, and now. Raises UserError for what it cannot be forced to any more."""
        if study.space or study.points is not None or len(study.seeds) > 1:
            raise UserError(
                f"{study.name} is a study and not a training run: resume it with the program that started it"
            )
        before = study.recipe.with_values(progress.changed)
        recipe = before.with_values(self.values())
        (trial,) = progress.members
        another = "start a new training run, without --resume and --force"
        if recipe != before and trial.state in ENDED_FOR_GOOD:
            from_weights = (
                f", or one from its weights: {FROM_ITS_WEIGHTS}" if trial.state == "finished" else ""
            )
            raise UserError(
                f"{study.name} has {trial.state} after {count(trial.epoch, 'epoch')}, so that other settings change "
                f"nothing: {another}{from_weights}"
            )
        if recipe.seed != before.seed:
            raise UserError(
                f"--set seed={recipe.seed}: {study.name} began with {before.seed}, which --force cannot change: "
                f"{another}"
            )
        if recipe.schedule.epochs < trial.epoch:
            raise UserError(
                f"{study.name} has been trained for {count(trial.epoch, 'epoch')}, so that it cannot end after "
                f"{recipe.schedule.epochs:,}: ask for more, or {another}"
            )
        return replace(study, recipe=recipe)

    def demand(self, before: WorkerDemand | None) -> WorkerDemand:
        """The earlier request with the changes of this one. Raises UserError if ``min_workers`` is too large."""
        if before is None:
            least, most = self.workers or (1, 1)
            before = WorkerDemand(most, None, None, least if least < most else None)
        demand = WorkerDemand(
            before.workers,
            self.cpus_per_worker or before.cpus,
            before.gpus if self.gpus_per_worker is None else self.gpus_per_worker,
            self.min_workers or before.min_workers,
        )
        if demand.min_workers and demand.min_workers > demand.workers:
            raise UserError(
                f"--min-workers {demand.min_workers} is more than the {demand.workers} of --workers"
            )
        return demand

    def runner(self, home: Path, started: StudyStarted | None) -> Runner:
        checkpoints = started["study"].get("checkpoints") if started else self.checkpoints
        return TrainRunner(self._options(home, checkpoints))

    def _options(self, home: Path, checkpoints: str | None) -> TrainingOptions:
        """Raises UserError if no checkpoints can be kept where they are to be kept."""
        if checkpoints:
            from nfnet_ray.training.checkpoints.storage import storage_at

            check_path(checkpoints, "--checkpoints", makes=MOST_BYTES_BELOW_A_TRIAL)
            if "://" not in checkpoints:
                path = resolved(home / checkpoints, "--checkpoints", makes=MOST_BYTES_BELOW_A_TRIAL)
                checkpoints = str(path)
            place = storage_at(checkpoints).place  # raises if it is no place
            if "://" not in place:
                check_can_write(Path(place), "--checkpoints")
        return TrainingOptions(
            checkpoints=checkpoints,
            checkpoint_seconds=self.checkpoint_minutes and 60 * self.checkpoint_minutes,
            hang_seconds=self.hang_seconds,
            force=self.force,
        )


class TrainRunner:
    """A :class:`~studies.running.runner.Runner` for a training, which is a study of one trial."""

    workers_flag = "--workers"
    stopping = "Stopping: the workers keep a checkpoint. Press Ctrl-C again to quit at once."

    def __init__(self, options: TrainingOptions) -> None:
        self._options = options
        self._was_refused = False

    def extent(self, study: Study, _trials: int, data: DatasetSummary) -> str:
        cost = estimate_cost(study, study.trials(), data)
        return f"{study.recipe.model.label} ({cost.parameters:,} parameters), {count(study.epochs, 'epoch')}"

    def worker(self, resources: Resources, demand: WorkerDemand) -> WorkerResources:
        from nfnet_ray.cluster.connection.resources import training_resources

        return training_resources(resources, demand.workers, demand.min_workers, demand.cpus, demand.gpus)

    def check(self, _study: Study, _demand: WorkerDemand) -> None:
        return

    def trials_at_once(
        self, _trials: int, _resources: Resources, _demand: WorkerDemand, _worker: WorkerResources
    ) -> int:
        return 1

    def shape(self, worker: WorkerResources, _trials_at_once: int) -> str:
        gpus = f", {worker.gpus:g} GPU" if worker.gpus else ""
        least = f", at least {worker.min_workers}" if worker.min_workers else ""
        return f"workers: {worker.workers} x ({count(worker.cpus, 'core')}{gpus}){least}"

    def describe(self, description: StudyDescription) -> None:
        description["checkpoints"] = self._options.checkpoints

    def run(self, running: RunningStudy) -> None:
        from nfnet_ray.cluster.connection.placement import waiting_is_explained
        from nfnet_ray.cluster.slots import run_training

        worker = running.worker
        config = worker_config(
            running.trials[0],
            running.data.fingerprint,
            _trial_directory(running.study, running.directory),
            worker,
            self._options,
            forms=running.recorder.state.forms,
        )
        least = worker.min_workers or worker.workers
        with waiting_is_explained(lambda: least, worker, running.note, running.recorder.mark_cut_off):
            report = run_training(config, running.recorder, running.note, running.stop)
        self._was_refused = report.refused

    def results(self, study: Study, directory: Path) -> list[str]:
        place = self._options.checkpoints or display_path(_trial_directory(study, directory) / "checkpoints")
        return [f"Weights: {place}"]

    def ending(self, study: Study, progress: StudyState) -> Ending:
        trial = progress.trials[study.trials()[0].name]
        if trial.state is None:
            return Ending(EXIT_INTERRUPTED, "Stopped before the training began. Resume with:")
        if trial.state in ("running", "interrupted"):
            return Ending(EXIT_INTERRUPTED, "Stopped; a checkpoint is kept. Resume with:")
        if self._was_refused:
            raise UserError(str(trial.reason))
        if trial.state == "failed":
            return Ending(EXIT_FAILED_TRIALS, "It failed. Resume with:")
        return Ending(0)


def _trial_directory(study: Study, directory: Path) -> Path:
    return directory / TRIALS_FOLDER / study.trials()[0].name
