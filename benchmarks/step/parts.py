"""What a training step consists of: ``python -m benchmarks.step.parts [--threads N] [CASE ...]``.

A case is MODEL:BATCH:PIXELS. Steps on random images, with flips and shifts, AGC, SGD and the moving average, in
float32, are taken one after the other. In the first run of them each part of a step is timed by itself; ``forward`` and
``backward`` are then divided by a second run under torch's profiler, whose events of the backward pass are those of the
layer in which the forward pass had the same sequence number. Shares are of the step, medians over the steps, so that
they are ratios within one run. With one thread the time is the process's own, so that neighbours on a shared machine
count less. Appends a row for each case to ``results/step_parts.csv``.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.clipping_counts import CLASSES, random_batch
from benchmarks.record import Row, append_rows, circumstances, parser_with_threads
from nfnet_ray.data.augmentation import augment as augment_module
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.models import create_model
from nfnet_ray.models.layers import ScaledWSConv2d, SqueezeExcite
from nfnet_ray.models.nfnet import NFBlock, NFNet
from nfnet_ray.models.standardisation import JointStandardisation
from nfnet_ray.optim.ema import ExponentialMovingAverage
from nfnet_ray.optim.optimizer import EagerSGD
from nfnet_ray.recipe import DataRecipe, MixingRecipe, RandAugmentRecipe, Recipe
from nfnet_ray.training import PlainContext, gradient, step
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.gradient import MEMORY_FORMATS
from nfnet_ray.training.measurement.clipping import ClippingCounts
from nfnet_ray.training.step import TrainStep

RESULTS = Path(__file__).parents[1] / "results" / "step_parts.csv"
STEPS, PROFILED_STEPS = 30, 5
PLAIN = DataRecipe(
    crop="padded", crop_padding=4, mixing=MixingRecipe(None, None), randaugment=RandAugmentRecipe(0)
)
TIMED: dict[str, tuple[Any, str]] = {
    "augmentation": (augment_module, "augment"),
    "normalisation": (gradient, "normalise"),
    "forward": (NFNet, "forward"),
    "backward": (torch.Tensor, "backward"),
    "agc": (step, "clip_gradients_adaptively"),
    "counts": (ClippingCounts, "add"),
    "sgd": (EagerSGD, "step"),
    "average": (ExponentialMovingAverage, "take"),
}
"""The parts of a step, and the functions that they are. AGC calls the counts, whose time is not AGC's here."""
LAYERS: dict[str, tuple[Any, str]] = {
    "convolutions": (ScaledWSConv2d, "forward"),
    "standardisation": (JointStandardisation, "_weights"),
    "squeeze_excite": (SqueezeExcite, "forward"),
}
KINDS = (*LAYERS, "activations", "others")
PREFIX = "part: "


class Stopwatch:
    """Seconds of the parts of one step."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """What happens in it belongs to this part, and not to the one around it."""
        start = self._clock()
        self._open.append(name)
        try:
            yield
        finally:
            taken = self._clock() - start
            self._open.pop()
            self.seconds[name] += taken
            if self._open:
                self.seconds[self._open[-1]] -= taken


def wrapped(owner: Any, name: str, around: Callable[[], Any]) -> Any:
    """A patch of a function that enters ``around()`` for as long as it runs."""
    function = getattr(owner, name)

    def inside(*arguments: Any, **options: Any) -> Any:
        with around():
            return function(*arguments, **options)

    return mock.patch.object(owner, name, inside)


def timed_steps(one_step: Callable[[], None], clock: Callable[[], float]) -> list[dict[str, float]]:
    """The seconds of each part in each step."""
    return [timed_step(one_step, Stopwatch(clock)) for _ in range(STEPS)]


def timed_step(one_step: Callable[[], None], watch: Stopwatch) -> dict[str, float]:
    """The seconds of each part of one step."""
    with ExitStack() as patches:
        for part, (owner, function) in TIMED.items():
            patches.enter_context(wrapped(owner, function, partial(watch.part, part)))
        with watch.part("others"):
            one_step()
    return dict(watch.seconds)


def profiled(network: nn.Module, one_step: Callable[[], None]) -> dict[str, dict[str, float]]:
    """{"forward", "backward": {kind of layer: microseconds}}."""
    with ExitStack() as patches:
        for kind, (owner, function) in LAYERS.items():
            patches.enter_context(wrapped(owner, function, partial(record_function, f"{PREFIX}{kind}")))
        for module in network.modules():
            if isinstance(module, NFBlock | NFNet):
                patches.enter_context(
                    wrapped(module, "activation", partial(record_function, f"{PREFIX}activations"))
                )
        patches.enter_context(wrapped(NFNet, "forward", partial(record_function, f"{PREFIX}others")))
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            for _ in range(PROFILED_STEPS):
                one_step()
    return divided(profiler.events() or [])


def divided(events: Iterable[Any]) -> dict[str, dict[str, float]]:
    """The times of the profiler's events by the layer that they belong to.

    What happens in the backward pass belongs to the layer whose forward pass had the same sequence number.
    """
    kinds: dict[int, str] = {}
    forward, backward = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
    in_backward = []
    for event in events:
        names = [one.name for one in ancestors(event)]
        kind = next((name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)), None)
        if kind is not None:
            forward[kind] += event.self_cpu_time_total
            if event.sequence_nr >= 0:
                kinds[event.sequence_nr] = kind
        elif any(name.startswith("autograd::engine") for name in names):
            in_backward.append(event)
    for event in in_backward:
        numbers = [one.sequence_nr for one in ancestors(event) if one.sequence_nr >= 0]
        backward[kinds.get(numbers[-1], "others") if numbers else "others"] += event.self_cpu_time_total
    return {"forward": forward, "backward": backward}


def ancestors(event: Any) -> Iterator[Any]:
    """The event, what it is part of, and so on."""
    while event is not None:
        yield event
        event = event.cpu_parent


def measure(name: str, batch_size: int, pixels: int, memory_format: str, threads: int) -> Row:
    """One case's row."""
    reset_process(0, threads)
    context = PlainContext(threads=threads)
    recipe = Recipe().with_values(
        {"model.name": name, "batch_size": batch_size, "memory_format": memory_format}
    )
    model = create_model(name, CLASSES).to(context.device).to(memory_format=MEMORY_FORMATS[memory_format])
    train_step = TrainStep(model.train(), recipe, context, steps_per_epoch=1000)
    batch = random_batch(batch_size, pixels, context.device)

    def one_step() -> None:
        augmented = augment_module.augment(
            batch, batch.positions, None, PLAIN, seed=0, epoch=train_step.number
        )
        images = augmented.images
        train_step(TrainBatch(images, batch.labels, batch.indices, batch.positions, batch.keys))

    for _ in range(3):
        one_step()
    clock = time.process_time if threads == 1 and context.device.type == "cpu" else time.perf_counter
    steps = timed_steps(one_step, clock)
    totals = [sum(taken.values()) for taken in steps]
    shares = {
        part: statistics.median(taken[part] / total for taken, total in zip(steps, totals, strict=True))
        for part in (*TIMED, "others")
    }
    layers = profiled(model, one_step)
    for way, kinds in layers.items():
        whole = shares.pop(way)
        shares |= {f"{kind}_{way}": whole * kinds[kind] / sum(kinds.values()) for kind in KINDS}
    return {
        "model": name,
        "batch_size": batch_size,
        "pixels": pixels,
        "memory_format": memory_format,
        "step_ms": round(1e3 * statistics.median(totals), 2),
        **{part: round(share, 4) for part, share in shares.items()},
        "n": STEPS,
    }


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = parser_with_threads(__doc__)
    parser.add_argument(
        "--memory-format",
        choices=MEMORY_FORMATS,
        default="contiguous",
        help="memory layout of activations (default: %(default)s)",
    )
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        default=["nfnet_pico:64:32", "nfnet_pico:64:8", "nfnet_f0:8:96"],
        help="MODEL:BATCH:PIXELS (default: %(default)s)",
    )
    options = parser.parse_args()
    context = PlainContext(threads=options.threads)
    for case in options.cases:
        name, batch_size, pixels = case.split(":")
        row = measure(name, int(batch_size), int(pixels), options.memory_format, options.threads)
        append_rows(RESULTS, [row | circumstances(context.device, options.threads)])


if __name__ == "__main__":
    main()
