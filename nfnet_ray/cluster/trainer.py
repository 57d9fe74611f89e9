"""The TorchTrainer of a worker group: of a trial with several workers, and of a training that has the cluster.

``TorchTrainer`` starts the workers, and starts them again when one is lost, when a machine is taken back, and, with
``min_workers``, when machines come and go. Each time they resume from the last checkpoint.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nfnet_ray.cluster.connection import ray_internals
from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.cluster.exit_rules import LOST_WORKER_RETRIES, keep_trace
from nfnet_ray.cluster.follower import Follower
from nfnet_ray.cluster.mailbox import remove_run
from nfnet_ray.cluster.messages import FinalReport, WorkerConfig
from nfnet_ray.cluster.worker import train_in_group

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from nfnet_ray.study.recorder import Recorder

SECONDS_TO_FINISH = 15.0
"""For Ray to clear up after workers that have sent their final report."""

# A check of the workers costs Ray Train a message to each. A fixed group waits for its machines anyway; an elastic
# one should not wait long for machines that are gone.
_SETTINGS = {
    ray_internals.TRAIN_HEALTH_CHECK_INTERVAL: "1",
    ray_internals.TRAIN_PREEMPTION_POLL_INTERVAL: "2",
}
_ELASTIC_SETTINGS = {ray_internals.TRAIN_GROUP_START_TIMEOUT: "20"}
# Of collectives. Longer than the watchdogs wait, whose stacks say more than an error of gloo or NCCL.
_LEAST_COLLECTIVE_TIMEOUT_SECONDS = 1800


def torch_trainer(config: WorkerConfig, callbacks: list[Any]) -> TorchTrainer:
    """The TorchTrainer of a training. Workers that die are restarted until they stop making progress."""
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
    # Ray's annotations are of the class of its V1, which is not elastic.
    scaling: dict[str, Any] = {
        "num_workers": (least, resources.workers) if is_elastic else resources.workers,
        "use_gpu": resources.gpus > 0,
        "resources_per_worker": each,
        "elastic_resize_monitor_interval_s": config["resize_seconds"],
    }
    all_callbacks: list[Any] = [GroupEvents(config["mailbox"], config["directory"]), *callbacks]
    timeout_seconds = max(_LEAST_COLLECTIVE_TIMEOUT_SECONDS, int(2 * (config["hang_seconds"] or 0)))
    return TorchTrainer(
        train_in_group,
        train_loop_config=dict(config),
        torch_config=TorchConfig(timeout_s=timeout_seconds),
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            name="train",
            storage_path=config["directory"],
            # Ray counts failures over the whole run, with progress between them or not; the workers count those at
            # the same checkpoint (exit_rules.py).
            failure_config=FailureConfig(max_failures=-1),
            callbacks=all_callbacks,
        ),
    )


def _name_this_cluster() -> None:
    """Has Ray Train's processes ask this cluster, and not another one that they find on the machine.

    When a trial is stopped, Ray asks its State API for the placement group that it may remove, and finds that API
    as ``auto`` does: with another Ray on the machine it asked that one, and the next trial never started.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    ray_internals.propagate_variable("RAY_ADDRESS")


def run_training(
    config: WorkerConfig,
    recorder: Recorder,
    say: Callable[[str], None],
    stop: threading.Event,
    *,
    is_local: bool,
) -> FinalReport:
    """Trains until the end, or until ``stop`` is set; everything that happened is recorded.

    Needs a :func:`nfnet_ray.cluster.connection.session.ray_session`. ``is_local``: it is a
    local Ray, which nobody else uses.
    """
    follower = Follower(config, recorder, say, stop)
    failures = 0
    try:
        while True:
            fit, attempts = _Fit(config), follower.attempts
            report = follower.follow(fit)
            if report is not None:
                fit.join(SECONDS_TO_FINISH)
                break
            # Ray Train restarts workers by itself, but not its own controller, nor after an error of its own.
            failures = failures + 1 if follower.attempts == attempts else 1
            reason = f"Ray Train's controller ended ({fit.error})"
            follower.mark_lost(reason)
            if failures > LOST_WORKER_RETRIES:
                report = FinalReport("failed", reason)
                break
            if is_local:
                _remove_placement_groups()
    finally:
        remove_run(config["mailbox"])
    if report.stops_study:
        recorder.mark_lost(str(report.reason))
    recorder.end_trial(config["name"], report.trial_outcome, report.reason)
    return report


def _remove_placement_groups() -> None:
    """Frees the resources of workers whose controller died; Ray keeps them reserved until the driver ends."""
    import ray
    from ray.util import placement_group_table
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for identity, described in placement_group_table().items():
        if described["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(identity)))


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
            self.error = "without a final report from the workers"
        except Exception as error:
            self.error = keep_trace(self._config, error)

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
