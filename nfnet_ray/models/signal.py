"""Signal propagation: the size of a network's activations, block by block, compared with the size by design.

Source: Brock, De, Smith 2021 (arXiv 2101.08692), section 3, "signal propagation plots"; `signal_metrics` in
google-deepmind/deepmind-research `nfnets/base.py` at commit f5de0ed.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nfnet_ray.errors import UserError
from nfnet_ray.models.nfnet import NFBlock, NFNet
from nfnet_ray.models.variants import Variant, block_name

NOISE_IMAGES = 8
NOISE_SEED = 0


@dataclass(frozen=True)
class BlockSignal:
    """Statistics of the activation (N, C, H, W) at one depth. All numbers are means over channels, without a unit."""

    name: str  # stem, block_00 and so on, final_conv
    squared_mean: float  # the square of a channel's mean over images and pixels
    variance: float  # the variance of a channel over images and pixels, biased
    expected_variance: float  # the variance by design, see `expected_variances`
    branch_variance: float | None = (
        None  # the variance of a block's residual branch, before alpha and the skip gain
    )

    @property
    def mean_square(self) -> float:
        """The mean square of the whole activation: `squared_mean + variance`."""
        return self.squared_mean + self.variance


@torch.no_grad()
def measure_signal(model: nn.Module, images_NCHW: Tensor) -> list[BlockSignal]:
    """Measures the activations of `model` in evaluation on normalised images, from the stem to the final convolution.

    The square of the mean and the variance are computed for each channel, over images and pixels, and averaged over
    channels, as in the official code. This works in every floating-point type and under autocast. Sums are in float32,
    or in float64 if the activations are. The modes and gradients of the model and torch's generator do not change.
    NF-ResNets have no final convolution.

    Raises `UserError` for a model of another kind.
    """
    if not isinstance(model, NFNet):
        raise UserError(
            f"the signal of a {type(model).__name__} cannot be measured: its expectation is not known; choose an "
            "NFNet, NF-ResNet or NF-RegNet, or set signal_epochs to 0"
        )
    expected = iter(expected_variances(model))
    with _evaluation(model):
        x_NCHW = model.stem_features(images_NCHW)
        signals = [BlockSignal("stem", *_moments(x_NCHW), next(expected))]
        for index, block in enumerate(model.blocks):
            assert isinstance(block, NFBlock)
            r_NCHW, gate_NC = block.branch(block.activation(x_NCHW))
            _, branch_variance = _moments(r_NCHW * gate_NC[:, :, None, None])
            x_NCHW = block(x_NCHW)
            signals.append(BlockSignal(block_name(index), *_moments(x_NCHW), next(expected), branch_variance))
        if model.variant.family.has_final_conv:
            signals.append(BlockSignal("final_conv", *_moments(model.final_conv(x_NCHW)), next(expected)))
    return signals


def signal_metrics(signals: list[BlockSignal]) -> dict[str, float]:
    """{`signal/NN_name/quantity`: value} for `variance`, `mean_square` and `expected_variance`.

    NN counts from 0, nearest the image, with as many digits as the last needs and at least two.
    """
    digits = max(2, len(str(len(signals) - 1)))
    return {
        f"signal/{depth:0{digits}d}_{signal.name}/{quantity}": getattr(signal, quantity)
        for depth, signal in enumerate(signals)
        for quantity in ("variance", "mean_square", "expected_variance")
    }


def expected_variances(model: NFNet) -> list[float]:
    """The variances that the design predicts for the current skip gains, in the order of `measure_signal`.

    For images of unit variance, with `v` the variance of a block's input, which is 1 after the stem:

        q = beta^2 v                                          of the scaled activation
        v <- (q in a transition block, else v) + (alpha * skip_gain)^2 q

    With skip gains of 1, q is 1 everywhere: a transition block starts at 1 again, and every block adds `alpha^2`. This
    is how `beta` was computed. With the initial skip gains of 0 no block adds anything.

    The assumptions are those of the design (arXiv 2101.08692, section 4): standardised convolutions of scaled
    activations with gains of 1 keep the variance, and so does pooling; activations scale with their input (ReLU does,
    and GELU and SiLU do near unit variance); `2 * squeeze_excite` is 1; the branch is not correlated with the shortcut.
    A trained network may well differ.
    """
    v = 1.0
    expected = [v]
    for block in model.blocks:
        assert isinstance(block, NFBlock)
        q = block.plan.beta**2 * v
        v = (q if block.plan.is_transition else v) + (block.alpha * block.skip_gain.item()) ** 2 * q
        expected.append(v)
    return [*expected, v] if model.variant.family.has_final_conv else expected


def _moments(x_NCHW: Tensor) -> tuple[float, float]:
    """Means over the channels of the squared mean and of the variance."""
    x_NCHW = x_NCHW if x_NCHW.dtype == torch.float64 else x_NCHW.float()
    variance_C, mean_C = torch.var_mean(x_NCHW, dim=(0, 2, 3), correction=0)
    return mean_C.square().mean().item(), variance_C.mean().item()


def signal_of_new_network(variant: Variant, image_size: int) -> dict[str, list[BlockSignal]]:
    """The signal of a new network on noise: {condition: signal}, with its initial skip gains and with all of them 1.

    The noise is `NOISE_IMAGES` images of unit normal numbers, (3, image_size, image_size) each. Weights and images are
    drawn from a fixed seed; torch's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(NOISE_SEED)
        model = NFNet(variant, num_classes=1)
        images_NCHW = torch.randn(NOISE_IMAGES, 3, image_size, image_size)
    measured = {"initial skip gains, 0": measure_signal(model, images_NCHW)}
    for block in model.blocks:
        assert isinstance(block, NFBlock)
        nn.init.ones_(block.skip_gain)
    measured["skip gains of 1"] = measure_signal(model, images_NCHW)
    return measured


@contextmanager
def _evaluation(model: nn.Module) -> Generator[None]:
    """A context in which the model is in evaluation mode. The mode of each module is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
