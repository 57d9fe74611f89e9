"""Measures how fast this machine trains a Recipe's network, and in which form, by a few steps on noise."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from nfnet_ray.data.augmentation.progressive import data_at_epoch
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.models import model_of
from nfnet_ray.models.catalogue import count_multiply_adds
from nfnet_ray.models.published import resolve
from nfnet_ray.models.weights.pretrained import freeze, set_training_mode
from nfnet_ray.recipe import Recipe, ResolvedRecipe
from nfnet_ray.training.agreement import EpochSums
from nfnet_ray.training.captured import CapturedStep, recorder_for
from nfnet_ray.training.context import FormNotes, NotesForNobody, PlainContext
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.form.forms import (
    AUTO,
    Choice,
    Form,
    layouts_to_try,
    pays_to_compile,
    slicings_to_try,
    ways_to_compile,
)
from nfnet_ray.training.form.placing import place
from nfnet_ray.training.step import TrainStep

# In the forward pass of a step on a CPU, unless a single image has more. Larger batches are cut, to keep a probe short.
LARGEST_FORWARD_MULTIPLY_ADDS = 5e9
LARGEST_BATCH = 64  # for a measurement of speed alone: on a CPU images per second change little beyond it
FEWEST_STEPS, MOST_STEPS, SECONDS_OF_STEPS = 4, 20, 1.0

logger = logging.getLogger(__name__)


def fastest_form(
    recipe: ResolvedRecipe,
    num_classes: int,
    steps: int,
    context: PlainContext,
    notes: FormNotes | None = None,
) -> Choice:
    """The form in which a run of ``steps`` steps takes the least time, with a compilation for each size of images.

    The batch of ``recipe`` is the share of one worker. Eager forms are timed first. Compiled forms are timed only if
    the Recipe asks for a compiled network, or if the eager steps of the run take much longer than a compilation
    (:func:`~nfnet_ray.training.form.forms.pays_to_compile`). The best slicing of grouped convolutions is found with
    eager steps, because compiled forms use the same kernels for them. A compiled or sliced form that fails is left out,
    and so is any form that does not fit into memory. A compilation that hangs or crashes ends the process. So, unless
    the Recipe asks for it, it is left out if the ``notes`` of earlier processes say so.

    Resets the generators of the process (:func:`~nfnet_ray.training.determinism.reset_process`). Raises MemoryError if
    no form fits.
    """
    device, epochs = context.device.type, recipe.schedule.epochs
    sizes = {data_at_epoch(recipe.data, epoch, epochs).image_size for epoch in range(epochs)}
    forms = _TimedForms(recipe, num_classes, steps, len(sizes), context, notes or NotesForNobody())
    slicing_of: dict[str, str] = {}
    ways = ways_to_compile(recipe, device)
    for layout in layouts_to_try(recipe, device):
        slicings = slicings_to_try(recipe, layout, device)
        eager = [Form(layout, False, slicing) for slicing in slicings]
        if False in ways or len(slicings) > 1:
            for form in eager:
                forms.time(form)
        slicing_of[layout] = min(eager, key=forms.run_seconds).grouped_convolutions
    if False not in ways:
        forms.found.clear()
    forms.time_compiled(
        [Form(layout, way, slicing_of[layout]) for way in ways if way for layout in slicing_of]
    )
    return forms.choice()


@dataclass(frozen=True)
class _TimedForms:
    """The forms that have been timed for a Recipe, and those that failed.

    A run of ``steps`` steps has images of this number of ``sizes``, each of which needs a compilation.
    """

    recipe: ResolvedRecipe
    num_classes: int
    steps: int
    sizes: int
    context: PlainContext
    notes: FormNotes
    found: dict[Form, Timing] = field(default_factory=dict)
    failed: dict[Form, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def time(self, form: Form) -> None:
        """Times a form, or keeps the reason why it failed. Raises the errors of a plain form, except MemoryError."""
        values = vars(form) if form.compile else {**vars(form), "activation_memory_budget": 1.0}
        try:
            self.found[form] = time_step(self.recipe.with_values(values), self.num_classes, self.context)
        except Exception as error:  # a compiler may raise anything
            is_memory = isinstance(error, MemoryError)
            self.failed[form] = "out of memory" if is_memory else f"{type(error).__name__}"
            if form.is_plain and not is_memory:
                raise
            logger.warning("a step of %s failed in the form %s: %s", self.recipe.model.label, form, error)
        self.notes.end_form()

    def time_compiled(self, forms: Sequence[Form]) -> None:
        """Times compiled forms: all if the Recipe asks for one, otherwise as long as it pays and ends no process."""
        eager_seconds = min(map(self.run_seconds, self.found), default=math.inf)
        for form in forms:
            if self.recipe.compile == AUTO:
                if not pays_to_compile(eager_seconds / self.sizes, self.context.device.type):
                    took = f"all steps take {eager_seconds:,.0f} s without"
                    self.remarks.append(f"compiled forms were not tried, as {took}")
                    return
                if not self.notes.begin_compiling(str(form)):
                    self.remarks.append(f"from {form} on none was tried, as that ended the process twice")
                    return
            self.time(form)

    def run_seconds(self, form: Form) -> float:
        """The seconds of all steps of the run in this form."""
        return self.steps * self.found[form].step_seconds if form in self.found else math.inf

    def compile_seconds(self, form: Form) -> float:
        """The seconds of all compilations of the run in this form."""
        # The first step of the first eager form is slow too, but only because it starts CUDA and loads libraries.
        return self.sizes * self.found[form].compile_seconds if form.compile else 0.0

    def choice(self) -> Choice:
        """The fastest form, with the timings. Raises MemoryError if no form fits."""
        if not self.found:
            raise MemoryError(f"a step of {self.recipe.model.label} fails in every form: {self.failed}")
        failures = [f"{form} failed ({why})" for form, why in self.failed.items()]
        return Choice(
            min(self.found, key=lambda form: self.run_seconds(form) + self.compile_seconds(form)),
            {str(form): timing.step_seconds for form, timing in self.found.items()},
            {str(form): timing.compile_seconds for form, timing in self.found.items() if form.compile},
            "; ".join([*self.remarks, *failures]),
        )


def measure_images_per_second(recipe: Recipe, num_classes: int, threads: int) -> float:
    """Measures the training images per second of the Recipe's step on this machine, without loading, after a warm-up
    step.

    Uses the GPU if there is one, else ``threads`` cores, and the plainest form if the Recipe leaves it open. Raises
    MemoryError if the step does not fit into memory.
    """
    plainest = {
        name: value
        for name, value, is_auto in (
            ("memory_format", "contiguous", recipe.memory_format == AUTO),
            ("compile", False, recipe.compile == AUTO),
            ("grouped_convolutions", "whole", recipe.grouped_convolutions == AUTO),
        )
        if is_auto
    }
    batch = {"batch_size": min(recipe.batch_size, LARGEST_BATCH), "micro_batches": 1}
    resolved = resolve(recipe).with_values(plainest | batch)
    context = PlainContext(threads=threads)
    return resolved.batch_size / time_step(resolved, num_classes, context).step_seconds


class Timing:
    """The seconds of a step on the whole batch, and the seconds by which the first step took longer."""

    def __init__(self, first_seconds: float, step_seconds: float, share: float) -> None:
        self.step_seconds = step_seconds / share
        self.compile_seconds = max(0.0, first_seconds - step_seconds)


def time_step(recipe: ResolvedRecipe, num_classes: int, context: PlainContext) -> Timing:
    """Times some of the Recipe's steps on this machine, without loading: the fastest one, and the first one.

    On a CPU a large batch is cut, and the time is scaled up. Raises MemoryError if a step does not fit into memory.
    """
    try:
        return _time_step(recipe, num_classes, context)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from None
        raise
    finally:
        gc.collect()  # a compiled network has reference cycles
        if context.device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the memory of the GPU or of this process is too small."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch has no exception class for a CPU's memory, for the workspaces of cuBLAS and cuDNN, or for the memory that
    # the driver allocates ("CUDA error: out of memory"). If no algorithm's workspace fits, torch says that cuDNN has no
    # engine (github.com/pytorch/pytorch/issues/108645).
    texts = (
        "allocate memory",
        "out of memory",
        "STATUS_ALLOC_FAILED",
        "ALLOCATION_FAILED",  # cuDNN 9
        "unable to find an engine to execute this computation",
    )
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def _time_step(recipe: ResolvedRecipe, num_classes: int, context: PlainContext) -> Timing:
    images = recipe.batch_size
    recipe = with_timed_batch(recipe, num_classes, context)
    reset_process(recipe.seed, context.threads)
    model = model_of(recipe.model, num_classes)
    freeze(model, recipe.model)
    set_training_mode(model)
    place(model, recipe, context.device)
    own = TrainStep(model, recipe, context, steps_per_epoch=1000)
    step = CapturedStep(
        own, EpochSums(context), recipe, context, recorder_for(context.device, context.gpu_share)
    )
    batch = _noise(recipe, num_classes, context.device)
    seconds: list[float] = []
    while len(seconds) <= FEWEST_STEPS or (
        len(seconds) <= MOST_STEPS and sum(seconds[1:]) < SECONDS_OF_STEPS
    ):
        start = time.perf_counter()
        if not step.is_ready_for(batch):
            step.prepare(batch)
        step(batch).loss_sum.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return Timing(seconds[0], min(seconds[1:]), recipe.batch_size / images)


def with_timed_batch(recipe: ResolvedRecipe, num_classes: int, context: PlainContext) -> ResolvedRecipe:
    """The Recipe to time. On a CPU a batch that would take more than seconds is cut, and has a single micro-batch."""
    if context.device.type != "cpu":
        return recipe
    overrides = recipe.model.overrides.chosen()
    one_image = count_multiply_adds(recipe.model.name, recipe.data.image_size, num_classes, overrides)
    most = max(1, int(LARGEST_FORWARD_MULTIPLY_ADDS // one_image))
    return (
        recipe if recipe.batch_size <= most else recipe.with_values({"batch_size": most, "micro_batches": 1})
    )


def _noise(recipe: ResolvedRecipe, num_classes: int, device: torch.device) -> TrainBatch:
    size, count = recipe.data.image_size, recipe.batch_size
    numbers = np.arange(count)
    return TrainBatch(
        images=torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, device=device),
        labels=torch.randint(0, num_classes, (count,), device=device),
        indices=numbers,
        positions=numbers,
        keys=torch.arange(count, device=device),
    )
