"""Weights are found in whatever was saved around them, and it is said what was loaded; else a one-line error.

Takes about five seconds.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.weights.pretrained import load_pretrained

torch.manual_seed(3)
WEIGHTS: dict[str, Tensor] = dict(create_model("nfnet_pico", num_classes=5).state_dict())
AVERAGE = {name: tensor + 0.5 for name, tensor in WEIGHTS.items()}


def prefixed(prefix: str, state: dict[str, Tensor] = WEIGHTS) -> dict[str, Tensor]:
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def loaded(tmp_path: Path, content: Any) -> tuple[float, str]:
    """What was added to the weights, and where the file says that they come from."""
    torch.save(content, tmp_path / "weights.pt")
    model = create_model("nfnet_pico", num_classes=5)
    origin = load_pretrained(model, tmp_path / "weights.pt", "loaded").origin
    added = [float((tensor - WEIGHTS[name]).mean()) for name, tensor in model.state_dict().items()]
    assert max(added) == pytest.approx(min(added), abs=1e-3)
    return round(added[0], 2) + 0.0, origin


@pytest.mark.parametrize(
    ("content", "added", "origin"),
    [
        (WEIGHTS, 0, "state dict"),
        ({"state_dict": WEIGHTS, "epoch": 3}, 0, "state dict of a checkpoint"),
        ({"model": WEIGHTS, "optimizer": {}}, 0, "state dict (model) of a checkpoint"),
        ({"model_state_dict": WEIGHTS}, 0, "state dict (model_state_dict) of a checkpoint"),
        (
            {"state_dict": WEIGHTS, "state_dict_ema": AVERAGE, "args": argparse.Namespace(lr=1)},
            0.5,
            "moving average (state_dict_ema) of a checkpoint",
        ),
        ({"state_dict": WEIGHTS, "state_dict_ema": None}, 0, "state dict of a checkpoint"),
        ({"model": WEIGHTS, "model_ema": AVERAGE}, 0.5, "moving average (model_ema) of a checkpoint"),
        (prefixed("module."), 0, "state dict, without the prefix module."),
        (prefixed("_orig_mod."), 0, "state dict, without the prefix _orig_mod."),
        (prefixed("module._orig_mod."), 0, "state dict, without the prefix module._orig_mod."),
        (
            {"state_dict": prefixed("model."), "pytorch-lightning_version": "2"},
            0,
            "state dict of a checkpoint, without the prefix model.",
        ),
        (
            {"n_averaged": torch.tensor(3), **prefixed("module.", AVERAGE)},
            0.5,
            "state dict, without the prefix module.",
        ),
        ({name: tensor.half() for name, tensor in WEIGHTS.items()}, 0, "state dict"),
    ],
)
def test_weights_are_found_and_said_where(tmp_path: Path, content: Any, added: float, origin: str) -> None:
    assert loaded(tmp_path, content) == (added, origin)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {name: t.to_sparse() if t.ndim == 2 else t for name, t in WEIGHTS.items()},
            r"is sparse \(sparse_coo\)",
        ),
        ({name: t.to(torch.complex64) for name, t in WEIGHTS.items()}, "is complex"),
        ({name: t.to("meta") for name, t in WEIGHTS.items()}, "is without its numbers"),
        (list(WEIGHTS.values()), "holds a list; it takes a state dict"),
        ({}, "holds no tensors"),
        ({"body": WEIGHTS, "head": WEIGHTS}, "body is a dict; save the model's state dict alone"),
        (create_model("nfnet_pico", num_classes=5), "nothing in it is run: .* save model.state_dict"),
        ({"model": {"model": {"model": {"model": WEIGHTS}}}}, "model is a dict"),
    ],
    ids=["sparse", "complex", "meta", "list", "empty", "two", "whole_module", "too_deep"],
)
def test_anything_but_weights_is_one_line(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        loaded(tmp_path, content)
    assert "options" not in str(caught.value)
    assert "\x1b" not in caught.value.args[0]


def test_a_file_with_a_changed_byte_is_refused_unless_it_was_written_without_checksums(
    tmp_path: Path,
) -> None:
    changed = tmp_path / "changed.pt"
    for has_checksums in (True, False):
        torch.serialization.set_crc32_options(has_checksums)
        try:
            torch.save(WEIGHTS, changed)
        finally:
            torch.serialization.set_crc32_options(True)
        content = bytearray(changed.read_bytes())
        content[len(content) // 2] ^= 1  # within the numbers of the weights, which are nearly all of the file
        changed.write_bytes(content)
        model = create_model("nfnet_pico", num_classes=5)
        if has_checksums:
            with pytest.raises(UserError, match="is damaged or was cut short"):
                load_pretrained(model, changed)
        else:
            load_pretrained(model, changed)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_program_is_not_called_damaged(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(UserError, match="holds more than weights, and nothing in it is run"):
        load_pretrained(create_model("nfnet_pico", num_classes=5), tmp_path / "program.pt")


def test_a_file_that_was_cut_short_is_one_line(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:5000])
    with pytest.raises(UserError, match="is damaged or was cut short"):
        load_pretrained(create_model("nfnet_pico", num_classes=5), tmp_path / "cut.pt")
