"""The whole training step: ours and timm's NFNet-F0, and the networks that NFNets are compared with.

Eager forms are measured one after the other in one process, in order of value. Each compiled form has a process of its
own, which compiles next to the others and then waits until it has the device to itself (``--hold``).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.networks import (
    IMAGENET_CLASSES,
    captured_step,
    new_step,
    random_batch,
    recipe_of,
    usual_precision,
)
from benchmarks.gpu.rows import Recorder, Row
from benchmarks.gpu.timm_step import timm_step
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.models.catalogue import get_model
from nfnet_ray.models.grouped_convolution import SLICED_PASSES
from nfnet_ray.models.variants import get_variant
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.captured import CapturedStep, recorder_for
from nfnet_ray.training.captured import Recorder as GraphRecorder
from nfnet_ray.training.form import compilation
from nfnet_ray.training.form.probe import is_out_of_memory
from nfnet_ray.training.measurement.gpus import peak_flops_per_second
from nfnet_ray.training.measurement.meter import model_flops_per_image
from nfnet_ray.training.step import TrainStep

Compilation = Literal["eager", "compiled", "max-autotune"]
COMPILE: dict[Compilation, bool | str] = {
    "eager": False,
    "compiled": True,
    "max-autotune": "max-autotune-no-cudagraphs",
}
LAYOUTS = {"contiguous": "NCHW", "channels_last": "NHWC"}
STEPS = 20
SECONDS_FOR_A_FORM = 3.0
SECONDS_BETWEEN_TRIES = 5.0
"""Until another process that compiles has given its memory back."""
IMAGES_PER_SECOND = "images per second"
CAPTURED = ("nfnet_f0", "nfnet_pico")
"""Networks whose steps are timed as one CUDA graph, too, which is how they are trained."""


@dataclass(frozen=True)
class Form:
    """A way to train a network. Its name in the csv, :attr:`case`, says all of it."""

    network: str
    batch_size: int
    memory_format: str
    compilation: Compilation = "eager"
    timms: str | None = None
    """timm's name of the network, where its step is timm's too."""
    grouped_convolutions: str = "whole"
    """In slices or not, as the Recipe's field has it."""

    def recipe(self, machine: Machine) -> ResolvedRecipe:
        """The published Recipe, in this form."""
        return recipe_of(
            self.network,
            machine,
            batch_size=self.batch_size,
            precision=usual_precision(machine),
            memory_format=self.memory_format,
            compile=COMPILE[self.compilation],
            grouped_convolutions=self.grouped_convolutions,
        )

    @property
    def case(self) -> str:
        """Begins with the network and whose it is, which :func:`ratios` reads."""
        whose, layout = "timm" if self.timms else "ours", LAYOUTS[self.memory_format]
        size = get_model(self.network).train_size
        sliced = (
            "" if self.grouped_convolutions == "whole" else f", {self.grouped_convolutions.replace('_', ' ')}"
        )
        return f"{self.network}, {whose}, {size} px, batch {self.batch_size}, {layout}{sliced}, {self.compilation}"


def eager_forms(*, is_small: bool) -> list[Form]:
    """In order of value. Batches are those that an H100's memory holds, or 256.

    EfficientNet-B7 keeps 1.9 GB for each image's backward pass in bfloat16 (NFNet-F1 0.1 GB), so 64 would need 123 GB.
    """
    if is_small:
        networks = [("nfnet_pico", 4, None), ("nfnet_pico", 4, "test_nfnet"), ("test_efficientnet", 4, None)]
    else:
        networks = [
            ("nfnet_f0", 256, None),
            ("nfnet_f0", 256, "dm_nfnet_f0"),
            ("nfnet_f1", 256, None),
            ("tf_efficientnet_b7", 32, None),
            ("resnet50", 256, None),
            ("tf_efficientnetv2_s", 256, None),
            ("tf_efficientnet_b0", 256, None),
            ("tf_efficientnet_b3", 128, None),
        ]
    forms = [
        Form(name, batch_size, memory_format, timms=timms)
        for name, batch_size, timms in networks
        for memory_format in LAYOUTS
    ]
    # After ours in both layouts.
    name, batch_size, _ = networks[0]
    sliced = [
        Form(name, batch_size, "channels_last", grouped_convolutions=slicing)
        for slicing in SLICED_PASSES
        if slicing != "whole"
    ]
    return [*forms[:2], *sliced, *forms[2:]]


def compiled_forms(*, is_small: bool) -> list[Form]:
    """Those of NFNet-F0, which are compiled at the same time. timm's best layout is not known, so both are there."""
    if is_small:
        return [Form("nfnet_pico", 4, "channels_last", "compiled")]
    return [
        Form("nfnet_f0", 256, "channels_last", "compiled"),
        Form("nfnet_f0", 256, "contiguous", "compiled"),
        Form("nfnet_f0", 256, "channels_last", "compiled", grouped_convolutions="sliced_gradients"),
        Form("nfnet_f0", 256, "contiguous", "compiled", timms="dm_nfnet_f0"),
        Form("nfnet_f0", 256, "channels_last", "compiled", timms="dm_nfnet_f0"),
        Form("nfnet_f0", 256, "channels_last", "max-autotune"),
        Form("nfnet_f0", 256, "channels_last", "max-autotune", timms="dm_nfnet_f0"),
    ]


def large_compiled_forms(*, is_small: bool) -> list[Form]:
    """The paper's comparison, for what time is left: NFNet-F1 with EfficientNet-B7."""
    if is_small:
        return [Form("test_efficientnet", 4, "contiguous", "compiled")]
    return [
        Form("nfnet_f1", 256, "channels_last", "compiled"),
        Form("tf_efficientnet_b7", 32, "channels_last", "compiled"),
        Form("nfnet_f1", 256, "contiguous", "compiled"),
    ]


def measure(recorder: Recorder, machine: Machine, options: argparse.Namespace) -> None:
    """All eager forms, or with ``--form`` the compiled one of this number."""
    small = machine.is_small
    if options.form is None:
        for form in eager_forms(is_small=small):
            with recorder.case(form.case):
                measure_form(recorder, machine, form)
        return
    form = [*compiled_forms(is_small=small), *large_compiled_forms(is_small=small)][options.form]
    choose_compiler(machine)
    with recorder.case(form.case):
        measure_form(recorder, machine, form, options.wait_until_released)


def choose_compiler(machine: Machine) -> None:
    """Leaves the compiler out where there is no GPU, but for its reading of the code: it takes minutes of a CPU."""
    if not machine.is_gpu:
        compilation.backend_of = lambda _recipe: "eager"  # pyrefly: ignore[bad-assignment]


def measure_form(
    recorder: Recorder, machine: Machine, form: Form, wait_until_released: Callable[[], None] | None = None
) -> None:
    """Rows of one form; with half the batch, and again, where that does not fit the device's memory.

    With ``wait_until_released`` the first step, which compiles, is timed, and the others are taken after it returns.
    """
    while True:
        try:
            _measure(recorder, machine, form, wait_until_released)
        except RuntimeError as error:
            if form.batch_size == 1 or not is_out_of_memory(error):
                raise
            form = replace(form, batch_size=form.batch_size // 2)
        else:
            return
        machine.forget_memory()


def _measure(
    recorder: Recorder, machine: Machine, form: Form, wait_until_released: Callable[[], None] | None
) -> None:
    recipe = form.recipe(machine)
    machine.forget_memory()
    step = step_of(form, recipe, machine)
    batch = random_batch(recipe, machine.device)
    if wait_until_released:
        # cuDNN chooses its algorithms by trial, and here while others use the device. They are kept for each value of
        # this switch, which changes nothing in bfloat16: with the training's own value it chooses again, alone.
        torch.backends.cudnn.allow_tf32 = True
        seconds = first_step_seconds(step, batch, machine)
        recorder.add(form.case, "first step, with others compiling", seconds, "s")
        machine.forget_memory()
        wait_until_released()
        torch.backends.cudnn.allow_tf32 = False
    _add_speed(recorder, machine, form.case, recipe, lambda: step(batch))
    if isinstance(step, TrainStep) and form.network in CAPTURED:
        add_captured(recorder, machine, f"{form.case}, captured", recipe, step, recorder_for(machine.device))


def add_captured(
    recorder: Recorder,
    machine: Machine,
    case: str,
    recipe: ResolvedRecipe,
    step: TrainStep,
    graphs: GraphRecorder | None,
) -> None:
    """Rows of the same step as one CUDA graph, or why there is none."""
    if graphs is None:
        recorder.add(case, "skipped", "needs a GPU")
        return
    batch = random_batch(recipe, machine.device)
    captured = captured_step(step, recipe, machine, graphs)
    captured.prepare(batch)
    if captured.refusal:
        recorder.add(case, "skipped", captured.refusal)
    else:
        _add_speed(recorder, machine, case, recipe, lambda: captured(batch), captured)


def _add_speed(
    recorder: Recorder,
    machine: Machine,
    case: str,
    recipe: ResolvedRecipe,
    step: Callable[[], object],
    captured: CapturedStep | None = None,
) -> None:
    timing = machine.time(step, repeats=STEPS, warm_ups=4, at_most_seconds=SECONDS_FOR_A_FORM)
    images_per_second = recipe.batch_size / timing.seconds
    recorder.add(case, IMAGES_PER_SECOND, images_per_second, "images/s", timing)
    teraflops, share = arithmetic(recipe, images_per_second, machine.description()["device"])
    recorder.add(case, "model arithmetic", teraflops, "TFLOP/s", timing, in_table=False)
    if share is not None:
        recorder.add(case, "MFU", share, "", timing)
    # torch does not count what a graph takes when it is replayed.
    peak_bytes = max(machine.peak_bytes(), captured.peak_bytes if captured else 0.0)
    recorder.add(case, "peak memory", peak_bytes / 1e9, "GB", timing, in_table=False)


def arithmetic(
    recipe: ResolvedRecipe, images_per_second: float, device_name: str
) -> tuple[float, float | None]:
    """TFLOP/s of the network's mathematics, and as a share of the device's peak in bf16; None where that is not known.

    >>> from nfnet_ray.models.published import published_recipe, resolve
    >>> teraflops, share = arithmetic(resolve(published_recipe("nfnet_f0")), 5930, "NVIDIA H200")
    >>> round(teraflops), round(share, 3)
    (248, 0.251)
    """
    flops = model_flops_per_image(recipe, IMAGENET_CLASSES, recipe.data.image_size)
    flops_per_second = flops * images_per_second
    peak = peak_flops_per_second(device_name, "bfloat16")
    return flops_per_second / 1e12, flops_per_second / peak if peak else None


def step_of(form: Form, recipe: ResolvedRecipe, machine: Machine) -> Callable[[TrainBatch], object]:
    """The step: ours or timm's."""
    if form.timms:
        return timm_step(form.timms, get_variant(form.network), recipe, machine, IMAGENET_CLASSES)
    return new_step(recipe, machine)[1]


def first_step_seconds(step: Callable[[TrainBatch], object], batch: TrainBatch, machine: Machine) -> float:
    """The time of a step that compiles, tried again while the others' steps need the device's memory."""
    start = time.perf_counter()
    while True:
        try:
            step(batch)
            machine.synchronise()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            return time.perf_counter() - start
        machine.forget_memory()
        time.sleep(SECONDS_BETWEEN_TRIES)


def ratios(rows: Iterable[Row]) -> list[tuple[str, float]]:
    """What the images per second of the rows come to: (case, ratio) of those that can be told.

    >>> rows = [
    ...     {"case": f"nfnet_f0, {whose}, …", "quantity": "images per second", "value": value}
    ...     for whose, value in (("ours", 100.0), ("ours", 300.0), ("timm", 150.0))
    ... ]
    >>> ratios(rows)
    [('nfnet_f0, ours : timm', 2.0)]
    """
    rows = list(rows)
    pairs: Sequence[tuple[str, str, str]] = (
        ("nfnet_f0, ours : timm", "nfnet_f0, ours, ", "nfnet_f0, timm, "),
        ("nfnet_f1 : tf_efficientnet_b7", "nfnet_f1, ours, ", "tf_efficientnet_b7, ours, "),
    )
    found = []
    for case, of, to in pairs:
        best = [
            max(
                (
                    row["value"]
                    for row in rows
                    if row["quantity"] == IMAGES_PER_SECOND and row["case"].startswith(start)
                ),
                default=0.0,
            )
            for start in (of, to)
        ]
        if all(best):
            found.append((case, best[0] / best[1]))
    return found
