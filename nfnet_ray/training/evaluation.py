"""Accuracy on the validation images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from nfnet_ray.data.batch import Batch
from nfnet_ray.data.loading.loader import EvalLoader
from nfnet_ray.data.normalise import normalise
from nfnet_ray.metric import METRIC
from nfnet_ray.models.signal import measure_signal, signal_metrics
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.collectives import add_over_workers
from nfnet_ray.training.context import Context
from nfnet_ray.training.gradient import DTYPES, MEMORY_FORMATS

SIGNAL_IMAGES = 32  # enough for a mean over images and pixels
EVAL_BATCH_SIZE = 256  # images a worker holds at once; no result depends on it but for rounding


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], recipe: Recipe, context: Context
) -> dict[str, float]:
    """Top-1 and top-5 as fractions and the mean cross-entropy, over the images of all workers.

    Each image counts exactly once, on any number of workers. A single crop, no test-time augmentation. Leaves
    the model in evaluation mode.
    """
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=context.device)
    for batch in batches:
        images = normalise(batch.images, MEMORY_FORMATS[recipe.memory_format]).to(DTYPES[recipe.precision])
        with torch.autocast(context.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = model(images).to(DTYPES[recipe.precision])
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        count = torch.tensor(float(len(batch.labels)), device=context.device)
        sums += torch.stack([best[:, 0].sum(), best.any(dim=1).sum(), loss, count]).double()
    top1, top5, loss_sum, count = add_over_workers(sums, context).tolist()
    return {
        METRIC: top1 / count,
        "validation_top5": top5 / count,
        "validation_loss": loss_sum / count,
    }


def evaluate_signal(model: nn.Module, loader: EvalLoader, recipe: Recipe) -> dict[str, float]:
    """How large the activations are, block by block, on the first validation images of this worker.

    See ``nfnet_ray.models.signal``; the metrics are called ``signal/...``.
    """
    batch = next(iter(loader))
    images = normalise(batch.images[:SIGNAL_IMAGES], MEMORY_FORMATS[recipe.memory_format])
    return signal_metrics(measure_signal(model, images.to(DTYPES[recipe.precision])))
