"""Batches of a data set, in an order and with crops that depend on (seed, epoch, sample) alone.

The loader reads FFCV's file format and runs compiled decoders (FFCV's ``libffcv``, and ``jpeg_box.c``) on a pool
of threads; the calls release the interpreter's lock. FFCV's own Python ``Loader`` is not used: it draws
crops from unseeded generators, drops the decoder's return code and waits for ever for a dead thread, and
importing it costs seconds of compilation in every process.

**Damaged images.** The first time that a process reads a sample, its bytes are compared with the manifest's hash,
which finds any change; libjpeg detects few flipped bits, and only at the end of an image, which a crop rarely reaches.
The decoder's result is checked every time. With the Recipe's ``on_damaged="stop"`` a damaged one is an error with its
name. With ``"skip"`` it is counted, named once in the log, and left out: in training the next good sample of the file
is used instead, with its own label and draws, so that the order and all other samples do not change, on any number of
workers; in evaluation nothing takes its place. If more than ``DAMAGED_LIMIT`` of a split are damaged, it is an error
in both cases.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfnet_ray.data.augmentation.augment import augment
from nfnet_ray.data.augmentation.crop import (
    Boxes,
    central_square_boxes,
    random_resized_boxes,
    squash_and_crop,
    whole_boxes,
)
from nfnet_ray.data.augmentation.progressive import data_at_epoch
from nfnet_ray.data.batch import Batch, Indices, TrainBatch, on_device, sent_to
from nfnet_ray.data.batching import batches_per_epoch, check_batches, mixes, positions_of_worker
from nfnet_ray.data.decoding.decode import decode_jpeg_box, decoder, resize_crop
from nfnet_ray.data.decoding.jpeg import DecodeError
from nfnet_ray.data.decoding.resize import resize_antialiased
from nfnet_ray.data.draws import Purpose, epoch_order, sample_keys
from nfnet_ray.data.files.beton import RAW
from nfnet_ray.data.files.dataset import Split
from nfnet_ray.data.files.manifest import hash_stored
from nfnet_ray.data.files.train_share import images_drawn
from nfnet_ray.data.loading.free_memory import free_bytes
from nfnet_ray.data.loading.pool import Job, Pool
from nfnet_ray.data.loading.resident import Images, Samples, shared_images
from nfnet_ray.data.loading.sharing import Sharing, ahead, source_digest
from nfnet_ray.data.loading.stream import Record
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import DataRecipe, ResolvedData

BATCHES_AHEAD = 3  # as many as FFCV's Loader prepares
RESIDENT_SHARE_OF_MEMORY = 0.25  # of what is free, for one split
RESIDENT_SHARE_OF_GPU = 1 / 16
"""The same of a GPU, on which each process has a copy: training needs the rest. By judgement; no GPU has seen it."""
MOST_RESIDENT = 4
"""Sets of resident images that a process keeps for its next trials: both splits, at two sizes that take turns."""
DAMAGED_LIMIT = 0.01  # of a split's images, rounded up; where more are damaged, the file is

Cut = Callable[[Indices], Boxes]
Fit = Callable[[NDArray[np.uint8], int, int, int, int, NDArray[np.uint8]], None]
"""Makes the box (top, left, height, width) of a decoded image (H, W, 3) into a sample, in place."""

logger = logging.getLogger(__name__)


class TrainLoader:
    """The training batches of one worker: rank ``rank`` of ``world_size``.

    Global batch k of an epoch is ``order[k * batch_size : (k + 1) * batch_size]`` for any number of
    workers; each takes the places that ``batching.positions_of_worker`` deals to it (``replicas``: how many workers
    there would be, if some are missing). What does not fill a batch is left out in that epoch. With mixing and
    ``partners="separate"`` the image at each place is mixed with the one at the same place of a second order, which has
    a crop, a shift and a flip of its own.

    Where the Recipe's images grow (``data.progressive``), random crops are decoded to the epoch's size. Padded and
    whole images, which may be resident, are decoded to the full one, shifted and flipped, then resized on the device.
    ``epochs`` is the number of all epochs, which that may depend on.

    With ``data.train_share`` below 1, the data set is the images that :func:`images_drawn` chooses.

    Raises UserError where the images do not fill a batch, or workers cannot share one equally.

    With ``sharing``, batches are shared with other processes of the node that need the same ones: finished ones on a
    CPU; for a GPU, decoded ones.
    """

    def __init__(
        self,
        split: Split,
        recipe: ResolvedData,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device,
        threads: int,
        replicas: int | None = None,
        epochs: int | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        replicas = replicas or world_size
        _check_resolved(recipe.image_size, "image_size")
        if recipe.randaugment.layers and not recipe.autoaugment:
            _check_resolved(recipe.randaugment.magnitude, "randaugment.magnitude")
        if recipe.progressive.start_size is not None and epochs is None:
            raise ValueError("how fast images grow depends on the number of epochs")
        check_batches(recipe, batch_size, len(split), replicas, split.beton.path)
        self._samples = images_drawn(split.manifest, recipe.train_share)
        self.batches_per_epoch = batches_per_epoch(len(self._samples), batch_size)
        self._recipe, self._seed, self._batch_size = recipe, seed, batch_size
        self._epochs = epochs or 1
        self._positions = positions_of_worker(batch_size, rank, world_size, replicas)
        self._device = device
        fit = resize_antialiased if recipe.crop == "random_resized" else resize_crop
        self._source = _Source(
            split, self._samples, recipe, recipe.image_size, device, threads, fit, stands_in=True
        )
        if recipe.crop != "random_resized" and _stays_resident(
            recipe, len(self._samples), recipe.image_size, device
        ):
            self._source.load_all("whole", self._cut(recipe, 0, Purpose.RESIZED_CROP))
        # Where a damaged image is replaced, each worker counts those that it has met.
        can_share = recipe.on_damaged == "stop" and sharing is not None and sharing.is_on_for(device)
        self._sharing = sharing if can_share else None
        # On a GPU decoded images are shared, and each process augments them on its device.
        self._augments_on_device = device.type != "cpu"
        worker = (rank, world_size, replicas)
        self._key = _key(split, recipe, batch_size, seed, epochs, worker, threads, device.type)

    @property
    def shared_share(self) -> float | None:
        """The share of the last epoch's batches that other processes made; None if they made none."""
        sharing = self._sharing
        return sharing.taken / (sharing.taken + sharing.made) if sharing and sharing.taken else None

    @property
    def damaged(self) -> dict[int, str]:
        """The damaged samples that this worker has found so far, and what is wrong with them."""
        return dict(self._source.damaged)

    def remember_damaged(self, found: Mapping[int, str]) -> None:
        """Counts those that were found before the run was interrupted."""
        self._source.damaged |= found

    def image_size(self, epoch: int) -> int:
        """The side of epoch ``epoch``'s images, in pixels."""
        return data_at_epoch(self._recipe, epoch, self._epochs).image_size

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[TrainBatch]:
        """The augmented batches of epoch ``epoch`` (counted from 0), from batch ``first_batch`` on."""
        this, numbers = _Pass(self, epoch), range(first_batch, self.batches_per_epoch)
        if self._sharing is None or self._source.is_resident_elsewhere:
            yield from map(this.augmented, this.read(numbers))
            return
        first = epoch * self.batches_per_epoch
        shared = range(first + numbers.start, first + numbers.stop)

        def make(numbers: Sequence[int]) -> Generator[Record, None, None]:
            own = [number - first for number in numbers]
            if self._augments_on_device:
                return (_record_of(*decoded) for decoded in this.decoded(own))
            return (_record(batch) for batch in map(this.augmented, this.read(own)))

        self._sharing.reset_counts()
        pins = self._device.type == "cuda"
        records = self._sharing.batches(self._key, self._largest_bytes(), shared, make, pins=pins)
        if not self._augments_on_device:
            yield from map(_train_batch, records)
            return
        with ahead(records, BATCHES_AHEAD) as arriving:
            for record in arriving:
                yield this.augmented(self._source.batch(record["images"], record["samples"].numpy()))

    def _largest_bytes(self) -> int:
        """The most that the tensors of a shared batch take: its images, and seven numbers for each."""
        mixing, share = self._recipe.mixing, len(self._positions)
        if self._augments_on_device:
            images = 2 * share if mixes(mixing) and mixing.partners == "separate" else share
        else:
            ends_in_bytes = self._recipe.autoaugment or self._recipe.randaugment.layers
            images = share if ends_in_bytes or mixing.mixup_alpha is None else 4 * share
        return images * self._recipe.image_size**2 * 3 + 2 * share * 7 * 8

    def _order(self, epoch: int, purpose: Purpose) -> Indices:
        return self._samples[epoch_order(self._seed, epoch, len(self._samples), purpose)]

    def _cut(self, recipe: ResolvedData, epoch: int, purpose: Purpose) -> Cut:
        beton, seed, size = self._source.split.beton, self._seed, recipe.image_size
        if recipe.crop == "random_resized":
            return lambda i: random_resized_boxes(
                seed, epoch, i, beton.heights[i], beton.widths[i], size, purpose
            )
        return lambda i: whole_boxes(beton.heights[i], beton.widths[i])


def _check_resolved(value: float | None, name: str) -> None:
    """The types say so, but a Recipe from a notebook has not been through a type checker."""
    if value is None:
        raise ValueError(f"the Recipe's {name} is missing; models.published.resolve fills it in")


def _key(
    split: Split,
    recipe: ResolvedData,
    batch_size: int,
    seed: int,
    epochs: int | None,
    worker: tuple[int, int, int],
    threads: int,
    device: str,
) -> str:
    """All that the batches of a worker depend on, and the code that makes them."""
    values = recipe.to_values()
    for name in ("path", "eval_size", "eval_crop", "resident", "on_damaged"):
        del values[name]
    parts = {
        "data": split.manifest.fingerprint,
        "recipe": values,
        "batch_size": batch_size,
        "seed": seed,
        "epochs": epochs if recipe.progressive.start_size is not None else None,
        "worker": worker,
        "threads": threads,
        "device": device,
        "code": (_SOURCE_DIGEST, decoder(), torch.__version__, np.__version__),
    }
    return json.dumps(parts, sort_keys=True)


# When it is imported: the files may change later.
_SOURCE_DIGEST = source_digest(Path(__file__).parents[1].rglob("*.py"))


def _record(batch: TrainBatch) -> Record:
    """A batch on the host as tensors by the names of its fields."""
    values = vars(batch).items()
    return {
        name: value if isinstance(value, Tensor) else torch.from_numpy(value)
        for name, value in values
        if value is not None
    }


def _record_of(images: Tensor, samples: Indices) -> Record:
    """Decoded images."""
    return {"images": images, "samples": torch.from_numpy(samples)}


def _train_batch(record: Record) -> TrainBatch:
    """The batch of a :func:`_record`."""
    tensors = dict(record)
    indices, positions = (tensors.pop(name).numpy() for name in ("indices", "positions"))
    return TrainBatch(indices=indices, positions=positions, **tensors)


def _halves(count: int, first: Cut, second: Cut) -> Cut:
    """Cuts the first ``count`` images by one rule, and those after them by another."""
    return lambda indices: np.concatenate([first(indices[:count]), second(indices[count:])])


class _Pass:
    """One epoch of a loader: how each of its batches is made."""

    def __init__(self, loader: TrainLoader, epoch: int) -> None:
        self._loader, self._epoch = loader, epoch
        self._recipe = recipe = data_at_epoch(loader._recipe, epoch, loader._epochs)
        self._reads_partners = mixes(recipe.mixing) and recipe.mixing.partners == "separate"
        self._share, self._cut = len(loader._positions), loader._cut(recipe, epoch, Purpose.RESIZED_CROP)
        self._order = loader._order(epoch, Purpose.ORDER)
        if self._reads_partners:
            self._others = loader._order(epoch, Purpose.PARTNER_ORDER)
            partners_cut = loader._cut(recipe, epoch, Purpose.PARTNER_RESIZED_CROP)
            self._cut = _halves(self._share, self._cut, partners_cut)
        self._size = recipe.image_size if recipe.crop == "random_resized" else None

    def read(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """The images of these batches on the device, before any augmentation but the crop."""
        return self._loader._source.batches([self._part(number) for number in numbers], self._cut, self._size)

    def decoded(self, numbers: Sequence[int]) -> Iterator[tuple[Tensor, Indices]]:
        """The same on the host, with the samples that they show."""
        return self._loader._source.decoded([self._part(number) for number in numbers], self._cut, self._size)

    def augmented(self, read: Batch) -> TrainBatch:
        """A batch of :meth:`read`, augmented on the device."""
        loader = self._loader
        batch = read.part(slice(0, self._share))
        partners = read.part(slice(self._share, None)) if self._reads_partners else None
        augmented = augment(batch, loader._positions, partners, self._recipe, loader._seed, self._epoch)
        return TrainBatch(
            images=augmented.images,
            labels=batch.labels,
            indices=batch.indices,
            positions=loader._positions,
            keys=on_device(sample_keys(loader._seed, self._epoch, batch.indices), loader._device),
            partner_labels=augmented.partner_labels,
            label_share=augmented.label_share,
        )

    def _part(self, number: int) -> Indices:
        places = number * self._loader._batch_size + self._loader._positions
        if not self._reads_partners:
            return self._order[places]
        # They come in the second half of what is read.
        return np.concatenate([self._order[places], self._others[places]])


class EvalLoader:
    """The validation batches of one worker; over all workers each image comes exactly once."""

    def __init__(
        self,
        split: Split,
        recipe: ResolvedData,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
        threads: int,
    ) -> None:
        _check_resolved(recipe.eval_size, "eval_size")
        own = np.arange(rank, len(split), world_size)
        self._parts = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
        self._size, self._crop = recipe.eval_size, recipe.eval_crop
        fit = _squash_and_crop if self._crop == "squash" else resize_crop
        self._source = _Source(
            split, np.arange(len(split)), recipe, recipe.eval_size, device, threads, fit, stands_in=False
        )
        if _stays_resident(recipe, len(split), recipe.eval_size, device):
            self._source.load_all(recipe.eval_crop, self._cut)

    @property
    def damaged(self) -> dict[int, str]:
        """The damaged samples that this worker has found so far, and what is wrong with them."""
        return dict(self._source.damaged)

    def remember_damaged(self, found: Mapping[int, str]) -> None:
        """Counts those that were found before the run was interrupted."""
        self._source.damaged |= found

    def __iter__(self) -> Iterator[Batch]:
        batches = self._source.batches(self._parts, self._cut)
        return (batch for batch in batches if len(batch.indices))

    def _cut(self, indices: Indices) -> Boxes:
        beton = self._source.split.beton
        heights, widths = beton.heights[indices], beton.widths[indices]
        if self._crop == "central":
            return central_square_boxes(heights, widths, self._size)
        return whole_boxes(heights, widths)


def _squash_and_crop(
    image_HWC: NDArray[np.uint8],
    _top: int,
    _left: int,
    _height: int,
    _width: int,
    out: NDArray[np.uint8],
) -> None:
    squash_and_crop(image_HWC, out)


class _Source:
    """Cut and resized images of one split: from memory if they are resident, else decoded by threads.

    ``samples``: those that may be asked for, int64, ascending.
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
        """The place of each sample among those that may be asked for, and so among the resident images."""
        self._rows[samples] = np.arange(len(samples))
        self._on_damaged, self._stands_in = recipe.on_damaged, stands_in
        self.damaged: dict[int, str] = {}
        self._lock = threading.Lock()
        self._is_checked = np.zeros(len(split), bool)  # against the manifest's hash
        self._labels = torch.tensor(split.beton.labels)
        self._pool = Pool(max(1, threads))
        self._images: Tensor | None = None
        self._shown: Samples | None = None
        """The sample that each of the resident images shows; -1: none."""

    def load_all(self, crop: str, cut: Cut) -> None:
        """Makes the images resident on the device: decoded once on a node, and opened once in a process."""
        name = f"{self.split.manifest.fingerprint}-{self._size}-{crop}-{decoder()}"
        if self._on_damaged != "stop":
            name += f"-{'stood_in' if self._stands_in else 'left_out'}"
        if len(self._asked_for) < len(self.split):
            name += f"-{len(self._asked_for)}"
        key = (name, str(self._device))
        if key not in _RESIDENT:
            images, samples = shared_images(
                name, len(self._asked_for), self._size, lambda *out: self._decode_all(cut, *out)
            )
            _RESIDENT[key] = torch.from_numpy(images).to(self._device), samples
        self._images, self._shown = _RESIDENT[key] = _RESIDENT.pop(key)  # now the last one that was used
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
        """Whether the images are in a device's memory, so that the host has nothing to do."""
        return self._images is not None and self._images.device.type != "cpu"

    def batches(self, parts: list[Indices], cut: Cut, size: int | None = None) -> Iterator[Batch]:
        """One Batch for each part, in their order; images that are not resident may have another ``size``."""
        if self._images is not None and self._shown is not None:
            for part in parts:
                rows = self._rows[part]
                samples = self._shown[rows]
                chosen = on_device(rows[samples >= 0], self._images.device)
                yield self.batch(self._images[chosen], samples[samples >= 0])
            return
        for images, samples in self.decoded(parts, cut, size):
            yield self.batch(images, samples)

    def decoded(
        self, parts: list[Indices], cut: Cut, size: int | None = None
    ) -> Iterator[tuple[Tensor, Indices]]:
        """The images of each part on the host, decoded ahead by the threads, and the samples that they show."""
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

    def batch(self, images: Tensor, samples: Indices) -> Batch:
        """Images and the samples that they show as a batch on the device."""
        labels = self._labels[torch.from_numpy(samples)]
        return Batch(sent_to(images, self._device), sent_to(labels, self._device), samples)

    def _decode(self, index: int, box: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Reads and decodes as much of a sample as the box needs, and fits the box into ``out``."""
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
        # An image that has the sample's size already is taken as it is.
        if (height, width) == full == out.shape[:2]:
            out[...] = image
        else:
            self._fit(image, 0, left, height, width, out)

    def _replace(self, samples: Indices, row: int, cut: Cut, out: NDArray[np.uint8]) -> None:
        """Replaces a damaged sample by the next good one that may be asked for, or -1 for none."""
        if not self._stands_in:
            samples[row] = -1
            return
        # Which one it is depends on the file and the share alone, so it is the same on every worker. The limit on
        # damaged ones ends the search.
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


_ROWS_AT_ONCE = 512  # of a resident split; errors come soon
_RESIDENT: dict[tuple[str, str], tuple[Tensor, Samples]] = {}
"""By name and device, in the order of their last use. A loader keeps its own, whether they are here or not."""


def _stays_resident(recipe: DataRecipe, count: int, size: int, device: torch.device) -> bool:
    """Whether the images of a split, ``count`` of them, stay in memory, and on a GPU in its memory as well."""
    if recipe.resident != "auto":
        return recipe.resident == "always"
    room = RESIDENT_SHARE_OF_MEMORY * free_bytes()
    if device.type == "cuda":
        room = min(room, RESIDENT_SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0])
    return count * size * size * 3 <= room
