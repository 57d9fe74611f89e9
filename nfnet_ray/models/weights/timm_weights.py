"""Converts weights to and from the names and shapes of timm's `dm_nfnet_*`, the ports of the published weights.

timm has other names, gains of shape (C, 1, 1, 1), and 1x1 convolutions in place of squeeze-excite's linear layers.
timm's `nfnet_f*`, without `dm_`, are other networks. timm itself is not needed here.

Source: huggingface/pytorch-image-models, `timm/models/nfnet.py` of release 1.0.31.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from nfnet_ray.errors import UserError
from nfnet_ray.models.nfnet import NFBlock, NFNet
from nfnet_ray.models.variants import NFNET
from nfnet_ray.models.weights.foreign_weights import Entry, as_array, copy_into, find_problems
from nfnet_ray.models.weights.pickled_arrays import readable
from nfnet_ray.wording import count

_BLOCK_LAYERS = {
    "conv_shortcut": "downsample.conv",
    "conv0": "conv1",
    "conv1": "conv2",
    "conv1b": "conv2b",
    "conv2": "conv3",
    "squeeze_excite.reduce": "attn_last.fc1",
    "squeeze_excite.expand": "attn_last.fc2",
}


def load_timm_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies the state dict of a `dm_nfnet_*` of timm to the NFNet of the same shape.

    Tensors may be of any floating-point type and on any device. Raises a `UserError` that names every tensor that is
    missing, unexpected, misshapen, not floating-point or not finite. The model is then unchanged.

    The logits differ slightly from those that timm computes with the same weights (docs/methods/published_weights.md).
    """
    model = _nfnet(model)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"a state dict is a mapping of tensors, but {readable(str(name))} is a {type(value).__name__}; "
                "give the part of the checkpoint that is the model's state dict"
            )
    entries = list(timm_entries(model))
    given = {name: as_array(tensor) for name, tensor in state.items()}
    problems = find_problems(entries, given)
    if problems:
        raise UserError(
            f"this state dict of timm does not fit this {model.variant.name} with "
            f"{count(model.classifier.out_features, 'class')}: {'; '.join(problems)}; "
            "check the model's name and its number of classes (of timm's, only dm_nfnet_* are these networks)"
        )
    copy_into(entries, given)


def to_timm_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights as a state dict for timm's `dm_nfnet_*` of the same shape.

    Types and devices are those of the model. timm has `dm_nfnet_f0` to `dm_nfnet_f6`.
    """
    return {
        entry.name: entry.parameter.detach().clone().reshape(entry.shape)
        for entry in timm_entries(_nfnet(model))
    }


def _nfnet(model: nn.Module) -> NFNet:
    if not isinstance(model, NFNet) or model.variant.family != NFNET:
        name = model.variant.name if isinstance(model, NFNet) else type(model).__name__
        raise UserError(f"timm's dm_nfnet_* are NFNets, not {name}; create an nfnet_f0 to nfnet_f6 for them")
    return model


def timm_entries(model: NFNet) -> Iterator[Entry]:
    """Each parameter of the network under its name in timm's `dm_nfnet_*`."""
    for index, conv in enumerate(model.stem):
        yield from _layer_entries(f"stem.conv{index + 1}", conv)
    blocks = iter(model.blocks)
    for stage, depth in enumerate(model.variant.depth):
        for index in range(depth):
            block = next(blocks)
            assert isinstance(block, NFBlock)
            name = f"stages.{stage}.{index}"
            yield _entry(f"{name}.skipinit_gain", block.skip_gain)
            for ours, theirs in _BLOCK_LAYERS.items():
                layer = dict(block.named_modules()).get(ours)  # most blocks have no layer in their shortcut
                if layer is not None:
                    yield from _layer_entries(f"{name}.{theirs}", layer)
    yield from _layer_entries("final_conv", model.final_conv)
    yield from _layer_entries("head.fc", model.classifier)


def _layer_entries(name: str, layer: nn.Module) -> Iterator[Entry]:
    for parameter_name, parameter in layer.named_parameters():
        yield _entry(f"{name}.{parameter_name}", parameter)


def _entry(name: str, parameter: Tensor) -> Entry:
    shape = tuple(parameter.shape)
    if name.endswith(".gain") or (".attn_last." in name and parameter.ndim == 2):
        shape += (1,) * (4 - parameter.ndim)
    return Entry(name, parameter, shape, tuple(range(len(shape))))
