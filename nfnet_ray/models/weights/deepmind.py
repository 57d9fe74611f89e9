"""Weights to and from the layout of the official implementation, and the files that were published in it.

There, weights are a mapping {haiku module: {parameter: array}} such as
`weights["NFNet/~/nf_block_3/~/conv1b"]["w"]`, in float32: convolutions (H, W, in / groups, out), linear
layers (in, out). Blocks are numbered through the whole network, the first without a number. The other
families have names of the same kind; only NFNet-F0 to F6 were published.

Source: google-deepmind/deepmind-research `nfnets/` at commit f5de0ed, names and shapes as haiku makes them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from nfnet_ray.errors import UserError
from nfnet_ray.models.layers import ScaledWSConv2d
from nfnet_ray.models.nfnet import NFBlock, NFNet
from nfnet_ray.models.variants import NF_RESNET, NFNET, Variant, get_variant, list_models
from nfnet_ray.models.weights.foreign_weights import Entry, copy_into, find_problems
from nfnet_ray.models.weights.pickled_arrays import read_pickled_arrays, readable
from nfnet_ray.wording import count

# Axes of the official array in the order of ours, by number of dimensions, and the other way round.
_TO_TORCH = {0: (), 1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_TO_OFFICIAL = {0: (), 1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}

# MD5 of the published files, as jam recorded them (ethanluoyc/jam, models/nfnet/checkpoints.py).
PUBLISHED_MD5: Mapping[str, str] = {
    "F0_haiku.npz": "0a41039da1cb43adf47f1b7d86ddfe0f",
    "F1_haiku.npz": "c9126bbfaf855f9ddb7ff3b902558781",
    "F2_haiku.npz": "7a018d8d1498020e2f5a8719a1e7f53f",
    "F3_haiku.npz": "d8e1e78d26db659c486150dbaccbe78a",
    "F4_haiku.npz": "f5974a7e3388aa81b91a9f1403e759a4",
    "F5_haiku.npz": "8639e925de951030651ac775b9f915c3",
    "F6_haiku.npz": "b16cca40ac1ecec2bd5e3273866da0c1",
}

OfficialArrays = Mapping[str, Mapping[str, np.ndarray]]


def load_deepmind_weights(model: nn.Module, arrays_or_path: OfficialArrays | str | os.PathLike[str]) -> None:
    """Copy official weights into an NFNet, NF-ResNet or NF-RegNet, whatever its device and floating-point type.

    They are a mapping {module: {parameter: array}}, or the path of a published file, which is a pickle of
    that; it is read by `read_pickled_arrays`, which runs no code in it.

    Raises `UserError` that names every array that is missing, unexpected, misshapen, not floating-point or
    not finite, and the network that they belong to if it is another; the model is then as it was.
    """
    model = _network(model)
    given = flattened(_arrays(arrays_or_path))
    entries = list(official_entries(model))
    problems = find_problems(entries, given)
    if problems:
        name, classes = model.variant.name, model.classifier.out_features
        others = _match(given) if any(entry.shape != _shape(given, entry.name) for entry in entries) else None
        source = ""
        if isinstance(arrays_or_path, str | os.PathLike):
            source = f" from {readable(os.fspath(arrays_or_path))}"
        whose = f"are those of {others[0]} with {count(others[1], 'class')} and " if others else ""
        raise UserError(
            f"these weights{source} {whose}do not fit this {name} with {count(classes, 'class')}: "
            f"{'; '.join(problems)}; check the model's name, its overrides and its number of classes"
        )
    copy_into(entries, given)


def load_published(path: str | os.PathLike[str]) -> NFNet:
    """A new network with the weights of a published file: the variant and the classes that the file has.

    It is in training mode, as every new network, with the variant's own dropout and stochastic depth. Raises
    `UserError` for what `load_deepmind_weights` and `recognise_variant` raise it for.
    """
    arrays = read_pickled_arrays(path)
    try:
        name = recognise_variant(arrays)
    except UserError as error:
        raise UserError(f"{readable(os.fspath(path))}: {error}") from None
    variant = get_variant(name)
    with torch.device("meta"):  # initial weights would cost seconds and random numbers, and be overwritten
        model = NFNet(variant, num_classes=arrays[_classifier(variant)]["b"].size)
    model.to_empty(device=torch.get_default_device())
    load_deepmind_weights(model, arrays)
    return model


def recognise_variant(arrays: OfficialArrays) -> str:
    """The name of the network to which official weights belong, such as "nfnet_f3", by names and shapes only.

    The number of classes does not matter. Raises `UserError` if they belong to no known network; it names the
    nearest one and every array that is not as it is there.
    """
    given = flattened(arrays)
    found = _match(given)
    if found:
        return found[0]
    candidates = _candidates(given)
    if not candidates:
        blocks = _count_blocks(given)
        raise UserError(f"these weights belong to no known network: none has {blocks} residual blocks")
    differences = {name: _differences(name, given) for name in candidates}
    nearest = min(differences, key=lambda name: len(differences[name]))
    raise UserError(
        f"these weights belong to no known network; the nearest is {nearest}, "
        f"but {'; '.join(differences[nearest])}"
    )


def published_file_name(path: str | os.PathLike[str]) -> str | None:
    """The name under which exactly this file was published, such as "F0_haiku.npz", by its MD5; or None.

    It tells an intact download from another one. It is no proof of origin: MD5 can be forged. Raises `UserError`
    for a file that cannot be read.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise UserError(
            f"cannot read {readable(os.fspath(path))}: {error.strerror}; check the path"
        ) from error
    return next((name for name, md5 in PUBLISHED_MD5.items() if md5 == digest), None)


def to_deepmind_arrays(model: nn.Module) -> dict[str, dict[str, np.ndarray]]:
    """The weights of `model` as the official mapping, in float32 as published; copies, not views."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for entry in official_entries(_network(model)):
        module, _, parameter = entry.name.rpartition("/")
        array = entry.parameter.detach().to("cpu", torch.float32).numpy()
        official = np.array(array.transpose(_TO_OFFICIAL[array.ndim]), order="C")
        arrays.setdefault(module, {})[parameter] = official
    return arrays


def _network(model: nn.Module) -> NFNet:
    if not isinstance(model, NFNet):
        raise UserError(
            f"official weights are those of normaliser-free networks, not of {type(model).__name__}; "
            "create an nfnet_*, nf_resnet* or nf_regnet_* for them"
        )
    return model


def official_entries(model: NFNet) -> Iterator[Entry]:
    """Each parameter of the network under its official name, `module/parameter`."""
    family = model.variant.family
    for index, conv in enumerate(model.stem):
        stem = f"stem_conv{index}" if family == NFNET else "initial_conv"
        yield from _layer_entries(f"{family.name}/~/{stem}", conv)
    for index, block in enumerate(model.blocks):
        assert isinstance(block, NFBlock)
        # haiku's spelling of the class names NFBlock and NFResBlock, with a number from the second on.
        name = f"{family.name}/~/{'nf_res_block' if family == NF_RESNET else 'nf_block'}"
        name = f"{name}_{index}" if index else name
        yield _entry(f"{name}/skip_gain", block.skip_gain)
        for child, layer in block.named_children():
            if isinstance(layer, ScaledWSConv2d):
                yield from _layer_entries(f"{name}/~/{child}", layer)
        if block.squeeze_excite is not None:
            yield from _layer_entries(f"{name}/~/squeeze_excite/~/linear", block.squeeze_excite.reduce)
            yield from _layer_entries(f"{name}/~/squeeze_excite/~/linear_1", block.squeeze_excite.expand)
    if family.has_final_conv:
        yield from _layer_entries(f"{family.name}/~/final_conv", model.final_conv)
    yield from _layer_entries(_classifier(model.variant), model.classifier)


def _classifier(variant: Variant) -> str:
    return f"{variant.family.name}/~/linear"


def _layer_entries(module: str, layer: nn.Module) -> Iterator[Entry]:
    names = {"weight": "w", "bias": "bias" if isinstance(layer, ScaledWSConv2d) else "b", "gain": "gain"}
    for name, parameter in layer.named_parameters():
        yield _entry(f"{module}/{names[name]}", parameter)


def _entry(name: str, parameter: Tensor) -> Entry:
    shape = tuple(parameter.shape[axis] for axis in _TO_OFFICIAL[parameter.ndim])
    return Entry(name, parameter, shape, _TO_TORCH[parameter.ndim])


def _arrays(arrays_or_path: OfficialArrays | str | os.PathLike[str]) -> OfficialArrays:
    if isinstance(arrays_or_path, str | os.PathLike):
        return read_pickled_arrays(arrays_or_path)
    return arrays_or_path


def flattened(arrays: OfficialArrays) -> dict[str, np.ndarray]:
    """{"module/parameter": array}."""
    flat = {}
    for module, parameters in arrays.items():
        if not isinstance(module, str) or not isinstance(parameters, Mapping):
            raise UserError(
                "official weights are a mapping {module: {parameter: array}}, "
                f"but {readable(str(module))} has a {type(parameters).__name__}"
            )
        for name, array in parameters.items():
            try:
                flat[f"{module}/{name}"] = np.asarray(array)
            except ValueError as error:
                raise UserError(f"{readable(f'{module}/{name}')} is not an array: {error}") from error
    return flat


def _shape(given: Mapping[str, np.ndarray], name: str) -> tuple[int, ...] | None:
    return given[name].shape if name in given else None


def _count_blocks(given: Mapping[str, np.ndarray]) -> int:
    return sum(name.endswith("/skip_gain") for name in given)


def _candidates(given: Mapping[str, np.ndarray]) -> list[str]:
    """Networks with as many blocks as these weights: few, so that only few shapes are worked out."""
    blocks = _count_blocks(given)
    return [name for name in list_models() if sum(get_variant(name).depth) == blocks]


@cache
def _official_shapes(name: str) -> Mapping[str, tuple[int, ...]]:
    """All shapes of a network with one class."""
    with torch.device("meta"):
        return {
            entry.name: entry.shape for entry in official_entries(NFNet(get_variant(name), num_classes=1))
        }


def _differences(name: str, given: Mapping[str, np.ndarray]) -> list[str]:
    """Where these weights are not those of a network, whatever its number of classes."""
    shapes = dict(_official_shapes(name))
    weight, bias = (f"{_classifier(get_variant(name))}/{parameter}" for parameter in ("w", "b"))
    classes = _shape(given, bias)
    if classes is not None and len(classes) == 1:
        shapes[bias] = classes
        shapes[weight] = (*shapes[weight][:1], *classes)
    differences = [f"{label} is missing" for label in shapes if label not in given]
    for label, array in given.items():
        if label not in shapes:
            differences.append(f"{readable(label)} is not part of it")
        elif array.shape != shapes[label]:
            differences.append(f"{label} is {array.shape}, not {shapes[label]}")
    return differences


def _match(given: Mapping[str, np.ndarray]) -> tuple[str, int] | None:
    """Name and number of classes of the network that has exactly these shapes."""
    for name in _candidates(given):
        if not _differences(name, given):
            return name, given[f"{_classifier(get_variant(name))}/b"].size
    return None
