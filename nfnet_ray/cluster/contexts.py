"""The two Contexts of a training on Ray: for a trial of Ray Tune, and for a worker of Ray Train.

The code runs in a worker. The driver imports this module too, so torch is imported in the functions.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from nfnet_ray.cluster.connection import ray_internals
from nfnet_ray.cluster.forms import agree
from nfnet_ray.cluster.mailbox import Mailbox, Register
from nfnet_ray.cluster.messages.configs import WorkerConfig
from nfnet_ray.cluster.messages.notes import EpochEnded, FinalReport, FormChosen, StopReason, WorkerSays
from nfnet_ray.cluster.messages.register_values import ENDED, HAS_TRAINED, PROGRESS, STOP, YIELD, compiled_of
from nfnet_ray.cluster.messages.tune_reports import (
    epoch_result,
    form_result,
    of_lane,
    said_result,
    with_epochs_of_trial,
)
from nfnet_ray.study.epochs_done import note_progress

if TYPE_CHECKING:
    import torch

    from nfnet_ray.training.context import FormNotes
    from nfnet_ray.training.form.forms import Choice
    from nfnet_ray.training.form.kept import KeptGraphs

PROGRESS_INTERVAL_SECONDS = 5.0
SECONDS_BETWEEN_READS = 1.0
"""The time between two reads of the register, by a thread of the first worker."""
SECONDS_UNTIL_THE_DRIVER_ASKS = 3.0
"""How long to wait for a request of the driver after a signal, since systemd and Slurm signal the driver and its
workers at the same time. Tune asks for the driver's requests ten times a second."""

logger = logging.getLogger(__name__)


class _WorkerContext:
    """The part that both Contexts have in common."""

    shares_batches = True
    """Batches are shared with the other trials on the node. Without such a trial this costs nothing."""
    kept_graphs: KeptGraphs | None = None

    def __init__(self, config: WorkerConfig, rank: int, world_size: int, device: torch.device) -> None:
        from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore
        from nfnet_ray.training.context import SECONDS_BETWEEN_CHECKPOINTS
        from nfnet_ray.training.form.artifacts import CompiledFiles

        self.rank, self.world_size, self.device = rank, world_size, device
        self._config = config
        self.replicas = config["resources"]["workers"]
        self.threads = config["resources"]["cpus"]
        self.gpu_share = config["resources"]["gpus"] or 1.0
        self.directory = Path(config["directory"])
        self.store = CheckpointStore(config["checkpoints"])
        seconds = config["seconds_between_checkpoints"]
        self.seconds_between_checkpoints = SECONDS_BETWEEN_CHECKPOINTS if seconds is None else seconds
        forms = Register(config["forms_register"])
        self.compiled_files = CompiledFiles(
            config["compiled"],
            announced=lambda name: forms.get(compiled_of(name)),
            announce=lambda name, digest: forms.set(compiled_of(name), digest),
        )
        self.register, self.mailbox = Register(config["mailbox"]), Mailbox(config["mailbox"])
        self._epochs_before, self._schedule_epochs = config["epochs_before"], config["schedule_epochs"]
        self._request: StopReason | None = None
        self._epochs: float | None = None
        self._noted_at: float | None = None
        self._over = threading.Event()

    @contextmanager
    def listening(self) -> Generator[None]:
        """A context in which a thread of the first worker reads the register and writes the progress to it."""
        thread = threading.Thread(target=self._listen, name="register", daemon=True)
        if self.rank == 0:
            thread.start()
        try:
            yield
        finally:
            self._over.set()

    def _listen(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_READS):
            try:
                self._read_requests()
                if self._epochs is None:
                    continue
                if self._noted_at is None:
                    self.register.set(HAS_TRAINED, True)
                if self._noted_at is None or time.monotonic() - self._noted_at > PROGRESS_INTERVAL_SECONDS:
                    self._noted_at = time.monotonic()
                    self._note_progress(self._epochs)
            except Exception as error:  # the head may be away for a while; its requests can wait
                logger.warning("the cluster's head does not answer (%s)", error)

    def _read_requests(self) -> None:
        if self.register.get(STOP):
            self._request = "asked"

    def _note_progress(self, epochs: float) -> None:
        note_progress(self.directory, epochs)

    def progress(self, epochs: float) -> None:
        self._epochs = self._epochs_before + epochs

    def _told(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics of an epoch for the driver, in which epochs are counted over all schedules."""
        return with_epochs_of_trial(metrics, self._epochs_before, self._schedule_epochs)

    def agreed_form(
        self,
        shape: str,
        choose: Callable[[FormNotes], Choice],
        sign_of_life: Callable[[], object],
    ) -> Choice:
        return agree(self._config, shape, choose, self._tell_form, self._say, sign_of_life)

    def _tell_form(self, shape: str, choice: dict[str, Any]) -> None:
        raise NotImplementedError

    def _say(self, text: str) -> None:
        raise NotImplementedError

    def should_stop(self) -> bool:
        return self._request is not None


class TuneContext(_WorkerContext):
    """The Context of a trial with one worker. Metrics are reported to Tune, which may end the trial at that moment.

    The trial stops if it is asked to, and if its machine is taken back. To Tune a cohort is a single trial, so the
    metrics of a ``lane`` are reported with the name of the lane.
    """

    def __init__(
        self, config: WorkerConfig, lane: str | None = None, kept_graphs: KeptGraphs | None = None
    ) -> None:
        import torch

        self._lane = lane
        self.kept_graphs = kept_graphs
        gpu = config["resources"]["gpus"] > 0
        super().__init__(config, rank=0, world_size=1, device=torch.device("cuda" if gpu else "cpu"))

    def _read_requests(self) -> None:
        super()._read_requests()
        if self._request is None and ray_internals.is_being_drained():
            self._request = "preempted"

    @property
    def is_preempted(self) -> bool:
        """Whether the trial stops because its machine is taken back, so that Tune must restart it elsewhere."""
        return self._request == "preempted"

    def report(self, metrics: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        from ray import tune

        tune.report(of_lane(self._lane, epoch_result(self._told(metrics), texts)))

    def _tell_form(self, shape: str, choice: dict[str, Any]) -> None:
        from ray import tune

        tune.report(form_result(shape, choice))

    def _say(self, text: str) -> None:
        from ray import tune

        tune.report(said_result(text))


class GroupContext(_WorkerContext):
    """The Context of a worker of a TorchTrainer. It stops if it is asked to, and if its machine is taken back."""

    def __init__(self, config: WorkerConfig) -> None:
        import ray.train
        import ray.train.torch

        place = ray.train.get_context()
        device = ray.train.torch.get_device()
        super().__init__(config, place.get_world_rank(), place.get_world_size(), device)

    def _read_requests(self) -> None:
        if self.register.get(STOP):
            self._request = "asked"
        elif self.register.get(YIELD):
            self._request = "resized"

    def _note_progress(self, epochs: float) -> None:
        self.register.set(PROGRESS, epochs)

    def report(self, metrics: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        if self.rank == 0:
            self.mailbox.post(EpochEnded(self._told(metrics), dict(texts)))

    def _tell_form(self, shape: str, choice: dict[str, Any]) -> None:
        self.mailbox.post(FormChosen(shape, choice))

    def _say(self, text: str) -> None:
        self.mailbox.post(WorkerSays(text))

    def report_end(self, report: FinalReport) -> None:
        """Reports how the leg ended. No group will train it again."""
        self.register.set(ENDED, True)
        self.mailbox.post(report)

    def should_stop(self) -> bool:
        return self.stop_reason() is not None

    def is_asked_soon(self) -> bool:
        """Whether the driver asks for a stop now or soon, since a signal to all processes reaches the driver too."""
        deadline = time.monotonic() + SECONDS_UNTIL_THE_DRIVER_ASKS
        with suppress(Exception):  # the cluster's head is away
            while time.monotonic() < deadline:
                if self.register.get(STOP):
                    return True
                time.sleep(0.1)
        return False

    def stop_reason(self) -> StopReason | None:
        """Why this worker wants to stop; None if it does not. Other workers may have another reason, or none."""
        if _terminated.is_set():
            return "terminated"
        return "preempted" if ray_internals.preempted_ranks() else self._request


def must_leave(rank: int) -> bool:
    """Whether the process of this worker has to end, because it got SIGTERM or its machine is taken back."""
    return _terminated.is_set() or rank in ray_internals.preempted_ranks()


_terminated = threading.Event()


def stop_on_sigterm() -> None:
    """Lets the first SIGTERM to this process request a checkpoint. Call it in the main thread."""

    def request(number: int, _frame: FrameType | None) -> None:
        _terminated.set()
        signal.signal(number, before)

    before = signal.signal(signal.SIGTERM, request)
    # A local Ray starts its processes with the signal blocked (connection/local_ray.py).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
