"""The loader: damaged images, deadlines, one resident copy for a node, and memory. About 12 s."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from nfnet_ray.data.augmentation.crop import random_resized_boxes
from nfnet_ray.data.decoding import compiled
from nfnet_ray.data.decoding.resize import resize_antialiased
from nfnet_ray.data.draws import epoch_order
from nfnet_ray.data.files.beton import RAW, Beton, BetonWriter
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.data.files.manifest import hash_stored, write_manifest
from nfnet_ray.data.files.train_share import images_drawn
from nfnet_ray.data.loading import pool, resident, source
from nfnet_ray.data.loading.loader import EvalLoader, TrainLoader
from nfnet_ray.data.loading.pool import Pool
from nfnet_ray.data.loading.resident import Images, Samples, shared_images
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import DataRecipe, MixingRecipe, RandAugmentRecipe
from tests.deadlines import HANG_SECONDS

from .conftest import Encode

CPU = torch.device("cpu")
OnDamaged = Literal["stop", "skip"]
IMAGES, SIZE, BATCH = 48, 32, 8


def write_split(stem: Path, encode: Encode, damaged: set[int], raw: bool = False, larger: int = 1) -> None:
    """Pictures of several sizes; ``damaged`` ones are cut in their middle, and their manifest believes in them."""
    path = stem.with_name(stem.name + ".beton")
    hashes = []
    with BetonWriter(path, capacity=IMAGES) as writer:
        for index in range(IMAGES):
            width, height = larger * (40 + index % 7), larger * (50 + index % 11)
            stored = encode(index, size=(width, height))
            if raw:
                stored = np.asarray(pixels(stored)).tobytes()
            if index in damaged:
                stored = stored[: len(stored) // 8]
            hashes.append(hash_stored(stored))
            writer.append(stored, label=index % 5, height=height, width=width, mode=RAW if raw else 0)
    write_manifest(
        stem.with_name(stem.name + ".parquet"),
        beton=Beton.open(path),
        class_names=[str(label) for label in range(5)],
        sources=[f"picture/{index}" for index in range(IMAGES)],
        hashes=hashes,
        settings={},
    )


def pixels(encoded: bytes) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


@pytest.fixture
def write(tmp_path: Path, encode: Encode) -> Callable[..., Dataset]:
    def written(damaged: set[int] | None = None, raw: bool = False, larger: int = 1) -> Dataset:
        folder = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name in ("train", "validation"):
            write_split(folder / name, encode, damaged or set(), raw, larger)
        return open_dataset(folder)

    return written


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Resident images go there, and none are remembered from another test."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(resident.tempfile, "tempdir", None)
    monkeypatch.setattr(source, "_RESIDENT", {})
    return folder


def recipe(crop: str = "random_resized", resident: str = "never") -> DataRecipe:
    return DataRecipe(
        image_size=SIZE,
        eval_size=SIZE,
        crop=crop,  # type: ignore[arg-type]
        flip=False,
        mixing=MixingRecipe(mixup_alpha=None, cutmix_alpha=None),
        randaugment=RandAugmentRecipe(layers=0),
        eval_crop="central",
        resident=resident,  # type: ignore[arg-type]
    )


def train_loader(
    dataset: Dataset,
    data: DataRecipe,
    on_damaged: OnDamaged = "skip",
    rank: int = 0,
    world_size: int = 1,
    threads: int = 2,
) -> TrainLoader:
    data = replace(data, on_damaged=on_damaged)
    return TrainLoader(
        dataset.train, data, batch_size=BATCH, seed=3, rank=rank, world_size=world_size, device=CPU, threads=threads
    )  # fmt: skip


def eval_loader(
    dataset: Dataset, data: DataRecipe, on_damaged: OnDamaged = "skip", rank: int = 0, world_size: int = 1
) -> EvalLoader:
    data = replace(data, on_damaged=on_damaged)
    return EvalLoader(
        dataset.validation, data, batch_size=5, rank=rank, world_size=world_size, device=CPU, threads=2
    )


def epoch_of(
    dataset: Dataset, data: DataRecipe, world_size: int = 1, threads: int = 2
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """An epoch's images, labels and indices, in the order of the global batches."""
    ranks = [
        list(train_loader(dataset, data, rank=rank, world_size=world_size, threads=threads).epoch(1))
        for rank in range(world_size)
    ]
    images, labels, indices = [], [], []
    for shares in zip(*ranks, strict=True):
        order = np.argsort(np.concatenate([share.positions for share in shares]))
        images.append(torch.cat([share.images for share in shares])[torch.from_numpy(order)])
        labels.append(torch.cat([share.labels for share in shares])[torch.from_numpy(order)])
        indices += np.concatenate([share.indices for share in shares])[order].tolist()
    return torch.cat(images), torch.cat(labels), indices


# --- what a sample is -----------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True], ids=["jpeg", "raw"])
def test_a_sample_is_its_box_of_the_whole_image_resized(write: Callable[..., Dataset], raw: bool) -> None:
    """Only the box of a JPEG is decoded; that cannot be seen."""
    dataset = write(raw=raw)
    beton = dataset.train.beton
    images, labels, indices = epoch_of(dataset, recipe())
    assert sorted(indices) == list(range(IMAGES))
    for got, label, index in zip(images, labels, indices, strict=True):
        whole = np.empty((beton.heights[index], beton.widths[index], 3), np.uint8)
        beton.decode(index, whole)
        box = random_resized_boxes(3, 1, np.array([index]), *np.array([[len(whole)], [whole.shape[1]]]), SIZE)
        expected = np.empty((SIZE, SIZE, 3), np.uint8)
        resize_antialiased(whole, *map(int, box[0]), expected)
        np.testing.assert_array_equal(got.numpy(), expected)
        assert label == index % 5


@pytest.mark.parametrize("crop", ["random_resized", "padded"])
def test_samples_are_the_same_without_the_compiled_box_decoder(
    write: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch, crop: str
) -> None:
    dataset = write(larger=3)
    expected = [epoch_of(dataset, recipe(crop)), [batch.images for batch in eval_loader(dataset, recipe())]]
    assert compiled.box_function() is not None
    monkeypatch.setattr(compiled, "box_function", lambda: None)
    got = [epoch_of(dataset, recipe(crop)), [batch.images for batch in eval_loader(dataset, recipe())]]
    assert torch.equal(got[0][0], expected[0][0])
    assert all(torch.equal(one, other) for one, other in zip(got[1], expected[1], strict=True))


def test_of_raw_samples_that_were_checked_only_the_rows_of_the_box_are_read(
    write: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = train_loader(write(raw=True), recipe())
    expected = torch.cat([batch.images for batch in training.epoch(1)])
    monkeypatch.setattr(Beton, "image_bytes", None)
    assert torch.equal(torch.cat([batch.images for batch in training.epoch(1)]), expected)


def test_resizing_is_pillows_bilinear(photograph: Image.Image) -> None:
    """To one level: both round 8-bit sums of fixed-point products, in a different order."""
    image = np.asarray(photograph)
    for top, left, height, width, size in ((10, 20, 300, 260, 64), (0, 0, 40, 50, 64), (7, 9, 200, 400, 96)):
        got = np.empty((size, size, 3), np.uint8)
        resize_antialiased(image, top, left, height, width, got)
        box = photograph.crop((left, top, left + width, top + height))
        expected = np.asarray(box.resize((size, size), Image.Resampling.BILINEAR), np.int64)
        assert np.abs(got - expected).max() <= 1
    with pytest.raises(ValueError, match="not inside"):
        resize_antialiased(image, 0, 0, 428, 10, np.empty((8, 8, 3), np.uint8))


# --- damaged images -------------------------------------------------------------------------------

DAMAGED = {7, 8}
STREAMED, RESIDENT = recipe(), recipe("padded", "always")


@pytest.fixture
def generous(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 of 48 are more than 1 %."""
    monkeypatch.setattr(source, "DAMAGED_LIMIT", 0.05)


@pytest.mark.usefixtures("generous")
@pytest.mark.parametrize("data", [STREAMED, RESIDENT], ids=["streamed", "resident"])
def test_the_next_sound_sample_takes_its_place(write: Callable[..., Dataset], data: DataRecipe) -> None:
    sound, damaged = write(), write(DAMAGED)
    images, labels, indices = epoch_of(damaged, data)
    expected_images, expected_labels, expected = epoch_of(sound, data)
    assert indices == [9 if index in DAMAGED else index for index in expected]
    nine = expected.index(9)
    for place, index in enumerate(expected):
        source = nine if index in DAMAGED else place
        assert torch.equal(images[place], expected_images[source])
        assert labels[place] == expected_labels[source]


@pytest.mark.usefixtures("generous")
@pytest.mark.parametrize("data", [STREAMED, RESIDENT], ids=["streamed", "resident"])
def test_a_stand_in_is_one_of_the_share(write: Callable[..., Dataset], data: DataRecipe) -> None:
    data = replace(data, train_share=0.5)
    # A damaged image has another hash, which may leave it out of the share.
    for damaged in range(IMAGES):
        dataset = write({damaged})
        drawn = images_drawn(dataset.train.manifest, 0.5)
        if damaged in drawn[:-1]:
            break
    _, _, indices = epoch_of(dataset, data)
    expected = drawn[epoch_order(3, 1, len(drawn))].tolist()
    next_one = int(drawn[np.searchsorted(drawn, damaged) + 1])
    assert indices == [next_one if index == damaged else index for index in expected]


@pytest.mark.usefixtures("generous")
@pytest.mark.parametrize("data", [STREAMED, RESIDENT], ids=["streamed", "resident"])
@pytest.mark.parametrize(("world_size", "threads"), [(1, 4), (2, 1), (8, 2)])
def test_stand_ins_are_the_same_for_any_number_of_ranks_and_threads(
    write: Callable[..., Dataset], data: DataRecipe, world_size: int, threads: int
) -> None:
    dataset = write(DAMAGED)
    one, other = epoch_of(dataset, data), epoch_of(dataset, data, world_size, threads)
    assert one[2] == other[2]
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


@pytest.mark.usefixtures("generous")
@pytest.mark.parametrize("keep", ["always", "never"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_leaves_damaged_images_out_and_counts_the_others_once(
    write: Callable[..., Dataset], keep: str, world_size: int
) -> None:
    dataset, seen = write(DAMAGED), []
    for rank in range(world_size):
        for batch in eval_loader(dataset, recipe(resident=keep), rank=rank, world_size=world_size):
            assert len(batch.images) == len(batch.labels) == len(batch.indices) > 0
            assert batch.labels.tolist() == [index % 5 for index in batch.indices]
            seen += batch.indices.tolist()
    assert sorted(seen) == sorted(set(range(IMAGES)) - DAMAGED)


@pytest.mark.usefixtures("generous")
def test_damaged_images_are_counted_and_named_once(
    write: Callable[..., Dataset], caplog: pytest.LogCaptureFixture
) -> None:
    loading = train_loader(write(DAMAGED), STREAMED)
    for epoch in range(3):
        assert sum(len(batch.labels) for batch in loading.epoch(epoch)) == IMAGES
    assert set(loading.damaged) == DAMAGED
    assert sorted(record.args[1] for record in caplog.records) == sorted(DAMAGED)  # type: ignore[index]


@pytest.mark.parametrize("data", [STREAMED, RESIDENT], ids=["streamed", "resident"])
def test_stop_is_the_default_and_names_the_sample(write: Callable[..., Dataset], data: DataRecipe) -> None:
    with pytest.raises(UserError, match=r"train\.beton: sample 7 is damaged"):
        list(
            TrainLoader(
                write({7}).train, data, batch_size=BATCH, seed=3, rank=0, world_size=1, device=CPU, threads=2
            ).epoch(0)
        )


@pytest.mark.parametrize("data", [STREAMED, RESIDENT], ids=["streamed", "resident"])
def test_a_single_changed_bit_is_found(write: Callable[..., Dataset], data: DataRecipe) -> None:
    """libjpeg decodes such an image without a complaint."""
    dataset = write()
    beton = dataset.train.beton
    with beton.path.open("r+b") as file:
        place = int(beton.offsets[7] + beton.sizes[7] // 2)
        file.seek(place)
        changed = file.read(1)[0] ^ 1
        file.seek(place)
        file.write(bytes([changed]))
    loading = train_loader(dataset, data)
    list(loading.epoch(0))
    assert list(loading.damaged) == [7]


def test_too_many_damaged_images_are_an_error(write: Callable[..., Dataset]) -> None:
    with pytest.raises(UserError, match=r"2 of 48 samples are damaged so far, more than 1%"):
        list(train_loader(write(DAMAGED), STREAMED).epoch(0))


def test_a_copy_made_with_skip_is_not_taken_for_one_made_with_stop(write: Callable[..., Dataset]) -> None:
    dataset = write({7})
    train_loader(dataset, RESIDENT)
    with pytest.raises(UserError, match="sample 7 is damaged"):
        train_loader(dataset, RESIDENT, on_damaged="stop")


# --- threads --------------------------------------------------------------------------------------


def name(row: int) -> str:
    return f"sample {row} of a test"


def test_a_row_that_hangs_is_an_error_with_its_name_and_place() -> None:
    threads = Pool(2, deadline_seconds=0.5)
    with pytest.raises(
        UserError, match=r"sample 3 of a test has been decoding for .* in hang_here \(test_loa"
    ):
        threads.wait(threads.submit(5, hang_here, name))


def test_the_time_for_which_the_process_was_stopped_counts_for_no_row() -> None:
    """As after Ctrl-Z and fg, or in a container that was paused."""
    code = """
import time
from nfnet_ray.data.loading.pool import Pool

def work(row):
    print("begun", flush=True)
    begin = time.thread_time()
    while time.thread_time() - begin < 0.3:  # much of which is left when the process runs again
        pass

pool = Pool(1, deadline_seconds=3)
pool.wait(pool.submit(1, work, str))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        assert process.wait(HANG_SECONDS) == 0


def hang_here(row: int) -> None:
    if row == 3:
        time.sleep(10 * HANG_SECONDS)


def test_a_program_ends_although_a_thread_hangs() -> None:
    code = """
import time
from nfnet_ray.data.loading.pool import Pool
pool = Pool(1, deadline_seconds=0.3)
try:
    pool.wait(pool.submit(1, lambda row: time.sleep(9000), str))
except Exception as error:
    print(type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=HANG_SECONDS, capture_output=True, text=True, check=True
    )
    assert done.stdout == "UserError\n"


def test_a_program_may_end_in_the_middle_of_an_epoch(write: Callable[..., Dataset]) -> None:
    """A thread that comes back from torch when the interpreter has gone aborts the process, one time in three."""
    code = """
import sys
import torch
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.loading.loader import TrainLoader
from nfnet_ray.recipe import DataRecipe, MixingRecipe, RandAugmentRecipe
recipe = DataRecipe(
    image_size=192, eval_size=192, mixing=MixingRecipe(None, None), randaugment=RandAugmentRecipe(layers=0)
)
train = open_dataset(sys.argv[1]).train
loader = TrainLoader(
    train, recipe, batch_size=8, seed=0, rank=0, world_size=1, device=torch.device("cpu"), threads=4
)
batches = loader.epoch(0)
next(batches)
"""
    path = str(write(larger=14).path)
    for _ in range(4):
        subprocess.run([sys.executable, "-c", code, path], timeout=HANG_SECONDS, check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_what_a_row_raises_reaches_the_one_who_waits(error: type[BaseException]) -> None:
    def fail(row: int) -> None:
        if row == 2:
            raise error("row two")

    threads = Pool(2)
    expected = error if issubclass(error, Exception) else RuntimeError
    with pytest.raises(expected, match="row two"):
        threads.wait(threads.submit(4, fail, name))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_killed_in_the_middle_of_a_row_is_an_error() -> None:
    threads = Pool(1)
    begun = threading.Event()

    def slow(_: int) -> None:
        begun.set()
        for _ in range(1000):
            time.sleep(0.01)

    job = threads.submit(1, slow, name)
    worker = threads._workers[0].thread
    assert worker is not None
    assert begun.wait(HANG_SECONDS)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(worker.ident or 0), ctypes.py_object(SystemExit)
    )
    with pytest.raises(RuntimeError, match="SystemExit"):
        threads.wait(job)


def test_a_thread_that_is_gone_is_an_error() -> None:
    threads = Pool(1)
    threads.wait(threads.submit(1, lambda _: None, name))
    threads._queue.put(None)
    worker = threads._workers[0].thread
    assert worker is not None
    worker.join(HANG_SECONDS)
    with pytest.raises(UserError, match="decode-0 has ended"):
        threads.wait(threads.submit(1, lambda _: None, name))


def test_a_loader_whose_decoder_hangs_says_which_sample(
    write: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write()
    monkeypatch.setattr(source, "decode_jpeg_box", lambda *_: time.sleep(10 * HANG_SECONDS))
    monkeypatch.setattr(pool, "ROW_DEADLINE_SECONDS", 0.5)
    loading = train_loader(dataset, STREAMED)
    loading._source._pool._deadline_seconds = 0.5
    with pytest.raises(UserError, match=r"train\.beton: sample \d+ has been decoding"):
        next(loading.epoch(0))


def test_an_epoch_left_early_leaves_nothing_behind(write: Callable[..., Dataset]) -> None:
    loading = train_loader(write(), STREAMED)
    for epoch in range(20):
        next(loading.epoch(epoch))
    expected = [batch.images for batch in loading.epoch(1)]
    again = [batch.images for batch in train_loader(write(), STREAMED).epoch(1)]
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


# --- one resident copy for a node -----------------------------------------------------------------

SHAPE = (6, 4, 4, 3)


def decode_numbers(images: Images, samples: Samples) -> None:
    images[...] = np.arange(images.size, dtype=np.uint8).reshape(images.shape)
    samples[:] = np.arange(len(samples))


def must_not_decode(_images: Images, _samples: Samples) -> None:
    raise AssertionError("decoded again")


def check(images: Images, samples: Samples) -> None:
    expected, indices = np.empty(SHAPE, np.uint8), np.empty(6, np.int64)
    decode_numbers(expected, indices)
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(samples, indices)


def test_images_stay_on_a_gpu_only_where_they_leave_it_to_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gib = 2**30
    monkeypatch.setattr(source, "free_bytes", lambda: 1024 * gib)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (79 * gib, 80 * gib))
    digits, imagenet = (1797, 32), (50_000, 256)  # 9.2 GiB of validation images at nfnet_f0's size
    auto, always, gpu = recipe(resident="auto"), recipe(resident="always"), torch.device("cuda")
    assert [source.stays_resident(auto, *images, gpu) for images in (digits, imagenet)] == [True, False]
    assert source.stays_resident(auto, *imagenet, CPU)
    assert source.stays_resident(always, *imagenet, gpu)


def resident_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def in_another_process(folder: Path) -> int:
    """The exit code of one that opens the images, and must not decode."""
    process = multiprocessing.get_context("fork").Process(
        target=lambda: check(*shared_images("a", 6, 4, must_not_decode, folder))
    )
    process.start()
    process.join(HANG_SECONDS)
    return -99 if process.exitcode is None else process.exitcode


def test_a_second_process_opens_what_the_first_decoded(tmp_path: Path) -> None:
    check(*shared_images("a", 6, 4, decode_numbers, tmp_path))
    assert resident_files(tmp_path) == ["a.images"]
    assert in_another_process(tmp_path) == 0


def test_processes_that_start_together_decode_once(tmp_path: Path) -> None:
    def slowly(images: Images, samples: Samples) -> None:
        with (tmp_path / "decoded").open("a") as file:
            file.write("x")
        time.sleep(0.5)
        decode_numbers(images, samples)

    folder = tmp_path / "resident"
    folder.mkdir()
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=lambda: check(*shared_images("a", 6, 4, slowly, folder))) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG_SECONDS)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert (tmp_path / "decoded").read_text() == "x"


def test_a_killed_creator_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    def killed(images: Images, samples: Samples) -> None:
        decode_numbers(images, samples)
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(
        target=lambda: shared_images("a", 6, 4, killed, tmp_path)
    )
    process.start()
    process.join(HANG_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    assert resident_files(tmp_path) == ["a.images.partial"]
    check(*shared_images("a", 6, 4, decode_numbers, tmp_path))
    assert resident_files(tmp_path) == ["a.images"]


def test_a_decode_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def fails(_images: Images, _samples: Samples) -> None:
        raise UserError("sample 3 is damaged")

    with pytest.raises(UserError, match="sample 3"):
        shared_images("a", 6, 4, fails, tmp_path)
    assert resident_files(tmp_path) == []


@pytest.mark.parametrize(
    "place", ["first header byte", "count", "checksum", "first sample", "last pixel", "short", "long"]
)
def test_a_damaged_or_cut_file_is_made_again(tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.images"
    check(*shared_images("a", 6, 4, decode_numbers, tmp_path))
    content = bytearray(path.read_bytes())
    offset = {
        "first header byte": 0, "count": 16, "checksum": 32, "first sample": 4096, "last pixel": len(content) - 1
    }.get(place)  # fmt: skip
    if offset is not None:
        content[offset] ^= 1
    damaged = {"short": bytes(content[:-1]), "long": bytes(content) + b"x"}.get(place, bytes(content))
    path.unlink()  # what is mapped stays as it is
    path.write_bytes(damaged)
    check(*shared_images("a", 6, 4, decode_numbers, tmp_path))
    assert in_another_process(tmp_path) == 0


def test_old_files_go_unless_somebody_has_them_open(tmp_path: Path) -> None:
    old = time.time() - 2 * resident.UNUSED_SECONDS
    in_use = shared_images("in_use", 6, 4, decode_numbers, tmp_path)
    for unused in ("old", "recent"):
        shutil.copyfile(tmp_path / "in_use.images", tmp_path / f"{unused}.images")
    for path in ("in_use", "old"):
        os.utime(tmp_path / f"{path}.images", (old, old))
    shared_images("new", 6, 4, decode_numbers, tmp_path)
    assert resident_files(tmp_path) == ["in_use.images", "new.images", "recent.images"]
    check(*in_use)


def test_what_killed_processes_have_begun_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    for name in ("killed", "begun"):
        (tmp_path / f"{name}.images.partial").write_bytes(b"some")
    with resident._locked(tmp_path / "begun.images"):
        shared_images("new", 6, 4, decode_numbers, tmp_path)
    assert resident_files(tmp_path) == ["begun.images.partial", "new.images"]


def test_a_file_is_unlocked_with_the_last_of_its_images(tmp_path: Path) -> None:
    images, samples = shared_images("a", 6, 4, decode_numbers, tmp_path)
    part = images[2:]
    del images, samples
    with (tmp_path / "a.images").open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        del part
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_process_keeps_the_resident_images_of_its_last_trials_only(write: Callable[..., Dataset]) -> None:
    dataset = write()
    sizes = [8, 12, 16, 20, 24, 8]
    for size in sizes:
        images = epoch_of(dataset, replace(RESIDENT, image_size=size))[0]
        assert images.shape[1] == size
    names = [name.split("-")[1] for name, _ in source._RESIDENT]
    assert names == [str(size) for size in sizes[-source.MOST_RESIDENT :]]


def test_without_room_the_images_are_the_processes_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    check(*shared_images("a", 6, 4, decode_numbers, tmp_path))
    assert resident_files(tmp_path) == []
    assert "for this process alone" in caplog.text


def test_a_lock_that_is_never_given_back_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "LOCK_DEADLINE_SECONDS", 0.3)
    with resident._locked(tmp_path / "a.images"), pytest.raises(UserError, match="another process"):
        shared_images("a", 6, 4, decode_numbers, tmp_path)


def test_a_folder_that_others_may_write_to_is_not_used(own_temporary_folder: Path) -> None:
    folder = own_temporary_folder / f"nfnet_ray-{os.getuid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    check(*shared_images("a", 6, 4, decode_numbers))
    assert resident_files(folder) == []


def test_loaders_of_one_node_share_and_say_so(
    write: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    dataset = write()
    expected = epoch_of(dataset, RESIDENT)
    assert [record.message.partition(" decoded")[0] for record in caplog.records] == [
        "resident: 48 images of 32 px, 0 MB,"
    ]
    monkeypatch.setattr(source, "_RESIDENT", {})  # as in another process
    monkeypatch.setattr(source, "decode_jpeg_box", None)
    got = epoch_of(dataset, RESIDENT)
    assert torch.equal(got[0], expected[0])
    assert "taken from this node's copy" in caplog.records[-1].message


# --- memory ---------------------------------------------------------------------------------------


def test_memory_is_flat_over_ten_epochs(write: Callable[..., Dataset]) -> None:
    def resident_kilobytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

    loading = train_loader(write(), STREAMED)

    def epochs(count: int) -> None:
        for epoch in range(count):
            for _ in loading.epoch(epoch):
                pass

    epochs(3)
    before = resident_kilobytes()
    epochs(10)
    assert resident_kilobytes() - before < 4096  # an epoch's images have 3,700


# --- a loader that is built by hand ---------------------------------------------------------------


def test_a_loader_without_a_whole_batch_is_refused(write: Callable[..., Dataset]) -> None:
    """Its epochs would be empty, and a loop over them would train nothing."""
    few = replace(recipe(), train_share=0.1)
    with pytest.raises(
        UserError, match=r"batch_size 8 is larger than the 5 images that data\.train_share 0\.1"
    ):
        train_loader(write(), few)


def test_a_loader_whose_workers_would_leave_images_out_is_refused(write: Callable[..., Dataset]) -> None:
    with pytest.raises(UserError, match="batch_size 8 cannot be shared equally by 3 workers"):
        train_loader(write(), recipe(), world_size=3)


def test_a_recipe_that_leaves_a_size_open_is_refused(write: Callable[..., Dataset]) -> None:
    dataset = write()
    with pytest.raises(ValueError, match=r"image_size is missing; models.published.resolve fills it in"):
        train_loader(dataset, replace(recipe(), image_size=None))
    with pytest.raises(ValueError, match="eval_size is missing"):
        eval_loader(dataset, replace(recipe(), eval_size=None))
