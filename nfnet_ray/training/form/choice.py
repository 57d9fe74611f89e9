"""Chooses the form of a run: that of its checkpoint, that of its Recipe, or the one that runs agree on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from nfnet_ray.data.batching import batches_per_epoch, images_of_share
from nfnet_ray.data.files.dataset import Dataset
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.collectives import made_by_first
from nfnet_ray.training.context import Context, FormNotes, PlainContext
from nfnet_ray.training.form.artifacts import file_name
from nfnet_ray.training.form.forms import Choice, Form, form_without_timing, is_open, shape_of
from nfnet_ray.training.form.probe import fastest_form, with_timed_batch
from nfnet_ray.training.measurement.clock import Clock
from nfnet_ray.training.measurement.conditions import device_name

logger = logging.getLogger(__name__)


def chosen_form(
    recipe: Recipe,
    dataset: Dataset,
    context: Context,
    clock: Clock,
    before: Mapping[str, Any] | None,
    lanes: int = 1,
) -> Choice:
    """The form of a run with this Recipe, equal on every worker. ``before`` is its checkpoint, if there is one.

    ``lanes`` is the number of lanes of its cohort. A run that resumes keeps its form, since another one rounds
    differently. In a cohort it does not: rounding depends on the lanes in any case, and the form of a single trial can
    be far slower.
    """
    if before is not None and lanes == 1:
        if "form" in before:
            return Choice.from_values(before["form"])
        return Choice(Form(before["memory_format"], recipe.compile))  # of an earlier version
    choice = form_without_timing(recipe, context.device.type, lanes)
    if choice is None:
        choice = made_by_first(
            lambda still_at_work: _agreed(recipe, dataset, context, still_at_work), context, clock.beat
        )
    if is_open(recipe) and context.rank == 0:
        logger.info("form of a step of %s: %s", recipe.model.label, choice.sentence())
    return choice


def _agreed(recipe: Recipe, dataset: Dataset, context: Context, sign_of_life: Callable[[], object]) -> Choice:
    resolved, classes = resolve(recipe), len(dataset.class_names)
    is_cpu = context.device.type == "cpu"
    shape = shape_of(
        resolved,
        classes,
        context.replicas,
        context.threads if is_cpu else 0,
        device_name(context.device),
    )
    values: dict[str, Any] = {"batch_size": max(1, recipe.batch_size // context.replicas)}
    if context.world_size > 1:
        values["capture"] = (
            "never"  # with several workers steps are not captured, and a form is timed as it is trained
        )
    share = resolved.with_values(values)
    images = images_of_share(len(dataset.train), recipe.data.train_share)
    steps = recipe.schedule.epochs * batches_per_epoch(images, recipe.batch_size)

    def choose(notes: FormNotes) -> Choice:
        if context.kept_graphs:
            context.kept_graphs.drop()  # the timed steps need their memory
        plain = PlainContext(device=context.device, gpu_share=context.gpu_share, threads=context.threads)
        choice = fastest_form(share, classes, steps, plain, notes)
        own = share.with_values(vars(choice.form))
        # With several workers torch splits the graph, one part for each message of gradients, so the compiled code
        # differs.
        is_trained_so = context.world_size == 1 and with_timed_batch(own, classes, plain) is own
        if choice.form.compile and context.compiled_files and is_trained_so:
            # Save it before the others learn of the form, so that they need not compile.
            shape = (own.batch_size, own.data.image_size, own.data.image_size, 3)
            name = file_name(own, shape, context.world_size, device_name(context.device))
            context.compiled_files.save(name)
        return choice

    return context.agreed_form(shape, choose, sign_of_life)
