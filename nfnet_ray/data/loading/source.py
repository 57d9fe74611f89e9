"""Reads the images of one split, crops and resizes them, and handles the damaged ones.

The first time that a process reads a sample, it compares the bytes with the manifest's hash, which finds any change.
libjpeg detects few flipped bits, and only at the end of an image, which a crop rarely reaches. The decoder's result is
checked every time.

With ``on_damaged="stop"`` in the Recipe, a damaged sample is an error that names it. With ``"skip"`` it is counted,
logged once, and left out. In training the next good sample of the file replaces it, with the label and the draws of
that sample, so that the order and all other samples do not change, on any number of workers. In evaluation it is not
replaced. In both cases it is an error if more than ``DAMAGED_LIMIT`` of a split are damaged.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfnet_ray.data.augmentation.crop import Boxes
from nfnet_ray.data.batch import Batch, Indices, on_device, sent_to
from nfnet_ray.data.decoding.decode import decode_jpeg_box, decoder
from nfnet_ray.data.decoding.jpeg import DecodeError
from nfnet_ray.data.files.beton import RAW
from nfnet_ray.data.files.dataset import Split
from nfnet_ray.data.files.manifest import hash_stored
from nfnet_ray.data.loading.free_memory import free_bytes
from nfnet_ray.data.loading.pool import Job, Pool
from nfnet_ray.data.loading.resident import Images, Samples, shared_images
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import DataRecipe

BATCHES_AHEAD = 3  # as many as FFCV's Loader prepares
RESIDENT_SHARE_OF_MEMORY = 0.25  # of the free memory, for one split
RESIDENT_SHARE_OF_GPU = 1 / 16
"""The same share of the memory of a GPU, on which each process has a copy, since training needs the rest. It is an
estimate that has not been measured on a GPU."""
MOST_RESIDENT = 4
"""The sets of resident images that a process keeps for later trials: both splits, at two sizes used in turn."""
DAMAGED_LIMIT = 0.01  # of a split's images, rounded up; if more are damaged, the file is refused

_ROWS_AT_ONCE = 512  # of a resident split, so that errors are found soon
_RESIDENT: dict[tuple[str, str], tuple[Tensor, Samples]] = {}
"""{(name, device): images and their samples}, in the order of their last use. A loader keeps its images anyway."""

Cut = Callable[[Indices], Boxes]
Fit = Callable[[NDArray[np.uint8], int, int, int, int, NDArray[np.uint8]], None]
"""A function that makes a sample of the box (top, left, height, width) of a decoded image, and writes it to an
array."""

logger = logging.getLogger(__name__)


def stays_resident(recipe: DataRecipe, count: int, size: int, device: torch.device) -> bool:
    """Whether the ``count`` images of a split stay in memory; for a GPU, also in its memory."""
    if recipe.resident != "auto":
        return recipe.resident == "always"
    room = RESIDENT_SHARE_OF_MEMORY * free_bytes()
    if device.type == "cuda":
        room = min(room, RESIDENT_SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0])
    return count * size * size * 3 <= room


class Source:
    """The cropped and resized images of one split, from memory if they are resident, and otherwise decoded by threads.

    ``samples`` are the indices of the samples that will be used, int64, ascending. ``stands_in`` says whether the next
    good sample replaces a damaged one.
    """

    def __init__(
        self,
        split: Split,
        samples: Indices,
        recipe: DataRecipe,
        size: int,
        device: torch.device,
        threads: int,
        fit: Fit,
        *,
        stands_in: bool,
    ) -> None:
        self.split, self._size, self._device, self._fit = split, size, device, fit
        self._asked_for = samples
        self._rows = np.full(len(split), -1, np.int64)
        """The row of each sample among the samples that are used, and so among the resident images; -1 for others."""
        self._rows[samples] = np.arange(len(samples))
        self._on_damaged, self._stands_in = recipe.on_damaged, stands_in
        self.damaged: dict[int, str] = {}
        self._lock = threading.Lock()
        self._is_checked = np.zeros(len(split), bool)  # against the manifest's hash
        self._labels = torch.tensor(split.beton.labels)
        self._pool = Pool(max(1, threads))
        self._images: Tensor | None = None
        self._shown: Samples | None = None
        """The index of the sample in each resident image; -1 if there is none."""

    def load_all(self, crop: str, cut: Cut) -> None:
        """Makes the images resident on the device. They are decoded once on a node, and opened once in a process."""
        name = f"{self.split.manifest.fingerprint}-{self._size}-{crop}-{decoder()}"
        if self._on_damaged != "stop":
            name += f"-{'stood_in' if self._stands_in else 'left_out'}"
        if len(self._asked_for) < len(self.split):
            name += f"-{len(self._asked_for)}"
        key = (name, str(self._device))
        if key not in _RESIDENT:
            images, samples = shared_images(
                name, len(self._asked_for), self._size, partial(self._decode_all, cut)
            )
            _RESIDENT[key] = torch.from_numpy(images).to(self._device), samples
        self._images, self._shown = _RESIDENT[key] = _RESIDENT.pop(key)  # now the one that was used last
        for unused in list(_RESIDENT)[:-MOST_RESIDENT]:
            del _RESIDENT[unused]
        for index in self._asked_for[self._shown != self._asked_for]:
            self._note_damaged(int(index), "found when the images were decoded to stay in memory")

    def _decode_all(self, cut: Cut, images: Images, samples: Samples) -> None:
        samples[:] = self._asked_for
        for start in range(0, len(samples), _ROWS_AT_ONCE):
            here = slice(start, start + _ROWS_AT_ONCE)
            self._pool.wait(self._submit(samples[here], cut, images[here]))

    @property
    def is_resident_elsewhere(self) -> bool:
        """Whether the images are in the memory of a device, so that the host does not prepare batches."""
        return self._images is not None and self._images.device.type != "cpu"

    def batches(self, parts: list[Indices], cut: Cut, size: int | None = None) -> Iterator[Batch]:
        """Yields a Batch for each part, in order. Images that are not resident may have another ``size``."""
        if self._images is not None and self._shown is not None:
            for part in parts:
                rows = self._rows[part]
                samples = self._shown[rows]
                chosen = on_device(rows[samples >= 0], self._images.device)
                yield self.batch(self._images[chosen], samples[samples >= 0])
            return
        for images, samples in self.decoded(parts, cut, size):
            yield self.batch(images, samples)

    def batch(self, images: Tensor, samples: Indices) -> Batch:
        """Makes a batch on the device of images and the indices of their samples."""
        labels = self._labels[torch.from_numpy(samples)]
        return Batch(sent_to(images, self._device), sent_to(labels, self._device), samples)

    def decoded(
        self, parts: list[Indices], cut: Cut, size: int | None = None
    ) -> Iterator[tuple[Tensor, Indices]]:
        """Yields the images of each part in the host's memory, decoded ahead by the threads, and their samples."""
        pin = self._device.type == "cuda"
        waiting: deque[tuple[Indices, Tensor, Job]] = deque()
        try:
            for part in parts:
                shape = (len(part), size or self._size, size or self._size, 3)
                buffer, samples = torch.empty(shape, dtype=torch.uint8, pin_memory=pin), part.copy()
                waiting.append((samples, buffer, self._submit(samples, cut, buffer.numpy())))
                if len(waiting) > BATCHES_AHEAD:
                    yield self._finished(*waiting.popleft())
            while waiting:
                yield self._finished(*waiting.popleft())
        finally:
            for _, _, job in waiting:
                job.cancel()

    def _submit(self, samples: Indices, cut: Cut, out: NDArray[np.uint8]) -> Job:
        boxes, beton_name = cut(samples), self.split.beton.path

        def decode(row: int) -> None:
            try:
                self._decode(int(samples[row]), boxes[row], out[row])
            except DecodeError as error:
                self._note_damaged(int(samples[row]), str(error))
                self._replace(samples, row, cut, out)

        return self._pool.submit(len(samples), decode, lambda row: f"{beton_name}: sample {samples[row]}")

    def _finished(self, samples: Indices, buffer: Tensor, job: Job) -> tuple[Tensor, Indices]:
        self._pool.wait(job)
        if (samples < 0).any():
            buffer, samples = buffer[torch.from_numpy(samples >= 0)], samples[samples >= 0]
        return buffer, samples

    def _decode(self, index: int, box: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Reads and decodes as much of a sample as the box needs, and writes the resized box to ``out``."""
        beton = self.split.beton
        full = int(beton.heights[index]), int(beton.widths[index])
        top, left, height, width = map(int, box)
        is_raw, is_checked = beton.modes[index] == RAW, self._is_checked[index]
        if is_raw and is_checked:
            image = beton.raw_rows(index, top, top + height)
        else:
            stored = beton.image_bytes(index)
            if not is_checked and hash_stored(stored) != self.split.manifest.hashes[index].as_py():
                raise DecodeError("its bytes are not those that the manifest knows")
            self._is_checked[index] = True
            if is_raw:
                image = stored.reshape(*full, 3)[top : top + height]
            else:
                image, left = decode_jpeg_box(stored, *full, top, left, height, width), 0
        # An image that already has the size of the sample is copied.
        if (height, width) == full == out.shape[:2]:
            out[...] = image
        else:
            self._fit(image, 0, left, height, width, out)

    def _replace(self, samples: Indices, row: int, cut: Cut, out: NDArray[np.uint8]) -> None:
        """Replaces a damaged sample by the next good one that is used, or by -1 to leave it out."""
        if not self._stands_in:
            samples[row] = -1
            return
        # The replacement depends only on the file and the share, so it is the same on every worker. The limit on
        # damaged samples ends the search.
        others, place = samples.copy(), self._rows[samples[row]]
        for step in range(1, len(self._asked_for)):
            others[row] = self._asked_for[(place + step) % len(self._asked_for)]
            try:
                self._decode(int(others[row]), cut(others)[row], out[row])
            except DecodeError as error:
                self._note_damaged(int(others[row]), str(error))
            else:
                samples[row] = others[row]
                return

    def _note_damaged(self, index: int, reason: str) -> None:
        path = self.split.beton.path
        if self._on_damaged == "stop":
            raise UserError(f"{path}: sample {index} is damaged ({reason}); copy or convert the file again")
        with self._lock:
            if index in self.damaged:
                return
            self.damaged[index] = reason
        logger.warning("%s: sample %d is damaged (%s) and is left out", path, index, reason)
        if len(self.damaged) > math.ceil(DAMAGED_LIMIT * len(self._asked_for)):
            raise UserError(
                f"{path}: {len(self.damaged)} of {len(self._asked_for)} samples are damaged so far, more than "
                f"{DAMAGED_LIMIT:.0%}; copy or convert the file again"
            )
