"""Accuracy on the validation images."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfnet_ray.correct_images import CorrectImages
from nfnet_ray.data.batch import Batch, on_device
from nfnet_ray.data.normalise import normalise
from nfnet_ray.metric import METRIC
from nfnet_ray.models.signal import measure_signal, signal_metrics
from nfnet_ray.models.standardisation import keeping_standardised_weights
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.collectives import add_over_workers
from nfnet_ray.training.context import Context
from nfnet_ray.training.form.probe import is_out_of_memory
from nfnet_ray.training.gradient import DTYPES, MEMORY_FORMATS

logger = logging.getLogger(__name__)

SIGNAL_IMAGES = 32  # enough for a mean over images and pixels
EVAL_BATCH_SIZE = 256  # images that a worker evaluates at once; it changes results only by rounding


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        metrics: top-1 and top-5 accuracy as fractions, and the mean cross-entropy.
        images: which images were classified correctly; their mean is the top-1 accuracy.
    """

    metrics: dict[str, float]
    images: CorrectImages


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], images: int, recipe: Recipe, context: Context
) -> Evaluation:
    """Evaluates a model on the batches of all workers, which have ``images`` images in all.

    Each image counts exactly once, on any number of workers. There is a single crop, without test-time augmentation. A
    batch that does not fit into memory is evaluated in parts, since a Recipe of large images may train on few at a
    time. Leaves the model in evaluation mode.
    """
    model.eval()
    tally = Tally(images, context)
    most = EVAL_BATCH_SIZE
    with keeping_standardised_weights(model):
        for batch in batches:
            while (logits := _logits(model, batch, most, recipe, context)) is None:
                most = math.ceil(min(most, len(batch.labels)) / 2)
                logger.warning(
                    "evaluation: a batch does not fit the memory; %d images at once from now on", most
                )
            tally.add(logits, batch)
    return tally.result()


def _logits(model: nn.Module, batch: Batch, most: int, recipe: Recipe, context: Context) -> Tensor | None:
    """Logits (N, classes) of a batch, computed for ``most`` images at a time; None if these do not fit into memory."""
    parts = (
        [batch]
        if len(batch.labels) <= most
        else [batch.part(slice(start, start + most)) for start in range(0, len(batch.labels), most)]
    )
    logits = []
    try:
        for part in parts:
            with autocast(recipe, context):
                logits.append(model(pixels_of(part, recipe)).to(DTYPES[recipe.precision]))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or min(most, len(batch.labels)) == 1:
            raise
        return None
    return logits[0] if len(logits) == 1 else torch.cat(logits)


class Tally:
    """Counts the correct answers and sums the losses of the images of all workers, ``images`` in all."""

    def __init__(self, images: int, context: Context) -> None:
        self._context = context
        self._sums = torch.zeros(4, dtype=torch.float64, device=context.device)
        # For each image: 1 if it was classified correctly, and 1 if it was evaluated at all.
        self._by_image = torch.zeros(2, images, dtype=torch.uint8, device=context.device)

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Counts the images of a batch, by their logits (N, classes)."""
        device = self._context.device
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        count = torch.full(
            (), float(len(batch.labels)), device=device
        )  # torch.tensor would wait for the device
        self._sums += torch.stack([best[:, 0].sum(), best.any(dim=1).sum(), loss, count]).double()
        rows = on_device(batch.indices, device)
        correct, measured = self._by_image
        correct.index_copy_(0, rows, best[:, 0].to(torch.uint8))
        measured.index_fill_(0, rows, 1)  # for measured[rows] = 1 torch 2.11 would wait for the device

    def result(self) -> Evaluation:
        """The evaluation over all workers. Collective: every worker calls it."""
        top1, top5, loss_sum, count = add_over_workers(self._sums, self._context).tolist()
        metrics = {
            METRIC: top1 / count,
            "validation_top5": top5 / count,
            "validation_loss": loss_sum / count,
        }
        correct, measured = add_over_workers(self._by_image, self._context).cpu().numpy().astype(bool)
        return Evaluation(metrics, CorrectImages(correct, measured))


def pixels_of(batch: Batch, recipe: Recipe) -> Tensor:
    """The images of a batch as the input of a network, in the Recipe's precision and memory format."""
    return normalise(batch.images, MEMORY_FORMATS[recipe.memory_format]).to(DTYPES[recipe.precision])


def autocast(recipe: Recipe, context: Context) -> torch.autocast:
    """A context in which a network computes in the Recipe's precision."""
    return torch.autocast(context.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


def evaluate_signal(model: nn.Module, batches: Iterable[Batch], recipe: Recipe) -> dict[str, float]:
    """Measures the size of the activations, block by block, on the first validation images of this worker.

    The metrics are called ``signal/...`` (``nfnet_ray.models.signal``). The result is empty on a worker without images;
    the first worker, which reports, always has some.
    """
    batch = next(iter(batches), None)
    if batch is None:
        return {}
    images = normalise(batch.images[:SIGNAL_IMAGES], MEMORY_FORMATS[recipe.memory_format])
    return signal_metrics(measure_signal(model, images.to(DTYPES[recipe.precision])))
