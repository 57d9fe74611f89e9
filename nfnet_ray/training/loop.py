"""The training loop: from a Recipe and a Context to a trained network. Read it top to bottom."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from nfnet_ray.data.batching import check_batch_size
from nfnet_ray.data.dataset import Dataset, open_dataset
from nfnet_ray.data.draws import network_seed
from nfnet_ray.data.loader import EvalLoader, TrainLoader
from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.published import with_published_values
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.clock import Clock
from nfnet_ray.training.context import Context
from nfnet_ray.training.evaluation import EVAL_BATCH_SIZE, evaluate, evaluate_signal
from nfnet_ray.training.gradient import DTYPES, MEMORY_FORMATS
from nfnet_ray.training.loading import loading_metrics
from nfnet_ray.training.process import reset_process
from nfnet_ray.training.step import StepResult, TrainStep

STEPS_BETWEEN_GPU_CHECKS = 16  # reading the loss stops the GPU's queue, so it is not read at every step

Ending = Literal["finished", "diverged", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: after ``epochs`` finished epochs, with the metrics of the last one.

    ``model`` holds the weights as they were trained, ``average`` their moving average, if the Recipe has one.
    ``diverged`` is a loss that became infinite or not a number; ``reason`` then says when.
    """

    state: Ending
    epochs: int
    metrics: dict[str, float]
    model: nn.Module
    average: nn.Module | None = None
    reason: str | None = None


def train(recipe: Recipe, context: Context, clock: Clock | None = None) -> Outcome:
    """Trains the Recipe's network and reports after every epoch.

    Goes on from the Context's latest checkpoint if there is one. The result depends on the Recipe, the
    data and the number of workers and threads, not on what ran in this process before. ``clock`` is one
    that has been running since the run was asked for. Raises UserError for data or a checkpoint that does
    not fit the Recipe.
    """
    clock = clock or Clock()
    reset_process(recipe.seed, context.threads)
    recipe = with_published_values(recipe)
    dataset = open_dataset(recipe.data.path)
    check_batch_size(recipe, len(dataset.train), context.world_size, recipe.data.path)

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
    model.to(context.device, DTYPES[recipe.precision]).to(memory_format=MEMORY_FORMATS[recipe.memory_format])
    step = TrainStep(model, recipe, context, train_loader.batches_per_epoch)
    epochs_done, metrics = _resume(recipe, dataset, context, step, model, clock)
    if epochs_done:  # the report of this epoch may have died with the worker
        context.report(metrics)
    initial_signal: dict[str, float] = {}
    if recipe.signal_epochs and not epochs_done:
        signal = evaluate_signal(model, eval_loader, recipe)
        initial_signal = {f"initial_{name}": value for name, value in signal.items()}

    def ended(state: Ending, epochs: int, metrics: dict[str, float], reason: str | None = None) -> Outcome:
        return Outcome(state, epochs, metrics, model, step.average.model if step.average else None, reason)

    for epoch in range(epochs_done, recipe.schedule.epochs):
        torch.manual_seed(network_seed(recipe.seed, epoch, context.rank))
        model.train()
        train_seconds_before = clock.seconds("train")
        sums = EpochSums(context)
        learning_rate = step.learning_rate
        for number, batch in enumerate(clock.waiting_for(train_loader.epoch(epoch)), start=1):
            learning_rate = step.learning_rate
            sums.add(step(batch))
            context.progress(epoch + number / train_loader.batches_per_epoch)
            if number == train_loader.batches_per_epoch or number % sums.steps_between_checks == 0:
                loss = sums.mean_loss()
                if not math.isfinite(loss):
                    reason = f"the training loss became {loss} in epoch {epoch + 1}, step {number}"
                    return ended("diverged", epoch, clock.metrics(), reason)

        clock.enter("eval")
        images = train_loader.batches_per_epoch * recipe.batch_size
        step.unify_statistics()
        metrics = evaluate(model, eval_loader, recipe, context)
        if step.average:  # what is delivered, and compared, is the average
            metrics = {f"raw_{name}": value for name, value in metrics.items()}
            metrics |= evaluate(step.average.model, eval_loader, recipe, context)
        loss = metrics.get("raw_validation_loss", metrics["validation_loss"])
        if not math.isfinite(loss):
            reason = f"the validation loss became {loss} after epoch {epoch + 1}"
            return ended("diverged", epoch, clock.metrics(), reason)

        epochs_done = epoch + 1
        if recipe.signal_epochs and epochs_done % recipe.signal_epochs == 0:
            metrics |= evaluate_signal(model, eval_loader, recipe)
        if epochs_done == 1:
            metrics |= initial_signal
        metrics |= sums.means() | clock.metrics()
        metrics |= loading_metrics(recipe.data, train_loader, eval_loader, epoch, context)
        metrics["epoch"] = epochs_done
        metrics["learning_rate"] = learning_rate
        metrics["images_per_second"] = images / (clock.seconds("train") - train_seconds_before)

        clock.enter("checkpoint")
        if context.rank == 0:
            context.save_checkpoint(epochs_done, _state(recipe, dataset, step, model, clock, metrics))

        clock.enter("report")
        context.report(metrics)
        if context.should_stop() and epochs_done < recipe.schedule.epochs:
            return ended("stopped", epochs_done, metrics)
    return ended("finished", epochs_done, metrics)


class EpochSums:
    """Sums of the steps' results on the device, over the steps of one epoch and, when read, all workers."""

    def __init__(self, context: Context) -> None:
        self.steps_between_checks = 1 if context.device.type == "cpu" else STEPS_BETWEEN_GPU_CHECKS
        self._world_size = context.world_size
        self._sums = torch.zeros(4, dtype=torch.float64, device=context.device)

    def add(self, result: StepResult) -> None:
        """Counts one step."""
        one = torch.ones_like(result.loss)
        self._sums += torch.stack([result.loss, result.top1, result.clipped_fraction, one]).double()

    def mean_loss(self) -> float:
        """Mean training loss so far over all workers; waits for the device."""
        return self.means()["train_loss"]

    def means(self) -> dict[str, float]:
        """Means over the steps so far and over all workers, which have to call this together."""
        sums = self._sums.clone()
        if self._world_size > 1:
            dist.all_reduce(sums)
        loss, top1, clipped, steps = sums.tolist()
        return {
            "train_loss": loss / steps,
            "train_top1": top1 / steps,
            "agc_clipped_fraction": clipped / steps,
        }


def _state(
    recipe: Recipe,
    dataset: Dataset,
    step: TrainStep,
    model: nn.Module,
    clock: Clock,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """All that the rest of the run depends on. Generators need not be kept: each epoch seeds its own."""
    return {
        "recipe": recipe.fingerprint(),
        "data": dataset.fingerprint,
        "metrics": metrics,
        "model": model.state_dict(),
        "step": step.state_dict(),
        "clock": clock.state(),
    }


def _resume(
    recipe: Recipe, dataset: Dataset, context: Context, step: TrainStep, model: nn.Module, clock: Clock
) -> tuple[int, dict[str, float]]:
    """Loads the Context's latest checkpoint, if any; the epochs that are done, and the last one's metrics."""
    state = context.latest_checkpoint()
    if state is None:
        return 0, {}
    for kind, own in (("recipe", recipe.fingerprint()), ("data", dataset.fingerprint)):
        if state[kind] != own:
            raise UserError(
                f"the checkpoint was written with another {kind} ({state[kind]}, not {own}): start anew"
            )
    model.load_state_dict(state["model"])
    step.load_state_dict(state["step"])
    clock.resume(state["clock"])
    metrics: dict[str, float] = state["metrics"]
    return int(metrics["epoch"]), metrics
