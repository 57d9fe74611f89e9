"""The gradient of one step: over micro-batches, over workers, with or without an ascent step of SAM.

A worker processes its share of the batch in equal micro-batches, whose gradients add up in ``.grad``. In the backward
pass of the last one DistributedDataParallel averages them over the workers. The result is the gradient of the mean loss
over the global batch, however the batch is divided.

With SAM the share is divided into groups, each with a separate ascent step (``optimizer.sam.perturbation``):

* ``replica``: the share of each replica is a group, so workers perturb the weights differently (paper A.4);
* ``global``: one perturbation for all workers, from the ascent gradient averaged over them;
* ``micro_batch``: each micro-batch is a group, so that a few devices behave like many replicas (paper A.4).

A replica is usually a worker. If there are fewer workers than replicas (``Context.replicas``), a worker computes
several replicas in turn.

Each group computes the ascent gradient on its first images, perturbs the weights, computes the descent gradient, and
restores the weights.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from nfnet_ray.data.batch import Indices, TrainBatch, on_device
from nfnet_ray.data.batching import positions_of_rank
from nfnet_ray.data.normalise import normalise
from nfnet_ray.errors import UserError
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.models.standardisation import keeping_standardised_weights
from nfnet_ray.optim.rates import Number, Rates, rates_at
from nfnet_ray.optim.sam import AscentNumbers, LookDirection, perturbation, perturbed, share_of, sharpest
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.collectives import add_all_over_workers, add_over_workers
from nfnet_ray.training.context import Context
from nfnet_ray.training.form.compilation import compiled

MEMORY_FORMATS: dict[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.float32}  # of the weights


@dataclass(frozen=True)
class Losses:
    """The cross-entropy of N images, and whether the label (with MixUp, the first label) had the largest logit."""

    loss_N: Tensor
    correct_N: Tensor


class EagerReplicas(DistributedDataParallel):
    """torch's DistributedDataParallel for a network that is not compiled.

    DistributedDataParallel reads options of the compiler and notifies it of each forward pass. Both import
    ``torch._dynamo``, which costs a new process 1.3 to 2.7 s of CPU time.
    """

    def __init__(self, network: nn.Module, **options: Any) -> None:
        with _no_compiler():
            super().__init__(network, **options)

    def _run_ddp_forward(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)


@contextlib.contextmanager
def _no_compiler() -> Generator[None]:
    """A context that prevents the import of ``torch._dynamo``: a stand-in answers the one question that torch asks."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "no_optimization")
    torch._dynamo = SimpleNamespace(utils=utils)  # pyrefly: ignore[bad-assignment]
    try:
        yield
    finally:
        del torch._dynamo  # the next access imports the real module


class Gradient:
    """Adds the gradient of a batch to ``.grad`` of the model's parameters."""

    def __init__(self, model: nn.Module, recipe: Recipe, context: Context) -> None:
        self.look_direction = LookDirection()
        self._model, self._recipe, self._context = model, recipe, context
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._network = compiled(model, recipe) if recipe.compile else model
        self._replicas: nn.Module = self._network
        if context.world_size > 1:
            devices = [context.device] if context.device.type == "cuda" else None
            kind = DistributedDataParallel if recipe.compile else EagerReplicas
            self._replicas = kind(self._network, device_ids=devices, gradient_as_bucket_view=True)
        self._dtype = DTYPES[recipe.precision]
        self._memory_format = MEMORY_FORMATS[recipe.memory_format]
        self._autocast = torch.autocast(
            context.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"
        )
        sam = recipe.optimizer.sam
        self._draws_by_sample = bool(getattr(model, "draws_by_sample", False))
        self._drop_rates: Tensor | None = None
        if isinstance(model, NFNet):
            self._drop_rates = torch.tensor(model.drop_rates(), dtype=self._dtype, device=context.device)
        if sam.rho is not None and sam.share_masks and sam.ascent_share < 1 and not self._draws_by_sample:
            raise UserError(
                f"{recipe.model.label} cannot draw the same dropout for a share of the batch: "
                "set optimizer.sam.share_masks=false or optimizer.sam.ascent_share=1"
            )
        self._rows: dict[bytes, Tensor] = {}
        self._smoothing: Number = recipe.loss.label_smoothing
        self._scope = sam.perturbation or ("global" if sam.method == "looksam" else "replica")

    @property
    def drop_rates(self) -> Tensor | None:
        """(blocks,) The drop rates of an NFNet, on the device; None for other networks, whose layers hold floats."""
        return self._drop_rates

    @property
    def repeats_draws(self) -> bool:
        """Whether a step rewinds torch's generator, so that two passes draw the same numbers."""
        sam = self._recipe.optimizer.sam
        return sam.rho is not None and sam.share_masks and not self._draws_by_sample

    def ascends_in(self, step: int) -> bool:
        """Whether optimiser step ``step`` has an ascent."""
        sam = self._recipe.optimizer.sam
        return sam.rho is not None and (sam.method != "looksam" or step % sam.looksam_interval == 0)

    def add(self, batch: TrainBatch, step: int, rates: Rates | None = None) -> Losses:
        """Adds the gradient of optimiser step ``step`` to ``.grad``, and returns the losses of the descent.

        ``batch`` is this worker's share, and ``rates`` are the rates of the step; None takes the Recipe's as floats.
        With SAM the losses are those at the perturbed weights; with ESAM, only those of the sharpest images.
        """
        sam = self._recipe.optimizer.sam
        rates = rates or rates_at(step, self._recipe, steps_per_epoch=1)
        self._smoothing = rates.label_smoothing
        # Workers may have different numbers of images. The mean over workers of (sum of losses / share) is nevertheless
        # the mean loss over the global batch.
        share = self._recipe.batch_size / self._context.world_size
        if sam.rho is None:
            return self._descend(batch, share)
        if not self.ascends_in(step):
            losses = self._descend(batch, share)
            self.look_direction.add_to_gradients(self._parameters, rates.looksam_alpha)
            return losses

        ascent = AscentNumbers(rates.ascent_length, rates.asam_eta, rates.mask_start, rates.mask_limit)
        groups = self._groups(batch)
        results = []
        for number, group in enumerate(groups, start=1):
            with self._draws_of_the_descent():
                ascent_gradients, before = self._ascend(group)
            offsets = perturbation(self._parameters, ascent_gradients, sam, numbers=ascent)
            with perturbed(self._parameters, offsets), _first_statistics(self._model):
                descended, images = group, share
                if sam.method == "esam":
                    descended, kept_share = self._sharpest(group, before)
                    images *= kept_share
                results.append(self._descend(descended, images, is_last=number == len(groups)))
            if sam.method == "looksam":
                descent_gradients = [_gradient(parameter) for parameter in self._parameters]
                self.look_direction.remember(ascent_gradients, descent_gradients)
        return _joined(results)

    def _groups(self, batch: TrainBatch) -> list[TrainBatch]:
        """Divides the share into groups, one for each ascent step.

        A share is divided into micro-batches in the same way as a batch is divided into shares.
        """
        rank, world_size, replicas = self._context.rank, self._context.world_size, self._context.replicas
        groups = [batch]
        if self._scope != "global" and replicas > world_size:
            shares = [
                positions_of_rank(self._recipe.batch_size, replica, replicas)
                for replica in range(rank, replicas, world_size)
            ]
            groups = [self._chosen(batch, np.searchsorted(batch.positions, own)) for own in shares]
        if self._scope != "micro_batch":
            return groups
        count = self._recipe.micro_batches
        rows = [positions_of_rank(len(groups[0].labels), number, count) for number in range(count)]
        return [self._chosen(group, own) for group in groups for own in rows]

    def _chosen(self, batch: TrainBatch, rows: Indices) -> TrainBatch:
        """Selects rows of a batch. They are the same in all steps, so they are copied to the device once."""
        key = rows.tobytes()
        if key not in self._rows:
            self._rows[key] = on_device(rows, self._context.device)
        return batch.chosen(self._rows[key], rows)

    def _micro_batches(self, batch: TrainBatch) -> list[TrainBatch]:
        """Cuts a batch into parts as large as a whole share's micro-batches. An empty batch gives one empty part."""
        share = self._recipe.batch_size // self._context.replicas
        size = math.ceil(share / self._recipe.micro_batches)
        return [batch.part(slice(start, start + size)) for start in range(0, max(1, len(batch.labels)), size)]

    def _descend(self, batch: TrainBatch, images: float, is_last: bool = True) -> Losses:
        """Adds the gradient of (sum of losses / ``images``) to ``.grad``; if ``is_last``, averages it over workers."""
        results, parts = [], self._micro_batches(batch)
        with keeping_standardised_weights(self._model):
            for number, part in enumerate(parts, start=1):
                averages = is_last and number == len(parts)
                with contextlib.nullcontext() if averages else self._without_averaging():
                    losses = self._losses(self._replicas, part)
                    (losses.loss_N.sum() / images).backward()
                results.append(Losses(losses.loss_N.detach(), losses.correct_N))
        return _joined(results)

    def _ascend(self, group: TrainBatch) -> tuple[list[Tensor], list[Tensor]]:
        """The gradient of the mean loss over the group's first images, and their losses; leaves ``.grad`` as it is."""
        sam = self._recipe.optimizer.sam
        if self._scope == "global":  # the first images of the global batch, which may be on any worker
            total = share_of(self._recipe.batch_size, sam.ascent_share)
            own = int((group.positions < total).sum())
        else:
            total = own = share_of(len(group.labels), sam.ascent_share)
        gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        before: list[Tensor] = []
        with keeping_standardised_weights(self._model):
            for part in self._micro_batches(group.part(slice(0, own))) if own else []:
                losses = self._losses(self._network, part, part.keys if sam.share_masks else part.keys + 1)
                more = torch.autograd.grad(
                    losses.loss_N.sum() / total, self._parameters, materialize_grads=True
                )
                torch._foreach_add_(gradients, list(more))
                before.append(losses.loss_N.detach())
        if self._scope == "global":
            add_all_over_workers(gradients, self._context)
        return gradients, before

    def _sharpest(self, group: TrainBatch, before: list[Tensor]) -> tuple[TrainBatch, float]:
        """Selects the images of ESAM's descent. Returns them and their share of all images."""
        share, world_size = self._recipe.optimizer.sam.esam_data_share, self._context.world_size
        with torch.no_grad(), keeping_standardised_weights(self._model):
            after = [self._losses(self._network, part).loss_N for part in self._micro_batches(group)]
        before_N, after_N = torch.cat(before), torch.cat(after)
        if self._scope != "global" or world_size == 1:
            rows = sharpest(before_N, after_N, share)
            return group.chosen_by_device(rows), len(rows) / len(group.labels)
        places = torch.from_numpy(group.positions).to(before_N.device)
        losses = before_N.new_zeros(
            2, self._recipe.batch_size
        )  # each worker fills in the columns of its images
        losses[:, places] = torch.stack([before_N, after_N])
        add_over_workers(losses, self._context)
        chosen = sharpest(losses[0], losses[1], share)
        rows = torch.isin(places, chosen).nonzero()[:, 0]
        return group.chosen(rows), len(chosen) / self._recipe.batch_size

    def _losses(self, network: nn.Module, part: TrainBatch, keys: Tensor | None = None) -> Losses:
        """Runs the forward pass in the Recipe's precision and returns the losses, (N,), in float32 or float64."""
        images = normalise(part.images, self._memory_format).to(self._dtype)
        with self._autocast:
            drawn_from: tuple[Tensor, ...] = ()
            if self._draws_by_sample:
                drawn_from = (part.keys if keys is None else keys,)
            if self._drop_rates is not None:
                drawn_from = (*drawn_from, self._drop_rates)
            logits = network(images, *drawn_from)
        logits = logits.to(self._dtype)
        loss_N = self._cross_entropy(logits, part.labels)
        if part.partner_labels is not None and part.label_share is not None:
            other_N = self._cross_entropy(logits, part.partner_labels)
            loss_N = torch.lerp(other_N, loss_N, part.label_share.to(loss_N.dtype))
        return Losses(loss_N, logits.detach().argmax(dim=1) == part.labels)

    def _cross_entropy(self, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
        """(N,) cross-entropy with smoothed labels."""
        smoothing = self._smoothing
        if not isinstance(smoothing, Tensor):
            return F.cross_entropy(logits_NC, labels_N, reduction="none", label_smoothing=smoothing)
        if self._recipe.loss.label_smoothing == 0:
            return F.cross_entropy(logits_NC, labels_N, reduction="none")
        # The same sum. torch's cross_entropy accepts the smoothing only as a number of the host.
        log_NC = logits_NC.log_softmax(dim=1)
        own_N = F.nll_loss(log_NC, labels_N, reduction="none")
        return own_N * (1 - smoothing) - log_NC.sum(dim=1) * (smoothing / logits_NC.shape[1])

    def _draws_of_the_descent(self) -> contextlib.AbstractContextManager[None]:
        """Rewinds the generator afterwards, for networks that draw from it, so that the descent draws the same."""
        devices = [self._context.device] if self._context.device.type == "cuda" else []
        return torch.random.fork_rng(devices, enabled=self.repeats_draws)

    def _without_averaging(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self._replicas, DistributedDataParallel):
            return self._replicas.no_sync()
        return contextlib.nullcontext()


def _joined(losses: list[Losses]) -> Losses:
    return Losses(torch.cat([part.loss_N for part in losses]), torch.cat([part.correct_N for part in losses]))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@contextlib.contextmanager
def _first_statistics(model: nn.Module) -> Generator[None]:
    """A context in which batch normalisation keeps the running statistics of the pass at the unperturbed weights."""
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
