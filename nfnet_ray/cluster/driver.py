"""Running the trials of a study on Ray Tune, and writing down all that happens in its journal."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, Stopper, TuneConfig, Tuner
from ray.tune.experiment import Trial as TuneTrial

from nfnet_ray.cluster.mailbox import Mailbox
from nfnet_ray.cluster.scheduler import StratifiedHalving
from nfnet_ray.cluster.trainer import SECONDS_TO_KEEP, worker_config
from nfnet_ray.cluster.trial import run_in_actor, run_worker_group
from nfnet_ray.cluster.worker import (
    HAS_TRAINED,
    LOST_WORKER_RETRIES,
    METRICS,
    OUTCOME,
    REASON,
    STOP,
    STOPS_STUDY,
    WorkerConfig,
    WorkerResources,
)
from nfnet_ray.places import lost_place, remedy_for
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.state import StudyProgress
from nfnet_ray.study.study import METRIC, TRIALS_FOLDER, Study, Trial


def run_trials(
    trials: Sequence[Trial],
    study: Study,
    data_fingerprint: str,
    recorder: Recorder,
    directory: Path,
    side_by_side: int,
    worker: WorkerResources,
    stop: threading.Event,
) -> None:
    """Runs the trials to their ends, or until ``stop`` is set; everything that happened is in the journal.

    ``side_by_side`` trials at most are asked for at once. Those that do not fit wait, and an autoscaler sees them wait.

    Needs a :func:`nfnet_ray.cluster.connection.session.ray_session`. A trial of one worker is a Tune function in an
    actor that stays up for the next one; a trial of several is a TorchTrainer started by a Tune function
    on the head node, where it takes no cores from the workers.
    """
    alone = worker.workers == 1
    request = {"CPU": float(worker.cpus), "GPU": worker.gpus} if alone else {"node:__internal_head__": 0.001}
    scheduler = None
    if study.halving:
        strata = {trial.name: trial.stratum for trial in study.trials()}
        scheduler = StratifiedHalving(strata, study.halving, study.epochs)
        stopped = scheduler.replay(recorder.progress.reported_epochs())
        for trial in trials:
            if trial.name in stopped:  # its driver was killed before it could say so
                recorder.end_trial(trial.name, "stopped", study.why_stopped(trial.name, stopped[trial.name]))
        trials = [trial for trial in trials if trial.name not in stopped]
        if not trials:
            return
    configs = [
        worker_config(
            trial, data_fingerprint, directory / TRIALS_FOLDER / trial.name, worker, through_tune=True
        )
        for trial in trials
    ]
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
            stop=_StopWhenAsked(stop, recorder.progress, configs),
            callbacks=[_JournalCallback(recorder, study, stop)],
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
    """Ends all trials once somebody wants it, after those that train have kept a checkpoint of the step they are at."""

    def __init__(
        self, stop: threading.Event, progress: StudyProgress, configs: Sequence[WorkerConfig]
    ) -> None:
        self._stop, self._progress = stop, progress
        self._mailboxes = {config["name"]: Mailbox(config["mailbox"]) for config in configs}
        self._asked: list[str] | None = None
        self._asked_at = 0.0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if not self._stop.is_set():
            return False
        if self._asked is None:
            self._asked_at = time.monotonic()
            self._asked = self._ask()
        is_late = time.monotonic() - self._asked_at > SECONDS_TO_KEEP
        return is_late or not any(self._progress.trials[name].state == "running" for name in self._asked)

    def _ask(self) -> list[str]:
        """Asks the trials to stop, those too that Tune may start meanwhile; which of them have something to keep."""
        training = []
        with suppress(Exception):  # the cluster's head is away, and nobody there can be asked
            for mailbox in self._mailboxes.values():
                mailbox.set(STOP, True)
            for name, mailbox in self._mailboxes.items():
                if self._progress.trials[name].state == "running" and mailbox.get(HAS_TRAINED):
                    training.append(name)
        return training


class _JournalCallback(_NotSaved, Callback):
    """Turns what Tune tells of its trials into events."""

    def __init__(self, recorder: Recorder, study: Study, stop: threading.Event) -> None:
        self._recorder, self._study, self._stop = recorder, study, stop
        self._last_words: dict[str, dict[str, Any]] = {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        if self._stop.is_set():  # Tune gives it the place of one that has stopped, and ends it in a moment
            return
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
        elif METRIC in result and self._is_running(trial):
            self._recorder.record_epoch(_trial_name(trial), result["epoch"], result[METRICS])

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        if not self._is_running(trial):
            return
        name = _trial_name(trial)
        progress = self._recorder.progress.trials[name]
        word = self._last_words.get(name)
        if word is not None and word.get(STOPS_STUDY):
            self._interrupt(name, word[REASON])
        elif word is not None and word[OUTCOME] == "stopped":  # it was asked to
            self._recorder.end_trial(name, "interrupted", None)
        elif word is not None:
            self._recorder.end_trial(name, word[OUTCOME], word[REASON])
        elif progress.epoch == self._study.epochs:
            self._recorder.end_trial(name, "finished", None)
        else:
            self._recorder.end_trial(name, "stopped", self._study.why_stopped(name, progress.epoch))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        lines = Path(trial.error_file).read_text().strip().splitlines() if trial.error_file else []
        reason = lines[-1] if lines else "its worker died"
        lost = lost_place(OSError("\n".join(lines)))
        if lost:
            self._interrupt(_trial_name(trial), f"{reason}; {remedy_for(lost)}")
        else:
            self._recorder.end_trial(_trial_name(trial), "failed", reason)

    def _interrupt(self, name: str, reason: str) -> None:
        """What no trial can do without is gone: all of them stop, to be resumed once it is there."""
        self._recorder.end_trial(name, "interrupted", reason)
        self._recorder.lose(reason)

    def _is_running(self, trial: TuneTrial) -> bool:
        """Whether the journal says so: not of a trial that was started while all others were being stopped."""
        return self._recorder.progress.trials[_trial_name(trial)].state == "running"
