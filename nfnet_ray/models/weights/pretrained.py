"""Transfer learning: a network starts from trained weights, with its own classifier; the body is trained or frozen.

The kind of a file is recognised by its content: the published pickles (`F0_haiku.npz`), state dicts of timm's
`dm_nfnet_*` and baselines (`.pth`, `.safetensors`), and nfnet_ray's own state dicts and checkpoints (`.pt`). No code in
a file is run.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from nfnet_ray.errors import UserError
from nfnet_ray.models import model_of, variants
from nfnet_ray.models.baselines import BASELINES
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.models.weights.deepmind import flattened, official_entries
from nfnet_ray.models.weights.foreign_weights import Entry, as_array, copy_into, find_problems
from nfnet_ray.models.weights.pickled_arrays import read_pickled_arrays, readable
from nfnet_ray.models.weights.state_dicts import State, find_state, load_without_running
from nfnet_ray.models.weights.timm_weights import timm_entries
from nfnet_ray.models.weights.weights_file import pinned, refuse_what_is_no_file
from nfnet_ray.recipe import ModelRecipe, Overrides, split_weights
from nfnet_ray.wording import count

logger = logging.getLogger(__name__)

SHOWN_PROBLEMS = 3  # with the weights of another network, every tensor is a problem

_ZIP = b"PK\x03\x04"  # torch.save since 1.6
# How torch.save began before that: its magic number, pickled (torch/serialization.py, MAGIC_NUMBER).
_OLD_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

Layout = Literal["official", "timm", "own"]
_SKIP_GAINS: Mapping[Layout, str] = {"official": "/skip_gain", "timm": ".skipinit_gain", "own": ".skip_gain"}


@dataclass(frozen=True)
class Loaded:
    """The weights that were loaded from a file.

    Attributes:
        path: the file.
        origin: the kind of the file, in words.
        tensors: the number of tensors that were loaded.
        classifier: whether the classifier was loaded too, or is a new one.
    """

    path: str
    origin: str
    tensors: int
    classifier: Literal["new", "loaded"]

    def sentence(self) -> str:
        """A description in one line."""
        kind = "a new one, drawn at random" if self.classifier == "new" else "that of the file"
        return f"{count(self.tensors, 'tensor')} from {self.path} ({self.origin}); classifier: {kind}"


def load_pretrained(
    model: nn.Module, path: str | os.PathLike[str], classifier: Literal["new", "loaded"] = "new"
) -> Loaded:
    """Copies the weights of a file into a network. The classifier is copied only if `classifier` is `loaded`.

    A new classifier keeps the initial values of `create_model`: weights from N(0, 0.01), bias 0 (official nfnet.py).
    The choice is not guessed from the number of classes, since ten classes are not always the same ten. From a
    checkpoint of nfnet_ray the moving average is loaded, if there is one, because the accuracy was measured with it.

    The network may be on any device, in any floating-point type.

    Raises `UserError`, in one line, for a file that cannot be read and for weights that do not fit. The message names
    the network to which the weights belong, if it is known. The network is not changed then.
    """
    file = _read(path)
    entries = _fitting(model, file, classifier)
    copy_into(entries, file.arrays)
    return Loaded(file.path, file.origin, len(entries), classifier)


def start_from(model: nn.Module, recipe: ModelRecipe) -> Loaded | None:
    """Prepares a new network as the Recipe says: loads weights, if any, and freezes what is not trained."""
    loaded = None
    if recipe.weights is not None:
        loaded = load_pretrained(model, split_weights(recipe.weights)[0], recipe.classifier)
        logger.info("%s", loaded.sentence())
    freeze(model, recipe)
    return loaded


def freeze(model: nn.Module, recipe: ModelRecipe) -> None:
    """If `model.trained` is classifier, turns off gradients for all parameters except the classifier's."""
    if recipe.trained == "classifier":
        model.requires_grad_(False)
        classifier_of(model).requires_grad_(True)


def set_training_mode(model: nn.Module) -> None:
    """Sets training mode, except that frozen parts of the network stay in evaluation mode.

    So a frozen body computes the same features as in evaluation: without stochastic depth, and with the loaded
    statistics of batch normalisation. Dropout in front of the classifier is active.
    """
    model.train()
    for child in model.children():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            child.eval()


def check_pretrained(recipe: ModelRecipe, num_classes: int) -> Loaded:
    """Checks what :func:`start_from` would load, on a network without memory. Raises its `UserError`."""
    if recipe.weights is None:
        raise ValueError("a ModelRecipe without weights loads none")
    file = _read(split_weights(pinned(recipe.weights))[0])
    with torch.device("meta"):
        model = model_of(recipe, num_classes)
    entries = _fitting(model, file, recipe.classifier)
    return Loaded(file.path, file.origin, len(entries), recipe.classifier)


def recognise_model(path: str | os.PathLike[str]) -> ModelRecipe | None:
    """The network to which a file's weights belong, recognised by names and shapes; None if it is unknown.

    Networks of the catalogue are recognised, with `overrides.skip_gain` False if the file has no skip gains, as in the
    studies of a small network. The classifier is ignored. Raises `UserError` for a file that cannot be read.
    """
    return _recognise(_read(path))


def classifier_of(model: nn.Module) -> nn.Module:
    """The last layer of a network: what its method `get_classifier` returns, or its module `classifier`.

    Raises UserError for a network that has neither.
    """
    find = getattr(model, "get_classifier", None)
    classifier = find() if callable(find) else getattr(model, "classifier", None)
    if not isinstance(classifier, nn.Module):
        raise UserError(
            f"the classifier of {type(model).__name__} is not known, which model.weights and model.trained need: call "
            "its last layer classifier, or return it from a method get_classifier()"
        )
    return classifier


@dataclass(frozen=True)
class _File:
    path: str
    origin: str
    layout: Layout
    arrays: Mapping[str, np.ndarray]


def _fitting(model: nn.Module, file: _File, classifier: Literal["new", "loaded"]) -> list[Entry]:
    """The entries of the file to copy into the network. Raises UserError if they do not fit."""
    entries, others = _entries(model, file.layout)
    given = file.arrays
    if classifier == "loaded":
        entries += others
    else:
        left_out = {entry.name for entry in others}
        given = {name: array for name, array in given.items() if name not in left_out}
    problems = find_problems(entries, given)
    if problems:
        name = model.variant.name if isinstance(model, NFNet) else type(model).__name__
        whose = _recognise(file)
        theirs = (
            f"they are those of {_described(whose, model)}" if whose else "they belong to no known network"
        )
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise UserError(
            f"model.weights: the weights of {file.path} ({file.origin}) do not fit this {name}: {theirs}. "
            f"{'; '.join(problems[:SHOWN_PROBLEMS])}{more}. Check model.name and model.overrides"
            + (", and the number of classes" if classifier == "loaded" else "")
        )
    return entries


def _entries(model: nn.Module, layout: Layout) -> tuple[list[Entry], list[Entry]]:
    """The entries of a file of this network in this layout: those of the body, and those of the classifier."""
    if layout == "own":
        entries = list(_own_entries(model))
    elif isinstance(model, NFNet):
        entries = list(official_entries(model) if layout == "official" else timm_entries(model))
    else:
        raise UserError(
            f"model.weights: these are weights of an NFNet, which a {type(model).__name__} cannot start from: "
            "check model.name"
        )
    last = {id(parameter) for parameter in classifier_of(model).parameters()}
    body = [entry for entry in entries if id(entry.parameter) not in last]
    return body, [entry for entry in entries if id(entry.parameter) in last]


def _own_entries(model: nn.Module) -> Iterator[Entry]:
    """The parameters and statistics under the names of the model's own state dict, without counters."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            yield Entry(name, tensor, tuple(tensor.shape), tuple(range(tensor.ndim)))


def _described(network: ModelRecipe, model: nn.Module) -> str:
    """The name of `network`, with its `skip_gain` setting if that differs from the one of `model`."""
    has_gains = network.overrides.skip_gain is not False
    if not isinstance(model, NFNet) or network.name in BASELINES or has_gains == model.variant.skip_gain:
        return network.name
    return f"{network.name} with model.overrides.skip_gain={str(has_gains).lower()}"


def _recognise(file: _File) -> ModelRecipe | None:
    for network in _candidates(file):
        with torch.device("meta"):
            model = model_of(network, num_classes=1)
        body, classifier = _entries(model, file.layout)
        left_out = {entry.name for entry in classifier}
        shapes = {entry.name: entry.shape for entry in body}
        if shapes == {name: array.shape for name, array in file.arrays.items() if name not in left_out}:
            return network
    return None


def _candidates(file: _File) -> list[ModelRecipe]:
    """The networks with as many blocks as the file has. There are few of them, so only few have to be built."""
    gains = sum(name.endswith(_SKIP_GAINS[file.layout]) for name in file.arrays)
    blocks = gains or len({name.split(".")[1] for name in file.arrays if name.startswith("blocks.")})
    overrides = Overrides() if gains else Overrides(skip_gain=False)
    ours = [name for name in variants.list_models() if sum(variants.get_variant(name).depth) == blocks]
    others = [] if gains or file.layout != "own" else list(BASELINES)
    return [*(ModelRecipe(name, overrides=overrides) for name in ours), *map(ModelRecipe, others)]


def _read(path: str | os.PathLike[str]) -> _File:
    where = readable(os.fspath(path))
    try:
        refuse_what_is_no_file(path, where)
        with open(path, "rb") as stream:
            start = stream.read(64)
            size = os.fstat(stream.fileno()).st_size
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"model.weights: cannot read {where}: {reason}; check the path") from error
    if start.startswith((_ZIP, _OLD_TORCH)):
        return _of_torch(path, where)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
        return _of_state(*find_state(_read_safetensors(path, where), where), where)
    return _File(where, "official weights", "official", flattened(read_pickled_arrays(path)))


def _of_torch(path: str | os.PathLike[str], where: str) -> _File:
    return _of_state(*find_state(load_without_running(path, where), where), where)


def _read_safetensors(path: str | os.PathLike[str], where: str) -> Mapping[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as missing:
        raise UserError(
            f"model.weights: {where} needs safetensors, which cannot be imported ({missing}); install it"
        ) from missing
    try:
        return load_file(path)
    except Exception as error:  # an error of safetensors, or one that the types of the tensors raise
        raise UserError(
            f"model.weights: {where} is damaged: {readable(str(error))}; download it again"
        ) from error


def _of_state(state: State, origin: str, where: str) -> _File:
    # Counters, such as batch normalisation's, are no weights.
    arrays = {name: as_array(tensor) for name, tensor in state.items() if tensor.is_floating_point()}
    is_timm = any(name.endswith(_SKIP_GAINS["timm"]) for name in arrays)
    return _File(where, f"timm's {origin}" if is_timm else origin, "timm" if is_timm else "own", arrays)
