"""Rates on the device: no number of a sweep or a schedule is a part of the step, and the arithmetic is that of floats.

What is captured as a CUDA graph, or compiled, keeps the numbers that Python gave to its operators. On a CPU a tape
(``tape.py``) shows them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nfnet_ray.models import model_of
from nfnet_ray.models.weights.pretrained import set_training_mode
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.form import compilation
from nfnet_ray.training.gradient import DTYPES, Gradient
from nfnet_ray.training.step import TrainStep
from tests.training import replicas
from tests.training.tape import Tape

OTHER_RATES = {
    "model.dropout": 0.2,
    "model.stochastic_depth": 0.15,
    "optimizer.agc.clip_factor": 0.05,
    "optimizer.agc.eps": 2e-3,
    "optimizer.momentum": 0.8,
    "optimizer.weight_decay": 0.002,
    "optimizer.rmsprop_decay": 0.95,
    "optimizer.rmsprop_eps": 2e-3,
    "optimizer.ema.decay": 0.7,
    "optimizer.sam.rho": 0.3,
    "optimizer.sam.asam_eta": 0.02,
    "optimizer.sam.looksam_alpha": 0.6,
    "optimizer.sam.esam_weight_share": 0.5,
    "schedule.base_learning_rate": 0.8,
    "schedule.warmup_epochs": 0.2,
    "loss.label_smoothing": 0.2,
    "seed": 1,
}
CASES: dict[str, dict[str, Any]] = {
    "AGC": {},
    "without AGC": {"optimizer.agc.clip_factor": None},
    "RMSProp": {"optimizer.name": "rmsprop"},
    "SAM": {"optimizer.sam.rho": 0.5, "optimizer.sam.ascent_share": 0.5},
    "ASAM": {"optimizer.sam.rho": 0.5, "optimizer.sam.method": "asam"},
    "LookSAM": {
        "optimizer.sam.rho": 0.5,
        "optimizer.sam.method": "looksam",
        "optimizer.sam.looksam_interval": 2,
    },
    "ESAM": {"optimizer.sam.rho": 0.5, "optimizer.sam.method": "esam"},
    "SAM by micro-batch": {
        "optimizer.sam.rho": 0.5,
        "optimizer.sam.perturbation": "micro_batch",
        "micro_batches": 2,
    },
}
WORKER = replicas.Worker(0, 1, 1)
STEPS = 4


def recipe_of(values: dict[str, Any], **more: Any) -> Recipe:
    """With AGC, moving average, dropout, stochastic depth, and a warm-up: the rates of all steps differ."""
    base = replicas.recipe("no_sam", agc=True, ema=True, micro_batches=1)
    changes = {"schedule.warmup_epochs": 0.4, "precision": "float32", **values}
    return base.with_values(changes | {name.replace("__", "."): value for name, value in more.items()})


def other_rates_than(recipe: Recipe) -> Recipe:
    """Of the same structure: what is none or off stays so."""
    values = recipe.to_values()
    kept = {name: value for name, value in OTHER_RATES.items() if values[name] not in (None, 0)}
    return recipe.with_values(kept | {"seed": 1})


def step_of(recipe: Recipe, *, on_device: bool) -> TrainStep:
    model = replicas.network(recipe)
    return TrainStep(model, recipe, WORKER, steps_per_epoch=STEPS, rates_on_device=on_device)


def tapes(step: TrainStep) -> list[list[str]]:
    """What would be frozen in each step after the first one, which makes the memory of the counts."""
    batch = replicas.global_batch(0)
    found = []
    for number in range(1 + 2):
        tape = Tape()
        rates = step.set_rates()
        with tape:
            step.apply(batch, rates)
        step.number += 1
        if number >= 1:
            found.append(tape.frozen())
    return found


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_no_rate_is_a_part_of_the_step(values: dict[str, Any]) -> None:
    recipe = recipe_of(values)
    ours, others = (tapes(step_of(one, on_device=True)) for one in (recipe, other_rates_than(recipe)))
    assert ours == others
    assert len(ours[0]) > 500
    is_looksam = values.get("optimizer.sam.method") == "looksam"
    # LookSAM's steps are of two kinds.
    assert (ours[0] == ours[1]) == (not is_looksam)


def test_rates_of_the_host_are_seen_in_a_step() -> None:
    first, second = tapes(step_of(recipe_of({}), on_device=False))
    assert first != second


def weights_after(recipe: Recipe, *, on_device: bool) -> dict[str, torch.Tensor]:
    step = step_of(recipe, on_device=on_device)
    for number in range(STEPS):
        step(replicas.global_batch(number))
    assert step.average is not None
    averages = {f"average.{name}": tensor for name, tensor in step.average.state_dict().items()}
    counts = {f"counts.{name}": tensor for name, tensor in step.clipping_counts.state_dict().items()}
    return {**step._model.state_dict(), **averages, **counts}


@pytest.mark.parametrize(
    "values", [*CASES.values(), {"optimizer.momentum": 0.0}], ids=[*CASES, "no momentum"]
)
def test_rates_on_the_device_give_the_same_steps(values: dict[str, Any]) -> None:
    for precision, tolerance in (("float64", 1e-12), ("float32", 2e-5)):
        if precision == "float32" and values:
            continue  # the first case has what rounds
        recipe = recipe_of(values, precision=precision)
        expected = weights_after(recipe, on_device=False)
        for name, tensor in weights_after(recipe, on_device=True).items():
            torch.testing.assert_close(tensor, expected[name], rtol=tolerance, atol=tolerance, msg=name)


def test_drop_rates_of_bfloat16_are_not_rounded_to_it() -> None:
    """A tensor of one number takes part in the arithmetic in the other's dtype, a number of Python's does not."""
    recipe = recipe_of({}, precision="bfloat16", model__dropout=0.3)
    model = replicas.network(recipe)
    keys, images = torch.arange(4), torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        by_floats = model(images, keys)
        by_tensors = model(images, keys, torch.tensor(model.drop_rates()))
    assert torch.equal(by_tensors, by_floats)


def test_a_sweep_compiles_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Across clip factors, drop rates, learning rates and all the others."""
    compiled = []

    def backend(graph: Any, _inputs: Any) -> Callable[..., Any]:
        compiled.append(graph)
        forward: Callable[..., Any] = graph.forward
        return forward

    monkeypatch.setattr(compilation, "backend_of", lambda _recipe: backend)
    first = recipe_of(CASES["SAM"], compile=True)
    for recipe in (first, other_rates_than(first), first.with_values({"optimizer.agc.clip_factor": 0.5})):
        model = model_of(recipe.model, replicas.CLASSES).to(DTYPES[recipe.precision])
        set_training_mode(model)
        gradient = Gradient(model, recipe, WORKER)
        gradient.add(replicas.global_batch(0), step=0)
    assert len(compiled) == 2  # of ascent and descent, which SAM gives other numbers of images
