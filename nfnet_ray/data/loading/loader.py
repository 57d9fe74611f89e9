"""Batches of a data set, in an order and with crops that depend on (seed, epoch, sample) alone.

The loader reads FFCV's file format and runs compiled decoders (FFCV's ``libffcv``, and ``jpeg_box.c``) on a pool of
threads; the calls release the interpreter's lock. FFCV's own Python ``Loader`` is not used: it draws crops from
unseeded generators, drops the decoder's return code and waits forever for a dead thread, and importing it costs
seconds of compilation in every process.

:mod:`nfnet_ray.data.loading.source` reads and decodes the images, and handles damaged ones.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
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
from nfnet_ray.data.batch import Batch, Indices, TrainBatch, on_device
from nfnet_ray.data.batching import batches_per_epoch, check_batches, mixes, positions_of_worker
from nfnet_ray.data.decoding.decode import decoder, resize_crop
from nfnet_ray.data.decoding.resize import resize_antialiased
from nfnet_ray.data.draws import Purpose, epoch_order, sample_keys
from nfnet_ray.data.files.dataset import Split
from nfnet_ray.data.files.train_share import images_drawn
from nfnet_ray.data.loading.sharing import Sharing, ahead, source_digest
from nfnet_ray.data.loading.source import BATCHES_AHEAD, Cut, Source, stays_resident
from nfnet_ray.data.loading.stream import Record
from nfnet_ray.recipe import ResolvedData


class TrainLoader:
    """The training batches of the worker with this ``rank``, of ``world_size``.

    Global batch k of an epoch is ``order[k * batch_size : (k + 1) * batch_size]`` for any number of workers. Each
    worker takes the positions of ``batching.positions_of_worker``, for which ``replicas`` is the number of workers that
    there should be. Images that do not fill a batch are left out of that epoch. With mixing and ``partners="separate"``
    each image is mixed with the one at the same position of a second order, which has a separate crop, shift and flip.

    If images grow (``data.progressive``), random crops are decoded to the size of the epoch. Padded and whole images,
    which may be resident, are decoded to the full size, shifted and flipped, and then resized on the device. The size
    depends on ``epochs``, the number of all epochs.

    With ``data.train_share`` below 1, only the images of :func:`images_drawn` are used.

    With ``sharing``, this worker shares batches with other processes of the node that need the same ones: finished
    batches on a CPU, and decoded images for a GPU.

    Raises UserError if the images do not fill a batch, or if workers cannot share one equally.
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
        self._source = Source(
            split, self._samples, recipe, recipe.image_size, device, threads, fit, stands_in=True
        )
        if recipe.crop != "random_resized" and stays_resident(
            recipe, len(self._samples), recipe.image_size, device
        ):
            self._source.load_all("whole", self._cut(recipe, 0, Purpose.RESIZED_CROP))
        # If damaged images are replaced, each worker has to read and count them itself.
        can_share = recipe.on_damaged == "stop" and sharing is not None and sharing.is_on_for(device)
        self._sharing = sharing if can_share else None
        # For a GPU decoded images are shared, and each process augments them on its device.
        self._augments_on_device = device.type != "cpu"
        worker = (rank, world_size, replicas)
        self._key = _key(split, recipe, batch_size, seed, epochs, worker, threads, device.type)

    @property
    def shared_share(self) -> float | None:
        """The share of the last epoch's batches that came from other processes; None if there are none."""
        sharing = self._sharing
        return sharing.taken / (sharing.taken + sharing.made) if sharing and sharing.taken else None

    @property
    def damaged(self) -> dict[int, str]:
        """{sample index: its fault} of the damaged samples that this worker has found so far."""
        return dict(self._source.damaged)

    def remember_damaged(self, found: Mapping[int, str]) -> None:
        """Adds the damaged samples that were found before the run was interrupted."""
        self._source.damaged |= found

    def image_size(self, epoch: int) -> int:
        """The side of the images in epoch ``epoch``, in pixels."""
        return data_at_epoch(self._recipe, epoch, self._epochs).image_size

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[TrainBatch]:
        """Yields the augmented batches of epoch ``epoch`` (counted from 0), starting with batch ``first_batch``."""
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
        """The largest size of a shared batch in bytes: its images, and seven numbers for each of them."""
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


class _Pass:
    """One epoch of a loader: reads and augments each of its batches."""

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
        """The images of these batches on the device, cropped but not augmented otherwise."""
        return self._loader._source.batches([self._part(number) for number in numbers], self._cut, self._size)

    def decoded(self, numbers: Sequence[int]) -> Iterator[tuple[Tensor, Indices]]:
        """The images of these batches in the host's memory, with the indices of their samples."""
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
        # The second half are the partners.
        return np.concatenate([self._order[places], self._others[places]])


def _halves(count: int, first: Cut, second: Cut) -> Cut:
    """Cuts the first ``count`` images by one rule, and those after them by another."""
    return lambda indices: np.concatenate([first(indices[:count]), second(indices[count:])])


def _record(batch: TrainBatch) -> Record:
    """A batch in the host's memory, as {field name: tensor}."""
    values = vars(batch).items()
    return {
        name: value if isinstance(value, Tensor) else torch.from_numpy(value)
        for name, value in values
        if value is not None
    }


def _record_of(images: Tensor, samples: Indices) -> Record:
    """Decoded images and the indices of their samples, as {name: tensor}."""
    return {"images": images, "samples": torch.from_numpy(samples)}


def _train_batch(record: Record) -> TrainBatch:
    """The batch of a :func:`_record`."""
    tensors = dict(record)
    indices, positions = (tensors.pop(name).numpy() for name in ("indices", "positions"))
    return TrainBatch(indices=indices, positions=positions, **tensors)


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
    """A text with everything on which the batches of a worker depend, including the code that makes them."""
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


# Computed when this module is imported, as the files may change later.
_SOURCE_DIGEST = source_digest(Path(__file__).parents[1].rglob("*.py"))


class EvalLoader:
    """The validation batches of one worker. Each image is in exactly one batch of one worker."""

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
        self._source = Source(
            split, np.arange(len(split)), recipe, recipe.eval_size, device, threads, fit, stands_in=False
        )
        if stays_resident(recipe, len(split), recipe.eval_size, device):
            self._source.load_all(recipe.eval_crop, self._cut)

    @property
    def damaged(self) -> dict[int, str]:
        """{sample index: its fault} of the damaged samples that this worker has found so far."""
        return dict(self._source.damaged)

    def remember_damaged(self, found: Mapping[int, str]) -> None:
        """Adds the damaged samples that were found before the run was interrupted."""
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


def _check_resolved(value: float | None, name: str) -> None:
    """Raises ValueError for a missing value, which a Recipe from a notebook may have."""
    if value is None:
        raise ValueError(f"the Recipe's {name} is missing; models.published.resolve fills it in")
