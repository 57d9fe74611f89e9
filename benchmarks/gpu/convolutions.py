"""Every convolution of NFNet-F0 in three forms and three passes, and the sum over the network in the best of them.

The forms: NCHW, NHWC, and for grouped ones each group as a dense convolution of its own on a slice of the channels
(NHWC). The roof of a pass is its arithmetic at the measured rate of a matrix product, or its traffic at that of a copy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu import roof
from benchmarks.gpu.convolution_shapes import Convolution, Pass, convolutions_of
from benchmarks.gpu.machine import Machine, Timing
from benchmarks.gpu.rows import Recorder
from nfnet_ray.models.variants import get_variant

IMAGES, SMALL_IMAGES = 256, 2
SMALL_SHAPE = {"width": [16, 16, 32, 32], "depth": [1, 1, 1, 1], "group_width": [8, 8, 16, 16]}
REPEATS = 10
SECONDS_FOR_SUMS = 3.0
"""The sums are written when no more is left of the part's time."""
FORMS: Mapping[str, torch.memory_format] = {
    "NCHW": torch.contiguous_format,
    "NHWC": torch.channels_last,
    "sliced": torch.channels_last,
}


@dataclass
class Tensors:
    """Of one convolution in one form: what it reads, in all passes."""

    convolution: Convolution
    form: str
    x: Tensor
    weight: Tensor
    grad: Tensor

    @property
    def padding(self) -> list[int]:
        """On both sides; uneven padding is part of ``x``, as it is in the network."""
        before, after = self.convolution.padding
        return [before, before] if before == after else [0, 0]

    def work(self, which: Pass) -> Tensor:
        """One pass: its result."""
        if self.form != "sliced":
            return self._dense(which, self.x, self.weight, self.grad, self.convolution.groups)
        count = self.convolution.groups
        parts = zip(self.x.chunk(count, 1), self.weight.chunk(count), self.grad.chunk(count, 1), strict=True)
        results = [self._dense(which, x, weight, grad, 1) for x, weight, grad in parts]
        return torch.cat(results, dim=0 if which == "weight gradient" else 1)

    def _dense(self, which: Pass, x: Tensor, weight: Tensor, grad: Tensor, groups: int) -> Tensor:
        stride = [self.convolution.stride] * 2
        if which == "forward":
            return F.conv2d(x, weight, None, stride, self.padding, groups=groups)
        mask = [which == "input gradient", which == "weight gradient", False]
        both = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, self.padding, [1, 1], False, [0, 0], groups, mask
        )
        result: Tensor = both[0] if which == "input gradient" else both[1]
        return result


def tensors_of(convolution: Convolution, form: str, images: int, device: torch.device) -> Tensors:
    """Random tensors, the same for all forms: in bf16, and on a CPU in float32."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        values = torch.randn(shape, device=device, generator=generator)
        return values.to(dtype, memory_format=FORMS[form])

    before, after = convolution.padding
    padded = convolution.input_size + (0 if before == after else before + after)
    c, kernel = convolution, convolution.kernel_size
    return Tensors(
        convolution,
        form,
        random(images, c.in_channels, padded, padded),
        random(c.out_channels, c.in_channels // c.groups, kernel, kernel),
        random(images, c.out_channels, c.output_size, c.output_size),
    )


def measure(recorder: Recorder, machine: Machine, options: argparse.Namespace) -> None:
    """A row for each convolution, form and pass, and rows with the sums."""
    name, size, images = ("nfnet_pico", 32, SMALL_IMAGES) if machine.is_small else ("nfnet_f0", 192, IMAGES)
    torch.backends.cudnn.benchmark = True
    flops_per_second = roof.flops(machine) / roof.matrix_product(machine).seconds
    bytes_per_second = roof.moved(machine) / roof.copy(machine).seconds
    counts = convolutions_of(get_variant(name, SMALL_SHAPE if machine.is_small else None), size)
    roofs = {c: c.roof_seconds(images, flops_per_second, bytes_per_second) for c in counts}
    measured: dict[tuple[Convolution, Pass, str], float] = {}
    # Those that the network spends most of its time on first.
    for convolution in sorted(counts, key=lambda c: -roofs[c] * counts[c]):
        for form in FORMS if convolution.groups > 1 else ("NCHW", "NHWC"):
            if options.seconds_left() < SECONDS_FOR_SUMS:
                break
            with recorder.case(f"{convolution}, {form}"):
                tensors = tensors_of(convolution, form, images, machine.device)
                for which in convolution.passes:
                    timing = _timed(tensors, which, machine)
                    measured[convolution, which, form] = timing.seconds
                    case = f"{convolution}, {which}, {form}"
                    recorder.add(case, "time", timing.seconds * 1e3, "ms", timing, in_table=False)
                    share = roofs[convolution] / timing.seconds
                    recorder.add(case, "share of the roof", share, "", timing, in_table=False)
    add_sums(recorder, f"{name}, {size} px, batch {images}", counts, roofs, measured)


def _timed(tensors: Tensors, which: Pass, machine: Machine) -> Timing:
    work: Callable[[], object] = lambda: tensors.work(which)  # noqa: E731
    return machine.time(work, repeats=REPEATS, at_most_seconds=0.5)


def add_sums(
    recorder: Recorder,
    network: str,
    counts: Mapping[Convolution, int],
    roofs: Mapping[Convolution, float],
    measured: Mapping[tuple[Convolution, Pass, str], float],
) -> None:
    """The seconds of all convolutions of a step in each form, in the best form of each pass, and at the roof.

    Only of those that were measured: ``measured`` says of how many of the network's passes. What is not grouped has no
    slices, and counts in its NHWC form there.
    """
    wanted = [(c, which) for c in counts for which in c.passes]
    done = [(c, which) for c, which in wanted if {(c, which, "NCHW"), (c, which, "NHWC")} <= measured.keys()]
    best = sum(counts[c] * min(measured[c, w, f] for f in FORMS if (c, w, f) in measured) for c, w in done)
    at_the_roof = sum(counts[c] * roofs[c] for c, _ in done)
    recorder.add(network, "passes measured", len(done), f"of {len(wanted)}")
    if not done:
        return
    for form in FORMS:
        seconds = sum(counts[c] * measured.get((c, w, form), measured[c, w, "NHWC"]) for c, w in done)
        recorder.add(network, f"all convolutions, {form}", seconds * 1e3, "ms")
    recorder.add(network, "all convolutions, best form of each", best * 1e3, "ms")
    recorder.add(network, "all convolutions, at the roof", at_the_roof * 1e3, "ms")
    recorder.add(network, "all convolutions, share of the roof", at_the_roof / best)
