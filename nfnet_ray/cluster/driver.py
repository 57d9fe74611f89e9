"""Runs the trials of a study and records all events in its journal. Trials of one worker run on Ray Tune."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, CLIReporter, FailureConfig, RunConfig, Stopper, TuneConfig, Tuner
from ray.tune.experiment import Trial as TuneTrial

from nfnet_ray.cluster.connection.ray_internals import count_no_callbacks, forget_failures, release
from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.cluster.exit_rules import LOST_WORKER_RETRIES
from nfnet_ray.cluster.follower import SECONDS_TO_KEEP
from nfnet_ray.cluster.forms import FormBook
from nfnet_ray.cluster.mailbox import Register, remove_run
from nfnet_ray.cluster.messages.configs import COMPILED_FOLDER, WorkerConfig, lanes_of, worker_config
from nfnet_ray.cluster.messages.notes import FinalReport
from nfnet_ray.cluster.messages.register_values import HAS_TRAINED, STOP
from nfnet_ray.cluster.messages.tune_reports import LANE, SAID, TEXTS, form_in, metrics_of
from nfnet_ray.cluster.searcher import LegSearcher
from nfnet_ray.cluster.slots import record_end, run_legs
from nfnet_ray.cluster.trial import run_in_actor
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.metric import METRIC
from nfnet_ray.places import lost_place, remedy_for
from nfnet_ray.study.confirmation import FindWinners
from nfnet_ray.study.contenders import FindContenders
from nfnet_ray.study.decisions import Leg
from nfnet_ray.study.legs import Legs
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.search.upcoming import has_more
from nfnet_ray.study.study import TRIALS_FOLDER, Study


def run_trials(
    study: Study,
    data: DatasetSummary,
    recorder: Recorder,
    directory: Path,
    side_by_side: int,
    worker: WorkerResources,
    say: Callable[[str], None],
    stop: threading.Event,
    find_contenders: FindContenders | None = None,
    find_winners: FindWinners | None = None,
    lanes: int = 1,
) -> None:
    """Runs the trials that have not ended, until all have ended or ``stop`` is set. Records every event in the journal.

    At most ``side_by_side`` trials are requested at once. Trials for which there is no room wait, so that an autoscaler
    sees them. ``say`` is called with sentences for the user. When all trials have ended, ``find_contenders`` determines
    the settings that get further seeds, and ``find_winners`` those to confirm. Up to ``lanes`` legs of one worker are
    trained as one program, a cohort.

    It needs a :func:`nfnet_ray.cluster.connection.session.ray_session`. A trial of one worker is a function of Tune in
    an actor that stays up for the next trial. Trials of several workers run in slots, which are worker groups of Ray
    Train that stay up as well.
    """
    legs = Legs(study, data.validation_images, recorder, find_contenders, find_winners)
    if not has_more(study, recorder.state):
        return

    # Workers trust the announced files of compiled code as long as this driver lives.
    forms, compiled = FormBook(recorder), directory / COMPILED_FOLDER
    shutil.rmtree(compiled, ignore_errors=True)

    def config(leg: Leg) -> WorkerConfig:
        return worker_config(
            legs.trial(leg.trial),
            data.fingerprint,
            directory / TRIALS_FOLDER / leg.trial,
            worker,
            leg=leg,
            before=recorder.state.trials[leg.trial],
            forms=recorder.state.forms,
            forms_register=forms.name,
            compiled=str(compiled),
        )

    if worker.workers == 1:
        _run_on_tune(legs, config, recorder, forms, directory, side_by_side, worker, stop, lanes)
    else:
        run_legs(legs, config, recorder, directory, side_by_side, worker, say, stop)
    with suppress(Exception):  # the head of the cluster may be away; this does not matter any more
        remove_run(forms.name)
    shutil.rmtree(compiled, ignore_errors=True)
    for name, progress in recorder.state.trials.items():
        if progress.state == "running":  # Tune does not report which trials it stopped on request
            recorder.end_trial(name, "interrupted", None)


def _run_on_tune(
    legs: Legs,
    config: Callable[[Leg], WorkerConfig],
    recorder: Recorder,
    forms: FormBook,
    directory: Path,
    side_by_side: int,
    worker: WorkerResources,
    stop: threading.Event,
    lanes: int,
) -> None:
    searcher = LegSearcher(legs, config, stop, side_by_side, lanes)
    count_no_callbacks()
    # A new name for each attempt, because Tune would resume a run with a known name. Here the journal does that.
    attempt = f"{time.time_ns()}"
    Tuner(
        tune.with_resources(run_in_actor, {"CPU": float(worker.cpus), "GPU": worker.gpus}),
        tune_config=TuneConfig(
            search_alg=searcher,
            num_samples=-1,  # as many as the searcher has
            max_concurrent_trials=side_by_side,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_leg_name,
        ),
        run_config=RunConfig(
            name=attempt,
            storage_path=str(directory / "tune"),
            stop=_StopWhenAsked(stop, recorder, searcher.registers),
            callbacks=[_JournalCallback(recorder, forms, legs, stop)],
            # The number of failures within an epoch, since _JournalCallback resets it after each epoch.
            failure_config=FailureConfig(max_failures=LOST_WORKER_RETRIES),
            verbose=0,
            # In a notebook Tune's default reporter would clear the output of the study.
            progress_reporter=CLIReporter(),
        ),
    ).fit()


def _trial_name(trial: TuneTrial) -> str:
    name: str = trial.config["trial"]["name"]
    return name


def _leg_name(trial: TuneTrial) -> str:
    config: WorkerConfig = trial.config["trial"]
    if config["until_seconds"] is not None:
        return f"{_trial_name(trial)}-{config['until_seconds']:.10g}s"
    return f"{_trial_name(trial)}-{config['until_epoch'] or config['schedule_epochs']}"


def _names(trial: TuneTrial) -> list[str]:
    """The trials of the study that this trial of Tune trains: several for a cohort."""
    return [config["name"] for config in lanes_of(trial.config)]


class _NotSaved:
    """An object that Tune pickles into its state, without content, because this project does not use that state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _StopWhenAsked(_NotSaved, Stopper):
    """Ends all trials on request, after those that train have saved a checkpoint of their current step."""

    def __init__(self, stop: threading.Event, recorder: Recorder, registers: Mapping[str, Register]) -> None:
        self._stop, self._recorder, self._registers = stop, recorder, registers
        self._asked: list[str] | None = None
        self._asked_at = 0.0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if not self._stop.is_set():
            return False
        if self._recorder.is_cut_off:
            return True
        if self._asked is None:
            self._asked_at = time.monotonic()
            self._asked = self._ask()
        is_late = time.monotonic() - self._asked_at > SECONDS_TO_KEEP
        return is_late or not any(
            self._recorder.state.trials[name].state == "running" for name in self._asked
        )

    def _ask(self) -> list[str]:
        """Asks all legs to stop, even those not started yet. Returns the trials that have to save a checkpoint."""
        training = []
        with suppress(Exception):  # the head of the cluster is away, so no worker can be asked
            for register in self._registers.values():
                register.set(STOP, True)
            for name, register in self._registers.items():
                if self._recorder.state.trials[name].state == "running" and register.get(HAS_TRAINED):
                    training.append(name)
        return training


class _JournalCallback(_NotSaved, Callback):
    """Records Tune's callbacks as events in the journal."""

    def __init__(self, recorder: Recorder, forms: FormBook, legs: Legs, stop: threading.Event) -> None:
        self._recorder, self._forms, self._legs, self._stop = recorder, forms, legs, stop
        self._final_reports: dict[str, FinalReport] = {}
        self._ended: list[TuneTrial] = []

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Called when Tune has finished with the trials that ended in this step or an earlier one."""
        self._forms.answer()
        if self._ended:
            for trial in self._ended:
                if trial.is_finished():
                    release(trial)
            self._ended = [trial for trial in self._ended if not trial.is_finished()]

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        if self._stop.is_set():  # Tune starts it in the place of a stopped trial, and will stop it too
            return
        names = _names(trial)
        for name in names:
            self._legs.start(name, len(names))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        report, name = FinalReport.from_result(result), result.get(LANE) or _trial_name(trial)
        form = form_in(result)
        if report is not None:
            self._final_reports[name] = report
        elif form is not None:
            self._forms.take(_trial_name(trial), *form)
        elif SAID in result:
            self._recorder.say(_trial_name(trial), result[SAID])
        elif METRIC in result and self._is_running(name):
            if trial.num_failures:
                forget_failures(trial)
            self._recorder.record_epoch(name, result["epoch"], metrics_of(result), result.get(TEXTS))

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self._ended.append(trial)
        for name in filter(self._is_running, _names(trial)):
            report = self._final_reports.pop(name, None)
            if report is None:
                self._legs.end(name, "interrupted", "it ended without a report")
            else:
                record_end(name, report, self._legs, self._recorder)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._ended.append(trial)
        lines = Path(trial.error_file).read_text().strip().splitlines() if trial.error_file else []
        reason = lines[-1] if lines else "its worker died"
        lost = lost_place(OSError("\n".join(lines)))
        if lost:
            reason = f"{reason}; {remedy_for(lost)}"
        report = FinalReport("failed", reason, stops_study=lost is not None)
        for name in _names(trial):
            record_end(name, report, self._legs, self._recorder)

    def _is_running(self, name: str) -> bool:
        """Whether the trial runs according to the journal, which has no trials that Tune started during a stop."""
        return self._recorder.state.trials[name].state == "running"
