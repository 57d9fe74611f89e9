"""Running the trials of a study on Ray Tune, and writing down all that happens in its journal."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, Stopper, TuneConfig, Tuner
from ray.tune.experiment import Trial as TuneTrial

from nfnet_ray.cluster.journal import StudyProgress
from nfnet_ray.cluster.scheduler import StratifiedHalving
from nfnet_ray.cluster.session import Resources
from nfnet_ray.cluster.study import METRIC, Study, Trial
from nfnet_ray.cluster.trial import (
    LOST_WORKER_RETRIES,
    METRICS,
    OUTCOME,
    REASON,
    WorkerResources,
    run_in_actor,
    run_worker_group,
    trial_config,
)
from nfnet_ray.errors import UserError
from nfnet_ray.tracking.events import Event, Journal, TrialState

TRIALS_FOLDER = "trials"  # in a study's directory; in it each trial has a folder of its name


class Recorder:
    """Puts each event into the journal first, then into the progress that is shown."""

    def __init__(self, journal: Journal, progress: StudyProgress, on_event: Callable[[], None]) -> None:
        self._journal, self.progress, self._on_event = journal, progress, on_event

    def record(self, event: Event) -> None:
        """Keeps an event; when this returns it is on the disk."""
        self._journal.append(event)
        self.progress.apply(event)
        self._on_event()

    def end_trial(self, name: str, state: TrialState, reason: str | None) -> None:
        """Keeps that a trial has ended, after as many epochs as were reported."""
        epochs = self.progress.trials[name].epoch
        self.record(
            {
                "event": "trial_ended",
                "time": time.time(),
                "trial": name,
                "state": state,
                "reason": reason,
                "epochs": epochs,
            }
        )


def worker_resources(
    resources: Resources, workers: int, cpus: int | None = None, gpus: float | None = None
) -> WorkerResources:
    """What each worker of a trial gets: as asked, else one GPU where there are any, and its share of the cores."""
    if gpus is None:
        gpus = 1.0 if resources.gpus >= workers else 0.0
    if cpus is None:
        cpus = max(1, int(resources.cpus // (resources.gpus / gpus))) if gpus and resources.gpus else 1
    return WorkerResources(workers, cpus, gpus)


def concurrent_trials(resources: Resources, worker: WorkerResources) -> int:
    """How many trials fit at once, on the nodes that are up. Raises UserError if not even one does."""
    fits = resources.cpus / (worker.workers * worker.cpus)
    if worker.gpus:
        fits = min(fits, resources.gpus / (worker.workers * worker.gpus))
    if fits < 1:
        need = f"{worker.workers} x ({worker.cpus} CPU" + (f" + {worker.gpus:g} GPU)" if worker.gpus else ")")
        raise UserError(
            f"a trial needs {need} and Ray has {resources.description}: ask for fewer with "
            "--workers-per-trial, --cpus-per-worker or --gpus-per-worker; where nodes start when they are asked "
            "for, say with --trials-at-once how many trials to ask for"
        )
    return math.floor(fits)


def run_trials(
    trials: Sequence[Trial],
    study: Study,
    recorder: Recorder,
    directory: Path,
    side_by_side: int,
    worker: WorkerResources,
    stop: threading.Event,
) -> None:
    """Runs the trials to their ends, or until ``stop`` is set; everything that happened is in the journal.

    ``side_by_side`` trials at most are asked for at once. Those that do not fit wait, and an autoscaler sees them wait.

    Needs a :func:`nfnet_ray.cluster.session.ray_session`. A trial of one worker is a Tune function in an
    actor that stays up for the next one; a trial of several is a TorchTrainer started by a Tune function
    on the head node, where it takes no cores from the workers.
    """
    alone = worker.workers == 1
    request = {"CPU": float(worker.cpus), "GPU": worker.gpus} if alone else {"node:__internal_head__": 0.001}
    scheduler = None
    if study.halving:
        strata = {trial.name: trial.stratum for trial in study.trials()}
        scheduler = StratifiedHalving(strata, study.halving, study.epochs)
        scheduler.replay(recorder.progress.reported_epochs())
    configs = [trial_config(trial, directory / TRIALS_FOLDER / trial.name, worker) for trial in trials]
    attempt = f"{time.time_ns()}"  # Tune goes on with what it finds under a name; our journal does that
    Tuner(
        tune.with_resources(run_in_actor if alone else run_worker_group, request),
        param_space={"trial": tune.grid_search(configs)},
        tune_config=TuneConfig(
            scheduler=scheduler,
            max_concurrent_trials=side_by_side,
            reuse_actors=alone,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=RunConfig(
            name=attempt,
            storage_path=str(directory / "tune"),
            stop=_StopWhenAsked(stop),
            callbacks=[_JournalCallback(recorder, study.epochs)],
            failure_config=FailureConfig(max_failures=LOST_WORKER_RETRIES),
            verbose=0,
        ),
    ).fit()
    for name, progress in recorder.progress.trials.items():
        if progress.state == "running":  # Tune was asked to stop, and says nothing of what it stopped
            recorder.end_trial(name, "interrupted", None)


def _trial_name(trial: TuneTrial) -> str:
    name: str = trial.config["trial"]["name"]
    return name


class _NotSaved:
    """Tune pickles what it is given into its own state, which this project does not use."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _StopWhenAsked(_NotSaved, Stopper):
    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stop.is_set()


class _JournalCallback(_NotSaved, Callback):
    """Turns what Tune tells of its trials into events."""

    def __init__(self, recorder: Recorder, epochs: int) -> None:
        self._recorder, self._epochs = recorder, epochs
        self._last_words: dict[str, dict[str, Any]] = {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        name = _trial_name(trial)
        attempt = self._recorder.progress.trials[name].attempts + 1
        self._recorder.record(
            {"event": "trial_started", "time": time.time(), "trial": name, "attempt": attempt}
        )

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if OUTCOME in result:
            self._last_words[_trial_name(trial)] = result
        elif METRIC in result:
            self._recorder.record(
                {
                    "event": "epoch",
                    "time": time.time(),
                    "trial": _trial_name(trial),
                    "epoch": result["epoch"],
                    "metrics": result[METRICS],
                }
            )

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        name = _trial_name(trial)
        epoch = self._recorder.progress.trials[name].epoch
        if name in self._last_words:
            word = self._last_words[name]
            self._recorder.end_trial(name, word[OUTCOME], word[REASON])
        elif epoch == self._epochs:
            self._recorder.end_trial(name, "finished", None)
        else:
            self._recorder.end_trial(name, "stopped", f"not among the best of its rung after epoch {epoch}")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        lines = Path(trial.error_file).read_text().strip().splitlines() if trial.error_file else []
        self._recorder.end_trial(_trial_name(trial), "failed", lines[-1] if lines else "its worker died")
