"""CIFAR-10 and CIFAR-100 in their binary version as a source."""

from __future__ import annotations

import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nfnet_ray.data.files.beton import JPEG, RAW, Beton
from nfnet_ray.data.files.dataset import open_dataset

from .conftest import FILES, convert, refusal


def cifar_pixels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 32, 32, 3) uint8, in which no two channels are alike; and (count,) labels of all 10 classes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return pixels, np.arange(count) * 7 % 10


def records(pixels: np.ndarray, labels: np.ndarray, coarse: bool = False) -> bytes:
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    first = [labels[:, None] // 5] if coarse else []
    return np.concatenate([*first, labels[:, None], planes], axis=1).astype(np.uint8).tobytes()


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    root = tmp_path / "cifar-10-batches-bin"
    root.mkdir()
    for number in range(1, 6):
        (root / f"data_batch_{number}.bin").write_bytes(records(*cifar_pixels(10 + number, number)))
    (root / "test_batch.bin").write_bytes(records(*cifar_pixels(12, 6)))
    (root / "batches.meta.txt").write_text("".join(f"class{number}\n" for number in range(10)) + "\n")
    (root / "readme.html").write_text("read me")
    return root


def packed(folder: Path, path: Path) -> Path:
    """As a .tar.gz, with the files in no order that helps."""
    with tarfile.open(path, "w:gz") as tar:
        for file in sorted(folder.iterdir(), reverse=True):
            tar.add(file, f"{folder.name}/{file.name}")
    return path


def pixels_of(beton: Beton) -> np.ndarray:
    out = np.empty((len(beton), int(beton.heights[0]), int(beton.widths[0]), 3), np.uint8)
    for index in range(len(beton)):
        beton.decode(index, out[index])
    return out


def test_cifar10_is_stored_without_loss(cifar10: Path, tmp_path: Path) -> None:
    archive = packed(cifar10, tmp_path / "cifar-10-binary.tar.gz")
    assert convert(cifar10, tmp_path / "folder.beton", "--workers", 1) == 0
    assert convert(archive, tmp_path / "archive.beton", "--workers", 5) == 0
    for suffix in FILES:
        folder, tar = tmp_path / f"folder{suffix}", tmp_path / f"archive{suffix}"
        assert folder.read_bytes() == tar.read_bytes()
    dataset = open_dataset(tmp_path / "archive.beton")
    assert dataset.class_names == tuple(f"class{number}" for number in range(10))
    train = [cifar_pixels(10 + number, number) for number in range(1, 6)]
    for split, batches in ((dataset.train, train), (dataset.validation, [cifar_pixels(12, 6)])):
        assert set(split.beton.modes.tolist()) == {RAW}
        np.testing.assert_array_equal(pixels_of(split.beton), np.concatenate([batch[0] for batch in batches]))
        np.testing.assert_array_equal(split.beton.labels, np.concatenate([batch[1] for batch in batches]))
    assert dataset.train.manifest.sources()[-1] == "data_batch_5/00014"
    assert dataset.train.manifest.settings["write_mode"] == "auto"
    assert dataset.train.manifest.settings["re_encoded"] == {}


def test_cifar10_as_jpegs_when_asked(cifar10: Path, tmp_path: Path) -> None:
    assert convert(cifar10, tmp_path / "out", "--write-mode", "jpg") == 0
    train = open_dataset(tmp_path / "out").train
    assert set(train.beton.modes.tolist()) == {JPEG}
    assert train.manifest.settings["re_encoded"] == {"pixels, not a JPEG": len(train)}


def test_cifar100_has_its_fine_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "cifar-100-binary"
    root.mkdir()
    (root / "train.bin").write_bytes(records(*cifar_pixels(30, 1), coarse=True))
    (root / "test.bin").write_bytes(records(*cifar_pixels(10, 2), coarse=True))
    (root / "fine_label_names.txt").write_text("".join(f"fine{number}\n" for number in range(10)))
    (root / "coarse_label_names.txt").write_text("coarse0\ncoarse1\n")
    assert convert(packed(root, tmp_path / "cifar-100-binary.tar.gz"), tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    pixels, labels = cifar_pixels(30, 1)
    np.testing.assert_array_equal(pixels_of(dataset.train.beton), pixels)
    assert dataset.train.beton.labels.tolist() == labels.tolist()
    assert dataset.class_names[:2] == ("fine0", "fine1")
    assert "fine labels" in capsys.readouterr().out


def python_version(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (root.parent / "exploded",))

    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (root / name).write_bytes(pickle.dumps(Bomb()))


def without_a_batch(root: Path) -> None:
    (root / "data_batch_3.bin").unlink()


def half_a_record(root: Path) -> None:
    path = root / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])


def a_label_without_a_name(root: Path) -> None:
    (root / "batches.meta.txt").write_text("cat\ndog\n")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (python_version, "give the binary version"),
        (without_a_batch, "data_batch_3.bin of CIFAR-10 is missing"),
        (half_a_record, "data_batch_3.bin: cut short"),
        (a_label_without_a_name, "has label 7"),
    ],
)
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_wrong_cifar_files_each_get_a_line(
    cifar10: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    build: Callable[[Path], None],
    message: str,
    form: str,
) -> None:
    build(cifar10)
    source = packed(cifar10, tmp_path / "cifar.tar.gz") if form == "archive" else cifar10
    error = refusal(tmp_path, capsys, source)
    assert message in error
