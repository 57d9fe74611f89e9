"""Batches, as the loaders yield them: images, labels, and everything else that a step needs to know of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copies a NumPy array to a tensor on the device, without waiting for the device."""
    return sent_to(torch.from_numpy(np.ascontiguousarray(array)), device)


def sent_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to the device, without waiting for the device.

    Only from pinned memory does a GPU copy asynchronously. For a copy from other memory the host may have to wait until
    the GPU has finished its earlier work. torch keeps pinned memory until it has been copied.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def check_images(images_NHWC: Tensor, indices: Indices) -> None:
    """Raises ValueError if the images are not uint8 (N, H, W, 3) with N sample indices.

    Without this check, images in torch's usual order of axes would be augmented too, with meaningless results.
    """
    shape = tuple(images_NHWC.shape)
    if len(shape) != 4 or shape[3] != 3 or images_NHWC.dtype != torch.uint8:
        raise ValueError(f"images are uint8 (N, H, W, 3), and not {images_NHWC.dtype} {shape}")
    if len(indices) != len(images_NHWC):
        raise ValueError(f"there are {shape[0]} images and {len(indices)} sample indices: each image has one")


@dataclass(frozen=True)
class Batch:
    """A batch of images, uint8 (N, H, W, 3), and labels, int64 (N,), on the device, with the indices of its samples."""

    images: Tensor
    labels: Tensor
    indices: Indices

    def part(self, rows: slice) -> Batch:
        """A slice of the samples, whose tensors are views."""
        return Batch(self.images[rows], self.labels[rows], self.indices[rows])


@dataclass(frozen=True)
class TrainBatch(Batch):
    """A worker's share of a training batch. ``images`` are uint8, or float32 in 0..255 after mixing.

    The target is ``label_share * onehot(labels) + (1 - label_share) * onehot(partner_labels)``. Without
    mixing both are None.
    """

    positions: Indices
    """(N,) int64: the position of each sample in the global batch, ascending."""
    keys: Tensor
    """int64 (N,) on the device: a hash of (seed, epoch, sample index), for the draws inside the network."""
    partner_labels: Tensor | None = None
    """int64 (N,) on the device."""
    label_share: Tensor | None = None
    """float32 (N,) on the device."""

    def part(self, rows: slice) -> TrainBatch:
        """A slice of the samples, whose tensors are views."""
        return TrainBatch(
            images=self.images[rows],
            labels=self.labels[rows],
            indices=self.indices[rows],
            positions=self.positions[rows],
            keys=self.keys[rows],
            partner_labels=None if self.partner_labels is None else self.partner_labels[rows],
            label_share=None if self.label_share is None else self.label_share[rows],
        )

    def chosen(self, rows: Tensor, host_rows: Indices | None = None) -> TrainBatch:
        """The samples of the given rows, int64 (M,), in that order; copies.

        Rows on another device are copied to the batch's device. Rows on a GPU have to be read by the host, which waits
        for the GPU, unless ``host_rows`` are the same rows in the host's memory.
        """
        host = rows.cpu().numpy() if host_rows is None else host_rows
        return self._chosen(rows.to(self.labels.device), self.indices[host], self.positions[host])

    def chosen_by_device(self, rows: Tensor) -> TrainBatch:
        """Like :meth:`chosen`, for rows that the host does not know. ``indices`` and ``positions`` are -1."""
        unknown = np.full(len(rows), -1)
        return self._chosen(rows, unknown, unknown)

    def _chosen(self, rows: Tensor, indices: Indices, positions: Indices) -> TrainBatch:
        return TrainBatch(
            images=self.images[rows],
            labels=self.labels[rows],
            indices=indices,
            positions=positions,
            keys=self.keys[rows],
            partner_labels=None if self.partner_labels is None else self.partner_labels[rows],
            label_share=None if self.label_share is None else self.label_share[rows],
        )
