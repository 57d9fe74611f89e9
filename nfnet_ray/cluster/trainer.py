"""A TorchTrainer: the worker group of a trial with several workers, and a training run of its own.

``TorchTrainer`` starts the workers, and starts them again when one is lost, when a machine is taken back, and, with
``min_workers``, when machines come and go. Each time they go on from the last checkpoint.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfnet_ray.cluster.mailbox import Mailbox
from nfnet_ray.cluster.worker import (
    LOST_WORKER_RETRIES,
    OUTCOME,
    PROGRESS,
    REASON,
    STOP,
    STOPS_STUDY,
    WorkerConfig,
    WorkerResources,
    kept_trace,
    train_in_group,
)
from nfnet_ray.study.epochs_done import note_progress
from nfnet_ray.study.study import Trial
from nfnet_ray.tracking.events import TrialState
from nfnet_ray.wording import count

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from nfnet_ray.study.recorder import Recorder

SECONDS_BETWEEN_RESIZES = 60.0  # Ray Train's own; a resize costs the start of a group
SECONDS_TO_KEEP = 120.0  # for workers that were asked to stop to write their checkpoint
SECONDS_TO_FINISH = 15.0  # for Ray to clear up after workers that have said their last word
SECONDS_BETWEEN_LOOKS = 0.2

# Of Ray Train. Looking at workers costs it a message to each; a fixed group waits for its machines anyway, and an
# elastic one shall not wait long for machines that are no more.
_SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2"}
_ELASTIC_SETTINGS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}


@dataclass(frozen=True)
class TrainingOptions:
    """How a training run guards itself. None: the training room's own default.

    ``checkpoints`` is a path or URI that all nodes share, by default in the training's own directory.
    """

    checkpoints: str | None = None
    checkpoint_seconds: float | None = None
    hang_seconds: float | None = None
    force: bool = False


def worker_config(
    trial: Trial,
    data_fingerprint: str,
    directory: Path,
    resources: WorkerResources,
    options: TrainingOptions | None = None,
    *,
    through_tune: bool,
) -> WorkerConfig:
    """A training as the plain values that Ray carries to where it runs.

    ``data_fingerprint`` is that of the data that the study began with, ``directory`` the training's own.
    """
    options = options or TrainingOptions()
    return {
        "name": trial.name,
        "recipe": trial.recipe.to_values(),
        "data_fingerprint": data_fingerprint,
        "directory": str(directory),
        "checkpoints": options.checkpoints or str(directory / "checkpoints"),
        "resources": asdict(resources),
        "seconds_between_checkpoints": options.checkpoint_seconds,
        "hang_seconds": options.hang_seconds,
        "force": options.force,
        "mailbox": f"{trial.name}-{secrets.token_hex(8)}",  # of this driver alone
        "through_tune": through_tune,
        "resize_seconds": SECONDS_BETWEEN_RESIZES,
    }


def torch_trainer(config: WorkerConfig, callbacks: list[Any]) -> TorchTrainer:
    """The TorchTrainer of a training. Workers that die are started again until they do not get on any more."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from nfnet_ray.cluster.group_events import GroupEvents

    resources = WorkerResources(**config["resources"])
    least = resources.min_workers or resources.workers
    is_elastic = least < resources.workers
    for name, value in (_SETTINGS | (_ELASTIC_SETTINGS if is_elastic else {})).items():
        os.environ.setdefault(name, value)  # Ray Train reads them here and hands them to its processes
    _name_this_cluster()
    each = {"CPU": float(resources.cpus)} | ({"GPU": resources.gpus} if resources.gpus else {})
    scaling: dict[str, Any] = {  # Ray's annotations are of the class of its V1, which knows no elasticity
        "num_workers": (least, resources.workers) if is_elastic else resources.workers,
        "use_gpu": resources.gpus > 0,
        "resources_per_worker": each,
        "elastic_resize_monitor_interval_s": config["resize_seconds"],
    }
    all_callbacks: list[Any] = [GroupEvents(config["mailbox"], config["directory"]), *callbacks]
    return TorchTrainer(
        train_in_group,
        train_loop_config=dict(config),
        # Gloo and NCCL give up after the watchdogs, whose stacks say more.
        torch_config=TorchConfig(timeout_s=max(1800, int(2 * (config["hang_seconds"] or 0)))),
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            name="train",
            storage_path=config["directory"],
            # Ray counts failures over the whole run, however far it came between them; the workers count those at
            # one and the same checkpoint.
            failure_config=FailureConfig(max_failures=-1),
            callbacks=all_callbacks,
        ),
    )


def _name_this_cluster() -> None:
    """Has Ray Train's processes ask this cluster, and not another one that they find on the machine.

    The one that gives back the place of a trial that was stopped asks the State API what it may give back, and looks
    for that as ``auto`` does: with another Ray on the machine it asked that one, and the next trial waited for ever.
    """
    import ray
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


def run_training(
    config: WorkerConfig,
    recorder: Recorder,
    say: Callable[[str], None],
    stop: threading.Event,
    *,
    own_ray: bool,
) -> dict[str, Any]:
    """Trains until the end, or until ``stop`` is set, and returns the last word; all that happened is recorded.

    Needs a :func:`nfnet_ray.cluster.connection.session.ray_session`; ``own_ray`` says that nobody else uses that Ray.
    """
    mailbox = Mailbox(config["mailbox"])
    follower = _Follower(config, mailbox, recorder, say, stop)
    failures = 0
    try:
        while True:
            fit, attempts = _Fit(config), follower.attempts
            word = follower.follow(fit)
            if word is not None:
                fit.join(SECONDS_TO_FINISH)
                break
            # Ray Train restarts workers by itself, but not its own controller, nor after an error of its own.
            failures = failures + 1 if follower.attempts == attempts else 1
            follower.lose(f"Ray Train's controller ended ({fit.error})")
            if failures > LOST_WORKER_RETRIES:
                word = {OUTCOME: "failed", REASON: f"Ray Train's controller ended ({fit.error})"}
                break
            if own_ray:
                _give_back_all_places()
    finally:
        mailbox.remove()
    state: TrialState = "interrupted" if word[OUTCOME] == "stopped" else word[OUTCOME]
    if word.get(STOPS_STUDY):
        state = "interrupted"
        recorder.lose(str(word[REASON]))
    recorder.end_trial(config["name"], state, word.get(REASON))
    return word


class _Fit:
    """``TorchTrainer.fit`` in a thread; there it does not take over the handling of Ctrl-C."""

    def __init__(self, config: WorkerConfig) -> None:
        self.error = ""
        self._config = config
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            torch_trainer(self._config, []).fit()
            self.error = "without a last word of the workers"
        except Exception as error:
            self.error = kept_trace(self._config, error)

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)


class _Follower:
    """Reads the notes of a run, records them, says what a person has to know."""

    def __init__(
        self,
        config: WorkerConfig,
        mailbox: Mailbox,
        recorder: Recorder,
        say: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self.attempts = 0
        self._config, self._mailbox, self._recorder, self._say = config, mailbox, recorder, say
        self._stop, self._asked_at = stop, 0.0
        self._is_training = False
        self._why: str | None = None
        self._hung: list[dict[str, Any]] = []

    def lose(self, why: str) -> None:
        """The workers are no more, for this reason."""
        self._is_training = False
        self._why = why

    def follow(self, fit: _Fit) -> dict[str, Any] | None:
        """Until there is a last word; None if the controller ended before."""
        while True:
            is_over = fit.is_over()  # asked before the notes are read, so that none is missed
            try:
                for note in self._mailbox.take():
                    if note["kind"] == "ended":
                        return note
                    self._take(note)
                epochs = self._mailbox.get(PROGRESS)
                if epochs is not None:
                    note_progress(Path(self._config["directory"]), epochs)
                if self._stop.is_set() and self._has_stopped():
                    return {OUTCOME: "stopped", REASON: None}
            except OSError as error:
                self._say(f"the cluster's head does not answer ({error})")
            if is_over:
                return None
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _has_stopped(self) -> bool:
        """Asks the workers to stop; whether there is nothing more to wait for, as they have nothing to keep."""
        if not self._asked_at:
            self._asked_at = time.monotonic()
            self._mailbox.set(STOP, True)
        return not self._is_training or time.monotonic() - self._asked_at > SECONDS_TO_KEEP

    def _take(self, note: Mapping[str, Any]) -> None:
        name = self._config["name"]
        match note["kind"]:
            case "attempt":
                self._start(note)
            case "epoch":
                self._recorder.record_epoch(name, int(note["metrics"]["epoch"]), note["metrics"])
            case "hung":
                self._hung.append(dict(note))
            case "resizing":
                self.lose(f"{count(note['before'], 'worker')} became {note['after']}")
                self._say(f"Machines have come or gone: {self._why}; keeping a checkpoint first.")
            case "kept":
                if note["reason"] == "preempted":
                    self.lose("a machine is taken back")
                    self._say(
                        "A machine is taken back: a checkpoint is kept, and the workers start elsewhere."
                    )
                elif note["reason"] == "terminated":
                    self.lose("a worker was asked to end")
            case "lost":
                self._lost(note)

    def _lost(self, note: Mapping[str, Any]) -> None:
        if self._why is not None and not self._hung:
            return  # it was said before
        if self._hung:
            why = hang_sentence(self._hung)
        else:
            why = "a machine was taken back" if note["preempted"] else str(note["reason"])
        self.lose(why)
        self._hung = []
        self._say(f"{why[0].upper()}{why[1:]}; the workers start again from the last checkpoint.")

    def _start(self, note: Mapping[str, Any]) -> None:
        self.attempts += 1
        self._is_training = True
        before = self._recorder.progress.trials[self._config["name"]].attempts
        self._recorder.record(
            {
                "event": "trial_started",
                "time": time.time(),
                "trial": self._config["name"],
                "attempt": before + 1,
                "workers": note["workers"],
                "step": note["step"],
                "after": self._why,
            }
        )
        if note["step"] or before:
            self._say(f"Training with {count(note['workers'], 'worker')}, from step {note['step']:,}.")
        self._why = None


def hang_sentence(hung: list[dict[str, Any]]) -> str:
    """Which worker hung, by what all watchdogs found.

    A worker that could not even tell is to blame first, as one that was stopped; then the one that has come least
    far; of several, one that does not wait for the others.
    """
    silent = sorted(set(range(hung[0]["workers"])) - {note["rank"] for note in hung})
    seconds, place = f"{hung[0]['seconds']:.0f} s", hung[0]["place"]
    if silent:
        return (
            f"rank {_and(silent)} gave no sign of life for {seconds} (stacks of the other ranks in {place})"
        )
    fewest = min(note["beats"] for note in hung)
    last = [note for note in hung if note["beats"] == fewest]
    guilty = [note for note in last if not note["waits_for_others"]] or last
    phases = _and(dict.fromkeys(note["phase"] for note in guilty))
    ranks = _and(sorted(note["rank"] for note in guilty))
    return f"rank {ranks} hung for {seconds} in {phases} (stacks of all ranks in {place})"


def _and(items: Iterable[object]) -> str:
    return " and ".join(map(str, items))


def _give_back_all_places() -> None:
    """Removes the places of workers whose controller died; Ray keeps them until the driver ends."""
    from ray._raylet import PlacementGroupID
    from ray.util import placement_group_table
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for identity, described in placement_group_table().items():
        if described["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(identity)))
