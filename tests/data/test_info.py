"""`info` summarises a data set, warns about leaks, and draws its classes. About 3 s."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.info import SHEET_CLASSES, describe, find_duplicates, write_class_sheet
from nfnet_ray.data.files.beton import JPEG, RAW, Beton, BetonWriter
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.data.files.manifest import hash_stored, write_manifest
from nfnet_ray.errors import UserError

Sample = tuple[bytes, int, int, int]  # stored bytes, label, height, width


def raw(colour: tuple[int, int, int], label: int, height: int = 20, width: int = 20) -> Sample:
    return bytes(colour) * (height * width), label, height, width


def write(folder: Path, classes: int, **splits: list[Sample]) -> Dataset:
    folder.mkdir(exist_ok=True)
    for split, samples in splits.items():
        with BetonWriter(folder / f"{split}.beton", capacity=len(samples)) as writer:
            for stored, label, height, width in samples:
                mode = RAW if len(stored) == 3 * height * width else JPEG
                writer.append(stored, label=label, height=height, width=width, mode=mode)
        write_manifest(
            folder / f"{split}.parquet",
            beton=Beton.open(folder / f"{split}.beton"),
            class_names=[f"kind{label}" for label in range(classes)],
            sources=[f"{split}/{number}" for number in range(len(samples))],
            hashes=[hash_stored(sample[0]) for sample in samples],
            settings={"source": "test", "re_encoded": {"not a JPEG": 3}, "skipped": ["bad.jpg"]},
        )
    return open_dataset(folder)


@pytest.fixture
def mixed(tmp_path: Path, encode: Callable[..., bytes]) -> Dataset:
    """Of four train images two are equal; a validation image is a train image; one class has no image in either."""
    grey = raw((128, 128, 128), 0)
    return write(
        tmp_path / "mixed",
        4,
        train=[grey, grey, raw((1, 2, 3), 1), (encode(0, size=(48, 40)), 2, 40, 48)],
        validation=[(encode(0, size=(48, 40)), 1, 40, 48), raw((9, 9, 9), 0)],
    )


def test_the_summary_counts_what_is_there(mixed: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(mixed.path)]) == 0
    out, _ = capsys.readouterr()
    assert "6 images of 4 classes" in out
    assert mixed.fingerprint in out
    assert "train: 4 images (1 JPEG, 3 raw)" in out
    assert "validation: 2 images (1 JPEG, 1 raw)" in out
    assert "height 20 to 40 (median 20), width 20 to 48 (median 20)" in out
    assert "shorter side: 16 to 31: 75.0%, 32 to 63: 25.0%" in out
    assert "0 to 2 (median 1) images a class" in out
    assert "1 class has no image here: kind3" in out
    assert "3 images were re-encoded: 3 not a JPEG" in out
    assert "1 image was left out: bad.jpg" in out


def test_duplicates_leaks_and_contradictions_are_counted_and_warned_of(mixed: Dataset) -> None:
    duplicates = find_duplicates(mixed)
    assert duplicates.surplus == {"train": 1, "validation": 0}
    assert duplicates.leaked == 1
    assert duplicates.contradictory == 1  # label 2 in train, 1 in validation
    assert duplicates.examples == (("validation/0", "train/3"),)
    lines = describe(mixed)
    assert [line for line in lines if line.startswith("warning")] == [
        "warning: 1 image is there several times, byte for byte, with different labels",
        "warning: 1 of 2 validation images is a training image too, byte for byte: accuracy on them says little"
        " (validation/0 is train/3)",
    ]


def test_without_duplicates_there_is_no_warning(tmp_path: Path) -> None:
    clean = write(tmp_path / "clean", 1, train=[raw((1, 1, 1), 0)], validation=[raw((2, 2, 2), 0)])
    assert not [line for line in describe(clean) if line.startswith(("warning", "note"))]


def test_images_of_one_size_are_said_to_be(tmp_path: Path) -> None:
    samples = [raw((number, 1, 1), 0, height=6, width=9) for number in range(3)]
    lines = describe(write(tmp_path / "same", 1, train=samples[:2], validation=samples[2:]))
    assert sum("all 6x9 pixels (height x width)" in line for line in lines) == 2


def test_the_sheet_shows_each_class_in_its_own_place(tmp_path: Path) -> None:
    """Three classes in red, green and blue; green is found in validation only."""
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    dataset = write(
        tmp_path / "colours", 3, train=[raw(red, 0), raw(blue, 2, 40, 10)], validation=[raw(green, 1)]
    )
    path = tmp_path / "sheet.png"
    assert main(["info", str(dataset.path), "--sheet", str(path)]) == 0
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    places = {}
    for name, colour in (("red", red), ("green", green), ("blue", blue)):
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        assert len(rows) > 1000, name
        places[name] = (int(rows.mean()), int(columns.mean()))
        if name == "blue":  # four times as high as wide, and shown whole
            assert np.ptp(rows) + 1 == 4 * (np.ptp(columns) + 1)
    assert places["red"][0] == places["green"][0] < places["blue"][0]
    assert places["red"][1] < places["green"][1]


def test_a_sheet_of_many_classes_takes_some_spread_over_all(tmp_path: Path) -> None:
    count = 2 * SHEET_CLASSES + 1
    samples = [raw((label % 256, label // 256, 7), label, 4, 4) for label in range(count)]
    dataset = write(tmp_path / "many", count, train=samples, validation=[raw((9, 9, 9), 0)])
    assert write_class_sheet(dataset, tmp_path / "sheet.jpg") == SHEET_CLASSES
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
        assert max(sheet.size) < 2000


def test_a_sheet_of_another_kind_is_refused(mixed: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.png or \.jpg"):
        write_class_sheet(mixed, tmp_path / "sheet.pdf")


def test_a_relative_data_set_starts_where_a_study_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pod, $NFNET_RAY_HOME is the shared volume, and the current folder is that of the code."""
    home, here = tmp_path / "shared", tmp_path / "code"
    for number, colour in enumerate(("red", "blue") * 5):
        folder = here / "photos" / colour
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    home.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("NFNET_RAY_HOME", str(home))
    assert main(["convert", "photos", "data/photos", "--workers", "1"]) == 0
    assert (home / "data" / "photos" / "train.beton").exists()
    assert main(["info", "data/photos", "--sheet", "classes.png"]) == 0
    assert main(["verify", "data/photos", "--workers", "1"]) == 0
    assert {path.name for path in here.iterdir()} == {"photos", "classes.png"}
    monkeypatch.delenv("NFNET_RAY_HOME")
    capsys.readouterr()
    assert main(["info", "data/photos"]) == 2
    assert "data/photos" in capsys.readouterr().err
    assert main(["convert", "photos", "data/photos", "--workers", "1"]) == 0
    assert (here / "data" / "photos" / "train.beton").exists()
