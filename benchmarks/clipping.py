"""AGC over stacks, compared with AGC tensor by tensor: ``python -m benchmarks.clipping [--threads N]``.

The gradients of a network's first step, on two random images, are clipped over and over in three ways that take turns,
and the medians are compared; all give the same gradients. The third way is the first one with a clip factor that is a
tensor: then the host looks at no norm, and every gradient is written, as on a GPU. On a CPU the time is the process's
own, so that neighbours on a shared machine count less. Appends a row for each network to ``results/clipping.csv``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.record import Row, append_rows, circumstances, parser_with_threads, processor_seconds
from nfnet_ray.models import create_model
from nfnet_ray.optim import Units, clip_gradients_adaptively, unitwise_norm

RESULTS = Path(__file__).with_name("results") / "clipping.csv"
REPEATS = 15
CLIP_FACTOR, EPS = 0.01, 1e-3
PIXELS = 64


@torch.no_grad()
def clip_tensor_by_tensor(parameters: Sequence[nn.Parameter]) -> None:
    """The usual way: a handful of kernels for each tensor."""
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        largest = unitwise_norm(parameter).clamp(min=EPS) * CLIP_FACTOR
        norm = unitwise_norm(gradient)
        gradient.copy_(torch.where(norm > largest, gradient * (largest / norm.clamp(min=1e-6)), gradient))


def measure(name: str, device: torch.device) -> Row:
    """One network's medians in milliseconds, and their ratio."""
    torch.manual_seed(0)
    model = create_model(name).to(device)
    parameters = list(model.parameters())
    images, labels = torch.randn(2, 3, PIXELS, PIXELS, device=device), torch.tensor([0, 1], device=device)
    gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), parameters)

    def reset() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()

    def clipped(work: Callable[[], object]) -> list[Tensor]:
        reset()
        work()
        return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]

    units, clip_factor = Units(parameters), torch.tensor(CLIP_FACTOR, device=device)
    reset()
    clipped_share = clip_gradients_adaptively(units, CLIP_FACTOR, EPS).item()
    ways: dict[str, Callable[[], object]] = {
        "stacked": lambda: clip_gradients_adaptively(units, CLIP_FACTOR, EPS),
        "all_written": lambda: clip_gradients_adaptively(units, clip_factor, EPS),
        "tensor_by_tensor": lambda: clip_tensor_by_tensor(parameters),
    }
    for stacked, all_written, by_tensor in zip(*(clipped(work) for work in ways.values()), strict=True):
        assert torch.equal(stacked, all_written)
        torch.testing.assert_close(stacked, by_tensor)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(REPEATS):
        for way, work in ways.items():
            reset()
            times[way].append(processor_seconds(work, device))
    medians = {way: 1e3 * statistics.median(samples) for way, samples in times.items()}
    return {
        "model": name,
        "tensors": len(parameters),
        "stacked_ms": round(medians["stacked"], 2),
        "all_written_ms": round(medians["all_written"], 2),
        "tensor_by_tensor_ms": round(medians["tensor_by_tensor"], 2),
        "speed_up": round(medians["tensor_by_tensor"] / medians["stacked"], 2),
        "clipped_share": round(clipped_share, 4),
        "n": REPEATS,
    }


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = parser_with_threads(__doc__)
    parser.add_argument(
        "models",
        nargs="*",
        default=["nfnet_pico", "nfnet_nano", "nfnet_f0"],
        metavar="MODEL",
        help="networks (default: %(default)s)",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = circumstances(device, options.threads)
    rows = [measure(name, device) | about for name in options.models]
    append_rows(RESULTS, rows)


if __name__ == "__main__":
    main()
