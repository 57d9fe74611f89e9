"""Finds the weights in a file of torch.save, among the averages, wrappers and prefixes that training programs add.

These forms are known:

* ``state_dict_ema`` next to ``state_dict``: timm's training script; ``model_ema``: DeiT, ConvNeXt and others. Their
  accuracy was measured with the average, which timm itself loads;
* ``state_dict``, ``model``, ``model_state_dict``: timm, Lightning, torchvision's references, PyTorch's tutorial;
* names that begin with ``module.`` (DataParallel, DistributedDataParallel, AveragedModel), ``_orig_mod.``
  (torch.compile) or ``model.`` (Lightning), one inside another.
"""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nfnet_ray.errors import UserError
from nfnet_ray.models.weights.pickled_arrays import readable

_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema")
_WEIGHTS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_COUNTERS = ("n_averaged",)  # the counter of AveragedModel, which has no prefix

_PIECE_BYTES = 1 << 20
_DEEPEST = 3  # the most wrappers inside each other; a malicious file might have no end of them

State = Mapping[str, Tensor]


def load_without_running(path: str | os.PathLike[str], where: str) -> Any:
    """Loads a file of torch.save onto the CPU without running any code in it.

    Raises:
        UserError: the file is damaged, or has objects that could only be read by running code.
    """
    if _has_changed(path):
        raise _damaged(where)
    try:
        # timm's checkpoints contain the arguments of the training, an object that only holds values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about old file formats, which the user cannot change
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise _damaged(where) from error
        raise _more_than_weights(where) from error
    except Exception as error:  # torch raises many kinds of errors for a damaged file
        if "TorchScript" in str(error):  # a file of torch.jit.save, which is a program
            raise _more_than_weights(where) from error
        if _is_other_archive(path):
            raise UserError(
                f"model.weights: {where} is an archive that torch.save did not write (NumPy's, perhaps); it takes "
                "published pickles, safetensors and what torch.save writes"
            ) from error
        raise _damaged(where) from error


def _has_changed(path: str | os.PathLike[str]) -> bool:
    """Whether a part of the archive differs from its checksum, which torch.load does not compare.

    A part without a checksum is accepted: ``torch.serialization.set_crc32_options(False)`` writes 0. torch.save does
    not compress, so a compressed part was not written by it, and might be far larger than its file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [
                part for part in archive.infolist() if part.CRC and part.compress_type == zipfile.ZIP_STORED
            ]
            return not all(_is_intact(archive, part) for part in parts)
    except Exception:  # not an archive, or an unusual one: torch.load reports it better
        return False


def _is_intact(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(part) as content:
            while content.read(_PIECE_BYTES):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _is_other_archive(path: str | os.PathLike[str]) -> bool:
    """Whether the file is an intact zip archive without the entries that torch.save always writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def find_state(content: Any, where: str, depth: int = 0) -> tuple[State, str]:
    """Finds the state dict in a file's content. Returns it with a description of where it was.

    If there are several it is the average. Raises UserError if there is none, or if it does not hold plain tensors.
    """
    if not isinstance(content, Mapping):
        raise UserError(
            f"model.weights: {where} holds a {type(content).__name__}; it takes a state dict or a checkpoint"
        )
    if "step" in content and isinstance(content.get("model"), Mapping):  # a checkpoint of nfnet_ray.training
        average = content["step"].get("average") if isinstance(content["step"], Mapping) else None
        if average:
            return _checked(average, where), "moving average of a checkpoint"
        return _checked(content["model"], where), "checkpoint"
    inside = [
        key for key in (*_AVERAGES, *_WEIGHTS) if isinstance(content.get(key), Mapping) and content[key]
    ]
    if not inside or depth == _DEEPEST:
        return _without_prefixes(_checked(content, where))
    name = inside[0]
    inner, origin = find_state(content[name], where, depth + 1)
    kind = "moving average" if name in _AVERAGES else "state dict"
    if name != "state_dict":
        kind += f" ({name})"
    return inner, f"{kind} of a checkpoint{origin.removeprefix('state dict')}"


def _checked(state: Mapping[Any, Any], where: str) -> State:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"model.weights: {where} is not a state dict: {readable(str(name))} is a {type(value).__name__}; "
                "save the model's state dict alone"
            )
        kind = _unusual(value)
        if kind:
            raise UserError(
                f"model.weights: {where}: {readable(str(name))} is {kind}; save plain tensors of floating-point numbers"
            )
    if not state:
        raise UserError(f"model.weights: {where} holds no tensors; save the model's state dict")
    return {str(name): value for name, value in state.items()}


def _unusual(tensor: Tensor) -> str | None:
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return f"sparse ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_complex():
        return "complex"
    return "without its numbers (on the device 'meta')" if tensor.is_meta else None


def _without_prefixes(state: State) -> tuple[State, str]:
    """The state dict without the prefixes that wrappers add to every name, and a description of the wrappers."""
    removed = ""
    while True:
        names = [name for name in state if name not in _COUNTERS]
        prefix = next((p for p in _PREFIXES if names and all(name.startswith(p) for name in names)), None)
        if prefix is None:
            return state, f"state dict, without the prefix {removed}" if removed else "state dict"
        removed += prefix
        state = {name.removeprefix(prefix): state[name] for name in names}


def _more_than_weights(where: str) -> UserError:
    return UserError(
        f"model.weights: {where} holds more than weights, and nothing in it is run: load it where it was made, and "
        "save model.state_dict() alone"
    )


def _damaged(where: str) -> UserError:
    return UserError(f"model.weights: {where} is damaged or was cut short; copy or download it again")
