"""`doctor` measures each part, and finds the bottleneck of given speeds. About 4 s."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_prep import __main__ as command_line
from data_prep import doctor
from data_prep.__main__ import main
from data_prep.doctor import Need, Speeds, diagnose, measure, needed
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe

SPEEDS = Speeds(
    disk=500.0,
    page_cache=20_000.0,
    decode_per_core=400.0,
    decode=1_300.0,
    loader=1_000.0,
    threads=4,
    image_size=192,
)
MUCH_MEMORY, LITTLE_MEMORY = 1 << 40, 1 << 20


@pytest.fixture
def digits(few_digits: Path) -> Dataset:
    return open_dataset(few_digits)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def said(digits: Dataset, speeds: Speeds, images_per_second: float | None, memory: int = MUCH_MEMORY) -> str:
    need = None if images_per_second is None else Need(images_per_second, "so many")
    return "\n".join(diagnose(digits.train, speeds, need, memory))


def test_every_part_is_measured(digits: Dataset) -> None:
    speeds = measure(digits.train, image_size=32, threads=2, seconds_each=0.1)
    assert speeds.disk is None or speeds.disk > 0
    assert speeds.page_cache > 0
    assert speeds.loader > 0
    # A 32-pixel JPEG is read from memory faster than it is decoded, on anything.
    assert 100 < speeds.decode_per_core < 1e6
    assert 100 < speeds.decode < 1e6
    assert (speeds.threads, speeds.image_size) == (2, 32)


def test_a_file_that_fits_into_memory_is_limited_by_decoding(digits: Dataset) -> None:
    text = said(digits, SPEEDS, None)
    assert "stays in the page cache" in text
    assert "what limits: decoding, at 1,000 images/s" in text
    assert "give --model" in text


def test_a_file_that_does_not_fit_is_limited_by_the_slower_of_disk_and_decoding(digits: Dataset) -> None:
    assert "what limits: the disk, at 500 images/s" in said(digits, SPEEDS, None, LITTLE_MEMORY)
    fast = replace(SPEEDS, disk=5_000.0)
    assert "what limits: decoding, at 1,000 images/s" in said(digits, fast, None, LITTLE_MEMORY)
    unknown = replace(SPEEDS, disk=None)
    assert "what limits: decoding, at 1,000 images/s" in said(digits, unknown, None, LITTLE_MEMORY)


def test_a_loader_far_below_its_decoder_is_limited_by_something_else(digits: Dataset) -> None:
    text = said(digits, replace(SPEEDS, decode=2_001.0), 2_000)
    assert "what limits: cutting and resizing, not decoding" in text
    assert "--write-mode raw" not in text


@pytest.mark.parametrize(
    ("images_per_second", "verdict"),
    [(500, "enough: 2.0 times"), (900, "just enough: 1.1 times"), (4_000, "NOT enough: .* wait 75% of")],
)
def test_the_verdict(digits: Dataset, images_per_second: float, verdict: str) -> None:
    import re

    assert re.search(rf"^{verdict}", said(digits, SPEEDS, images_per_second), re.MULTILINE)


def test_what_helps_is_cores_or_a_disk(digits: Dataset) -> None:
    # 250 images/s a core, and a fifth more than the 4,000 that are needed.
    assert "20 cores as fast as these instead of 4" in said(digits, SPEEDS, 4_000)
    assert "a faster disk" in said(digits, SPEEDS, 4_000, LITTLE_MEMORY)
    assert "what helps" not in said(digits, SPEEDS, 500)


def test_a_disk_as_fast_as_memory_is_not_taken_at_its_word(digits: Dataset) -> None:
    assert "cache of its own" in said(digits, replace(SPEEDS, disk=19_000.0), None)
    assert "cache of its own" not in said(digits, SPEEDS, None)


def test_what_gpus_need_is_given_or_published() -> None:
    given = needed(Recipe(), 10, gpus=4, gpu_images_per_second=2_500, model="nfnet_f0")
    assert given is not None
    assert given.images_per_second == 10_000
    published = needed(Recipe(), 10, gpus=8, gpu_images_per_second=None, model="nfnet_f1")
    assert published is not None
    assert published.images_per_second == pytest.approx(8 * 32 / 0.1339)
    assert "V100" in published.reason
    assert needed(Recipe(), 10, gpus=1, gpu_images_per_second=None, model=None) is None
    with pytest.raises(UserError, match="--gpu-images-per-second"):
        needed(Recipe(), 10, gpus=1, gpu_images_per_second=None, model="nfnet_pico")


def test_the_command(
    few_digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "SECONDS_EACH", 0.05)
    flags = ["--model", "nfnet_f0", "--gpus", "2", "--workers", "2"]
    assert main(["doctor", str(few_digits), *flags]) == 0
    out, _ = capsys.readouterr()
    assert "crops of 192 px" in out
    assert "needed: 1,129 images/s (2 x 564 of nfnet_f0 on a V100; a newer GPU takes more)" in out
    assert main(["doctor", str(few_digits), "--model", "nfnet_f9"]) == 2
    assert main(["doctor", str(few_digits / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize("arguments", [("convert", "a", "b"), ("verify", "a"), ("doctor", "a")])
def test_there_are_as_many_threads_as_cores_that_this_process_may_use(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container that has one of 64, the doctor would take the speed of that one for 64 times that of a core."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {5})
    assert command_line._parser().parse_args(arguments).workers == 1
