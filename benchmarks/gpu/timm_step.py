"""timm's own training step, as its train.py does it: its network, its AGC, its optimiser and its moving average."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.data.normalise import CHANNEL_MEAN, CHANNEL_STD
from nfnet_ray.models.variants import Variant
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.form.compilation import compiled
from nfnet_ray.training.gradient import MEMORY_FORMATS


def timm_step(
    name: str, variant: Variant, recipe: ResolvedRecipe, machine: Machine, num_classes: int
) -> Callable[[TrainBatch], Tensor]:
    """A function from a batch to the loss of a step on it, with the Recipe's values and timm's network ``name``.

    train.py with --amp --amp-dtype bfloat16 --clip-mode agc --clip-grad 0.01 --model-ema --opt sgd --smoothing 0.1, and
    --channels-last or --torchcompile where the Recipe says so. As in timm's prefetcher the images are normalised on the
    device.
    """
    import timm
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.models import model_parameters
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3, dispatch_clip_grad

    reset_process(recipe.seed, machine.threads)
    device, memory_format = machine.device, MEMORY_FORMATS[recipe.memory_format]
    model = timm.create_model(
        name,
        pretrained=False,
        num_classes=num_classes,
        drop_rate=variant.dropout,
        drop_path_rate=variant.stochastic_depth,
    )
    model.to(device).to(memory_format=memory_format).train()
    optimizer = create_optimizer_v2(
        model,
        opt="sgd",  # Nesterov's
        lr=recipe.peak_learning_rate,
        weight_decay=recipe.optimizer.weight_decay,
        momentum=recipe.optimizer.momentum,
    )
    average = ModelEmaV3(model, decay=recipe.optimizer.ema.decay or 0.0)
    network = compiled(model, recipe) if recipe.compile else model
    loss_function = LabelSmoothingCrossEntropy(recipe.loss.label_smoothing)
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (CHANNEL_MEAN, CHANNEL_STD)
    )
    clip_factor = recipe.optimizer.agc.clip_factor or 0.0

    def step(batch: TrainBatch) -> Tensor:
        images = batch.images.permute(0, 3, 1, 2).float().sub_(mean).div_(std)
        images = images.contiguous(memory_format=memory_format)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss = loss_function(network(images), batch.labels)
        loss.backward()
        dispatch_clip_grad(model_parameters(model, exclude_head=True), clip_factor, mode="agc")
        optimizer.step()
        average.update(model)
        optimizer.zero_grad()
        detached: Tensor = loss.detach()
        return detached

    return step
