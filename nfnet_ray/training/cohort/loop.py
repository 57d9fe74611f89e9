"""The training loop of a cohort: as :mod:`nfnet_ray.training.loop`, but for several Recipes that share each batch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from nfnet_ray.cohorts import check_lanes
from nfnet_ray.data.batching import check_batch_size
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.data.loading.sharing import Sharing
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import with_published_values
from nfnet_ray.models.weights.weights_file import with_pinned_weights
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.agreement import Agreement
from nfnet_ray.training.captured import CapturedStep, recorder_for
from nfnet_ray.training.checkpoints.saving import Saver
from nfnet_ray.training.cohort.clock import LaneClock, LaneEnergy, SharedClock
from nfnet_ray.training.cohort.evaluation import evaluate_lanes
from nfnet_ray.training.cohort.step import CohortStep, Lane, LaneResults, release
from nfnet_ray.training.cohort.sums import CohortSums
from nfnet_ray.training.cohort.system import SharedSystemMeter
from nfnet_ray.training.context import Context
from nfnet_ray.training.evaluation import Evaluation
from nfnet_ray.training.form.probe import is_out_of_memory
from nfnet_ray.training.loop import (
    Ending,
    Outcome,
    before_first_step,
    begin_epoch,
    conclude_epoch,
    ended,
    speed_metrics,
)
from nfnet_ray.training.measurement.clock import Clock
from nfnet_ray.training.measurement.meter import Meter, NvmlEnergyCounter
from nfnet_ray.training.measurement.waits import waits_on
from nfnet_ray.training.run import Position, Run, Spent, open_run

logger = logging.getLogger(__name__)


def train_cohort(
    recipes: Sequence[Recipe],
    contexts: Sequence[Context],
    clock: Clock | None = None,
    *,
    until_epoch: int | None = None,
    spent: Sequence[Spent | None] | None = None,
    data_fingerprint: str | None = None,
    force_resume: bool = False,
    say: Callable[[str], object] = logger.warning,
) -> list[Outcome]:
    """Trains Recipes as the lanes of one program, on one worker. Returns the Outcome of each lane.

    Each lane reports to its own Context, and saves its checkpoints there. They have the format of a single trial's, so
    a lane can be continued alone or in another cohort. Lanes that resume at different positions are trained one group
    after the other, until they meet at the beginning of an epoch. A lane whose loss is no longer finite ends. The other
    lanes continue, and leave it out from the next epoch on. If one Context asks for a stop, all lanes stop. The seconds
    of a lane are the elapsed seconds divided by the number of live lanes.

    Lanes that do not fit into memory together are trained as two halves, one after the other, each from the last
    checkpoints of its lanes. This is announced in a line passed to ``say``.

    ``recipes``, ``contexts`` and ``spent`` have one item for each lane. The other arguments are those of
    :func:`nfnet_ray.training.loop.train`.

    Raises UserError for Recipes that differ in a field that decides the batches, the shapes or the passes (see
    :data:`nfnet_ray.cohorts.LANE_FIELDS`), and the errors of :func:`nfnet_ray.training.loop.train`.
    """
    if not recipes:
        return []
    asked = [with_pinned_weights(with_published_values(recipe)) for recipe in recipes]
    check_lanes(asked)
    if any(context.replicas > 1 for context in contexts):
        raise UserError("a cohort is trained by one worker: give its trials one")
    dataset = open_dataset(asked[0].data.path, data_fingerprint)
    check_batch_size(asked[0], len(dataset.train), 1, asked[0].data.path)
    last_epoch = min(until_epoch or asked[0].schedule.epochs, asked[0].schedule.epochs)
    clock = clock or Clock()
    clock.waits = waits_on(contexts[0].device)
    program = _Program(dataset, last_epoch, clock, force_resume)
    outcomes: list[Outcome] = []
    trials = zip(asked, contexts, spent or [None] * len(asked), strict=True)
    waiting = [[_Trial(*parts) for parts in trials]]
    while waiting:
        together = waiting.pop(0)
        try:
            outcomes += program.train(together)
        except Exception as error:
            if len(together) == 1 or not is_out_of_memory(error):
                raise
            half = math.ceil(len(together) / 2)
            waiting[:0] = [together[:half], together[half:]]
            say(
                f"{len(together)} trials do not fit the memory as one cohort: they are trained as two, of {half} and "
                f"{len(together) - half}, one after the other"
            )
    return outcomes


class _Trial(NamedTuple):
    """A trial to train as a lane."""

    recipe: Recipe
    context: Context
    spent: Spent | None


class _Program:
    """Trains trials together, on one worker, on the same data and up to the same epoch."""

    def __init__(self, dataset: Dataset, last_epoch: int, clock: Clock, force_resume: bool) -> None:
        self._dataset, self._last_epoch = dataset, last_epoch
        self._clock, self._force_resume = clock, force_resume
        self._attempts = 0
        self._is_stopped = False

    def train(self, trials: Sequence[_Trial]) -> list[Outcome]:
        """Trains the trials and returns their Outcomes. After a stop, later trials end at their last checkpoint."""
        device = trials[0].context.device
        if self._attempts:
            self._clock.drain()
        energy = NvmlEnergyCounter(device) if device.type == "cuda" else None
        shared = SharedClock(self._clock, energy, from_now=self._attempts > 0)
        self._attempts += 1
        with ExitStack() as stack:
            lanes = self._opened(trials, shared, stack)
            groups = [list(group) for _, group in groupby(sorted(lanes, key=_Lane.place), key=_Lane.place)]
            together: list[_Lane] = []
            for group, following in zip(groups, [*groups[1:], []], strict=True):
                together += group
                if self._is_stopped and together[0].at.epoch < self._last_epoch:
                    for lane in together:
                        lane.end("stopped")
                        lane.leave()
                else:
                    # Train up to the beginning of the epoch at which the next group waits, and then together with it.
                    joins = bool(following) and following[0].at.batches == 0
                    until_epoch = following[0].at.epoch if joins else self._last_epoch
                    _Cohort(together, shared, self._last_epoch).train(until_epoch)
                self._is_stopped |= any(lane.is_stopped for lane in together)
                together = [lane for lane in together if lane.outcome is None]
        return [lane.ending() for lane in lanes]

    def _opened(self, trials: Sequence[_Trial], shared: SharedClock, stack: ExitStack) -> list[_Lane]:
        """Opens the trials' runs, new or resumed. They share their loaders, so they see the same batches."""
        lanes: list[_Lane] = []
        sharing = stack.enter_context(Sharing(trials[0].context.shares_batches))
        for trial in trials:
            clock = LaneClock(shared)
            run, at = open_run(
                trial.recipe,
                self._dataset,
                trial.context,
                clock,
                stack.enter_context(Saver(trial.context, shared.clock.beat)),
                sharing,
                spent=trial.spent,
                force_resume=self._force_resume,
                beside=lanes[0].run if lanes else None,
                lanes=len(trials),
            )
            joules = run.meter.state()
            run.meter = Meter(
                run.recipe, len(self._dataset.class_names), trial.context, LaneEnergy(shared, clock)
            )
            run.meter.resume(joules)
            run.system = lanes[0].run.system if lanes else SharedSystemMeter(trial.context)
            run.lanes = len(trials)
            lanes.append(_Lane(run, clock, before_first_step(run, at)))
        return lanes


@dataclass
class _Lane:
    """One trial of a cohort, with its position and, once it has ended, its Outcome."""

    run: Run
    clock: LaneClock
    at: Position
    outcome: Outcome | None = None

    def parts(self) -> Lane:
        """The parts of this lane that a :class:`CohortStep` needs."""
        return Lane(self.run.recipe, self.run.model, self.run.step)

    def place(self) -> tuple[int, int]:
        """(finished epochs, finished batches of the next epoch)."""
        return self.at.epoch, self.at.batches

    def end(self, state: Ending, reason: str | None = None) -> None:
        """Ends the lane, and stores its Outcome."""
        self.outcome = ended(self.run, self.at, state, reason)

    def leave(self) -> None:
        """Releases the cohort's memory and its captured step. The lane's networks get separate tensors."""
        release(self.parts())
        del self.run

    @property
    def is_stopped(self) -> bool:
        """Whether the lane has ended because a Context asked for a stop."""
        return self.outcome is not None and self.outcome.state == "stopped"

    def ending(self) -> Outcome:
        """The Outcome of a lane that has ended."""
        assert self.outcome is not None
        return self.outcome


class _Cohort:
    """Lanes that are at the same position, and end after epoch ``last_epoch``."""

    def __init__(self, lanes: list[_Lane], shared: SharedClock, last_epoch: int) -> None:
        self._live, self._shared, self._last_epoch = lanes, shared, last_epoch
        self._clock = shared.clock
        self._parts: tuple[CohortStep, CapturedStep[LaneResults], CohortSums] | None = None

    def train(self, until_epoch: int) -> None:
        """Trains until ``until_epoch`` epochs are finished. After the last epoch, each lane has its Outcome."""
        self._share_time()
        while self._live and self._live[0].at.epoch < until_epoch:
            for lane in self._live:
                lane.at = begin_epoch(lane.run, lane.at)
            self._train_epoch()
            self._leave_out_the_ended()
            if self._live:
                self._finish_epoch()
                self._leave_out_the_ended()
        for lane in self._live if until_epoch == self._last_epoch else ():
            lane.run.saver.finish()
            is_paused = lane.at.epoch < lane.run.recipe.schedule.epochs
            lane.end("paused" if is_paused else "finished")
        self._leave_out_the_ended()

    def _train_epoch(self) -> None:
        """Trains the lanes on the batches of an epoch, as :func:`nfnet_ray.training.loop.train_epoch`."""
        # Lanes that diverge stay in the program until the end of the epoch. Otherwise the number of lanes in a step,
        # and so its rounding, would depend on when the host has read the losses from the GPU.
        lanes, clock, first = list(self._live), self._clock, self._live[0].run
        _, step, sums = self._step_of(lanes)
        agreement = _CohortAgreement(lanes)
        epoch, batches = self._live[0].at.epoch, first.train_loader.batches_per_epoch
        for lane in lanes:
            lane.run.meter.start()
            lane.run.system.start()
        arriving = clock.waiting_for(first.train_loader.epoch(epoch, first_batch=self._live[0].at.batches))
        for number, batch in enumerate(arriving, start=self._live[0].at.batches + 1):
            if not step.is_ready_for(batch):
                clock.drain()
                clock.enter("warmup")
                step.prepare(batch)
                clock.enter("train")
            step(batch)  # into the lanes' sums
            for lane in lanes:
                if lane.outcome is None:
                    lane.run.context.progress(epoch + number / batches)

            if not agreement.is_due(is_last=number == batches):
                continue
            agreed = agreement.ask(sums)
            clock.recount()
            for lane, loss in zip(lanes, agreed.mean_losses, strict=True):
                lane.run.system.look()
                if lane.outcome is None and not math.isfinite(loss):
                    place = f"in epoch {epoch + 1}, step {lane.run.sums.first_bad_step()}"
                    lane.end("diverged", f"the training loss became {loss} {place}")
                    self._share_time()
            live = [lane for lane in lanes if lane.outcome is None]
            if live and (agreed.should_stop or agreed.should_save):
                clock.enter("checkpoint")
                for lane in live:
                    lane.run.save(lane.at.after(number), paused=agreed.should_stop)
            if not live or agreed.should_stop:
                for lane in live:
                    lane.run.saver.finish()
                    lane.end("stopped")
                return

    def _finish_epoch(self) -> None:
        """Evaluates, saves and reports the lanes, as :func:`nfnet_ray.training.loop.finish_epoch`."""
        lanes, clock, first = self._live, self._clock, self._live[0].run
        clock.enter("eval")
        speeds = [speed_metrics(lane.run, lane.at) for lane in lanes]
        step, _, _ = self._step_of(lanes)
        weights, averaged = [step.weights], step.averages
        if averaged:
            weights.append(averaged[1])
        found = evaluate_lanes(
            step.network,
            weights,
            clock.with_heartbeats(first.eval_loader),
            len(first.dataset.validation),
            first.recipe,
            first.context,
        )
        of_averages: dict[int, Evaluation] = dict(zip(averaged[0], found[1], strict=True)) if averaged else {}
        for number, (lane, speed, raw) in enumerate(zip(lanes, speeds, found[0], strict=True)):
            is_last = lane.at.epoch + 1 == self._last_epoch
            clock.enter("eval")  # the report of the previous lane has changed the phase
            finished = conclude_epoch(lane.run, lane.at, speed, raw, of_averages.get(number), is_last=is_last)
            if isinstance(finished, Outcome):
                lane.outcome = finished
            else:
                lane.at = finished

    def _step_of(self, lanes: Sequence[_Lane]) -> tuple[CohortStep, CapturedStep[LaneResults], CohortSums]:
        """The step of these lanes, the CapturedStep that runs it, and their sums; new ones if a lane has ended."""
        if self._parts is None or self._parts[0].lanes != len(lanes):
            first = lanes[0].run
            step, sums = (
                CohortStep([lane.parts() for lane in lanes]),
                CohortSums([lane.run.sums for lane in lanes], first.context.device),
            )
            recorder = recorder_for(first.context.device, first.context.gpu_share)
            captured = CapturedStep(step, sums, first.recipe, first.context, recorder)
            for lane in lanes:
                lane.run.captured_step = captured
            self._parts = step, captured, sums
        return self._parts

    def _leave_out_the_ended(self) -> None:
        over = [lane for lane in self._live if lane.outcome is not None]
        self._live = [lane for lane in self._live if lane.outcome is None]
        self._share_time()
        for lane in over:
            lane.leave()

    def _share_time(self) -> None:
        self._shared.divide_among([lane.clock for lane in self._live if lane.outcome is None])


class _Agreed(NamedTuple):
    mean_losses: list[float]
    should_stop: bool
    should_save: bool


class _CohortAgreement(Agreement):
    """An :class:`Agreement` of the lanes of one worker: a request to stop or to save applies to all lanes."""

    def __init__(self, lanes: Sequence[_Lane]) -> None:
        super().__init__(lanes[0].run.context, lanes[0].run.saver)
        self._lanes = lanes

    def ask(self, sums: CohortSums) -> _Agreed:
        """Reads the mean losses, and whether a lane asks to stop or to save. Waits for the device."""
        seconds = (time.perf_counter() - self._since) / max(1, self._steps)
        losses = sums.mean_losses()
        self._plan(seconds)
        live = [lane.run for lane in self._lanes if lane.outcome is None]
        return _Agreed(
            losses,
            should_stop=any(run.context.should_stop() for run in live),
            should_save=any(run.saver.is_due() for run in live),
        )
