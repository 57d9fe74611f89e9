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
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfnet_ray.data.augment import augment
from nfnet_ray.data.batch import Batch, Indices, TrainBatch, on_device
from nfnet_ray.data.batching import batches_per_epoch, check_partners, mixes, positions_of_rank
from nfnet_ray.data.crop import (
    Boxes,
    central_square_boxes,
    random_resized_boxes,
    squash_and_crop,
    whole_boxes,
)
from nfnet_ray.data.dataset import Split
from nfnet_ray.data.decode import resize_crop
from nfnet_ray.data.draws import Purpose, epoch_order, sample_keys
from nfnet_ray.recipe import DataRecipe

BATCHES_AHEAD = 3  # as many as FFCV's Loader prepares
BATCH_DEADLINE_SECONDS = 300.0  # far above any decode; a batch that takes longer is stuck
RESIDENT_SHARE_OF_MEMORY = 0.25  # of what is free, for one split in one process

Cut = Callable[[Indices], Boxes]
Fit = Callable[[NDArray[np.uint8], tuple[int, int, int, int], NDArray[np.uint8]], None]
"""Makes a decoded image (H, W, 3) and its box (top, left, height, width) into a sample, in place."""


class TrainLoader:
    """The training batches of one worker: rank ``rank`` of ``world_size``.

    Global batch k of an epoch is ``order[k * batch_size : (k + 1) * batch_size]`` for any number of
    workers; each takes the places that ``batching.positions_of_rank`` deals to it. What does not fill a batch is
    left out in that epoch. With mixing and ``partners="separate"`` the image at each place is mixed with the one at the
    same place of a second order, which has a crop, a shift and a flip of its own.
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
        if recipe.randaugment.layers and recipe.randaugment.magnitude is None and not recipe.autoaugment:
            raise ValueError("the Recipe's randaugment.magnitude is not resolved yet")
        check_partners(recipe, batch_size, world_size)
        self.batches_per_epoch = batches_per_epoch(len(split), batch_size)
        self._recipe, self._seed, self._batch_size = recipe, seed, batch_size
        self._size = recipe.image_size
        self._positions = positions_of_rank(batch_size, rank, world_size)
        self._count, self._device = len(split), device
        self._reads_partners = mixes(recipe.mixing) and recipe.mixing.partners == "separate"
        self._source = _Source(split, recipe.image_size, device, threads)
        if recipe.crop != "random_resized" and _stays_resident(recipe, len(split), recipe.image_size):
            self._source.load_all(self._cut(0, Purpose.RESIZED_CROP))

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[TrainBatch]:
        """The augmented batches of epoch ``epoch`` (counted from 0), from batch ``first_batch`` on."""
        starts = range(
            first_batch * self._batch_size, self.batches_per_epoch * self._batch_size, self._batch_size
        )
        share, cut = len(self._positions), self._cut(epoch, Purpose.RESIZED_CROP)
        order = epoch_order(self._seed, epoch, self._count)
        parts = [order[start + self._positions] for start in starts]
        if self._reads_partners:  # they come in the second half of what is read
            others = epoch_order(self._seed, epoch, self._count, Purpose.PARTNER_ORDER)
            parts = [
                np.concatenate([own, others[start + self._positions]])
                for own, start in zip(parts, starts, strict=True)
            ]
            cut = _halves(share, cut, self._cut(epoch, Purpose.PARTNER_RESIZED_CROP))
        for read in self._source.batches(parts, cut):
            batch = read.part(slice(0, share))
            partners = read.part(slice(share, None)) if self._reads_partners else None
            augmented = augment(batch, self._positions, partners, self._recipe, self._seed, epoch)
            yield TrainBatch(
                images=augmented.images,
                labels=batch.labels,
                indices=batch.indices,
                positions=self._positions,
                keys=on_device(sample_keys(self._seed, epoch, batch.indices), self._device),
                partner_labels=augmented.partner_labels,
                label_share=augmented.label_share,
            )

    def _cut(self, epoch: int, purpose: Purpose) -> Cut:
        beton, seed = self._source.split.beton, self._seed
        if self._recipe.crop == "random_resized":
            return lambda i: random_resized_boxes(
                seed, epoch, i, beton.heights[i], beton.widths[i], self._size, purpose
            )
        return lambda i: whole_boxes(beton.heights[i], beton.widths[i])


def _halves(count: int, first: Cut, second: Cut) -> Cut:
    """Cuts the first ``count`` images by one rule, and those after them by another."""
    return lambda indices: np.concatenate([first(indices[:count]), second(indices[count:])])


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
        squashes = recipe.eval_crop == "squash"
        self._source = _Source(
            split,
            recipe.eval_size,
            device,
            threads,
            recipe.eval_crop,
            _squash_and_crop if squashes else _resize_crop,
        )
        self._size, self._squashes = recipe.eval_size, squashes
        if _stays_resident(recipe, len(split), recipe.eval_size):
            self._source.load_all(self._cut)

    def __iter__(self) -> Iterator[Batch]:
        return self._source.batches(self._parts, self._cut)

    def _cut(self, indices: Indices) -> Boxes:
        beton = self._source.split.beton
        heights, widths = beton.heights[indices], beton.widths[indices]
        if self._squashes:
            return whole_boxes(heights, widths)
        return central_square_boxes(heights, widths, self._size)


def _resize_crop(
    image_HWC: NDArray[np.uint8], box: tuple[int, int, int, int], out: NDArray[np.uint8]
) -> None:
    resize_crop(image_HWC, *box, out)


def _squash_and_crop(
    image_HWC: NDArray[np.uint8], _box: tuple[int, int, int, int], out: NDArray[np.uint8]
) -> None:
    squash_and_crop(image_HWC, out)


class _Source:
    """Cut and resized images of one split: from memory if they are resident, else decoded by threads."""

    def __init__(
        self,
        split: Split,
        size: int,
        device: torch.device,
        threads: int,
        crop: str = "whole",
        fit: Fit = _resize_crop,
    ) -> None:
        self.split, self._size, self._device = split, size, device
        self._crop, self._fit = crop, fit
        self._labels = torch.tensor(split.beton.labels)
        self._threads = max(1, threads)
        self._images: Tensor | None = None

    def load_all(self, cut: Cut) -> None:
        """Makes the images resident on the device; a process decodes the same split only once."""
        split = self.split
        key = (str(split.beton.path), split.manifest.fingerprint, self._size, self._crop, str(self._device))
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
            # An image that has the sample's size already is taken as it is.
            if (top, left, height, width) == (0, 0, *full) and full == (self._size, self._size):
                beton.decode(index, out[row])
                continue
            image = np.empty((*full, 3), np.uint8)
            beton.decode(index, image)
            self._fit(image, (top, left, height, width), out[row])


_RESIDENT: dict[tuple[str, str, int, str, str], Tensor] = {}


def _stays_resident(recipe: DataRecipe, count: int, size: int) -> bool:
    if recipe.resident != "auto":
        return recipe.resident == "always"
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return count * size * size * 3 <= RESIDENT_SHARE_OF_MEMORY * free_bytes
