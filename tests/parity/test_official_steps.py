"""Whole training steps and SAM's gradients are those of the official code on a small network.

The reference numbers are `official_steps.npz` of `tests/fixtures/README.md`; images are drawn by its recipe. Takes
about 15 s on one core.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.models import create_model
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.models.weights.deepmind import load_deepmind_weights, to_deepmind_arrays
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.context import PlainContext
from nfnet_ray.training.gradient import DTYPES, MEMORY_FORMATS, Gradient
from nfnet_ray.training.step import TrainStep
from tests.parity.official import FIXTURES, draw, reference

OFFICIAL = reference("official_steps")
META: dict[str, Any] = json.loads(str(OFFICIAL["meta"]))
CONFIG: dict[str, Any] = META["config"]  # of the official experiment
PRECISIONS = {"float32": "", "float64": "_f64"}  # and the suffix of its numbers
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}

# An official parameter's axes in torch's order, by number of dimensions.
TO_OFFICIAL = {0: (), 1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def tiny() -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """`meta.variant_entry` and the weights of nfnet_tiny.npz."""
    weights: dict[str, dict[str, np.ndarray]] = {}
    with np.load(FIXTURES / META["network"]) as npz:
        for key in npz.files:
            if key.startswith("params/"):
                module, parameter = key.removeprefix("params/").rsplit("/", 1)
                weights.setdefault(module, {})[parameter] = npz[key]
        return json.loads(str(npz["meta"]))["variant_entry"], weights


def network(recipe: Recipe) -> NFNet:
    entry, weights = tiny()
    model = create_model(
        "nfnet_f0",
        CONFIG["num_classes"],
        dropout=CONFIG["model_kwargs"]["drop_rate"],
        stochastic_depth=CONFIG["model_kwargs"]["stochdepth_rate"],
        overrides={name: entry[name] for name in ("width", "depth", "group_width")},
    )
    assert isinstance(model, NFNet)
    load_deepmind_weights(model, weights)
    model.to(DTYPES[recipe.precision]).to(memory_format=MEMORY_FORMATS[recipe.memory_format])
    return model.train()


@cache
def official_names() -> dict[str, str]:
    """{official name: our name} of every parameter: each is filled with its own number, and found again by it."""
    model = network(Recipe())
    numbered = dict(enumerate(name for name, _ in model.named_parameters()))
    for number, parameter in enumerate(model.parameters()):
        parameter.data.fill_(number)
    arrays = to_deepmind_arrays(model)
    return {
        f"{module}/{name}": numbered[int(array.flat[0])]
        for module, parameters in arrays.items()
        for name, array in parameters.items()
    }


def images_and_targets(label: str, targets: Mapping[str, np.ndarray]) -> TrainBatch:
    """Images as after MixUp, in fractions of a pixel's value."""
    count = len(targets["labels"])
    z_NHWC = draw(META["seed"], label, (count, META["size"], META["size"], 3))
    return TrainBatch(
        images=torch.from_numpy(np.clip(127.5 + 60 * z_NHWC, 0, 255).astype(np.float32)),
        labels=torch.from_numpy(targets["labels"]).long(),
        indices=np.arange(count),
        positions=np.arange(count),
        keys=torch.arange(count),
        partner_labels=torch.from_numpy(targets["mix_labels"]).long(),
        label_share=torch.from_numpy(targets["ratio"]),
    )


def digest(tensors: Mapping[str, Tensor]) -> np.ndarray:
    """(parameters, 9): L2 norm, largest magnitude, product with drawn numbers, and six values of each tensor."""
    rows = []
    for official_name in META["names"]:
        tensor = tensors[official_names()[official_name]].detach().double()
        array = tensor.numpy().transpose(TO_OFFICIAL[tensor.ndim])
        values, z = array.reshape(-1), draw(META["seed"], f"digest/{official_name}", array.shape).reshape(-1)
        chosen = [values[k * (values.size - 1) // 5] for k in range(6)]
        rows.append([np.linalg.norm(values), np.abs(values).max(), values @ z, *chosen])
    return np.array(rows)


def largest_error(ours: Mapping[str, Tensor], theirs: np.ndarray) -> float:
    """Of norms relative to the norm, of values relative to a tensor's largest.

    All skip gains count as one tensor: the gradient of one can cancel until float32 says little about it.
    """
    norms, largest = theirs[:, 0].astype(np.float64), theirs[:, 1].astype(np.float64)
    scalars = np.array([name.endswith("/skip_gain") for name in META["names"]])
    norms[scalars] = largest[scalars] = largest[scalars].max()
    # Three standard deviations of what independent errors as large as the tolerance add up to in the product.
    scales = np.stack([norms, largest, 3 * norms, *[largest] * 6], axis=1)
    return float((np.abs(digest(ours) - theirs) / scales).max())


def train(recipe: Recipe) -> tuple[TrainStep, NFNet, dict[str, list[float]]]:
    model = network(recipe)
    step = TrainStep(model, recipe, PlainContext(device=torch.device("cpu"), threads=1), steps_per_epoch=1)
    track: dict[str, list[float]] = {"learning_rate": [], "loss": [], "top1": [], "clipped": []}
    for number in range(META["steps"]):
        targets = {name: OFFICIAL[name][number] for name in ("labels", "mix_labels", "ratio")}
        track["learning_rate"].append(step.learning_rate)
        result = step(images_and_targets(f"step/{number}", targets))
        track["loss"].append((result.loss_sum / result.images).item())
        track["top1"].append((result.correct / result.images).item())
        track["clipped"].append(result.clipped_fraction.item())
    return step, model, track


def official_recipe(clip_factor: float = 0.01, **settings: Any) -> Recipe:
    """The Recipe of the official `meta.config`; an epoch is one step."""
    optimizer, schedule = CONFIG["optimizer"]["kwargs"], CONFIG["lr_schedule"]["kwargs"]
    values = {
        "optimizer.agc.clip_factor": clip_factor,
        "optimizer.agc.eps": optimizer["eps"],
        "optimizer.ema.decay": CONFIG["ema_decay"],
        "optimizer.momentum": optimizer["momentum"],
        "optimizer.nesterov": optimizer["nesterov"],
        "optimizer.weight_decay": optimizer["weight_decay"],
        "schedule.base_learning_rate": CONFIG["lr"],
        "schedule.epochs": schedule["num_steps"],
        "schedule.warmup_epochs": schedule["warmup_steps"],
        "loss.label_smoothing": CONFIG["label_smoothing"],
        "batch_size": CONFIG["train_batch_size"],
    }
    return Recipe().with_values(values | settings)


@pytest.mark.parametrize(
    "settings",
    [{}, {"micro_batches": 2}, {"memory_format": "channels_last"}],
    ids=["whole", "micro_batches", "channels_last"],
)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", META["cases"])
def test_six_training_steps(case: str, precision: str, settings: dict[str, Any]) -> None:
    official = META["cases"][case]
    sam = {f"optimizer.sam.{name}": official[name] for name in ("rho", "ascent_share") if name in official}
    recipe = official_recipe(official["clipping"], precision=precision, **sam, **settings)
    step, model, track = train(recipe)
    tolerance, suffix = TOLERANCE[precision], PRECISIONS[precision]

    assert all(0 < share < 1 for share in track["clipped"])  # or clipping would not be tested
    for name in ("loss", "learning_rate"):
        np.testing.assert_allclose(track[name], OFFICIAL[f"{name}{suffix}/{case}"], rtol=tolerance)
    assert track["top1"] == OFFICIAL[f"top1/{case}"].tolist()

    assert step.average is not None
    parameters = dict(model.named_parameters())
    ours: dict[str, Mapping[str, Tensor]] = {
        "params": parameters,
        "momentum": {name: step.optimizer.state[p]["momentum_buffer"] for name, p in parameters.items()},
        "ema": dict(step.average.model.named_parameters()),
    }
    for section, tensors in ours.items():
        assert largest_error(tensors, OFFICIAL[f"{section}{suffix}/{case}"]) < tolerance, section


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("rho", "ascent_share"),
    [(None, 1.0)] + [(rho, share) for rho in META["rhos"] for share in META["ascent_shares"]],
)
def test_sam_gradients(rho: float | None, ascent_share: float, precision: str) -> None:
    sam: dict[str, Any] = {"optimizer.sam.rho": rho, "optimizer.sam.ascent_share": ascent_share}
    recipe = official_recipe(precision=precision, batch_size=META["sam_batch"], **sam)
    model = network(recipe)
    gradient = Gradient(model, recipe, PlainContext(device=torch.device("cpu"), threads=1))
    targets = {name: OFFICIAL[f"sam/{name}"] for name in ("labels", "mix_labels", "ratio")}
    losses = gradient.add(images_and_targets("sam", targets), step=0)

    # In both precisions against float64: float32 on their side would be as inexact as on ours.
    case = "none" if rho is None else f"{rho}/{ascent_share}"
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert largest_error(gradients, OFFICIAL[f"gradient_f64/{case}"]) < TOLERANCE[precision]
    expected = OFFICIAL[f"descent_loss_f64/{case}"].item()
    assert losses.loss_N.mean().item() == pytest.approx(expected, rel=TOLERANCE[precision])
