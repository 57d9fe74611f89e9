"""What is counted of AGC, against a direct computation; counting changes nothing that is trained."""

from __future__ import annotations

import base64
import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nfnet_ray.clipping import EDGES, GAINS_AND_BIASES, OCTAVES, QUANTILES, Clipping
from nfnet_ray.models import create_model
from nfnet_ray.optim import UnitNorms
from nfnet_ray.training import step as step_module
from nfnet_ray.training.measurement.clipping import (
    STEPS_BETWEEN_NORMS,
    ClippingCounts,
    epochs_per_record,
    part_of,
)
from nfnet_ray.training.step import TrainStep
from tests.training import replicas

BIN = 2**0.25
STAGES = ("stem", "stage 1", "stage 2", "stage 3", "stage 4")


class Direct:
    """The ratios of each step, {name: (units,)}, computed in NumPy from the gradients that AGC is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: list[str], eps: float) -> None:
        self.steps: list[dict[str, NDArray[np.float64]]] = []
        call = step_module.clip_gradients_adaptively

        def noted(parameters: Any, *arguments: Any, **more: Any) -> Any:
            self.steps.append(
                {name: ratios(weight, eps) for name, weight in zip(names, parameters, strict=True)}
            )
            return call(parameters, *arguments, **more)

        monkeypatch.setattr(step_module, "clip_gradients_adaptively", noted)

    def of(self, belongs: Any) -> NDArray[np.float64]:
        """All ratios of the parameters for which ``belongs(name)`` is true."""
        return np.concatenate([step[name] for step in self.steps for name in step if belongs(name)])


def ratios(weight: torch.nn.Parameter, eps: float) -> NDArray[np.float64]:
    """‖g‖ / max(‖w‖, eps) of each unit: a row of a weight, or a whole vector."""
    assert weight.grad is not None
    rows = 1 if is_vector(weight) else weight.shape[0]
    w, g = (
        np.linalg.norm(t.detach().numpy().astype(np.float64).reshape(rows, -1), axis=1)
        for t in (weight, weight.grad)
    )
    found: NDArray[np.float64] = g / np.maximum(w, eps)
    return found


def is_vector(weight: torch.Tensor) -> bool:
    return sum(side > 1 for side in weight.shape) <= 1


@pytest.mark.parametrize("sam", ["no_sam", "sam_replica_half"])
def test_counts_are_those_of_a_direct_computation(monkeypatch: pytest.MonkeyPatch, sam: str) -> None:
    recipe = replicas.recipe(sam, agc=True, ema=True, micro_batches=2)
    model = replicas.network(recipe, is_whole=True)
    step = TrainStep(model, recipe, replicas.Worker(0, 1, 1), replicas.STEPS)
    weights = {name: weight for name, weight in model.named_parameters() if name != "classifier.weight"}
    direct = Direct(monkeypatch, list(weights), recipe.optimizer.agc.eps)
    fractions = [float(step(replicas.global_batch(n)).clipped_fraction) for n in range(replicas.STEPS)]

    found = step.clipping_counts.take()
    factor = recipe.optimizer.agc.clip_factor
    assert found.steps == replicas.STEPS
    assert found.clipped("stage 1") == pytest.approx(
        (
            direct.of(lambda name: name.startswith("blocks.0.") and not is_vector(weights[name])) > factor
        ).mean()
    )
    for layer in found.layers:
        if not layer.name:
            continue
        expected = direct.of(lambda name, layer=layer: name == f"{layer.name}.weight")
        assert layer.units * replicas.STEPS == len(expected)
        assert layer.clipped == pytest.approx((expected > factor).mean())
        for share, quantile in zip(QUANTILES, layer.quantiles, strict=True):
            above, below = (np.quantile(expected, share, method=way) for way in ("higher", "lower"))
            if below > EDGES[0]:
                assert below / BIN <= quantile <= above * BIN, f"{layer.name} {share}"
    vectors = direct.of(lambda name: is_vector(weights[name]))
    np.testing.assert_allclose(
        found.shares_above[GAINS_AND_BIASES], [(vectors > edge).mean() for edge in OCTAVES]
    )
    first = [
        next((n for n, one in enumerate(direct.steps, 1) if max(map(np.max, one.values())) > edge), 0)
        for edge in OCTAVES
    ]
    assert list(found.first_step_above) == first
    # All parts together are what a step has said all along.
    units = [(found.units(part), found.clipped(part)) for part in (*STAGES, GAINS_AND_BIASES)]
    together = sum(n * clipped for n, clipped in units) / sum(n for n, _ in units)
    assert together == pytest.approx(np.mean(fractions), abs=1e-6)
    assert step.clipping_counts.take().steps == 0


@pytest.mark.parametrize("agc", [True, False])
def test_counting_changes_no_bit(monkeypatch: pytest.MonkeyPatch, agc: bool) -> None:
    recipe = replicas.recipe("looksam", agc=agc, ema=True, micro_batches=1).with_values(
        {"precision": "float32"}
    )
    counted = replicas.train(recipe, replicas.Worker(0, 1, 1))
    monkeypatch.setattr(ClippingCounts, "add", lambda *_: None)
    uncounted = replicas.train(recipe, replicas.Worker(0, 1, 1))
    for name, tensor in uncounted.items():
        assert name.startswith("clipping") or torch.equal(counted[name], tensor), name
    assert int(counted["clipping.counts"].sum()) > 0 == int(uncounted["clipping.counts"].sum())


def test_without_clipping_every_sixteenth_step_is_counted() -> None:
    recipe = replicas.recipe("no_sam", agc=False, ema=False, micro_batches=1)
    model = replicas.network(recipe)
    step = TrainStep(model, recipe, replicas.Worker(0, 1, 1), replicas.STEPS)
    for number in range(STEPS_BETWEEN_NORMS + 1):
        step(replicas.global_batch(number))
    found = step.clipping_counts.take()
    assert found.steps == 2
    assert found.clipped("stage 1") == 0 < found.shares_above["stage 1"][0]
    assert set(found.first_step_above) <= {0, 1, 1 + STEPS_BETWEEN_NORMS}


def test_counts_continue_after_a_checkpoint() -> None:
    recipe = replicas.recipe("no_sam", agc=True, ema=False, micro_batches=1)
    whole = counts_after(recipe, None)
    assert counts_after(recipe, at=1) == whole


def counts_after(recipe: Any, at: int | None) -> str:
    """The record of all steps, with a checkpoint after ``at`` of them."""
    model = replicas.network(recipe)
    worker = replicas.Worker(0, 1, 1)
    step = TrainStep(model, recipe, worker, replicas.STEPS)
    for number in range(replicas.STEPS):
        if number == at:
            state, weights = step.state_dict(), model.state_dict()
            model = replicas.network(recipe)
            model.load_state_dict(weights)
            step = TrainStep(model, recipe, worker, replicas.STEPS)
            step.load_state_dict(state)
        step(replicas.global_batch(number))
    return step.clipping_counts.take().to_text()


def counted(gradients: list[float]) -> Clipping:
    """One step of a weight whose units have norm 1 and these gradients, with a clip factor of 0.02."""
    model = torch.nn.Linear(2, len(gradients), bias=False)
    counts = ClippingCounts(model, dict(model.named_parameters()), torch.device("cpu"))
    norm = torch.tensor(gradients)
    counts.add(UnitNorms(norm, torch.ones_like(norm), norm > 0.02, ((0, len(gradients)),)))
    return counts.take()


def test_a_factor_of_the_papers_grid_is_counted_exactly() -> None:
    found = counted([0.0, 0.009, 0.011, 0.019, 0.021, 0.5])
    above = dict(zip(np.round(OCTAVES, 6).tolist(), found.shares_above["weight"].tolist(), strict=True))
    assert (above[0.005], above[0.01], above[0.02], above[0.04]) == pytest.approx(
        (5 / 6, 4 / 6, 2 / 6, 1 / 6)
    )
    assert found.layers[0].clipped == pytest.approx(2 / 6)


def test_gradients_that_are_no_numbers_count_as_the_largest() -> None:
    found = counted([math.nan, math.inf, 0.0])
    assert found.layers[0].quantiles == (0.0, math.inf, math.inf, math.inf)
    assert found.shares_above["weight"][-1] == pytest.approx(2 / 3)
    assert Clipping.from_text(found.to_text()).layers[0].quantiles == (0.0, math.inf, math.inf, math.inf)


def test_the_text_of_a_record_is_read_again() -> None:
    found = counted([0.0, 1e-4, 0.011, 0.019, 0.021, 0.5])
    read = Clipping.from_text(found.to_text())
    assert read.to_text() == found.to_text()
    assert (read.steps, read.first_step_above) == (found.steps, found.first_step_above)
    assert read.layers[0].clipped == pytest.approx(found.layers[0].clipped, abs=1e-5)
    assert read.layers[0].quantiles == pytest.approx(found.layers[0].quantiles, rel=0.1)
    np.testing.assert_allclose(read.shares_above["weight"], found.shares_above["weight"], atol=1e-5)


@pytest.mark.parametrize(
    "text",
    ["", "?", "AAAA", *(base64.b64encode(zlib.compress(c)).decode() for c in (b"", b"{}\n", b"[]\n1"))],
)
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (its kind is what is promised)
        Clipping.from_text(text)


def test_a_long_run_has_at_most_thirty_two_records() -> None:
    assert [epochs_per_record(epochs) for epochs in (1, 32, 33, 90, 360)] == [1, 1, 2, 3, 12]


def test_the_parts_of_networks() -> None:
    with torch.device("meta"):
        model = create_model("nfnet_f0")
    parts = list(dict.fromkeys(part_of(model, name) for name, _ in model.named_parameters()))
    assert parts == [*STAGES, "final conv", "classifier"]
    other = torch.nn.Linear(1, 1)
    assert [part_of(other, name) for name in ("blocks.3.0.conv.weight", "layer2.1.bn1.bias", "weight")] == [
        "blocks.3",
        "layer2",
        "weight",
    ]
