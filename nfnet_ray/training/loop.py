"""The training loop: from a Recipe and a Context to a trained network. Read it top to bottom."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from nfnet_ray.data.batching import check_batch_size
from nfnet_ray.data.draws import network_seed
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.loading.loader import EvalLoader, TrainLoader
from nfnet_ray.models import create_model
from nfnet_ray.models.published import with_published_values
from nfnet_ray.models.weights.pretrained import set_training_mode, start_from
from nfnet_ray.models.weights.weights_file import with_pinned_weights
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.agreement import EpochSums, Lookout
from nfnet_ray.training.checkpoints.saving import Saver, check_same
from nfnet_ray.training.collectives import first_workers, together
from nfnet_ray.training.context import Context
from nfnet_ray.training.damage import damaged_so_far, loading_metrics, remember_damaged
from nfnet_ray.training.determinism import generators, reset_process, set_generators
from nfnet_ray.training.evaluation import EVAL_BATCH_SIZE, evaluate, evaluate_signal
from nfnet_ray.training.gradient import DTYPES, MEMORY_FORMATS
from nfnet_ray.training.measurement.clock import Clock
from nfnet_ray.training.measurement.meter import Meter
from nfnet_ray.training.probe import fastest_memory_format
from nfnet_ray.training.step import TrainStep

METRIC = "validation_top1"  # which checkpoint is the best

Ending = Literal["finished", "diverged", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: after ``epochs`` finished epochs, with the metrics of the last one.

    ``model`` holds the weights as they were trained, ``average`` their moving average, if the Recipe has one.
    ``diverged`` is a loss that became infinite or not a number; ``reason`` then says when. ``stopped``: the
    Context asked for it; the last checkpoint is of this very step.
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
    data_fingerprint: str | None = None,
    force_resume: bool = False,
) -> Outcome:
    """Trains the Recipe's network and reports after every epoch.

    Goes on from the Context's latest checkpoint if there is one, in the middle of an epoch too. The result
    depends on the Recipe, the data and the number of workers and threads, not on what ran in this process
    before, nor on where the run was broken off. ``clock`` is one that has been running since the run was asked for.

    Raises UserError for data or a checkpoint that does not fit the Recipe; with ``force_resume`` another
    Recipe or other data than the checkpoint's are a warning. Raises DataChangedError if the data set is not that of
    ``data_fingerprint``, or is written to during the run: nothing is kept or reported of what was trained since.
    """
    clock = clock or Clock()
    recipe = with_pinned_weights(with_published_values(recipe))
    dataset = together(lambda: open_dataset(recipe.data.path, data_fingerprint), context)
    check_batch_size(recipe, len(dataset.train), context.replicas, recipe.data.path)
    with Saver(context) as saver:
        before = saver.latest()
        settings = recipe.to_values()  # as they were asked for
        if before:
            check_same(before, recipe, dataset.fingerprint, force=force_resume)
            recipe = recipe.with_values({"memory_format": before["memory_format"]})
        elif recipe.memory_format == "auto":
            fastest = fastest_memory_format(recipe, len(dataset.class_names), context.threads, context.device)
            recipe = recipe.with_values({"memory_format": first_workers(fastest, context)})
        reset_process(recipe.seed, context.threads)

        where: dict[str, Any] = {
            "rank": context.rank,
            "world_size": context.world_size,
            "device": context.device,
            "threads": context.threads,
        }
        train_loader = TrainLoader(
            dataset.train,
            recipe.data,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            replicas=context.replicas,
            epochs=recipe.schedule.epochs,
            **where,
        )
        eval_loader = EvalLoader(dataset.validation, recipe.data, batch_size=EVAL_BATCH_SIZE, **where)
        model = create_model(
            recipe.model.name,
            num_classes=len(dataset.class_names),
            dropout=recipe.model.dropout,
            stochastic_depth=recipe.model.stochastic_depth,
            overrides=recipe.model.overrides.chosen(),
        )
        start_from(model, recipe.model)
        layout = MEMORY_FORMATS[recipe.memory_format]
        model.to(context.device, DTYPES[recipe.precision]).to(memory_format=layout)
        batches = train_loader.batches_per_epoch
        step = TrainStep(model, recipe, context, batches)
        sums, at, meter = EpochSums(context), Position(), Meter(recipe, len(dataset.class_names), context)
        if before:
            at = Position(**before["position"])
            model.load_state_dict(before["model"])
            step.load_state_dict(before["step"])
            clock.resume(before["clock"])
            meter.resume(before["meter"])
            remember_damaged(train_loader, eval_loader, [worker["damaged"] for worker in before["workers"]])
            if at.epoch:  # the report of that epoch may have died with the worker
                context.report(at.metrics)

        def keep(at: Position, *, paused: bool = False) -> None:
            """A checkpoint of here and now."""
            together(dataset.check_unchanged, context)
            state = {
                "recipe": settings,
                "data": dataset.fingerprint,
                "memory_format": recipe.memory_format,
                "position": vars(at),
                "model": model.state_dict(),
                "step": step.state_dict(),
                "clock": clock.state(paused=paused),
                "meter": meter.state(),
            }
            own = {
                "generators": generators(context.device),
                "sums": sums.state_dict(),
                "statistics": step.own_statistics(),
                "damaged": damaged_so_far(train_loader, eval_loader),
            }
            metric = at.metrics[METRIC] if at.batches == 0 else None
            saver.save(state, own, step=step.number, epoch=at.epoch, metric=metric)

        def ended(state: Ending, at: Position, reason: str | None = None) -> Outcome:
            if state == "diverged":  # it may have been the data
                together(dataset.check_unchanged, context)
            metrics = dict(at.metrics) | (clock.metrics() if state == "diverged" else {})
            average = step.average.model if step.average else None
            return Outcome(state, at.epoch, metrics, model, average, reason)

        if recipe.signal_epochs and not before:
            signal = evaluate_signal(model, eval_loader, recipe)
            at = Position(initial={f"initial_{name}": value for name, value in signal.items()})
        lookout, warmed_up_for = Lookout(context, saver), None
        for epoch in range(at.epoch, recipe.schedule.epochs):
            torch.manual_seed(network_seed(recipe.seed, epoch, context.rank))
            if before and at.batches:  # in the middle of an epoch
                workers = before["workers"]
                sums.load_state_dicts([worker["sums"] for worker in workers], context.rank, recipe.batch_size)
                if len(workers) == context.world_size:
                    set_generators(workers[context.rank]["generators"], context.device)
                    step.load_own_statistics(workers[context.rank]["statistics"])
            else:
                sums = EpochSums(context)
                at = Position(epoch, 0, clock.seconds("train"), at.metrics, at.initial)
            before = None
            set_training_mode(model)
            meter.start()
            arriving = clock.waiting_for(train_loader.epoch(epoch, first_batch=at.batches))
            for number, batch in enumerate(arriving, start=at.batches + 1):
                if warmed_up_for != batch.images.shape and step.needs_warm_up:
                    clock.enter("warmup")
                    step.warm_up(batch)
                    clock.enter("train")
                warmed_up_for = batch.images.shape
                sums.add(step(batch), number)
                context.progress(epoch + number / batches)
                if lookout.is_due(is_last=number == batches):
                    look = lookout.look(sums)
                    if not math.isfinite(look.mean_loss):
                        where_bad = f"in epoch {epoch + 1}, step {sums.first_bad_step()}"
                        return ended("diverged", at, f"the training loss became {look.mean_loss} {where_bad}")
                    if look.stops or look.saves:
                        clock.enter("checkpoint")
                        at = at.after(number)
                        keep(at, paused=look.stops)
                    if look.stops:
                        saver.finish()
                        return ended("stopped", at)

            clock.enter("eval")
            trained = batches * recipe.batch_size
            train_seconds = clock.seconds("train") - at.train_seconds_before
            metrics = {"images_per_second": trained / train_seconds}
            metrics |= meter.stop(trained, train_seconds, train_loader.image_size(epoch))
            step.unify_statistics()
            validation = evaluate(model, clock.beating(eval_loader), recipe, context)
            loss = validation["validation_loss"]
            if step.average:  # what is delivered, and compared, is the average
                validation = {f"raw_{name}": value for name, value in validation.items()}
                validation |= evaluate(step.average.model, clock.beating(eval_loader), recipe, context)
            metrics |= validation
            if not math.isfinite(loss):
                return ended("diverged", at, f"the validation loss became {loss} after epoch {epoch + 1}")
            if recipe.signal_epochs and (epoch + 1) % recipe.signal_epochs == 0:
                metrics |= evaluate_signal(model, eval_loader, recipe)
            metrics |= {**at.initial, **sums.means()}
            metrics |= loading_metrics(recipe.data, train_loader, eval_loader, epoch, context)
            metrics["epoch"] = epoch + 1
            metrics["learning_rate"] = step.last_learning_rate

            clock.enter("checkpoint")
            at = Position(epoch + 1, metrics=metrics | clock.metrics())
            keep(at)
            clock.enter("report")
            context.report(at.metrics)
        saver.finish()
        return ended("finished", at)


@dataclass(frozen=True)
class Position:
    """Where a run is: ``batches`` of epoch ``epoch`` (counted from 0) are done, as many epochs are finished."""

    epoch: int = 0
    batches: int = 0
    train_seconds_before: float = 0.0
    """``train_seconds`` when this epoch began."""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Of the last finished epoch."""
    initial: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What was measured before the first step, to be reported with the first epoch."""

    def after(self, batches: int) -> Position:
        """The same epoch, further on."""
        return dataclasses.replace(self, batches=batches)
