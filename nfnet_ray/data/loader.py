"""Batches of a data set, in an order and with crops that depend on (seed, epoch, sample) alone.

The loader reads FFCV's file format and runs FFCV's compiled decoder and resizer (``libffcv``) on a pool
of threads; the calls release the interpreter's lock. FFCV's own Python ``Loader`` is not used: it draws
crops from unseeded generators, drops the decoder's return code and waits for ever for a dead thread, and
importing it costs seconds of compilation in every process.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfnet_ray.data.augment import augment
from nfnet_ray.data.batching import batches_per_epoch
from nfnet_ray.data.crop import Boxes, central_square_boxes, random_resized_boxes, whole_boxes
from nfnet_ray.data.dataset import Split
from nfnet_ray.data.decode import resize_crop
from nfnet_ray.data.draws import epoch_order
from nfnet_ray.recipe import DataRecipe

BATCHES_AHEAD = 3  # as many as FFCV's Loader prepares
BATCH_DEADLINE_SECONDS = 300.0  # far above any decode; a batch that takes longer is stuck
RESIDENT_SHARE_OF_MEMORY = 0.25  # of what is free, for one split in one process

Indices = NDArray[np.int64]
Cut = Callable[[Indices], Boxes]


@dataclass(frozen=True)
class Batch:
    """``images`` uint8 (N, H, W, 3) and ``labels`` int64 (N,) on the device, with their sample indices."""

    images: Tensor
    labels: Tensor
    indices: Indices


class TrainLoader:
    """The training batches of one worker: rank ``rank`` of ``world_size``.

    Global batch k of an epoch is ``order[k * batch_size : (k + 1) * batch_size]`` for any number of
    workers; each takes its equal, contiguous part. What does not fill a batch is left out in that epoch.
    """

    def __init__(
        self,
        split: Split,
        recipe: DataRecipe,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device,
        threads: int,
    ) -> None:
        if recipe.image_size is None:
            raise ValueError("the Recipe's image_size is not resolved yet")
        self.batches_per_epoch = batches_per_epoch(len(split), batch_size)
        self._recipe, self._seed, self._batch_size = recipe, seed, batch_size
        self._rank, self._world_size = rank, world_size
        self._count = len(split)
        self._source = _Source(split, recipe.image_size, device, threads)
        if recipe.crop != "random_resized" and _stays_resident(recipe, len(split), recipe.image_size):
            self._source.load_all(self._cut(epoch=0))

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The augmented batches of epoch ``epoch`` (counted from 0), from batch ``first_batch`` on."""
        order = epoch_order(self._seed, epoch, self._count)
        share = self._batch_size // self._world_size
        starts = range(
            first_batch * self._batch_size, self.batches_per_epoch * self._batch_size, self._batch_size
        )
        parts = [order[start + self._rank * share :][:share] for start in starts]
        for batch in self._source.batches(parts, self._cut(epoch)):
            images = augment(batch.images, batch.indices, self._recipe, self._seed, epoch)
            yield Batch(images, batch.labels, batch.indices)

    def _cut(self, epoch: int) -> Cut:
        beton = self._source.split.beton
        if self._recipe.crop == "random_resized":
            return lambda i: random_resized_boxes(self._seed, epoch, i, beton.heights[i], beton.widths[i])
        return lambda i: whole_boxes(beton.heights[i], beton.widths[i])


class EvalLoader:
    """The validation batches of one worker; over all workers each image comes exactly once."""

    def __init__(
        self,
        split: Split,
        recipe: DataRecipe,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
        threads: int,
    ) -> None:
        if recipe.eval_size is None:
            raise ValueError("the Recipe's eval_size is not resolved yet")
        own = np.arange(rank, len(split), world_size)
        self._parts = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
        self._source = _Source(split, recipe.eval_size, device, threads)
        self._size = recipe.eval_size
        if _stays_resident(recipe, len(split), recipe.eval_size):
            self._source.load_all(self._cut)

    def __iter__(self) -> Iterator[Batch]:
        return self._source.batches(self._parts, self._cut)

    def _cut(self, indices: Indices) -> Boxes:
        beton = self._source.split.beton
        return central_square_boxes(beton.heights[indices], beton.widths[indices], self._size)


class _Source:
    """Cut and resized images of one split: from memory if they are resident, else decoded by threads."""

    def __init__(self, split: Split, size: int, device: torch.device, threads: int) -> None:
        self.split, self._size, self._device = split, size, device
        self._labels = torch.tensor(split.beton.labels)
        self._threads = max(1, threads)
        self._images: Tensor | None = None

    def load_all(self, cut: Cut) -> None:
        """Makes the images resident on the device; a process decodes the same split only once."""
        key = (str(self.split.beton.path), self.split.manifest.fingerprint, self._size, str(self._device))
        if key not in _RESIDENT:
            parts = np.array_split(np.arange(len(self.split)), max(1, len(self.split) // 512))
            images = torch.cat([batch.images.cpu() for batch in self.batches(parts, cut)])
            _RESIDENT[key] = images.to(self._device)
        self._images = _RESIDENT[key]

    def batches(self, parts: list[Indices], cut: Cut) -> Iterator[Batch]:
        """One Batch for each part, in their order."""
        if self._images is not None:
            for part in parts:
                chosen = torch.from_numpy(part)
                images = self._images[chosen.to(self._device)]
                yield Batch(images, self._labels[chosen].to(self._device), part)
            return
        pin = self._device.type == "cuda"
        with ThreadPoolExecutor(self._threads, thread_name_prefix="decode") as pool:
            waiting: deque[tuple[Indices, Tensor, list[Future[None]]]] = deque()
            try:
                for part in parts:
                    buffer = torch.empty(
                        (len(part), self._size, self._size, 3), dtype=torch.uint8, pin_memory=pin
                    )
                    tasks = self._submit(pool, part, cut(part), buffer.numpy())
                    waiting.append((part, buffer, tasks))
                    if len(waiting) > BATCHES_AHEAD:
                        yield self._finished(*waiting.popleft())
                while waiting:
                    yield self._finished(*waiting.popleft())
            finally:
                for _, _, tasks in waiting:
                    for task in tasks:
                        task.cancel()

    def _submit(
        self, pool: ThreadPoolExecutor, part: Indices, boxes: Boxes, out: NDArray[np.uint8]
    ) -> list[Future[None]]:
        chunks = np.array_split(np.arange(len(part)), self._threads)
        return [pool.submit(partial(self._decode, part, boxes, out, chunk)) for chunk in chunks if len(chunk)]

    def _finished(self, part: Indices, buffer: Tensor, tasks: list[Future[None]]) -> Batch:
        for task in tasks:
            task.result(timeout=BATCH_DEADLINE_SECONDS)  # raises what the thread raised
        labels = self._labels[torch.from_numpy(part)]
        return Batch(
            buffer.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True), part
        )

    def _decode(self, part: Indices, boxes: Boxes, out: NDArray[np.uint8], rows: Indices) -> None:
        beton = self.split.beton
        for row in rows:
            index, (top, left, height, width) = int(part[row]), map(int, boxes[row])
            full = (int(beton.heights[index]), int(beton.widths[index]))
            if (top, left, height, width) == (0, 0, *full) and full == (self._size, self._size):
                beton.decode(index, out[row])
                continue
            image = np.empty((*full, 3), np.uint8)
            beton.decode(index, image)
            resize_crop(image, top, left, height, width, out[row])


_RESIDENT: dict[tuple[str, str, int, str], Tensor] = {}


def _stays_resident(recipe: DataRecipe, count: int, size: int) -> bool:
    if recipe.resident != "auto":
        return recipe.resident == "always"
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return count * size * size * 3 <= RESIDENT_SHARE_OF_MEMORY * free_bytes
