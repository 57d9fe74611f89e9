"""The gradients of all lanes for one batch: over micro-batches, with or without an ascent step of SAM.

The passes are those of :mod:`nfnet_ray.training.gradient` on one worker. All lanes share a backward pass, which
differentiates the sum of the lanes' losses. Since a loss depends on the weights of its own lane alone, each lane gets
the gradient of its own mean loss.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from nfnet_ray.data.batch import Indices, TrainBatch, on_device
from nfnet_ray.data.batching import positions_of_rank
from nfnet_ray.data.normalise import normalise
from nfnet_ray.optim.sam import LARGEST_NORMED_VALUES, share_of
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.cohort.network import LaneNetwork
from nfnet_ray.training.cohort.weights import LaneWeights, Layout
from nfnet_ray.training.gradient import DTYPES, MEMORY_FORMATS


class LaneGradient:
    """Computes the gradients (L, columns), and the loss and correctness of each lane and image, (L, N) each."""

    def __init__(
        self, network: LaneNetwork, weights: LaneWeights, layout: Layout, recipes: Sequence[ResolvedRecipe]
    ) -> None:
        self._network, self._weights, self._layout = network, weights, layout
        self._recipe = recipe = recipes[0]
        rows = weights.rows
        self._dtype, self._memory_format = DTYPES[recipe.precision], MEMORY_FORMATS[recipe.memory_format]
        smoothing = [one.loss.label_smoothing for one in recipes]
        self._smoothing_L1 = torch.tensor(smoothing, dtype=self._dtype, device=rows.device)[:, None]
        self._smooths = any(smoothing)
        self._rows: dict[int, list[tuple[Tensor, Indices]]] = {}
        rhos = [one.optimizer.sam.rho for one in recipes]
        self._rho_L = None if rhos[0] is None else rows.new_tensor(rhos)

    def of(self, batch: TrainBatch) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients (L, columns), losses and hits (L, N); with SAM all of them at the perturbed weights."""
        if self._rho_L is None:
            return self._descend(batch)
        groups = self._groups(batch)
        gradients_LP, losses, hits = torch.zeros_like(self._weights.rows), [], []
        for group in groups:
            with self._perturbed(self._ascend(group)):
                gradient_LP, loss_LN, hit_LN = self._descend(group)
            gradients_LP += gradient_LP
            losses.append(loss_LN)
            hits.append(hit_LN)
        return gradients_LP, torch.cat(losses, dim=1), torch.cat(hits, dim=1)

    def _groups(self, batch: TrainBatch) -> list[TrainBatch]:
        """Divides the batch into groups, one for each ascent step: the batch itself, or its micro-batches."""
        if self._recipe.optimizer.sam.perturbation != "micro_batch":
            return [batch]
        images, count = len(batch.labels), self._recipe.micro_batches
        if images not in self._rows:  # kept on the device, since copying them there waits for it
            own = [positions_of_rank(images, number, count) for number in range(count)]
            self._rows[images] = [(on_device(rows, batch.labels.device), rows) for rows in own]
        return [batch.chosen(rows, host_rows) for rows, host_rows in self._rows[images]]

    def _micro_batches(self, batch: TrainBatch) -> Iterator[TrainBatch]:
        size = math.ceil(self._recipe.batch_size / self._recipe.micro_batches)
        for start in range(0, len(batch.labels), size):
            yield batch.part(slice(start, start + size))

    def _descend(self, batch: TrainBatch) -> tuple[Tensor, Tensor, Tensor]:
        gradients_LP, losses, hits = None, [], []
        for part in self._micro_batches(batch):
            loss_LN, hit_LN = self._losses(part, part.keys)
            more_LP = self._differentiated(loss_LN, self._recipe.batch_size)
            gradients_LP = more_LP if gradients_LP is None else gradients_LP.add_(more_LP)
            losses.append(loss_LN.detach())
            hits.append(hit_LN)
        assert gradients_LP is not None
        return gradients_LP, torch.cat(losses, dim=1), torch.cat(hits, dim=1)

    def _ascend(self, group: TrainBatch) -> Tensor:
        """The perturbation of SAM for each lane (L, columns), from the gradient on the group's first images."""
        sam = self._recipe.optimizer.sam
        total = share_of(len(group.labels), sam.ascent_share)
        gradients_LP = torch.zeros_like(self._weights.rows)
        for part in self._micro_batches(group.part(slice(0, total))):
            loss_LN, _ = self._losses(part, part.keys if sam.share_masks else part.keys + 1)
            gradients_LP += self._differentiated(loss_LN, total)
        norm_L = _norms(gradients_LP)
        assert self._rho_L is not None
        return gradients_LP.mul_(torch.where(norm_L > 0, self._rho_L / norm_L, 0.0)[:, None])

    @contextlib.contextmanager
    def _perturbed(self, steps_LP: Tensor) -> Generator[None]:
        """A context in which the weights are perturbed by ``steps_LP``; afterwards they are the same as before, to the
        bit."""
        rows = self._weights.rows
        kept = rows.clone()
        rows.add_(steps_LP)
        torch.clear_autocast_cache()
        try:
            yield
        finally:
            rows.copy_(kept)
            torch.clear_autocast_cache()

    def _differentiated(self, loss_LN: Tensor, images: float) -> Tensor:
        """The gradients (L, columns) of each lane's (sum of losses / ``images``)."""
        leaves = list(self._weights.leaves.values())
        return self._layout.rows(torch.autograd.grad(loss_LN.sum() / images, leaves, materialize_grads=True))

    def _losses(self, part: TrainBatch, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and hits (L, N). The network computes in the Recipe's precision, the loss in float32 or float64."""
        pixels = normalise(part.images, self._memory_format).to(self._dtype)
        bf16 = self._recipe.precision == "bfloat16"
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            logits_LNK = self._network(self._weights.all(), pixels, keys)
        logits_LNK = logits_LNK.to(self._dtype)
        # F.cross_entropy would smooth the labels of all lanes by the same number.
        log_LNK = logits_LNK.log_softmax(dim=2)
        loss_LN = self._against(part.labels, log_LNK)
        if part.partner_labels is not None and part.label_share is not None:
            other_LN = self._against(part.partner_labels, log_LNK)
            loss_LN = torch.lerp(other_LN, loss_LN, part.label_share.to(loss_LN.dtype))
        return loss_LN, logits_LNK.detach().argmax(dim=2) == part.labels

    def _against(self, labels: Tensor, log_LNK: Tensor) -> Tensor:
        """Cross-entropy (L, N) for labels (N,), with each lane's label smoothing."""
        chosen = labels.expand(len(log_LNK), -1)[..., None]
        loss_LN = -log_LNK.gather(2, chosen).squeeze(2)
        if not self._smooths:
            return loss_LN
        uniform_LN = -log_LNK.mean(dim=2)
        return loss_LN * (1 - self._smoothing_L1) + uniform_LN * self._smoothing_L1


def _norms(rows_LP: Tensor) -> Tensor:
    """The norm of each row (L,), from the norms of its parts, as in :func:`nfnet_ray.optim.sam.global_norm`."""
    parts = [torch.linalg.vector_norm(part, dim=1) for part in rows_LP.split(LARGEST_NORMED_VALUES, dim=1)]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0)
