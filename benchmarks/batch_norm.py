"""What batch normalisation costs, and what it depends on: three faults that Brock et al. (2021, section 1) name.

``python -m benchmarks.batch_norm`` trains a normaliser-free network and its batch-normalised twin for two epochs on the
digits, and prints for both the time and memory of a step, the accuracy in training and in evaluation mode, and how far
the images of a batch depend on each other. The fourth fault, small batches, is what ``studies/batch_norm.py`` is about.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.digits import write_digits
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.data.draws import epoch_order
from nfnet_ray.data.files.dataset import DatasetSummary, check_dataset, open_dataset
from nfnet_ray.data.loading.loader import EvalLoader
from nfnet_ray.data.normalise import normalise
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.study.study import Study
from nfnet_ray.training import PlainContext, train
from studies.batch_norm import batch_norm

BATCH = 64
STEPS_TIMED = 20  # of each network, in turn, so that a disturbance hits both
TRAINED_EPOCHS = 2
MODE_BATCHES = (2, 8, 64)
DEPENDENT = 8  # images of a batch of which one changes


def main() -> None:
    """Prints the faults of both networks, trained on the digits."""
    with tempfile.TemporaryDirectory() as folder:
        data = check_dataset(write_digits(Path(folder) / "digits"))
        study = batch_norm(data, TRAINED_EPOCHS)
        for fault in faults(study, data):
            print(fault)


def faults(study: Study, data: DatasetSummary) -> Iterator[str]:
    """A line for each network and fault, of both networks trained with the study's largest batch."""
    recipes = {
        "batch normalisation" if point["model.overrides.batch_norm"] else "normaliser-free": resolve(
            study.recipe.with_values(point)
        )
        for point in (study.points or ())[-2:]
    }
    models = {name: train(recipe, PlainContext(threads=1)).model for name, recipe in recipes.items()}
    images, labels = _validation_images(next(iter(recipes.values())), data)
    seconds = step_seconds(models, images[:BATCH], labels[:BATCH])
    for name, model in models.items():
        kept = kept_bytes(model, images[:BATCH])
        in_training = ", ".join(
            f"{accuracy(model, images, labels, size):.1%} in batches of {size}" for size in MODE_BATCHES
        )
        yield (
            f"{name}: a training step of {BATCH} images takes {1000 * seconds[name]:.1f} ms and keeps "
            f"{kept / 2**20:.2f} MiB for the backward pass"
        )
        yield (
            f"{name}: top-1 {accuracy(model, images, labels, None):.1%} in evaluation mode; "
            f"in training mode {in_training}"
        )
        yield (
            f"{name}: when one of {DEPENDENT} images changes, the logits of the others move by "
            f"{dependence(model, images):.2%}"
        )


def step_seconds(models: Mapping[str, nn.Module], images: Tensor, labels: Tensor) -> dict[str, float]:
    """Median processor seconds of a forward and backward pass, of each network in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(STEPS_TIMED):
        for name, model in models.items():
            model.train()
            start = time.process_time()
            F.cross_entropy(model(images), labels).backward()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes of the activations that a forward pass keeps for the backward pass; weights are not counted."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(images)
    del logits  # until here nothing is freed, so no address is there twice
    return sum(kept.values())


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int | None) -> float:
    """Top-1, a fraction: in evaluation mode, or with a batch size in training mode, by the batch's own statistics."""
    model = copy.deepcopy(model).train(batch_size is not None)  # a copy: running statistics would change
    whole = len(images) if batch_size is None else len(images) // batch_size * batch_size
    parts = images[:whole].split(batch_size or whole)
    predicted = torch.cat([model(part).argmax(dim=1) for part in parts])
    return float((predicted == labels[:whole]).double().mean())


@torch.no_grad()
def dependence(model: nn.Module, images: Tensor) -> float:
    """How far the other images' logits move in training mode when one image is replaced: the norm of the change of
    their logits / the norm of the logits, the mean over batches of :data:`DEPENDENT` images."""
    model = copy.deepcopy(model).train()
    changes = []
    for batch in images[: len(images) // DEPENDENT * DEPENDENT].split(DEPENDENT):
        changed = batch.clone()
        changed[0] = images[-1]
        before, after = model(batch)[1:], model(changed)[1:]
        changes.append(float((after - before).norm() / before.norm()))
    return statistics.fmean(changes)


def _validation_images(recipe: ResolvedRecipe, data: DatasetSummary) -> tuple[Tensor, Tensor]:
    """All validation images, normalised, (N, 3, H, W), and their labels (N,), in an order that mixes the classes."""
    loader = EvalLoader(
        open_dataset(data.path).validation, recipe.data, batch_size=data.validation_images, rank=0, world_size=1,
        device=torch.device("cpu"), threads=1,
    )  # fmt: skip
    batch = next(iter(loader))
    order = torch.from_numpy(epoch_order(0, 0, len(batch.labels)))
    return normalise(batch.images, torch.contiguous_format)[order], batch.labels[order]


if __name__ == "__main__":
    OneLineParser(description=__doc__).parse_args()
    main()
