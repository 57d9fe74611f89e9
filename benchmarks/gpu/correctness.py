"""Whether a GPU computes what a CPU does: checks whose time does not matter, so others may use the device meanwhile."""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu.captured import new_captured_step
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.networks import TINY, constant_rates, new_step, random_batch, recipe_of
from benchmarks.gpu.rows import Recorder
from data_prep.digits import ALL_DIGITS, DigitsPart, describe_digits, write_digits
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.loading.loader import EvalLoader
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext, run, train
from nfnet_ray.training.captured import Recorder as GraphRecorder
from nfnet_ray.training.captured import recorder_for
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.evaluation import EVAL_BATCH_SIZE, evaluate
from nfnet_ray.training.form.kept import KeptGraphs
from studies.base_recipe import recipe_for

CLASSES = 10
TWO_DIGITS = DigitsPart("digits_0_and_1", "scikit-learn digits, 0 and 1", "01", 0.2)
STEPS_IN_BFLOAT16 = 20
STEPS_IN_FLOAT64 = 4
LARGEST_FLOAT64_DIFFERENCE = 1e-9
"""Relative to the largest weight. Rounding alone is 1e-15 a step; a mistake shows in the first digits."""
LARGEST_DDP_DIFFERENCE = 1e-6
FLOAT64_CHECKS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"optimizer__agc__clip_factor": None},
    "AGC": {"optimizer__agc__clip_factor": 0.02},
    "SAM": {"optimizer__agc__clip_factor": 0.02, "optimizer__sam__rho": 0.05},
    "ESAM": {
        "optimizer__agc__clip_factor": 0.02,
        "optimizer__sam__rho": 0.05,
        "optimizer__sam__method": "esam",
    },
    "accumulation": {"optimizer__agc__clip_factor": 0.02, "micro_batches": 4},
}
CAPTURED_STEPS = 6
CAPTURED_CHECKS: Mapping[str, Mapping[str, Any]] = {
    "AGC": {},
    "without AGC": {"optimizer__agc__clip_factor": None},
    "SAM": {"optimizer__sam__rho": 0.05},
    "LookSAM": {
        "optimizer__sam__rho": 0.05,
        "optimizer__sam__method": "looksam",
        "optimizer__sam__looksam_interval": 2,
    },
    "ESAM": {"optimizer__sam__rho": 0.05, "optimizer__sam__method": "esam"},
    "SAM by micro-batch": {
        "optimizer__sam__rho": 0.05,
        "optimizer__sam__perturbation": "micro_batch",
        "micro_batches": 2,
    },
    "RMSProp, draws of torch's generator": {"network": "test_efficientnet", "optimizer__name": "rmsprop"},
}
BETWEEN_WEIGHTS = "largest difference of a weight / largest weight"


def measure(recorder: Recorder, machine: Machine, _options: argparse.Namespace) -> None:
    """Every check; one that cannot be run is a row with its error."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # for determinism; read when cuBLAS is first used
    for name, values in FLOAT64_CHECKS.items():
        case = f"float64, {STEPS_IN_FLOAT64} steps against the CPU, {name}"
        with recorder.case(case):
            difference = difference_from_the_cpu(machine, values)
            add_check(recorder, case, BETWEEN_WEIGHTS, difference, LARGEST_FLOAT64_DIFFERENCE)
    for name, values in CAPTURED_CHECKS.items():
        case = f"float32, {CAPTURED_STEPS} steps captured against kernel by kernel, {name}"
        with recorder.case(case):
            graphs = recorder_for(machine.device)
            if graphs is None:
                recorder.add(case, "skipped", "needs a GPU")
                continue
            add_check(recorder, case, BETWEEN_WEIGHTS, captured_difference(machine, values, graphs), 0.0)
    case = f"bfloat16 against float32, {STEPS_IN_BFLOAT16} steps of nfnet_nano"
    with recorder.case(case):
        recorder.add(case, "largest relative difference of a loss", loss_difference(machine))
    case = "one rank of DistributedDataParallel against none, NCCL"
    with recorder.case(case):
        add_check(recorder, case, BETWEEN_WEIGHTS, ddp_difference(machine), LARGEST_DDP_DIFFERENCE)
    with tempfile.TemporaryDirectory() as folder:
        check_digits(recorder, machine, Path(folder))


def add_check(recorder: Recorder, case: str, quantity: str, difference: float, limit: float) -> None:
    """A row with a difference, and one that says whether it is small enough."""
    recorder.add(case, quantity, difference)
    recorder.add(case, "holds", "yes" if difference <= limit else "no", f"limit {limit:g}")


# ---- Steps on random images ------------------------------------------------------------------------------------------


def difference_from_the_cpu(machine: Machine, values: Mapping[str, Any]) -> float:
    """Between the weights after some steps of nfnet_pico in float64, with dropout, on the device and on the CPU."""
    recipe = recipe_of(
        "nfnet_pico",
        machine,
        batch_size=16,
        precision="float64",
        model__dropout=0.1,
        model__stochastic_depth=0.1,
        **constant_rates(),
        **values,
    )
    weights = []
    for device in (torch.device("cpu"), machine.device):
        model, step = new_step(recipe, machine, device=device, num_classes=CLASSES)
        for seed in range(STEPS_IN_FLOAT64):
            step(random_batch(recipe, device, seed=seed, num_classes=CLASSES))
        weights.append(weights_of(model).cpu())
    return relative_difference(*weights)


def captured_difference(machine: Machine, values: Mapping[str, Any], graphs: GraphRecorder) -> float:
    """Between the weights after the same steps, captured by ``graphs`` and not, by deterministic algorithms.

    With a schedule, AGC, a moving average with warm-up, dropout and stochastic depth: whatever differs from step to
    step would show if it were a part of the graph.
    """
    changes: dict[str, Any] = {"network": "nfnet_pico", "optimizer__agc__clip_factor": 0.02, **values}
    recipe = recipe_of(
        changes.pop("network"),
        machine,
        batch_size=16,
        model__dropout=0.1,
        model__stochastic_depth=0.1,
        schedule__epochs=1,
        schedule__warmup_epochs=0.002,
        **changes,
    )
    vectors = []
    for recorder in (None, graphs):
        model, step = new_captured_step(recipe, machine, recorder)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        for seed in range(CAPTURED_STEPS):
            batch = random_batch(recipe, machine.device, seed=seed, num_classes=CLASSES)
            if not step.is_ready_for(batch):
                step.prepare(batch)
            step(batch)
        if step.refusal:
            raise RuntimeError(step.refusal)
        vectors.append(weights_of(model))
    torch.use_deterministic_algorithms(False)
    return relative_difference(*vectors)


def loss_difference(machine: Machine) -> float:
    """The largest, between the losses of the same steps in both precisions."""
    losses = []
    for precision in ("bfloat16", "float32"):
        recipe = recipe_of(
            "nfnet_nano",
            machine,
            batch_size=4 if machine.is_small else 128,
            precision=precision,
            **constant_rates(),
        )
        _, step = new_step(recipe, machine, num_classes=CLASSES)
        steps = 2 if machine.is_small else STEPS_IN_BFLOAT16
        batches = [
            random_batch(recipe, machine.device, seed=seed, num_classes=CLASSES) for seed in range(steps)
        ]
        losses.append(torch.stack([step(batch).loss_sum for batch in batches]))
    return float(((losses[0] - losses[1]) / losses[1]).abs().max())


def ddp_difference(machine: Machine) -> float:
    """Between the gradients of a network with DistributedDataParallel around it and without, as one rank alone."""
    recipe = recipe_of("nfnet_pico", machine, batch_size=8)
    model, _ = new_step(recipe, machine, num_classes=CLASSES)
    images = torch.randn(8, 3, 32, 32, device=machine.device)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(
            "nccl" if machine.is_gpu else "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        try:
            devices = [machine.device] if machine.is_gpu else None
            gradients = []
            for network in (model, DistributedDataParallel(model, device_ids=devices)):
                model.zero_grad()
                network(images).square().mean().backward()
                gradients.append(
                    torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
                )
            summed = torch.ones(2, device=machine.device)
            distributed.all_reduce(summed)
            assert summed.tolist() == [1.0, 1.0]
        finally:
            distributed.destroy_process_group()
    return relative_difference(*gradients)


def weights_of(model: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Of two vectors: the largest difference of an entry / the largest entry."""
    return float((a - b).abs().max() / b.abs().max())


# ---- A training on the digits ----------------------------------------------------------------------------------------


class StoppingContext(PlainContext):
    """Asks the run to stop with a checkpoint in the middle of its second epoch."""

    def progress(self, epochs: float) -> None:
        if epochs > 1.5:
            self.stop()


def check_digits(recorder: Recorder, machine: Machine, folder: Path) -> None:
    """Whether a resumed training ends with the same bits, and whether evaluation counts the same images on a CPU."""
    part = TWO_DIGITS if machine.is_small else ALL_DIGITS
    data = write_digits(folder / "digits", part)
    side = 16 if machine.is_small else 32
    recipe = recipe_for(describe_digits(data, part), epochs=2 if machine.is_small else 3).with_values(
        {
            "batch_size": 64,
            "data.path": str(data),
            "data.image_size": side,
            "data.eval_size": side,
            **(TINY if machine.is_small else {}),
            "optimizer.ema.decay": 0.99,
            "model.dropout": 0.1,
            # Left open, each of the trainings would time the forms, and might choose another one.
            "memory_format": "contiguous",
            "grouped_convolutions": "whole",
        }
    )
    case = "digits, stopped and resumed against undisturbed"
    with recorder.case(case), deterministic():
        add_resumed(recorder, case, machine, recipe, folder)
    case = "digits, a trial with the graphs of the one before against one with its own"
    with recorder.case(case), deterministic():
        add_check(recorder, case, BETWEEN_WEIGHTS, difference_of_kept_graphs(machine, recipe), 0.0)
    case = "digits, two undisturbed trainings, algorithms by trial"
    with recorder.case(case):
        first, second = (
            train(recipe, PlainContext(device=machine.device, threads=machine.threads)).model
            for _ in range(2)
        )
        recorder.add(case, BETWEEN_WEIGHTS, relative_difference(weights_of(first), weights_of(second)))
    case = "digits, evaluation against the CPU"
    with recorder.case(case):
        add_evaluation(recorder, case, machine, recipe, first)


def add_resumed(recorder: Recorder, case: str, machine: Machine, recipe: Recipe, folder: Path) -> None:
    """Trains twice, once with a stop."""
    settings: dict[str, Any] = {"device": machine.device, "threads": machine.threads}
    undisturbed = train(recipe, PlainContext(**settings))
    stopped = train(recipe, StoppingContext(checkpoints=folder / "checkpoints", **settings))
    resumed = train(recipe, PlainContext(checkpoints=folder / "checkpoints", **settings))
    recorder.add(case, "state when stopped", stopped.state, f"after epoch {stopped.epochs}", in_table=False)
    assert undisturbed.average is not None
    assert resumed.average is not None
    pairs = ((undisturbed.model, resumed.model), (undisturbed.average, resumed.average))
    difference = max(relative_difference(weights_of(a), weights_of(b)) for a, b in pairs)
    add_check(recorder, case, BETWEEN_WEIGHTS, difference, 0.0)


def difference_of_kept_graphs(machine: Machine, recipe: Recipe) -> float:
    """Between the weights of a training that replays what another one has captured, and of one that captures itself.

    Raises RuntimeError where nothing was captured on a GPU: trainings kernel by kernel would always be the same.
    """
    kept, weights = KeptGraphs(), []
    before = recipe.with_values(
        {"seed": recipe.seed + 1, "optimizer.agc.clip_factor": 0.5, "model.dropout": 0.3}
    )
    for one, graphs in ((before, kept), (recipe, kept), (recipe, None)):
        context = PlainContext(device=machine.device, threads=machine.threads)
        context.kept_graphs = graphs
        weights.append(weights_of(train(one, context).model).clone())
        if machine.is_gpu and not kept.holds_graphs:
            raise RuntimeError(
                "no step was captured; captured steps against kernel by kernel, above, may say why"
            )
    return relative_difference(*weights[1:])


@contextmanager
def deterministic() -> Generator[None]:
    """Within it, trainings use deterministic algorithms alone, where there are any, else they warn.

    A training sets these switches itself; so this replaces what sets them.
    """

    def reset_to_deterministic(seed: int, threads: int) -> None:
        reset_process(seed, threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True

    before, run.reset_process = run.reset_process, reset_to_deterministic
    try:
        yield
    finally:
        run.reset_process = before


def add_evaluation(recorder: Recorder, case: str, machine: Machine, recipe: Recipe, model: nn.Module) -> None:
    """Evaluates one network on the device and on the CPU, in float32."""
    resolved, dataset = resolve(recipe), open_dataset(recipe.data.path)
    found = []
    for device in (machine.device, torch.device("cpu")):
        reset_process(0, machine.threads)
        loader = EvalLoader(
            dataset.validation,
            resolved.data,
            batch_size=EVAL_BATCH_SIZE,
            rank=0,
            world_size=1,
            device=device,
            threads=machine.threads,
        )
        network = copy.deepcopy(model).to(device)
        context = PlainContext(device=device, threads=machine.threads)
        found.append(evaluate(network, loader, len(dataset.validation), resolved, context))
    ours, of_the_cpu = found
    loss, loss_of_the_cpu = (one.metrics["validation_loss"] for one in found)
    recorder.add(case, "relative difference of the loss", abs(loss - loss_of_the_cpu) / loss_of_the_cpu)
    different = int((ours.images.correct != of_the_cpu.images.correct).sum())
    recorder.add(case, "images that one of both recognises", different, f"of {len(dataset.validation)}")
