"""Our loader and others on the same images: ``python -m benchmarks.loader SOURCE [--threads N] [--size PIXELS]``.

SOURCE has a folder of JPEGs for each class. Each image is taken ``--copies`` times, so that an epoch is long enough. An
epoch of random resized crops, uint8 in batches of 50, is timed in turn for

* ``ours``: ``TrainLoader`` from a .beton, without flips, mixing and RandAugment;
* ``ffcv``: FFCV's own ``Loader`` from the same file, ``RandomResizedCropRGBImageDecoder`` and ``ToTensor``;
* ``torchvision``: ``ImageFolder``, ``RandomResizedCrop``, ``PILToTensor`` and ``DataLoader`` with lasting workers;
* ``hugging_face``: an ``imagefolder`` of Hugging Face datasets, with the same transform and ``DataLoader``;
* ``plain_decode``: libjpeg-turbo decodes the stored bytes, which are in memory, and nothing else: the limit;
* ``ours_raw``: ours from a .beton of raw pixels (``--write-mode raw``), which is in the page cache;
* ``ours_own_law``: ours once more. In ``ours`` the crops are drawn by the law of the others (torchvision's, whose
  crops have 0.5 of the image on average), here by NFNet's (0.4).

Each way has as many threads or processes as the others, and a first epoch that does not count. Ratios are medians
over rounds. Then: from opening the data set to the first batch, in this process; the same in a new process, imports
included; and by how much memory grows over ten more epochs. Appends a row to ``results/loader.csv``.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.record import Row, append_rows, circumstances
from data_prep.__main__ import main as data_prep
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.data.augmentation.crop import central_square_boxes
from nfnet_ray.data.decoding.decode import decode_jpeg
from nfnet_ray.data.draws import Purpose, uniforms
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.data.loading import loader as loader_module
from nfnet_ray.data.loading.loader import TrainLoader
from nfnet_ray.processor import available_cpus
from nfnet_ray.recipe import MixingRecipe, ResolvedData, ResolvedRandAugment

RESULTS = Path(__file__).with_name("results") / "loader.csv"
ROUNDS, BATCH, ATTEMPTS = 7, 50, 10
MORE_EPOCHS = 10  # for the memory
CPU = torch.device("cpu")

Epoch = Callable[[], int]
"""Goes through an epoch; the number of images that came."""


def torchvision_boxes(
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    size: int,
    purpose: Purpose = Purpose.RESIZED_CROP,
) -> NDArray[np.int64]:
    """Crops by the law of torchvision's ``RandomResizedCrop.get_params``, which FFCV's decoder has too, (N, 4)."""
    draws = uniforms(seed, epoch, purpose, indices, 4 * ATTEMPTS).reshape(-1, ATTEMPTS, 4)
    area = (heights * widths)[:, None] * (0.08 + 0.92 * draws[..., 0])
    aspect = np.exp(np.log(3 / 4) + draws[..., 1] * np.log(16 / 9))
    height, width = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (height <= heights[:, None]) & (width <= widths[:, None])
    top = np.floor(draws[..., 2] * (heights[:, None] - height + 1))
    left = np.floor(draws[..., 3] * (widths[:, None] - width + 1))
    boxes = np.stack([top, left, height, width], axis=-1).astype(np.int64)
    first = boxes[np.arange(len(indices)), fits.argmax(axis=1)]
    return np.where(fits.any(axis=1)[:, None], first, central_square_boxes(heights, widths, size))


def our_loader(dataset: Dataset, size: int, threads: int) -> TrainLoader:
    """Random resized crops and nothing else."""
    recipe = ResolvedData(
        image_size=size,
        eval_size=size,
        flip=False,
        mixing=MixingRecipe(mixup_alpha=None, cutmix_alpha=None),
        randaugment=ResolvedRandAugment(layers=0, magnitude=0.0),
    )
    return TrainLoader(
        dataset.train, recipe, batch_size=BATCH, seed=0, rank=0, world_size=1, device=CPU, threads=threads
    )


def ours(dataset: Dataset, size: int, threads: int, *, own_law: bool) -> Epoch:
    """Epochs of our loader."""
    loader, epochs = our_loader(dataset, size, threads), iter(range(10**6))
    law = loader_module.random_resized_boxes if own_law else torchvision_boxes

    def epoch() -> int:
        with mock.patch.object(loader_module, "random_resized_boxes", law):
            return sum(len(batch.labels) for batch in loader.epoch(next(epochs)))

    return epoch


def ffcv(beton: Path, size: int, threads: int) -> Epoch:
    """Epochs of FFCV's own loader."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    pipelines = {
        "image": [RandomResizedCropRGBImageDecoder((size, size)), ToTensor()],
        "label": [IntDecoder(), ToTensor()],
    }
    loader = Loader(
        str(beton),
        batch_size=BATCH,
        num_workers=threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines=pipelines,
    )
    return lambda: sum(len(labels) for _, labels in loader)


def torchvision(folder: Path, size: int, threads: int) -> Epoch:
    """Epochs of ImageFolder and DataLoader."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, PILToTensor, RandomResizedCrop

    images = ImageFolder(str(folder), Compose([RandomResizedCrop(size), PILToTensor()]))
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=threads, persistent_workers=True, drop_last=True
    )
    return lambda: sum(len(labels) for _, labels in loader)


def hugging_face(folder: Path, size: int, threads: int) -> Epoch:
    """Epochs of Hugging Face datasets."""
    from datasets import load_dataset
    from torchvision.transforms import Compose, PILToTensor, RandomResizedCrop

    transform = Compose([lambda image: image.convert("RGB"), RandomResizedCrop(size), PILToTensor()])

    def transformed(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"image": [transform(image) for image in rows["image"]], "label": rows["label"]}

    cache = folder.parents[1] / "hugging_face"  # next to the images, and deleted with them
    images: Any = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache))
    images = images.with_transform(transformed)
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=threads, persistent_workers=True, drop_last=True
    )
    return lambda: sum(len(batch["label"]) for batch in loader)


def plain_decode(dataset: Dataset, threads: int) -> Epoch:
    """Whole images from bytes in memory; each thread has one place for the pixels."""
    beton = dataset.train.beton
    stored = [beton.image_bytes(index) for index in range(len(beton))]
    largest = int((beton.heights * beton.widths).max()) * 3

    def decode(first: int) -> int:
        memory, count = np.empty(largest, np.uint8), 0
        for index in range(first, len(stored), threads):
            shape = (int(beton.heights[index]), int(beton.widths[index]), 3)
            decode_jpeg(stored[index], memory[: shape[0] * shape[1] * 3].reshape(shape))
            count += 1
        return count

    pool = ThreadPoolExecutor(threads)
    return lambda: sum(pool.map(decode, range(threads)))


def resident_bytes() -> int:
    """How much memory of this process is in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def first_batch_seconds(folder: Path, size: int, threads: int) -> float:
    """From opening the data set to the first batch."""
    start = time.perf_counter()
    next(our_loader(open_dataset(folder), size, threads).epoch(0))
    return time.perf_counter() - start


def measure(source: Path, work: Path, size: int, threads: int, copies: int) -> Row:
    """One row of results."""
    _write_data(source, work, copies)
    dataset = open_dataset(work / "data")
    ways: dict[str, Epoch] = {
        "ours": ours(dataset, size, threads, own_law=False),
        "ffcv": ffcv(work / "data" / "train.beton", size, threads),
        "torchvision": torchvision(work / "source" / "train", size, threads),
        "hugging_face": hugging_face(work / "source" / "train", size, threads),
        "plain_decode": plain_decode(dataset, threads),
        "ours_raw": ours(open_dataset(work / "raw"), size, threads, own_law=False),
        "ours_own_law": ours(dataset, size, threads, own_law=True),
    }
    speeds = _images_per_second(ways)

    def ratio(way: str, other: str) -> float:
        return round(float(np.median(np.array(speeds[way]) / np.array(speeds[other]))), 2)

    warm = [first_batch_seconds(work / "data", size, threads) for _ in range(ROUNDS)]
    new = [_new_process_seconds(work / "data", size, threads) for _ in range(3)]
    before = resident_bytes()
    for _ in range(MORE_EPOCHS):
        ways["ours"]()
    grown = resident_bytes() - before
    return {
        "size": size,
        "batch": BATCH,
        "images": len(dataset.train),
        **{f"{way}_images_per_second": round(statistics.median(speeds[way])) for way in ways},
        **{
            f"times_{way}": ratio("ours", way)
            for way in ("ffcv", "torchvision", "hugging_face", "plain_decode")
        },
        "raw_times_jpeg": ratio("ours_raw", "ours"),
        "warm_start_seconds": round(statistics.median(warm), 2),
        "new_process_start_seconds": round(statistics.median(new), 2),
        "memory_growth_mb": round(grown / 1e6, 1),
        "n": ROUNDS,
    }


def _write_data(source: Path, work: Path, copies: int) -> None:
    """Copies the images, in ``work``, to class folders for training and validation, and converts them twice."""
    for image in sorted(path for path in source.rglob("*") if path.is_file()):
        for split, count in (("train", copies), ("validation", 1)):
            folder = work / "source" / split / image.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                shutil.copyfile(image, folder / f"{number}-{image.name}")
    for name, mode in (("data", "jpg"), ("raw", "raw")):
        if data_prep(["convert", str(work / "source"), str(work / name), "--write-mode", mode]) != 0:
            raise SystemExit(2)


def _images_per_second(ways: Mapping[str, Epoch]) -> dict[str, list[float]]:
    """The speed of each way in each round, in which they take turns; the first round warms up."""
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(1 + ROUNDS):
        for way, epoch in ways.items():
            start = time.perf_counter()
            images = epoch()
            if number:
                speeds[way].append(images / (time.perf_counter() - start))
    return speeds


def _new_process_seconds(folder: Path, size: int, threads: int) -> float:
    """From the start of a process to its first batch, and its end."""
    code = "import sys; from pathlib import Path; from benchmarks.loader import first_batch_seconds;"
    code += "first_batch_seconds(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
    start = time.perf_counter()
    arguments = [str(folder), str(size), str(threads)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=Path(__file__).parents[1])
    return time.perf_counter() - start


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder of class folders of JPEGs")
    parser.add_argument(
        "--threads",
        type=positive,
        default=available_cpus(),
        help="threads, or processes, of each loader (default: one for each core)",
    )
    parser.add_argument(
        "--size",
        type=positive,
        default=192,
        metavar="PIXELS",
        help="side of a crop in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--copies", type=positive, default=4, help="how often each image is taken (default: %(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        row = measure(options.source, Path(work), options.size, options.threads, options.copies)
    append_rows(RESULTS, [row | circumstances(CPU, options.threads)])


if __name__ == "__main__":
    main()
