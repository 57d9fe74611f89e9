"""Training on a GPU that is pretended (``pretended_gpu.py``) gives the numbers of a training on the CPU."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nfnet_ray.data.batch import Batch
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import Outcome, PlainContext, run, train
from nfnet_ray.training.agreement import Agreement
from nfnet_ray.training.cohort import train_cohort
from nfnet_ray.training.evaluation import Tally
from nfnet_ray.training.form import probe
from nfnet_ray.training.form.probe import Timing
from nfnet_ray.training.gradient import Gradient, Losses
from nfnet_ray.training.step import TrainStep
from tests.training.pretended_gpu import DEVICE, pretended_gpu
from tests.training.test_captured import BASELINE

CPU = torch.device("cpu")
NUMBERS = ("train_loss", "train_top1", "agc_clipped_fraction", "validation_top1", "validation_loss")


@pytest.fixture(scope="module")
def short(quick: Recipe) -> Recipe:
    """One epoch of two steps."""
    return quick.with_values({"schedule.epochs": 1, "batch_size": 120, "optimizer.ema.decay": 0.9})


@pytest.fixture(scope="module")
def on_the_cpu(short: Recipe) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The weights and the numbers of a training on the CPU that is not stopped, with rates as a GPU has them."""
    watched = Watched(CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "TrainStep", functools.partial(TrainStep, rates_on_device=True))
        return weights(train(short, watched)), watched.numbers


class Watched(PlainContext):
    """Keeps the numbers of each epoch; stops after ``epochs`` of them."""

    def __init__(self, device: torch.device, checkpoints: Path | None = None, epochs: float = 1e9) -> None:
        self.numbers: list[dict[str, float]] = []
        self._epochs = epochs
        super().__init__(device=device, threads=1, checkpoints=checkpoints, on_report=self._keep)

    def _keep(self, metrics: Any) -> None:
        self.numbers.append({name: metrics[name] for name in NUMBERS})

    def progress(self, epochs: float) -> None:
        if epochs >= self._epochs:
            self.stop()


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    assert outcome.average is not None
    every = {
        **outcome.model.state_dict(),
        **{f"average {k}": v for k, v in outcome.average.state_dict().items()},
    }
    return {name: tensor.detach().to("cpu") for name, tensor in every.items()}


CASES: dict[str, dict[str, Any]] = {
    # At 16 px the last block strides over one pixel. A network on a CPU goes around what is wrong with its gradient in
    # bfloat16 (nfnet_ray/models/layers.py), and one that is told that it is on a GPU does not.
    "bfloat16": {"precision": "bfloat16", "data.image_size": 32, "data.eval_size": 32},
    "augmented, streamed": {
        "data.resident": "never",
        "data.flip": True,
        "data.mixing.mixup_alpha": 0.2,
        "data.mixing.cutmix_alpha": 1.0,
        "data.randaugment.layers": 2,
    },
    "growing images": {
        "schedule.epochs": 2,
        "data.progressive.start_size": 8,
        "data.progressive.step": 8,
    },
    "LookSAM": {
        "optimizer.sam.rho": 0.05,
        "optimizer.sam.method": "looksam",
        "optimizer.sam.looksam_interval": 2,
    },
    "ESAM": {"optimizer.sam.rho": 0.05, "optimizer.sam.method": "esam", "micro_batches": 2},
    "batch normalisation": {
        **BASELINE,
        "model.overrides.group_width": None,
        "optimizer.name": "rmsprop",
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_training_gives_the_numbers_of_the_cpu(
    case: str, short: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = short.with_values(CASES[case])
    monkeypatch.setattr(run, "TrainStep", functools.partial(TrainStep, rates_on_device=True))
    on_cpu, on_gpu = Watched(CPU), Watched(DEVICE)
    expected = train(recipe, on_cpu)
    with pretended_gpu() as gpu, caplog.at_level(logging.INFO):
        outcome = train(recipe, on_gpu)
        assert {parameter.device for parameter in outcome.model.parameters()} == {DEVICE}
        assert_same(weights(outcome), weights(expected))
    assert on_gpu.numbers == on_cpu.numbers
    assert "kernel by kernel" not in caplog.text
    assert gpu.replays == 2 * recipe.schedule.epochs


def test_the_form_of_a_step_is_tried_on_the_gpu(
    short: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "TrainStep", functools.partial(TrainStep, rates_on_device=True))
    monkeypatch.setattr(probe, "SECONDS_OF_STEPS", 0.0)  # the fewest steps of each form
    on_cpu, on_gpu = Watched(CPU), Watched(DEVICE)
    short = short.with_values({"model.overrides.group_width": [2, 2, 4, 4]})
    train(short, on_cpu)
    with pretended_gpu(), caplog.at_level(logging.INFO):
        open_form = {"memory_format": "auto", "grouped_convolutions": "auto", "capture": "never"}
        train(short.with_values(open_form), on_gpu)
    for name, number in on_cpu.numbers[0].items():
        assert on_gpu.numbers[0][name] == pytest.approx(number, rel=1e-3)
    assert "capture=never" in caplog.text
    assert "channels_last, sliced weight gradient" in caplog.text


@pytest.mark.parametrize("capture", ["auto", "never"])
def test_what_cudnn_takes_to_choose_its_algorithms_is_no_memory_of_a_step(
    capture: str, short: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first pass over a shape it tries many, each with the workspace that it asks for."""
    most, passes, added = [0.0], itertools.count(), Gradient.add

    def add(self: Gradient, *args: Any, **options: Any) -> Losses:
        most[0] = max(most[0], 1e9 if next(passes) else 9e9)
        return added(self, *args, **options)

    def forget(_device: object = None) -> None:
        most[0] = 0.0

    reports: list[dict[str, float]] = []
    context = PlainContext(device=DEVICE, threads=1, on_report=lambda metrics: reports.append(dict(metrics)))
    monkeypatch.setattr(Gradient, "add", add)
    with pretended_gpu() as gpu, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "max_memory_allocated", lambda _device: most[0])
        patch.setattr(torch.cuda, "reset_peak_memory_stats", forget)
        train(short.with_values({"capture": capture, "schedule.epochs": 2}), context)
    assert [metrics["peak_memory_bytes"] for metrics in reports] == [1e9, 1e9]
    assert gpu.captures == (capture == "auto")


def test_a_worker_has_no_more_than_its_part_of_a_gpu(short: Recipe) -> None:
    """From before the first tensor on: forms of a step are timed first, and then, too, others use the same GPU."""
    limits: list[tuple[float, int | None]] = []

    def limit(share: float, device: int | None) -> None:
        limits.append((share, device))

    def time_step(*_: object) -> Timing:
        assert limits == [(0.25, 0)]
        return Timing(1.0, 1.0, 1.0)

    recipe = short.with_values({"memory_format": "auto"})
    with pretended_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
        patch.setattr(probe, "time_step", time_step)
        train(recipe, PlainContext(device=DEVICE, threads=1, gpu_share=0.25))
        train(short, PlainContext(device=DEVICE, threads=1))
    assert limits == [(0.25, 0)]


def test_the_host_waits_for_no_step(short: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """But where the workers agree, it reads from the GPU as often in an epoch of four steps as in one of two."""
    monkeypatch.setattr(Agreement, "is_due", lambda _, is_last: is_last)
    reads = []
    for batch_size in (120, 60):
        with pretended_gpu() as gpu:
            train(short.with_values({"batch_size": batch_size}), Watched(DEVICE))
        assert gpu.replays == 240 // batch_size
        reads.append(gpu.reads)
    assert reads[0] == reads[1]


def test_the_host_waits_for_no_batch_of_an_evaluation() -> None:
    with pretended_gpu() as gpu:
        tally = Tally(6, PlainContext(device=DEVICE, threads=1))
        for places in (np.array([0, 5]), np.array([1, 3])):
            labels = torch.arange(2, device=DEVICE)
            tally.add(torch.eye(2, device=DEVICE), Batch(torch.zeros(2, device=DEVICE), labels, places))
        assert gpu.reads == 0
        found = tally.result()
    assert found.metrics["validation_top1"] == 1
    assert found.images.correct.tolist() == [True, True, False, True, False, True]
    assert found.images.measured.tolist() == found.images.correct.tolist()


@pytest.mark.parametrize(
    ("first", "second"), [(DEVICE, DEVICE), (DEVICE, CPU), (CPU, DEVICE)], ids=lambda device: device.type
)
def test_a_stopped_training_resumes_on_either_device(
    first: torch.device,
    second: torch.device,
    short: Recipe,
    on_the_cpu: tuple[dict[str, torch.Tensor], list[dict[str, float]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "TrainStep", functools.partial(TrainStep, rates_on_device=True))
    expected, numbers = on_the_cpu
    for device, stops_after, state in ((first, 0.5, "stopped"), (second, 1e9, "finished")):
        watched = Watched(device, tmp_path, stops_after)
        with pretended_gpu() if device is DEVICE else contextlib.nullcontext():
            outcome = train(short, watched)
            assert outcome.state == state
            found = weights(outcome)
    assert watched.numbers == numbers
    assert_same(found, expected)


def test_a_cohort_gives_the_numbers_of_the_cpu(short: Recipe) -> None:
    recipes = [short.with_values({"optimizer.agc.clip_factor": factor}) for factor in (0.01, None)]
    on_cpu, on_gpu = ([Watched(device) for _ in recipes] for device in (CPU, DEVICE))
    train_cohort(recipes, on_cpu)
    with pretended_gpu() as gpu:
        train_cohort(recipes, on_gpu)
    assert [lane.numbers for lane in on_gpu] == [lane.numbers for lane in on_cpu]
    assert gpu.replays == 2


@pytest.mark.parametrize(
    ("major", "minor", "precision", "refusal"),
    [
        (
            7,
            0,
            "float32",
            r"torch .* has no code for .* \(compute capability 7\.0\), only for sm_75, sm_80: install",
        ),
        (7, 5, "float32", None),
        (
            7,
            5,
            "bfloat16",
            r"no arithmetic in bfloat16 \(compute capability 7\.5; it needs 8\.0 or later\): train with",
        ),
        (8, 6, "bfloat16", None),
    ],
)
def test_a_gpu_that_cannot_train_the_recipe_is_refused_before_the_first_step(
    major: int,
    minor: int,
    precision: str,
    refusal: str | None,
    short: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = short.with_values({"precision": precision, "data.image_size": 32, "data.eval_size": 32})
    with pretended_gpu():
        properties = torch.cuda.get_device_properties(DEVICE)
        monkeypatch.setattr(properties, "major", major)
        monkeypatch.setattr(properties, "minor", minor)
        monkeypatch.setattr(torch.version, "cuda", "13.2")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
        stopping = Watched(DEVICE, epochs=0.5)
        expected = pytest.raises(UserError, match=refusal) if refusal else contextlib.nullcontext()
        with expected:
            assert train(recipe, stopping).state == "stopped"


def test_the_pretended_gpu_refuses_tensors_of_the_host_and_counts_what_is_read() -> None:
    with pretended_gpu() as gpu:
        on_gpu = torch.arange(3.0, device=DEVICE)
        with pytest.raises(RuntimeError, match="cuda:0 and of the CPU"):
            on_gpu + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            on_gpu.numpy()
        assert gpu.reads == 0
        assert (on_gpu.sum().item(), on_gpu.tolist(), on_gpu.cpu().numpy().tolist()) == (
            3,
            [0, 1, 2],
            [0, 1, 2],
        )
        torch.empty(3).copy_(on_gpu)
        assert gpu.reads == 4
        on_gpu[torch.arange(2, device=DEVICE)] = torch.ones(())
        assert gpu.reads == 5
    assert not torch.cuda.is_available()


def assert_same(mine: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == others.keys()
    assert [name for name in mine if not torch.equal(mine[name], others[name])] == []
