"""One trial on Ray: a Tune function in a warm actor, or a TorchTrainer when it has several workers.

Both call the same ``train(recipe, context)``; only the Context differs. The driver imports this module
too, so torch is imported in the functions, where a trial runs.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from nfnet_ray.cluster.progress_file import note_progress
from nfnet_ray.cluster.study import METRIC, Trial
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe

if TYPE_CHECKING:
    import torch

METRICS = "metrics"  # key of all of an epoch's metrics; what a scheduler reads stands beside it
OUTCOME, REASON = "outcome", "outcome_reason"  # keys of a trial's last report, beside its epoch
PROGRESS_INTERVAL_SECONDS = 5.0
LOST_WORKER_RETRIES = 3  # a lost process or node is not the trial's fault: it goes on from its checkpoint


@dataclass(frozen=True)
class WorkerResources:
    """Workers of one trial, and what each of them is given."""

    workers: int
    cpus: int
    gpus: float


def trial_config(trial: Trial, directory: Path, resources: WorkerResources) -> dict[str, Any]:
    """A trial as the plain values that Ray carries to where it runs; ``directory`` is the trial's own."""
    return {
        "name": trial.name,
        "recipe": trial.recipe.to_values(),
        "directory": str(directory),
        "resources": asdict(resources),
    }


class _WorkerContext:
    """What the contexts of both kinds of trial share: a directory for checkpoints, on shared storage."""

    def __init__(self, config: Mapping[str, Any], rank: int, world_size: int, device: torch.device) -> None:
        from nfnet_ray.training.checkpoint import CheckpointStore
        from nfnet_ray.training.context import SECONDS_BETWEEN_CHECKPOINTS

        self.rank, self.world_size, self.device = rank, world_size, device
        self.replicas = int(config["resources"]["workers"])
        self.threads = int(config["resources"]["cpus"])
        self._directory = Path(config["directory"])
        self.store = CheckpointStore(self._directory / "checkpoints")
        self.seconds_between_checkpoints: float | None = SECONDS_BETWEEN_CHECKPOINTS
        self._progress_noted_at = time.monotonic()

    def progress(self, epochs: float) -> None:
        if self.rank == 0 and time.monotonic() - self._progress_noted_at > PROGRESS_INTERVAL_SECONDS:
            self._progress_noted_at = time.monotonic()
            note_progress(self._directory, epochs)

    def should_stop(self) -> bool:
        return False


class TuneContext(_WorkerContext):
    """The Context of a trial with one worker: metrics go straight to Tune, which may not return."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        import torch

        gpu = config["resources"]["gpus"] > 0
        super().__init__(config, rank=0, world_size=1, device=torch.device("cuda" if gpu else "cpu"))

    def report(self, metrics: Mapping[str, Any]) -> None:
        tune.report(_report_of(metrics))


class RayTrainContext(_WorkerContext):
    """The Context of one of several workers: all report together, and rank 0's metrics count."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        import ray.train
        import ray.train.torch

        place = ray.train.get_context()
        device = ray.train.torch.get_device()
        super().__init__(config, place.get_world_rank(), place.get_world_size(), device)

    def report(self, metrics: Mapping[str, Any]) -> None:
        import ray.train

        ray.train.report(_report_of(metrics))


def _report_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What Tune is told: a last word as it is; an epoch with its metrics in one place, apart from Tune's own."""
    if OUTCOME in metrics:
        return dict(metrics)
    return {"epoch": metrics["epoch"], METRIC: metrics[METRIC], METRICS: dict(metrics)}


def run_in_actor(space: dict[str, Any]) -> None:
    """Tune function of a trial with one worker. ``space["trial"]`` is its :func:`trial_config`."""
    started_at = time.perf_counter()
    config = space["trial"]
    try:
        last_word = _train(config, TuneContext(config), started_at)
    except Exception as error:
        import torch

        last_word = _failure(config, error)
        if torch.cuda.is_initialized() and not isinstance(error, torch.OutOfMemoryError):
            raise  # the process may be broken, and the next trial must not get it
    tune.report(last_word)


def run_worker_group(space: dict[str, Any]) -> None:
    """Tune function of a trial with several workers: runs a TorchTrainer and passes its reports on."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    config = space["trial"]
    resources = WorkerResources(**config["resources"])
    each = {"CPU": float(resources.cpus)} | ({"GPU": resources.gpus} if resources.gpus else {})
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.gpus > 0, resources_per_worker=each
        ),
        run_config=RunConfig(
            name="train",
            storage_path=config["directory"],
            failure_config=FailureConfig(max_failures=LOST_WORKER_RETRIES),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # Ray's annotation names the class of its V1
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        tune.report(_failure(config, error))


def _run_worker(config: dict[str, Any]) -> None:
    """What each worker of a TorchTrainer does. Whatever it raises, Ray Train deals with."""
    context = RayTrainContext(config)
    context.report(_train(config, context, time.perf_counter()))


def _train(
    config: Mapping[str, Any], context: TuneContext | RayTrainContext, started_at: float
) -> dict[str, Any]:
    """Trains; how that ended, as the trial's last report."""
    from nfnet_ray.training import train
    from nfnet_ray.training.clock import Clock

    try:
        outcome = train(Recipe.from_values(config["recipe"]), context, Clock(started_at))
    except UserError as error:  # the same on every worker
        return {OUTCOME: "failed", REASON: str(error), "epoch": 0}
    return {OUTCOME: outcome.state, REASON: outcome.reason, "epoch": outcome.epochs}


def _failure(config: Mapping[str, Any], error: Exception) -> dict[str, Any]:
    """The last report of a trial that raised: one line for the table, the trace in a file."""
    trace = Path(config["directory"]) / "error.txt"
    trace.parent.mkdir(parents=True, exist_ok=True)
    trace.write_text("".join(traceback.format_exception(error)))
    line = next(iter(str(error).splitlines()), "")
    return {OUTCOME: "failed", REASON: f"{type(error).__name__}: {line} (trace in {trace})", "epoch": 0}
