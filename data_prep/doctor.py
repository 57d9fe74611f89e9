"""``python -m data_prep doctor``: how fast this machine reads, decodes and loads a data set, and its bottleneck.

Each part is measured by itself for about two seconds, on the training split: stored bytes from the disk and from the
page cache, decoding on one core, and :class:`nfnet_ray.data.loading.loader.TrainLoader` as training uses it, without
mixing and RandAugment, which run on the GPU where there is one.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.lines import say
from nfnet_ray.data.files.beton import RAW, Beton
from nfnet_ray.data.files.dataset import Dataset, Split, open_dataset
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import MixingRecipe, Recipe, ResolvedData, ResolvedRandAugment
from nfnet_ray.wording import count

SECONDS_EACH = 2.0
_BATCH_SIZE = 64  # the loader's speed changes little with it
_WARM_BATCHES = 4  # those that the loader prepares ahead, and one
_READ_SIZE = 4096  # samples read at most from the disk: in random order, as training reads
_READ_UNMEASURED = 512  # samples, where the page cache cannot be emptied
_READERS = 8  # reads under way at once: a disk that serves several needs several to be as fast as it can
_CACHED_SHARE_OF_MEMORY = 0.7  # a file up to this share of the memory stays in the page cache
# Below this share of what all threads could decode, decoding is not what the loader's time goes into.
_MOSTLY_DECODING = 0.5
_ENOUGH = 1.2  # times what is needed: the rest is for evaluation, checkpoints and bad minutes

# Milliseconds of a training step of 32 images on one V100 at the model's training size, float16: Brock et al. 2021,
# table 3. No data loading is in them (appendix A.2).
V100_STEP_MILLISECONDS = {
    "resnet50": 35.3,
    "nfnet_f0": 56.7,
    "nfnet_f1": 133.9,
    "nfnet_f2": 226.3,
    "nfnet_f3": 524.5,
    "nfnet_f4": 1190.6,
    "nfnet_f5": 2177.1,
    "tf_efficientnet_b0": 44.8,
    "tf_efficientnet_b3": 116.6,
    "tf_efficientnet_b4": 221.6,
    "tf_efficientnet_b5": 458.9,
    "tf_efficientnet_b6": 868.2,
    "tf_efficientnet_b7": 1753.3,
}
_V100_BATCH = 32


@dataclass(frozen=True)
class Speeds:
    """The measurements, in images per second."""

    disk: float | None
    """Stored bytes in random order, with the page cache emptied; None where it cannot be emptied (not on Linux)."""
    page_cache: float
    """The same bytes again."""
    decode_per_core: float
    """Whole images on one thread, from memory."""
    decode: float
    """The same on ``threads`` threads."""
    loader: float
    """Batches of the training loader on ``threads`` threads, from the page cache."""
    threads: int
    image_size: int
    """Of the loader's images, in pixels."""


@dataclass(frozen=True)
class Need:
    """The demand of the GPUs, in images per second."""

    images_per_second: float
    reason: str


def measure(split: Split, image_size: int, threads: int, seconds_each: float) -> Speeds:
    """Measure all parts; takes about five times ``seconds_each``."""
    beton = split.beton
    order = np.random.default_rng(0).permutation(len(beton))[:_READ_SIZE]
    disk = None
    if _drop_from_page_cache(beton.path):
        disk = _images_per_second(beton.image_bytes, iter(order.tolist()), _READERS, seconds_each)
    # A slow disk brings few in that time, and is not waited for again.
    held = order[: max(_BATCH_SIZE, int(disk * seconds_each)) if disk is not None else _READ_UNMEASURED]
    for index in held:
        beton.image_bytes(int(index))
    endless = itertools.cycle(held.tolist())
    page_cache = _images_per_second(beton.image_bytes, endless, _READERS, seconds_each)
    decode = partial(_decode, beton)
    decode(0)  # loads the decoder
    return Speeds(
        disk=disk,
        page_cache=page_cache,
        decode_per_core=_images_per_second(decode, endless, 1, seconds_each),
        decode=_images_per_second(decode, endless, threads, seconds_each),
        loader=_images_per_second_loaded(split, image_size, threads, seconds_each),
        threads=threads,
        image_size=image_size,
    )


def needed(
    recipe: Recipe, classes: int, gpus: int, gpu_images_per_second: float | None, model: str | None
) -> Need | None:
    """The images per second that ``gpus`` GPUs need: as given, as measured on this machine's GPU, or as published."""
    if gpu_images_per_second is not None:
        return Need(gpus * gpu_images_per_second, f"{gpus} x {gpu_images_per_second:,.0f}, as given")
    if model is None:
        return None
    import torch

    if torch.cuda.is_available():
        from nfnet_ray.training.form.probe import measure_images_per_second

        rate = measure_images_per_second(recipe, classes, threads=1)
        name = torch.cuda.get_device_name()
        return Need(gpus * rate, f"{gpus} x {rate:,.0f} of {model}, measured on this machine's {name}")
    if model not in V100_STEP_MILLISECONDS:
        known = ", ".join(V100_STEP_MILLISECONDS)
        raise UserError(
            f"{model}: no training speed is published for it, and this machine has no GPU; give"
            f" --gpu-images-per-second, or one of {known}"
        )
    rate = _V100_BATCH / V100_STEP_MILLISECONDS[model] * 1000
    return Need(gpus * rate, f"{gpus} x {rate:,.0f} of {model} on a V100; a newer GPU takes more")


def diagnose(split: Split, speeds: Speeds, need: Need | None, memory_bytes: int) -> list[str]:
    """The measurements and their meaning, in lines of text."""
    beton = split.beton
    mean_bytes = float(beton.sizes.mean())
    mean_megapixels = float((beton.heights * beton.widths).mean()) / 1e6
    raw_share = float((beton.modes == RAW).mean())

    def line(what: str, rate: float, note: str) -> str:
        return f"{what:22} {rate:9,.0f} images/s   {note}"

    def megabytes(rate: float) -> str:
        return f"{rate * mean_bytes / 1e6:,.0f} MB/s"

    lines = []
    if speeds.disk is not None:
        note = f"{megabytes(speeds.disk)} in random order, page cache emptied before"
        if not _worth_believing(speeds):
            note += (
                "; nearly as fast as memory: the disk, or the machine that lends it, has a cache of its own"
            )
        lines.append(line("disk", speeds.disk, note))
    lines.append(line("page cache", speeds.page_cache, megabytes(speeds.page_cache)))
    kind = "JPEG" if raw_share == 0 else "raw" if raw_share == 1 else f"{raw_share:.0%} raw"
    lines.append(
        line(
            "decoding, per core",
            speeds.decode_per_core,
            f"{kind}, {mean_megapixels:.2g} megapixels on average",
        )
    )
    threads = count(speeds.threads, "thread")
    lines.append(line(f"decoding, {threads}", speeds.decode, "whole images"))
    lines.append(
        line(
            f"loader, {threads}", speeds.loader,
            f"crops of {speeds.image_size} px from the page cache",
        )
    )  # fmt: skip
    # The loader decodes the crop only, but also does everything else.
    decodes = speeds.loader >= _MOSTLY_DECODING * speeds.decode
    loader_limit = "decoding" if decodes else "cutting and resizing, not decoding"
    cached = beton.file_bytes <= _CACHED_SHARE_OF_MEMORY * memory_bytes
    size = f"{beton.file_bytes / 1e9:,.1f} GB of training images, {memory_bytes / 1e9:,.0f} GB of memory"
    if cached:
        supply, limit = speeds.loader, loader_limit
        lines.append(f"{size}: stays in the page cache, so the disk counts in the first epoch only")
    else:
        supply = min(speeds.loader, speeds.disk or math.inf)
        limit = loader_limit if supply == speeds.loader else "the disk"
        lines.append(f"{size}: too much for the page cache, so every epoch reads from the disk")
    lines.append(f"what limits: {limit}, at {supply:,.0f} images/s")
    lines += _verdict(speeds, need, supply, limit)
    return lines


def _verdict(speeds: Speeds, need: Need | None, supply: float, limit: str) -> list[str]:
    if need is None:
        return ["whether that is enough: give --model, or --gpu-images-per-second, and --gpus"]
    lines = [f"needed: {need.images_per_second:,.0f} images/s ({need.reason})"]
    share = supply / need.images_per_second
    if share >= _ENOUGH:
        lines.append(f"enough: {share:.1f} times what is needed")
        return lines
    lines.append(
        f"just enough: {share:.1f} times what is needed; the GPUs will wait now and then"
        if share >= 1
        else f"NOT enough: the GPUs would wait {1 - share:.0%} of the time"
    )
    if limit == "the disk":
        lines.append("what helps: a faster disk, a copy on a local one, or more memory")
    else:
        cores = math.ceil(_ENOUGH * need.images_per_second / (speeds.loader / speeds.threads))
        other = " or smaller images (convert --max-side), or no decoding (convert --write-mode raw)"
        lines.append(
            f"what helps: {count(cores, 'core')} as fast as these instead of {speeds.threads};"
            + (other if limit == "decoding" else " or images of the size that is trained at")
        )
    return lines


def _worth_believing(speeds: Speeds) -> bool:
    return speeds.disk is None or speeds.disk < 0.7 * speeds.page_cache


def _drop_from_page_cache(path: Path) -> bool:
    """Ask the kernel to forget the file; what another process maps stays."""
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)  # pages that are not on the disk yet are not dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return True


def _images_per_second(
    work: Callable[[int], object], indices: Iterator[int], threads: int, seconds: float
) -> float:
    """Calls of ``work`` with one sample each, on several threads, until the time is over or no sample is left."""
    lock, end = threading.Lock(), time.perf_counter() + seconds

    def repeat() -> int:
        count = 0
        while True:
            with lock:
                index = next(indices, None)
            if index is None:
                return count
            work(index)
            count += 1
            if time.perf_counter() >= end:  # after the first sample: a busy machine may start a thread late
                return count

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        count = sum(future.result() for future in [pool.submit(repeat) for _ in range(threads)])
    return count / (time.perf_counter() - start)


def _decode(beton: Beton, index: int) -> None:
    """Raises UserError for a damaged image."""
    beton.decode(index, np.empty((beton.heights[index], beton.widths[index], 3), np.uint8))


def _images_per_second_loaded(split: Split, image_size: int, threads: int, seconds: float) -> float:
    import torch

    from nfnet_ray.data.loading.loader import TrainLoader

    recipe = ResolvedData(
        image_size=image_size,
        eval_size=image_size,
        mixing=MixingRecipe(mixup_alpha=None, cutmix_alpha=None),
        randaugment=ResolvedRandAugment(layers=0, magnitude=0.0),
        resident="never",
    )
    batch_size = min(_BATCH_SIZE, len(split))
    loader = TrainLoader(
        split, recipe, batch_size=batch_size, seed=0, rank=0, world_size=1, device=torch.device("cpu"),
        threads=threads,
    )  # fmt: skip

    def batches() -> Generator[object]:
        for epoch in itertools.count():
            yield from loader.epoch(epoch)

    with closing(batches()) as endless:
        for _ in range(_WARM_BATCHES):
            next(endless)
        start, images = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds or images == 0:
            next(endless)
            images += batch_size
        return images / elapsed


def run_doctor(
    path: Path, model: str | None, gpus: int, gpu_images_per_second: float | None, threads: int
) -> None:
    """Measure and say what it means."""
    from nfnet_ray.models.published import published_recipe, resolve

    recipe = resolve(published_recipe(model) if model is not None else Recipe())
    dataset: Dataset = open_dataset(path)
    # First, since it may be wrong, and what follows takes seconds.
    need = needed(recipe, len(dataset.class_names), gpus, gpu_images_per_second, model)
    speeds = measure(dataset.train, recipe.data.image_size, threads, SECONDS_EACH)
    for line in diagnose(dataset.train, speeds, need, _memory_bytes()):
        say(line)


def _memory_bytes() -> int:
    """This machine's, or this container's where that is less (control groups, version 2)."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(memory_bytes, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no control groups, or "max": no limit
        return memory_bytes
