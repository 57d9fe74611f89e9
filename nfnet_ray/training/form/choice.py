"""Which form a run is trained in: its checkpoint's, its Recipe's, or the one that it agrees on with others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from nfnet_ray.data.files.dataset import Dataset
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.collectives import first_workers
from nfnet_ray.training.context import Context, PlainContext
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
    """The form of a run with this Recipe, whose checkpoint is ``before``; the same on every worker.

    The run is one of as many ``lanes`` of a cohort.

    A run that resumes keeps its form, since another one has other last bits. Not in a cohort, whose last bits depend on
    its lanes, and where the form of a single trial can be far slower.
    """
    if before is not None and lanes == 1:
        if "form" in before:
            return Choice.from_values(before["form"])
        return Choice(Form(before["memory_format"], recipe.compile))  # of an earlier version
    choice = form_without_timing(recipe, context.device.type, lanes)
    if choice is None:
        own = _agreed(recipe, dataset, context, clock) if context.rank == 0 else None
        choice = first_workers(own, context)
    assert choice is not None
    if is_open(recipe) and context.rank == 0:
        logger.info("form of a step of %s: %s", recipe.model.name, choice.sentence())
    return choice


def _agreed(recipe: Recipe, dataset: Dataset, context: Context, clock: Clock) -> Choice:
    resolved, classes = resolve(recipe), len(dataset.class_names)
    is_cpu = context.device.type == "cpu"
    shape = shape_of(
        resolved,
        classes,
        context.replicas,
        context.threads if is_cpu else 0,
        device_name(context.device),
    )
    share = resolved.with_values({"batch_size": max(1, recipe.batch_size // context.replicas)})
    steps = recipe.schedule.epochs * (len(dataset.train) // recipe.batch_size)

    def choose(news: Callable[[], object]) -> Choice:
        def after_a_form() -> None:
            clock.beat()
            news()

        plain = PlainContext(device=context.device, gpu_share=context.gpu_share, threads=context.threads)
        choice = fastest_form(share, classes, steps, plain, after_a_form)
        own = share.with_values(vars(choice.form))
        if choice.form.compile and context.compiled_files and with_timed_batch(own, classes, plain) is own:
            # Before the others hear of the form, so that they need not compile.
            shape = (own.batch_size, own.data.image_size, own.data.image_size, 3)
            name = file_name(own, shape, context.world_size, device_name(context.device))
            context.compiled_files.save(name)
        return choice

    return context.agreed_form(shape, choose, clock.beat)
