"""The order of a step: the same gradient however the batch is cut, and the official order of what follows.

In float64, where two orders of summation differ by 1e-13 and a wrong order of operations by far more.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, one_hot

from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.data.normalise import normalise
from nfnet_ray.models.layers import ScaledWSConv2d
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.optim import unitwise_norm
from nfnet_ray.training.gradient import Gradient
from nfnet_ray.training.step import TrainStep
from tests.preloaded import run_program
from tests.training import replicas

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
SYNCHRONISED = (
    "no_sam",
    "sam_global",
    "sam_global_quarter",
    "sam_global_uneven",
    "asam_global",
    "looksam",
    "esam_global",
    "frozen",
)
UNSYNCHRONISED = ("sam_replica", "sam_replica_half", "asam_replica", "esam_replica")


def cases(of: tuple[str, ...]) -> list[tuple[str, bool, bool]]:
    """(SAM, AGC, EMA)"""
    return [case for case in replicas.cases() if case[0] in of]


Results = dict[tuple[str, bool, bool, int], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Results]]:
    """{world size: the results of each rank}, of six processes that work at the same time."""
    folder = tmp_path_factory.mktemp("replicas")
    program = "import pathlib, sys; from tests.training.replicas import main; sys.exit(main(pathlib.Path(sys.argv[1])))"
    process = run_program(program, str(folder))
    assert process.returncode == 0, process.stderr
    found: dict[int, list[Results]] = {1: [], 2: [], 3: []}
    for rank, size in replicas.WORKERS:
        found[size].append(torch.load(folder / f"{rank}of{size}.pt", weights_only=True))
    return found


def assert_equal(result: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            result[name], tensor, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
@pytest.mark.parametrize(("sam", "agc", "ema"), cases(SYNCHRONISED + UNSYNCHRONISED))
def test_micro_batches_equal_one_batch(results: Any, sam: str, agc: bool, ema: bool) -> None:
    alone = results[1][0]
    assert_equal(alone[sam, agc, ema, 2], alone[sam, agc, ema, 1])
    if agc and ema:
        more = replicas.MORE_MICRO_BATCHES
        assert_equal(alone[sam, agc, ema, more], alone[sam, agc, ema, 1])
    for rank in results[2]:
        assert_equal(rank[sam, agc, ema, 2], rank[sam, agc, ema, 1])


@pytest.mark.slow
@pytest.mark.parametrize(("sam", "agc", "ema"), cases(SYNCHRONISED))
def test_two_workers_equal_one(results: Any, sam: str, agc: bool, ema: bool) -> None:
    for rank in results[2]:
        assert_equal(rank[sam, agc, ema, 1], results[1][0][sam, agc, ema, 1])


@pytest.mark.slow
@pytest.mark.parametrize(("sam", "agc", "ema"), cases(UNSYNCHRONISED))
def test_two_perturbed_workers_equal_two_perturbed_micro_batches(
    results: Any, sam: str, agc: bool, ema: bool
) -> None:
    alone = results[1][0][sam.replace("replica", "micro_batch"), agc, ema, 2]
    for rank in results[2]:
        assert_equal(rank[sam, agc, ema, 1], alone)


@pytest.mark.slow
@pytest.mark.parametrize("sam", [sam.replace("replica", "micro_batch") for sam in UNSYNCHRONISED])
def test_two_workers_with_two_perturbed_micro_batches_equal_one_with_four(results: Any, sam: str) -> None:
    alone = results[1][0][sam, True, True, replicas.MORE_MICRO_BATCHES]
    for rank in results[2]:
        assert_equal(rank[sam, True, True, 2], alone)


@pytest.mark.slow
@pytest.mark.parametrize("sam", replicas.SAM)
def test_one_two_and_three_workers_stand_for_four(results: Any, sam: str) -> None:
    alone = results[1][0]
    for rank in (*results[2], *results[3]):
        assert_equal(rank["of four", sam], alone["of four", sam])
    if sam in SYNCHRONISED:
        assert_equal(alone["of four", sam], alone[sam, True, True, 1])
    if sam in UNSYNCHRONISED:
        four_groups = sam.replace("replica", "micro_batch")
        assert_equal(alone["of four", sam], alone[four_groups, True, True, 4])


@pytest.mark.slow
def test_each_technique_makes_a_difference(results: Any) -> None:
    """Or the comparisons above would compare nothing."""
    alone = results[1][0]
    last = "weights.classifier.weight"
    for sam, other in itertools.combinations(SYNCHRONISED, 2):
        assert not torch.allclose(
            alone[sam, False, False, 1][last], alone[other, False, False, 1][last], **TOLERANCE
        )
    for sam in SYNCHRONISED + UNSYNCHRONISED:
        assert not torch.allclose(
            alone[sam, False, False, 1][last], alone[sam, True, True, 1][last], **TOLERANCE
        )
        with_average = alone[sam, True, True, 1]
        assert not torch.allclose(with_average[last], with_average["average.classifier.weight"], **TOLERANCE)
    for sam in UNSYNCHRONISED:  # one perturbation for all, or one for each
        micro_batch = sam.replace("replica", "micro_batch")
        assert not torch.allclose(
            alone[sam, False, False, 1][last], alone[micro_batch, False, False, 2][last]
        )


def written_out(model: NFNet, batches: list[TrainBatch], rho: float, ascent_images: int) -> dict[str, Tensor]:
    """Steps in the order of the papers and of the official code, tensor by tensor and without an optimiser.

    The Recipe of ``replicas.recipe`` with SAM, AGC and an average: learning rate by cosine from 0.1.
    """
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    momentum = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    average = {name: weight.clone() for name, weight in weights.items()}

    def gradients(at: dict[str, Tensor], batch: TrainBatch, images: int) -> dict[str, Tensor]:
        at = {name: weight.clone().requires_grad_() for name, weight in at.items()}
        assert batch.partner_labels is not None
        assert batch.label_share is not None
        logits = functional_call(model, at, (normalise(batch.images[:images]).double(), batch.keys[:images]))
        share = batch.label_share[:images, None].double()
        first, second = (
            one_hot(labels[:images], replicas.CLASSES) for labels in (batch.labels, batch.partner_labels)
        )
        targets = 0.9 * (share * first + (1 - share) * second) + 0.1 / replicas.CLASSES
        loss = cross_entropy(logits, targets)
        return dict(zip(at, torch.autograd.grad(loss, list(at.values())), strict=True))

    for step, batch in enumerate(batches):
        ascent = gradients(weights, batch, ascent_images)
        norm = torch.sqrt(sum((gradient**2).sum() for gradient in ascent.values()))
        perturbed = {name: weight + rho * ascent[name] / norm for name, weight in weights.items()}
        gradient = gradients(perturbed, batch, replicas.BATCH)
        learning_rate = (
            0.1 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / replicas.STEPS, dtype=torch.float64)))
        )
        decay = min(0.9, (1 + step) / (10 + step))
        for name, weight in weights.items():
            g = gradient[name]
            if name != "classifier.weight":
                largest = 0.02 * unitwise_norm(weight).clamp(min=1e-3)
                size = unitwise_norm(g)
                g = torch.where(size > largest, g * largest / size.clamp(min=1e-6), g)
            if name.endswith("weight"):
                g = g + 0.01 * weight
            momentum[name] = 0.9 * momentum[name] + g
            weight -= learning_rate * (g + 0.9 * momentum[name])
            average[name] = decay * average[name] + (1 - decay) * weight
    result = {f"weights.{name}": weight for name, weight in weights.items()}
    return result | {f"average.{name}": weight for name, weight in average.items()}


@pytest.mark.parametrize(("sam", "ascent_images"), [("sam_replica", 16), ("sam_global_uneven", 5)])
def test_a_step_is_what_the_papers_say(sam: str, ascent_images: int) -> None:
    """Perturb along the first images' gradient; clip, decay, momentum, Nesterov; then the average."""
    recipe = replicas.recipe(sam, agc=True, ema=True, micro_batches=1)
    worker = replicas.Worker(rank=0, world_size=1, replicas=1)
    expected = written_out(
        replicas.network(recipe),
        [replicas.global_batch(n) for n in range(replicas.STEPS)],
        0.5,
        ascent_images,
    )
    trained = replicas.train(recipe, worker)
    assert_equal(
        {name: tensor for name, tensor in trained.items() if not name.startswith("clipping.")}, expected
    )


def test_esam_descends_on_the_mean_loss_of_the_sharpest_half() -> None:
    values = {"optimizer.sam.esam_weight_share": 1.0, "optimizer.sam.esam_data_share": 0.5}
    recipe = replicas.recipe("esam_replica", agc=False, ema=False, micro_batches=2).with_values(values)
    model, batch = replicas.network(recipe), replicas.global_batch(0)
    names = [name for name, _ in model.named_parameters()]
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def losses(at: dict[str, Tensor]) -> Tensor:
        logits = functional_call(model, at, (normalise(batch.images).double(), batch.keys))
        assert batch.partner_labels is not None
        assert batch.label_share is not None
        of_each = [
            cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
            for labels in (batch.labels, batch.partner_labels)
        ]
        return torch.lerp(of_each[1], of_each[0], batch.label_share.double())

    at = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    before = losses(at)
    ascent = torch.autograd.grad(before.mean(), list(at.values()))
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in ascent))
    at = {
        name: (start[name] + 0.5 * gradient / norm).requires_grad_()
        for name, gradient in zip(names, ascent, strict=True)
    }
    after = losses(at)
    sharpest = (after - before).topk(replicas.BATCH // 2).indices
    expected = torch.autograd.grad(after[sharpest].mean(), list(at.values()))

    descended = Gradient(model, recipe, replicas.Worker(rank=0, world_size=1, replicas=1)).add(batch, step=0)
    assert len(descended.loss_N) == replicas.BATCH // 2
    for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **TOLERANCE, msg=name)


@pytest.mark.parametrize(("side", "stride"), [(2, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_to_one_pixel_is_right_in_bfloat16(side: int, stride: int, groups: int) -> None:
    """As the last ones of a network for small images are: torch's own gradient of the last case is not."""
    torch.manual_seed(0)
    layer = ScaledWSConv2d(16, 32, 3, stride=stride, groups=groups)
    images = torch.randn(8, 16, side, side, requires_grad=True)
    leaves = [*layer.parameters(), images]
    exact = layer(images)
    expected = torch.autograd.grad(exact.square().sum(), leaves)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(images)
    assert result.shape == exact.shape
    assert result.dtype == torch.bfloat16
    # What a gradient that is not written to would be made of.
    used = [torch.full((32, 16 // groups, 3, 3), 1e9, dtype=torch.bfloat16) for _ in range(100)]
    del used
    for gradient, wanted in zip(
        torch.autograd.grad(result.float().square().sum(), leaves), expected, strict=True
    ):
        assert (gradient - wanted).norm() < 0.02 * wanted.norm()


def test_bfloat16_keeps_the_weights_in_float32() -> None:
    values = {"precision": "bfloat16", "optimizer.sam.rho": 0.05}
    recipe = replicas.recipe("sam_replica", agc=True, ema=True, micro_batches=1).with_values(values)
    in_bfloat16 = replicas.train(recipe, replicas.Worker(rank=0, world_size=1, replicas=1))
    exact = replicas.train(
        recipe.with_values({"precision": "float32"}), replicas.Worker(rank=0, world_size=1, replicas=1)
    )
    kept = {name: tensor.dtype for name, tensor in in_bfloat16.items() if not name.startswith("clipping.")}
    assert set(kept.values()) == {torch.float32}
    moved = rounding = 0.0
    start = replicas.network(recipe).state_dict()
    for name, tensor in start.items():
        moved += float((exact[f"weights.{name}"] - tensor).square().sum())
        rounding += float((exact[f"weights.{name}"] - in_bfloat16[f"weights.{name}"]).square().sum())
    assert 0 < rounding < 0.05**2 * moved


def test_a_step_resumes_from_its_state() -> None:
    for sam in ("looksam", "esam_global", "sam_micro_batch"):
        recipe = replicas.recipe(sam, agc=True, ema=True, micro_batches=2)
        worker = replicas.Worker(rank=0, world_size=1, replicas=1)
        models = [replicas.network(recipe) for _ in range(2)]
        whole, first = (TrainStep(model, recipe, worker, steps_per_epoch=3) for model in models)
        whole(replicas.global_batch(0))
        first(replicas.global_batch(0))
        resumed_model = replicas.network(recipe)
        resumed_model.load_state_dict(models[1].state_dict())
        resumed = TrainStep(resumed_model, recipe, worker, steps_per_epoch=3)
        resumed.load_state_dict(first.state_dict())
        for number in (1, 2):
            whole(replicas.global_batch(number))
            resumed(replicas.global_batch(number))
        for name, tensor in models[0].state_dict().items():
            assert torch.equal(resumed_model.state_dict()[name], tensor), f"{sam} {name}"
