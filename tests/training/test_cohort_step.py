"""A lane of a cohort is what the trial is alone: in float64 step by step, whatever its neighbours do.

All fields in which lanes may differ do. 4 s on one core of an Intel Xeon.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nfnet_ray.cohorts import LANE_FIELDS, check_lanes
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.errors import UserError
from nfnet_ray.models import model_of
from nfnet_ray.models.published import resolve
from nfnet_ray.models.weights.pretrained import set_training_mode, start_from
from nfnet_ray.recipe import Recipe, ResolvedRecipe
from nfnet_ray.training.agreement import EpochSums
from nfnet_ray.training.captured import CapturedStep
from nfnet_ray.training.cohort.step import CohortStep, Lane, release
from nfnet_ray.training.cohort.sums import CohortSums
from nfnet_ray.training.context import PlainContext
from nfnet_ray.training.gradient import DTYPES
from nfnet_ray.training.step import StepResult, TrainStep
from tests.training.tape import TapeRecorder

BATCH, PIXELS, CLASSES, STEPS, STEPS_PER_EPOCH = 8, 16, 5, 4, 3
CONTEXT = PlainContext(device=torch.device("cpu"), threads=1)

# Of three lanes: every field that may differ does, and each of what may be none is so in one of them.
DIFFERENT: dict[str, tuple[Any, Any, Any]] = {
    "loss.label_smoothing": (0.1, 0.0, 0.3),
    "model.dropout": (0.3, 0.0, 0.1),
    "model.stochastic_depth": (0.0, 0.4, 0.2),
    "optimizer.agc.clip_factor": (0.02, None, 0.1),
    "optimizer.agc.eps": (1e-3, 1e-3, 1.0),
    "optimizer.ema.decay": (0.9, None, 0.5),
    "optimizer.ema.warmup": (True, True, False),
    "optimizer.momentum": (0.9, 0.0, 0.5),
    "optimizer.sam.rho": (0.05, 0.5, 0.1),
    "optimizer.weight_decay": (0.01, 0.0, 0.1),
    "schedule.base_learning_rate": (1.6, 0.4, 0.8),
    "schedule.decay_epochs": (2.4, 0.4, 2.4),
    "schedule.decay_factor": (0.97, 0.5, 0.97),
    "schedule.shape": ("cosine", "staircase", "cosine"),
    "schedule.warmup_epochs": (0.0, 0.5, 1.0),
}
CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "mixed, micro-batches": {"micro_batches": 2, "optimizer.nesterov": False},
    "rmsprop": {"optimizer.name": "rmsprop", "schedule.base_learning_rate": 0.02},
    "frozen": {"model.trained": "classifier"},
    "sam": {"optimizer.sam.ascent_share": 0.5, "optimizer.sam.share_masks": False},
    "sam, micro-batches": {"optimizer.sam.perturbation": "micro_batch", "micro_batches": 2},
}


class Trial(Lane):
    """A trial as a lane of a cohort, or alone."""

    def state(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps of it and that steps change, flat."""
        return flat({"model": self.model.state_dict(), "step": self.step.state_dict()})


def flat(value: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)  # type: ignore[assignment]
    else:
        return {} if value is None or isinstance(value, str) else {name: torch.as_tensor(value).double()}
    return {key: tensor for one, item in items for key, tensor in flat(item, f"{name}/{one}").items()}


def recipes(case: str) -> list[ResolvedRecipe]:
    base = Recipe().with_values(
        {
            "model.name": "nfnet_pico",
            "model.overrides.width": [16, 16, 32, 32],
            "model.overrides.depth": [1, 1, 1, 1],
            "model.overrides.group_width": [8, 8, 16, 16],
            "schedule.epochs": 2,
            "batch_size": BATCH,
            "precision": "float64",
            **{name: values[0] for name, values in DIFFERENT.items()},
        }
    )
    lanes = []
    for lane in range(3):
        values = {name: values[lane] for name, values in DIFFERENT.items()} | CASES[case]
        if "sam" not in case:
            values["optimizer.sam.rho"] = None
        lanes.append(resolve(base.with_values(values)))
    return lanes


def trial(recipe: ResolvedRecipe, initial_seed: int) -> Trial:
    torch.manual_seed(initial_seed)
    model = model_of(recipe.model, CLASSES)
    start_from(model, recipe.model)
    model.to(DTYPES[recipe.precision])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("skip_gain"):
                parameter.fill_(0.5)  # else a new network has no residual branches
    set_training_mode(model)
    return Trial(recipe, model, TrainStep(model, recipe, CONTEXT, STEPS_PER_EPOCH))


def trials(case: str) -> list[Trial]:
    return [trial(recipe, seed) for seed, recipe in enumerate(recipes(case))]


def batch(number: int, case: str = "") -> TrainBatch:
    generator = torch.Generator().manual_seed(number)
    labels = torch.randint(CLASSES, (2, BATCH), generator=generator)
    mixed = "mixed" in case
    return TrainBatch(
        images=torch.randint(256, (BATCH, PIXELS, PIXELS, 3), generator=generator, dtype=torch.uint8),
        labels=labels[0],
        indices=np.arange(BATCH),
        positions=np.arange(BATCH),
        keys=torch.randint(-(2**63), 2**63 - 1, (BATCH,), generator=generator),
        partner_labels=labels[1] if mixed else None,
        label_share=torch.rand(BATCH, generator=generator) if mixed else None,
    )


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    assert found.keys() == expected.keys(), what
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{what}{name}: {text}"
        )


@pytest.mark.parametrize(
    ("case", "lanes"), [*((case, (0, 1, 2)) for case in CASES), ("sgd", (1,)), ("sam", (0,))]
)
def test_each_lane_is_the_trial_alone(case: str, lanes: tuple[int, ...]) -> None:
    alone = [one for number, one in enumerate(trials(case)) if number in lanes]
    together = [one for number, one in enumerate(trials(case)) if number in lanes]
    cohort = CohortStep(together)
    for number in range(STEPS):
        results = cohort(batch(number, case))
        for lane, (one, other) in enumerate(zip(together, alone, strict=True)):
            expected = other.step(batch(number, case))
            result = StepResult(
                results.images,
                results.loss_sum[lane],
                results.correct[lane],
                results.clipped_fraction[lane],
                expected.step_of_epoch,
            )
            what = f"step {number}, lane {lane}: "
            assert_equal(flat(vars(result)), flat(vars(expected)), what)
            assert_equal(one.state(), other.state(), what)


class Layers(TorchDispatchMode):
    """The dtypes of what convolutions and activations are given within it, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("convolution", "gelu")):
            self.dtypes |= {value.dtype for value in args if isinstance(value, Tensor)}
        return func(*args, **(kwargs or {}))


def test_in_bfloat16_a_lane_is_the_trial_alone_within_its_rounding() -> None:
    """It rounds where the trial does, so it is no slower and takes no more memory; sums are in another order."""
    recipe = recipes("sgd")[0].with_values({"precision": "bfloat16"})
    alone, lane = trial(recipe, 0), trial(recipe, 0)
    before = {name: tensor.clone() for name, tensor in alone.state().items() if name.startswith("/model")}
    cohort = CohortStep([lane])
    with Layers() as of_the_trial:
        expected = alone.step(batch(0))
    with Layers() as of_the_lane:
        found = cohort(batch(0))
    assert of_the_lane.dtypes == of_the_trial.dtypes == {torch.bfloat16}
    torch.testing.assert_close(found.loss_sum[0], expected.loss_sum, rtol=2**-10, atol=0.0)
    state, lanes_state = alone.state(), lane.state()
    moved = torch.cat([(state[name] - before[name]).flatten() for name in before])
    apart = torch.cat([(state[name] - lanes_state[name]).flatten() for name in before])
    assert apart.norm() < 2**-5 * moved.norm()  # 0.008 to 0.012 were seen


@pytest.mark.parametrize("case", ["sgd", "sam, micro-batches"])
def test_replayed_steps_are_the_steps_themselves(case: str) -> None:
    """To the bit, after a capture that changes nothing; a tape does on a CPU what a CUDA graph does."""
    found = []
    for recorder in (None, TapeRecorder()):
        lanes = trials(case)
        cohort, sums = CohortStep(lanes), CohortSums([EpochSums(CONTEXT) for _ in lanes], CONTEXT.device)
        step = CapturedStep(cohort, sums, lanes[0].recipe, CONTEXT, recorder)
        for number in range(STEPS):
            if not step.is_ready_for(batch(number)):
                step.prepare(batch(number))
            step(batch(number))
        assert step.refusal is None
        found.append([*(lane.state() for lane in lanes), {"sums": sums.tensors()[0]}])
    assert recorder is not None
    assert len(recorder.tapes) == 1
    for eager, replayed in zip(*found, strict=True):
        for name, tensor in eager.items():
            assert torch.equal(tensor, replayed[name]), name


SHARED = {
    "activation_memory_budget",
    "batch_size",
    "capture",
    "compile",
    "grouped_convolutions",
    "memory_format",
    "micro_batches",
    "model.classifier",
    "model.name",
    "model.trained",
    "model.weights",
    "optimizer.agc.exclude",
    "optimizer.decayed",
    "optimizer.name",
    "optimizer.nesterov",
    "optimizer.rmsprop_decay",
    "optimizer.rmsprop_eps",
    "optimizer.sam.ascent_share",
    "optimizer.sam.asam_eta",
    "optimizer.sam.esam_data_share",
    "optimizer.sam.esam_weight_share",
    "optimizer.sam.looksam_alpha",
    "optimizer.sam.looksam_interval",
    "optimizer.sam.method",
    "optimizer.sam.perturbation",
    "optimizer.sam.share_masks",
    "precision",
    "schedule.epochs",
    "seed",
    "signal_epochs",
}
"""The other fields: the step of a cohort does as they say, the same in all lanes, or ``why_alone`` refuses them."""


def test_a_new_field_of_the_recipe_is_thought_of() -> None:
    """A step of a cohort is code of its own: it would leave out a new technique without a word."""
    fields = {name for name in Recipe().to_values() if not name.startswith(("data.", "model.overrides."))}
    assert fields == SHARED | set(LANE_FIELDS)


def test_all_fields_in_which_lanes_may_differ_are_tried() -> None:
    assert set(DIFFERENT) == set(LANE_FIELDS)
    assert all(len(set(values)) > 1 for values in DIFFERENT.values())


@pytest.mark.parametrize("case", ["sgd", "sam"])
def test_a_lane_that_becomes_nan_harms_no_other(case: str) -> None:
    states = []
    for is_bad in (False, True):
        lanes = trials(case)
        cohort = CohortStep(lanes)
        for number in range(STEPS):
            if is_bad and number == 1:
                next(lanes[1].model.parameters()).data.fill_(torch.nan)
            cohort(batch(number))
        states.append([lanes[0].state(), lanes[2].state()])
        if is_bad:
            assert not all(p.isfinite().all() for p in lanes[1].model.parameters())
    for whole, beside in zip(*states, strict=True):
        for name, tensor in whole.items():
            assert torch.equal(tensor, beside[name]), name


def test_a_cohort_without_its_dead_lane_goes_on_as_before() -> None:
    whole, compacted = trials("sgd"), trials("sgd")
    one, other = CohortStep(whole), CohortStep(compacted)
    for number in range(STEPS):
        if number == 2:
            other = CohortStep([compacted[0], compacted[2]])
        one(batch(number))
        other(batch(number))
    for lane in (0, 2):
        assert_equal(compacted[lane].state(), whole[lane].state(), f"lane {lane}: ")


def test_a_lane_goes_on_alone_from_what_it_has_saved() -> None:
    alone, lanes = trials("sgd"), trials("sgd")
    cohort = CohortStep(lanes)
    for number in range(2):
        cohort(batch(number))
        alone[0].step(batch(number))
    saved = copy.deepcopy({"model": lanes[0].model.state_dict(), "step": lanes[0].step.state_dict()})
    resumed = trials("sgd")[0]
    resumed.model.load_state_dict(saved["model"])
    resumed.step.load_state_dict(saved["step"])
    resumed.step(batch(2))
    alone[0].step(batch(2))
    assert_equal(resumed.state(), alone[0].state(), "")


def test_a_released_lane_keeps_no_other() -> None:
    lanes = trials("sgd")
    cohort = CohortStep(lanes)
    cohort(batch(0))
    before = {name: tensor.clone() for name, tensor in lanes[0].state().items()}
    release(lanes[0])
    cohort(batch(1))
    after = lanes[0].state()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("/model"))
    average = lanes[0].step.average
    assert average is not None
    for parameter in (*lanes[0].model.parameters(), *average.model.parameters()):
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"batch_size": 16}, "batch_size = 8 and 16 cannot be trained in one cohort"),
        ({"seed": 1}, "seed = 0 and 1 cannot be trained in one cohort"),
        ({"optimizer.sam.rho": 0.1}, "optimizer.sam.rho = none and a number cannot be trained in one cohort"),
        ({"optimizer.sam.rho": 0.1, "optimizer.sam.method": "asam"}, "of SAM and its relatives"),
        ({"compile": True}, "compile = true: .*; train it alone"),
        ({"model.name": "resnet50", "model.overrides.width": None}, "model.name = resnet50: "),
        ({"model.overrides.batch_norm": True}, "without normalisation layers"),
    ],
)
def test_what_cannot_be_one_cohort_is_named(values: dict[str, Any], said: str) -> None:
    recipe = recipes("sgd")[0]
    with pytest.raises(UserError, match=said):
        check_lanes([recipe, Recipe().with_values({**recipe.to_values(), **values})])
