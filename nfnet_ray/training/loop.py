"""The training loop: from a Recipe and a Context to a trained network. Read it top to bottom."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from nfnet_ray.data.batching import check_batch_size
from nfnet_ray.data.draws import network_seed
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.loading.sharing import Sharing
from nfnet_ray.models.own.source import with_pinned_network
from nfnet_ray.models.published import with_published_values
from nfnet_ray.models.weights.pretrained import set_training_mode
from nfnet_ray.models.weights.weights_file import with_pinned_weights
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.checkpoints.saving import Saver
from nfnet_ray.training.collectives import first_workers, on_this_worker, together
from nfnet_ray.training.context import Context
from nfnet_ray.training.damage import loading_metrics
from nfnet_ray.training.evaluation import Evaluation, evaluate, evaluate_signal
from nfnet_ray.training.measurement.clock import Clock
from nfnet_ray.training.measurement.waits import waits_on
from nfnet_ray.training.run import Position, Run, Spent, open_run

Ending = Literal["finished", "paused", "diverged", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: ``finished``; ``paused`` at the epoch or the time that was asked for; ``diverged`` if the loss became
            infinite or not a number; ``stopped`` if the Context asked for it. A paused or stopped run has a checkpoint
            of its last step.
        epochs: the number of finished epochs.
        metrics: the metrics of the last finished epoch.
        model: the network with the weights as they were trained.
        average: the network with the moving average of the weights; None if the Recipe has none.
        reason: when and how the run diverged; None if it did not.
    """

    state: Ending
    epochs: int
    metrics: dict[str, float]
    model: nn.Module
    average: nn.Module | None = None
    reason: str | None = None


def train(
    recipe: Recipe,
    context: Context,
    clock: Clock | None = None,
    *,
    until_epoch: int | None = None,
    until_seconds: float | None = None,
    spent: Spent | None = None,
    data_fingerprint: str | None = None,
    force_resume: bool = False,
) -> Outcome:
    """Trains the Recipe's network and reports after every epoch.

    Resumes from the Context's latest checkpoint if there is one, also in the middle of an epoch. The result depends on
    the Recipe, the data and the number of workers and threads, but not on earlier runs in this process, nor on where
    the run was interrupted.

    Args:
        recipe: the training that is asked for.
        context: where the run takes place: device, workers, checkpoints, and where it reports.
        clock: a clock that has been running since the run was asked for; None starts one now.
        until_epoch: the run pauses after this epoch, with a checkpoint. The schedule remains that of all epochs.
        until_seconds: the run pauses after the first epoch at whose end its ``train_seconds`` have reached this.
        spent: the seconds of earlier runs, to which a new run adds its own.
        data_fingerprint: the fingerprint that the data set must have.
        force_resume: warns of a checkpoint of another Recipe or of other data, and resumes from it.

    Raises:
        UserError: the data or the checkpoint does not fit the Recipe.
        DataChangedError: the data set has another fingerprint, or was written to during the run. Nothing that was
            trained since then is saved or reported.
    """
    # ---- Set up: the data, the network, and the latest checkpoint --------------------------------------------------

    clock = clock or Clock()
    clock.waits = waits_on(context.device)
    asked = together(lambda: with_pinned_network(with_pinned_weights(with_published_values(recipe))), context)
    dataset = together(lambda: open_dataset(asked.data.path, data_fingerprint), context)
    check_batch_size(asked, len(dataset.train), context.replicas, asked.data.path)
    with Saver(context, clock.beat) as saver, Sharing(context.shares_batches) as sharing:
        run, at = open_run(
            asked, dataset, context, clock, saver, sharing, spent=spent, force_resume=force_resume
        )
        at = before_first_step(run, at)

        # ---- Epoch by epoch: train, evaluate, save, report ---------------------------------------------------------

        last_epoch = min(until_epoch or asked.schedule.epochs, asked.schedule.epochs)
        while at.epoch < last_epoch and not (at.batches == 0 and _is_reached(until_seconds, run)):
            at = begin_epoch(run, at)
            outcome = train_epoch(run, at)
            if outcome:
                return outcome
            is_last = at.epoch + 1 == last_epoch or _is_reached(until_seconds, run)
            finished = finish_epoch(run, at, is_last=is_last)
            if isinstance(finished, Outcome):
                return finished
            at = finished

        saver.finish()
        return ended(run, at, "paused" if at.epoch < asked.schedule.epochs else "finished")


def before_first_step(run: Run, at: Position) -> Position:
    """Measures the signal in a new network, if the Recipe asks for it. Returns the position with these metrics."""
    if not run.recipe.signal_epochs or run.step.number:
        return at
    signal = evaluate_signal(run.model, on_this_worker(run.eval_loader, run.context), run.recipe)
    return Position(initial={f"initial_{name}": value for name, value in signal.items()})


def begin_epoch(run: Run, at: Position) -> Position:
    """Prepares an epoch, unless the run resumes in the middle of it."""
    if at.batches:
        return at
    torch.manual_seed(network_seed(run.recipe.seed, at.epoch, run.context.rank))
    run.sums.start_epoch()
    return dataclasses.replace(at, train_seconds_before=run.clock.seconds("train"))


def train_epoch(run: Run, at: Position) -> Outcome | None:
    """Trains on the batches of an epoch, starting at ``at``. Returns an Outcome only if the run ends within the epoch.

    Every few steps the workers agree on the mean loss of the epoch so far, and on whether to save or to stop.
    """
    clock, step, agreement = run.clock, run.captured_step, run.agreement
    batches = run.train_loader.batches_per_epoch

    set_training_mode(run.model)
    run.meter.start()
    run.system.start()
    batches_to_come = run.train_loader.epoch(at.epoch, first_batch=at.batches)
    arriving = clock.waiting_for(on_this_worker(batches_to_come, run.context))
    for number, batch in enumerate(arriving, start=at.batches + 1):
        if not step.is_ready_for(batch):
            clock.drain()
            clock.enter("warmup")
            run.warm_up(batch)
            clock.enter("train")
        step(batch)  # adds the results to run.sums
        run.context.progress(at.epoch + number / batches)

        if not agreement.is_due(is_last=number == batches):
            continue
        agreed = agreement.reach(run.sums)
        clock.recount()  # agreeing has read values from the device, so its queue is empty now
        run.system.look()
        if not math.isfinite(agreed.mean_loss):
            place = f"in epoch {at.epoch + 1}, step {run.sums.first_bad_step()}"
            return ended(run, at, "diverged", f"the training loss became {agreed.mean_loss} {place}")
        if agreed.should_stop or agreed.should_save:
            clock.enter("checkpoint")
            run.save(at.after(number), paused=agreed.should_stop)
        if agreed.should_stop:
            run.saver.finish()
            return ended(run, at, "stopped")
    return None


def finish_epoch(run: Run, at: Position, *, is_last: bool) -> Position | Outcome:
    """Evaluates after the last batch of an epoch, saves and reports.

    ``at`` is the position at which the epoch began, and ``is_last`` says that the run finishes or pauses here. Returns
    the position at the start of the next epoch, or an Outcome if the validation loss is not finite, which ends the run.
    """
    recipe, context, clock, step = run.recipe, run.context, run.clock, run.step
    clock.enter("eval")
    speed = speed_metrics(run, at)
    step.unify_statistics()
    all_images = len(run.dataset.validation)

    def evaluated(model: nn.Module) -> Evaluation:
        batches = on_this_worker(clock.with_heartbeats(run.eval_loader), context)
        return evaluate(model, batches, all_images, recipe, context)

    raw = evaluated(run.model)
    averaged = evaluated(step.average.model) if step.average else None
    return conclude_epoch(run, at, speed, raw, averaged, is_last=is_last)


def speed_metrics(run: Run, at: Position) -> dict[str, float]:
    """Speed and cost of training the epoch that began at ``at``."""
    images = run.train_loader.batches_per_epoch * run.recipe.batch_size
    train_seconds = run.clock.seconds("train") - at.train_seconds_before
    image_size = run.train_loader.image_size(at.epoch)
    cost = run.meter.stop(images, train_seconds, image_size, run.captured_step.peak_bytes)
    return {"images_per_second": images / train_seconds} | cost


def conclude_epoch(
    run: Run,
    at: Position,
    speed: dict[str, float],
    raw: Evaluation,
    averaged: Evaluation | None,
    *,
    is_last: bool,
) -> Position | Outcome:
    """Saves and reports an epoch: the part of :func:`finish_epoch` after the evaluations.

    ``raw`` evaluates the weights as they were trained, and ``averaged`` their moving average. If there is an average,
    its accuracy is the one that trials are compared by.
    """
    recipe, context, clock, step = run.recipe, run.context, run.clock, run.step
    evaluation, validation, loss = raw, raw.metrics, raw.metrics["validation_loss"]
    if averaged:
        evaluation = averaged
        validation = {f"raw_{name}": value for name, value in validation.items()} | averaged.metrics
    if not math.isfinite(loss):
        return ended(run, at, "diverged", f"the validation loss became {loss} after epoch {at.epoch + 1}")
    metrics = speed | validation
    if recipe.signal_epochs and (at.epoch + 1) % recipe.signal_epochs == 0:
        metrics |= evaluate_signal(run.model, on_this_worker(run.eval_loader, context), recipe)

    # ---- Add the metrics that the training has counted ----
    metrics |= {**at.initial, **run.sums.means()}
    metrics |= loading_metrics(recipe.data, run.train_loader, run.eval_loader, at.epoch, context)
    metrics["epoch"] = at.epoch + 1
    metrics["learning_rate"] = step.last_learning_rate
    texts = step.clipping_counts.record_after(at.epoch + 1, recipe.schedule.epochs) | run.conditions()
    texts |= run.system.record(is_last)
    if is_last:
        texts["correct_images"] = evaluation.images.to_text()

    # ---- Save, then report, so that no reported epoch is ever trained again ----
    clock.enter("checkpoint")
    finished = Position(at.epoch + 1, metrics=metrics | clock.metrics(), texts=texts)
    run.save(finished, paused=is_last and finished.epoch < recipe.schedule.epochs)
    clock.enter("report")
    context.report(finished.metrics, finished.texts)
    return finished


def _is_reached(train_seconds: float | None, run: Run) -> bool:
    """Whether the run has trained for this time, by the clock of the first worker. False if no time is given."""
    return train_seconds is not None and first_workers(
        run.clock.seconds("train") >= train_seconds, run.context
    )


def ended(run: Run, at: Position, state: Ending, reason: str | None = None) -> Outcome:
    """The Outcome of a run that ends at a position."""
    metrics = dict(at.metrics)
    if state == "diverged":
        # The reason may be that the data have changed: then this raises DataChangedError.
        together(run.dataset.check_unchanged, run.context)
        metrics |= run.clock.metrics()
    run.leave_graphs()
    average = run.step.average.model if run.step.average else None
    return Outcome(state, at.epoch, metrics, run.model, average, reason)
