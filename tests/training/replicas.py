"""Two optimiser steps of a tiny network in float64, in this process or as one of several workers.

:func:`main`: one, two and three workers, which are six processes at the same time. The weights after the last step of
each case of a world size (with their moving average, and the counts of clipped units) go to ``RANKofSIZE.pt``, a file
for torch.load. With three workers, only the cases in which they stand for four.
"""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.data.batching import positions_of_worker
from nfnet_ray.models import model_of
from nfnet_ray.models.layers import ScaledWSConv2d
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.models.standardisation import JointStandardisation
from nfnet_ray.models.weights.pretrained import set_training_mode, start_from
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.context import PlainContext
from nfnet_ray.training.gradient import DTYPES
from nfnet_ray.training.step import TrainStep

BATCH, PIXELS, CLASSES, STEPS = 16, 16, 5, 2

SAM: dict[str, dict[str, Any]] = {
    "no_sam": {},
    "sam_global": {"rho": 0.5, "perturbation": "global"},
    "sam_global_quarter": {"rho": 0.5, "perturbation": "global", "ascent_share": 0.25},
    "sam_global_uneven": {"rho": 0.5, "perturbation": "global", "ascent_share": 0.3},
    "asam_global": {"rho": 0.5, "perturbation": "global", "method": "asam"},
    "looksam": {"rho": 0.5, "method": "looksam", "looksam_interval": 2},
    "esam_global": {"rho": 0.5, "perturbation": "global", "method": "esam"},
    "frozen": {"rho": 0.5, "perturbation": "global"},
    "sam_replica": {"rho": 0.5, "perturbation": "replica"},
    "sam_replica_half": {"rho": 0.5, "perturbation": "replica", "ascent_share": 0.5},
    "asam_replica": {"rho": 0.5, "perturbation": "replica", "method": "asam"},
    "esam_replica": {"rho": 0.5, "perturbation": "replica", "method": "esam"},
    "sam_micro_batch": {"rho": 0.5, "perturbation": "micro_batch"},
    "sam_micro_batch_half": {"rho": 0.5, "perturbation": "micro_batch", "ascent_share": 0.5},
    "asam_micro_batch": {"rho": 0.5, "perturbation": "micro_batch", "method": "asam"},
    "esam_micro_batch": {"rho": 0.5, "perturbation": "micro_batch", "method": "esam"},
}
BOTH_OR_NEITHER = ((False, False), (True, True))  # AGC, moving average
IN_EVERY_COMBINATION = ("no_sam", "sam_global")
"""With these AGC and the average are also tried alone: what follows the gradient knows nothing of how it came about."""
WORKERS = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
"""(rank, world size) of each process."""
MICRO_BATCHES = (1, 2)
MORE_MICRO_BATCHES = 4  # of one worker alone, and with AGC and the average
REPLICAS = 4  # that one, two and three workers stand for, with AGC and the average


def recipe(sam: str, agc: bool, ema: bool, micro_batches: int) -> Recipe:
    """With weight decay, Nesterov, label smoothing, dropout and stochastic depth in every case."""
    values: dict[str, Any] = {
        "model.name": "nf_resnet50",  # a third of the operations of an NFNet of four blocks
        "model.trained": "classifier" if sam == "frozen" else "all",
        "model.dropout": 0.3,
        "model.stochastic_depth": 0.3,
        "model.overrides.width": [16, 16, 16, 32],
        "model.overrides.depth": [1, 1, 1, 1],
        "model.overrides.se_ratio": 0.5,
        "optimizer.agc.clip_factor": 0.02 if agc else None,
        "optimizer.weight_decay": 0.01,
        "optimizer.ema.decay": 0.9 if ema else None,
        "schedule.epochs": 1,
        "schedule.warmup_epochs": 0.0,
        "schedule.base_learning_rate": 1.6,
        "batch_size": BATCH,
        "micro_batches": micro_batches,
        "precision": "float64",
    }
    return Recipe().with_values(values | {f"optimizer.sam.{name}": value for name, value in SAM[sam].items()})


class Worker(PlainContext):
    """One of several workers, without Ray."""

    def __init__(self, rank: int, world_size: int, replicas: int) -> None:
        super().__init__(device=torch.device("cpu"), threads=1)
        self.rank, self.world_size, self.replicas = rank, world_size, replicas  # type: ignore[misc]


def global_batch(step: int) -> TrainBatch:
    """Random images with MixUp's kind of labels."""
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (BATCH, PIXELS, PIXELS, 3), generator=generator, dtype=torch.uint8)
    return TrainBatch(
        images=pixels,
        labels=torch.randint(0, CLASSES, (BATCH,), generator=generator),
        indices=np.arange(BATCH),
        positions=np.arange(BATCH),
        keys=torch.randint(-(2**62), 2**62, (BATCH,), generator=generator),
        partner_labels=torch.randint(0, CLASSES, (BATCH,), generator=generator),
        label_share=torch.rand(BATCH, generator=generator),
    )


def network(recipe: Recipe, *, is_whole: bool = False) -> NFNet:
    """The same initial weights every time, with gains and biases that matter.

    Unless it is to be whole it has only the blocks of the first and the last stage: a step, which treats all blocks
    alike, takes half as long.
    """
    torch.manual_seed(0)
    model = model_of(recipe.model, CLASSES)
    assert isinstance(model, NFNet)
    if not is_whole:
        model.blocks = nn.ModuleList([model.blocks[0], model.blocks[-1]])
        model.standardisation = JointStandardisation(
            [layer for layer in model.modules() if isinstance(layer, ScaledWSConv2d)]
        )
    model.to(DTYPES[recipe.precision])
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    start_from(model, recipe.model)
    set_training_mode(model)
    return model


def train(recipe: Recipe, worker: Worker) -> dict[str, torch.Tensor]:
    """The weights after the last step, their average, and what was counted of AGC."""
    model = network(recipe)
    step = TrainStep(model, recipe, worker, steps_per_epoch=STEPS)
    own = torch.from_numpy(positions_of_worker(BATCH, worker.rank, worker.world_size, worker.replicas))
    for number in range(STEPS):
        step(global_batch(number).chosen(own))
    result = {f"weights.{name}": tensor for name, tensor in model.state_dict().items()}
    if step.average:
        result |= {f"average.{name}": tensor for name, tensor in step.average.state_dict().items()}
    result |= {f"clipping.{name}": tensor for name, tensor in step.clipping_counts.state_dict().items()}
    return result


def cases() -> list[tuple[str, bool, bool]]:
    """(SAM, AGC, average) of everything that is compared."""
    each = tuple(itertools.product((False, True), repeat=2))
    return [
        (sam, agc, ema)
        for sam in SAM
        for agc, ema in (each if sam in IN_EVERY_COMBINATION else BOTH_OR_NEITHER)
    ]


def compared(world_size: int) -> Iterator[tuple[str, bool, bool, int]]:
    """(SAM, AGC, average, micro-batches): the cases of one or two workers that test_step.py compares with others."""
    for sam, agc, ema in cases():
        for micro_batches in (*MICRO_BATCHES, MORE_MICRO_BATCHES):
            if micro_batches == MORE_MICRO_BATCHES and not (agc and ema and world_size == 1):
                continue
            # One perturbation for each micro-batch: it takes two, and two workers are compared with one that has four.
            if "micro_batch" in sam and (micro_batches == 1 or (world_size == 2 and not (agc and ema))):
                continue
            yield sam, agc, ema, micro_batches


def work(folder: Path, rank: int, world_size: int) -> None:
    """One worker: trains all cases of its world size and keeps the results."""
    torch.set_num_threads(1)
    if world_size > 1:
        store = folder / f"store of {world_size}"
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    results: dict[tuple[Any, ...], dict[str, torch.Tensor]] = {}
    if world_size < 3:
        worker = Worker(rank, world_size, replicas=world_size)
        for case in compared(world_size):
            results[case] = train(recipe(*case), worker)
    worker = Worker(rank, world_size, REPLICAS)
    for sam in SAM:
        results["of four", sam] = train(recipe(sam, agc=True, ema=True, micro_batches=2), worker)
    torch.save(results, folder / f"{rank}of{world_size}.pt")
    assert "torch._dynamo" not in sys.modules  # half of what starting one of several workers takes
    if world_size > 1:
        dist.destroy_process_group()


def main(folder: Path) -> int:
    """Forks the workers, whose results go into the folder; 1 if one of them failed."""
    children = []
    for rank, world_size in WORKERS:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(folder, rank, world_size)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return int(any(statuses))
