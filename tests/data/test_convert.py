"""Images in, data set out: what is stored, who validates, what goes wrong, what is left behind. About 9 s."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import data_prep.sources.image_folder as image_folder_module
from data_prep.__main__ import main
from data_prep.conversion import parallel
from data_prep.conversion.splits import held_out
from data_prep.sources.image_folder import FolderSplit
from data_prep.sources.source import SourceImage
from nfnet_ray.data.__main__ import main as data_main
from nfnet_ray.data.files.beton import Beton
from nfnet_ray.data.files.dataset import Dataset, open_dataset

from .conftest import HELD, Encode, convert, refusal

REPOSITORY = Path(__file__).parents[2]


def stored_by_source(dataset: Dataset) -> dict[str, bytes]:
    return {
        name: split.beton.image_bytes(index).tobytes()
        for split in (dataset.train, dataset.validation)
        for index, name in enumerate(split.manifest.sources())
    }


def class_of_source(dataset: Dataset) -> dict[str, str]:
    return {
        name: dataset.class_names[label]
        for split in (dataset.train, dataset.validation)
        for name, label in zip(split.manifest.sources(), split.beton.labels.tolist(), strict=True)
    }


def write_shard(path: Path, images: list[bytes | None], labels: list[int], **options: object) -> None:
    """A Parquet file as the ``datasets`` library writes it."""
    names = options.get("names")
    structs = [{"bytes": image, "path": f"{path.stem}/{row}.jpg"} for row, image in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {"image": pa.array(structs, kind), str(options.get("column", "label")): pa.array(labels)}
    )
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)


# What is stored


@pytest.mark.parametrize("out", ["out", "out.beton", "v1.2.beton"])
def test_clean_jpegs_are_stored_byte_for_byte(image_folder: Path, tmp_path: Path, out: str) -> None:
    assert convert(image_folder, tmp_path / out) == 0
    dataset = open_dataset(tmp_path / out)
    assert dataset.class_names == ("aster", "daisy", "rose")
    stored = stored_by_source(dataset)
    assert len(stored) == 15
    for name, data in stored.items():
        assert data == (image_folder / name).read_bytes()
        assert class_of_source(dataset)[name] == name.split("/")[0]
    assert dataset.uniform_size == (40, 48)


def test_other_images_are_re_encoded(
    image_folder: Path, tmp_path: Path, encode: Encode, capsys: pytest.CaptureFixture[str]
) -> None:
    aster = image_folder / "aster"
    (aster / "a.png").write_bytes(encode(50, "PNG"))
    (aster / "b.png").write_bytes(encode(51, "PNG", mode="P"))
    (aster / "c.jpg").write_bytes(encode(52, mode="CMYK"))
    (aster / "d.JPEG").write_bytes(encode(53, size=(1300, 650)))
    (aster / "e.jpg").write_bytes(encode(54)[:-2] + b"\x55" * 60 + b"\xff\xd9")  # a warning
    (aster / "f.jpg").write_bytes(encode(55, mode="L"))
    (aster / "g.webp").write_bytes(encode(56, "WEBP"))
    (aster / "readme.txt").write_text("not an image")
    assert convert(image_folder, tmp_path / "out", "--jpeg-quality", 95, "--write-mode", "jpg") == 0
    stored = stored_by_source(open_dataset(tmp_path / "out"))
    assert len(stored) == 22
    for name in ("a.png", "b.png", "c.jpg", "d.JPEG", "e.jpg", "f.jpg", "g.webp"):
        data = stored[f"aster/{name}"]
        with Image.open(io.BytesIO(data)) as image, Image.open(aster / name) as original:
            assert image.format == "JPEG"
            assert image.size == ((1024, 512) if name == "d.JPEG" else (48, 40))
            pixels = np.asarray(image.convert("RGB"), np.int64)
            expected = np.asarray(original.convert("RGB").resize(image.size), np.int64)
        assert np.abs(pixels - expected).mean() < 5
        assert (data == (aster / name).read_bytes()) == (name == "f.jpg")
    printed = capsys.readouterr().out
    assert "re-encoded 3 images: not a JPEG" in printed
    assert "re-encoded 1 image: a side longer than 1024 pixels" in printed
    assert "re-encoded 1 image: a damaged JPEG that Pillow reads all the same" in printed
    assert "of these, 6 became JPEGs of quality 95, which is lossy: --write-mode raw keeps pixels" in printed
    assert "ignored 1 file with no image's name: 1 .txt" in printed


def test_small_lossless_images_keep_their_pixels_unless_told_otherwise(
    image_folder: Path, tmp_path: Path, encode: Encode, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in image_folder.glob("rose/*"):
        path.with_suffix(".png").write_bytes(encode(int(path.stem), "PNG", size=(64, 64)))
        path.unlink()
    assert convert(image_folder, tmp_path / "small") == 0
    assert "re-encoded" not in capsys.readouterr().out
    for name, data in stored_by_source(open_dataset(tmp_path / "small")).items():
        with Image.open(image_folder / name) as image:
            is_png = name.startswith("rose")
            assert data == (np.asarray(image).tobytes() if is_png else (image_folder / name).read_bytes())
    (image_folder / "rose" / "large.png").write_bytes(encode(9, "PNG", size=(65, 64)))
    assert convert(image_folder, tmp_path / "large") == 0
    printed = capsys.readouterr().out
    assert "re-encoded 1 image: not a JPEG\nof these, 1 became JPEGs of quality 90, which is lossy" in printed


def test_photographs_that_lie_on_their_side_are_counted_and_turned_when_asked(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = image_folder / "rose" / "0.jpg"
    with Image.open(path) as image:
        upright = image.transpose(Image.Transpose.ROTATE_270)
        image.save(path, quality=95, exif=exif)
    assert convert(image_folder, tmp_path / "lying") == 0
    printed = capsys.readouterr().out
    assert (
        "note: 1 image with an orientation tag, stored as the pixels are, perhaps sideways: --apply-o"
        in printed
    )
    lying = open_dataset(tmp_path / "lying")
    assert stored_by_source(lying)["rose/0.jpg"] == path.read_bytes()
    tags = [split.manifest.settings["orientation_tags"] for split in (lying.train, lying.validation)]
    assert sum(tags) == 1

    assert convert(image_folder, tmp_path / "turned", "--apply-orientation") == 0
    printed = capsys.readouterr().out
    assert "re-encoded 1 image: turned upright, as its orientation tag says" in printed
    assert "note:" not in printed
    turned = open_dataset(tmp_path / "turned")
    data = stored_by_source(turned)["rose/0.jpg"]
    pixels = np.frombuffer(data, np.uint8).reshape(48, 40, 3).astype(np.int64)  # it is small
    assert np.abs(pixels - np.asarray(upright)).mean() < 5
    assert turned.train.manifest.settings["apply_orientation"] is True


def test_everything_that_was_stored_decodes(
    image_folder: Path, tmp_path: Path, encode: Encode, decoded: Callable[[Beton, int], np.ndarray]
) -> None:
    (image_folder / "rose" / "z.png").write_bytes(encode(60, "PNG", size=(33, 77)))
    assert convert(image_folder, tmp_path / "out", "--max-side", 40) == 0
    dataset = open_dataset(tmp_path / "out")
    shapes = {
        decoded(split.beton, index).shape
        for split in (dataset.train, dataset.validation)
        for index in range(len(split))
    }
    assert shapes == {(33, 40, 3), (40, 17, 3)}
    assert dataset.uniform_size is None


def test_the_same_source_gives_the_same_bytes(image_folder: Path, tmp_path: Path, encode: Encode) -> None:
    (image_folder / "rose" / "z.png").write_bytes(encode(60, "PNG"))
    moved = Path(shutil.copytree(image_folder, tmp_path / "moved" / "elsewhere"))
    assert convert(image_folder, tmp_path / "a.beton", "--workers", 1) == 0
    assert convert(moved, tmp_path / "b.beton", "--workers", 5) == 0
    for suffix in (".beton", ".parquet", ".validation.beton", ".validation.parquet"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


# Who validates


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_split_folders(image_folder: Path, tmp_path: Path, encode: Encode, name: str) -> None:
    root = tmp_path / "split"
    root.mkdir()
    shutil.copytree(image_folder, root / "train")
    for split in (name, "test"):
        (root / split / "rose").mkdir(parents=True)
        (root / split / "rose" / "x.jpg").write_bytes(encode(70))
    assert convert(root, tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    assert len(dataset.train) == 15
    assert dataset.validation.manifest.sources() == [f"{name}/rose/x.jpg"]
    assert class_of_source(dataset)[f"{name}/rose/x.jpg"] == "rose"


def test_a_class_may_be_called_train(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "rose").rename(image_folder / "train")
    assert convert(image_folder, tmp_path / "out") == 0
    assert open_dataset(tmp_path / "out").class_names == ("aster", "daisy", "train")


def test_parquet_shards(tmp_path: Path, encode: Encode, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "shards"
    source.mkdir()
    images = [encode(number) for number in range(16)]
    names = ["cat", "dog"]
    write_shard(source / "train-00000-of-00002.parquet", images[:7], [0, 1, 0, 1, 0, 1, 0], names=names)
    write_shard(source / "train-00001-of-00002.parquet", images[7:12], [1, 1, 0, 0, 1], names=names)
    write_shard(source / "test-00000-of-00001.parquet", images[12:], [1, 1, 0, 0], names=names)
    assert convert(source, tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train.beton.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 1, 0, 0, 1]
    assert dataset.validation.beton.labels.tolist() == [1, 1, 0, 0]
    assert list(stored_by_source(dataset).values()) == images
    assert "the source's test split, 4 images" in capsys.readouterr().out


def test_a_share_of_the_validation_split_is_kept(
    tmp_path: Path, encode: Encode, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "shards"
    source.mkdir()
    labels = [number % 2 for number in range(20)]
    write_shard(source / "train.parquet", [encode(number) for number in range(20)], labels)
    write_shard(source / "test.parquet", [encode(number) for number in range(20, 40)], labels)
    assert convert(source, tmp_path / "out", "--validation-share", "0.2") == 0
    assert "20 images, of which 4 are kept, 20% of each class" in capsys.readouterr().out
    validation = open_dataset(tmp_path / "out").validation
    assert sorted(validation.beton.labels.tolist()) == [0, 0, 1, 1]
    (source / "test.parquet").unlink()
    assert convert(source, tmp_path / "other", "--validation-share", "0.2") == 2
    assert "has no validation or test split" in capsys.readouterr().err


def test_one_parquet_file_is_split_and_its_classes_are_numbered(tmp_path: Path, encode: Encode) -> None:
    path = tmp_path / "everything.parquet"
    images, labels = [encode(number) for number in range(20)], [number % 2 for number in range(20)]
    write_shard(path, images, labels, column="fine_label")
    assert convert(path, tmp_path / "out") == 2
    assert convert(path, tmp_path / "out", "--label-column", "fine_label") == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.class_names == ("0", "1")
    assert (len(dataset.train), len(dataset.validation)) == (16, 4)
    for name, data in stored_by_source(dataset).items():
        number = int(name.split("/")[1].removesuffix(".jpg"))
        assert data == images[number]
        assert class_of_source(dataset)[name] == str(number % 2)


def test_holding_out_is_stratified_and_leaves_every_class_something() -> None:
    labels = np.repeat(np.arange(5), [1, 2, 3, 50, 1000])
    names = [f"image {index}" for index in range(len(labels))]
    held = held_out(names, labels, 0.1)
    assert np.bincount(labels[held], minlength=5).tolist() == [0, 1, 1, 5, 100]
    assert np.bincount(labels[held_out(names, labels, 0.99)]).tolist() == [0, 1, 2, 49, 990]
    # Which ones are held out depends on names alone, not on the order in which they were found.
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = held_out([names[index] for index in order], labels[order], 0.1)
    np.testing.assert_array_equal(shuffled, held[order])


# What goes wrong


def test_an_unreadable_image_stops_the_conversion_and_nothing_looks_finished(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "daisy" / "broken.jpg").write_bytes(b"\xff\xd8 this is no picture")
    before = sorted(tmp_path.iterdir())
    assert convert(image_folder, tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert "daisy/broken.jpg: cannot be decoded" in printed.err
    assert "the same command with --resume resumes it" in printed.err
    assert printed.err.count("\n") == 1
    (left,) = set(tmp_path.iterdir()) - set(before)
    assert left.name.startswith("out.partial-")
    assert list(left.glob("*.beton")) == list(left.glob("*.parquet")) == []


def test_an_unreadable_first_image_leaves_nothing(image_folder: Path, tmp_path: Path) -> None:
    for path in image_folder.rglob("*.jpg"):
        path.write_bytes(b"\xff\xd8 this is no picture")
    before = sorted(tmp_path.rglob("*"))
    assert convert(image_folder, tmp_path / "out") == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_unreadable_images_can_be_left_out_and_are_listed(
    image_folder: Path, tmp_path: Path, encode: Encode, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "daisy" / "broken.jpg").write_bytes(encode(80)[:500])
    sixteen_bits = Image.fromarray(np.zeros((8, 8), np.uint16))
    sixteen_bits.save(image_folder / "rose" / "deep.png")
    assert convert(image_folder, tmp_path / "out", "--skip-unreadable") == 0
    dataset = open_dataset(tmp_path / "out")
    assert len(stored_by_source(dataset)) == 15
    printed = capsys.readouterr().out
    assert "left out daisy/broken.jpg" in printed
    assert "left out rose/deep.png" in printed
    assert "left out 2 unreadable images in all, listed in" in printed
    with open(tmp_path / "out.quarantine.csv", newline="") as file:
        listed = {row["source"]: row["reason"] for row in csv.DictReader(file)}
    assert sorted(listed) == ["daisy/broken.jpg", "rose/deep.png"]
    assert "mode I;16" in listed["rose/deep.png"]
    both = (dataset.train.manifest, dataset.validation.manifest)
    skipped = [name for manifest in both for name in manifest.settings["skipped"]]
    assert sorted(skipped) == ["daisy/broken.jpg", "rose/deep.png"]


@pytest.mark.parametrize(("limit", "code"), [("1", 2), ("2", 0), ("5%", 2), ("12%", 0), ("0.12", 0)])
def test_unreadable_images_are_left_out_up_to_the_limit(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str, code: int
) -> None:
    for name in ("aster", "rose"):  # 2 of 17 images
        (image_folder / name / "broken.jpg").write_bytes(b"\xff\xd8 this is no picture")
    assert convert(image_folder, tmp_path / "out", "--max-unreadable", limit) == code
    if code == 0:
        assert len(stored_by_source(open_dataset(tmp_path / "out"))) == 15
        assert (tmp_path / "out.quarantine.csv").exists()
        return
    error = capsys.readouterr().err
    assert "/broken.jpg: cannot be decoded" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.quarantine.csv").exists()


def test_a_list_of_unreadable_images_replaces_only_its_like(image_folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out.quarantine.csv"
    mine.write_text("my,own,table\n1,2,3\n")
    assert convert(image_folder, tmp_path / "out") == 2
    assert mine.read_text() == "my,own,table\n1,2,3\n"
    mine.write_text("split,source,reason\ntrain,old.jpg,of the data set before\n")
    assert convert(image_folder, tmp_path / "out") == 0
    assert not mine.exists()


def test_a_row_without_image_bytes_is_unreadable(
    tmp_path: Path, encode: Encode, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.parquet"
    write_shard(path, [encode(0), None, *(encode(number) for number in range(6))], [0, 1, 0, 1, 0, 1, 0, 1])
    assert convert(path, tmp_path / "out") == 2
    assert "rows/1.jpg: cannot be decoded" in capsys.readouterr().err


def nothing(root: Path) -> None:
    assert not root.exists()


def empty(root: Path) -> None:
    root.mkdir()


def one_class(root: Path) -> None:
    shutil.copytree(root.parent / "flowers" / "rose", root / "rose")


def a_class_without_images(root: Path) -> None:
    shutil.copytree(root.parent / "flowers", root)
    (root / "tulip").mkdir()


def a_class_of_arrays(root: Path) -> None:
    a_class_without_images(root)
    np.save(root / "tulip" / "0.npy", np.zeros((4, 4, 3), np.uint8))


def an_unknown_validation_class(root: Path) -> None:
    shutil.copytree(root.parent / "flowers", root / "train")
    shutil.copytree(root.parent / "flowers" / "rose", root / "val" / "tulip")


def other_columns(root: Path) -> None:
    root.mkdir()
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), root / "a.parquet")


def not_parquet(root: Path) -> None:
    root.mkdir()
    (root / "a.parquet").write_bytes(b"hello")


def labels_without_classes(root: Path) -> None:
    root.mkdir()
    write_shard(root / "a.parquet", [b"", b"", b""], [0, 1, -1], names=["cat", "dog"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (nothing, "no such file or folder"),
        (empty, "no class folders"),
        (one_class, "only one class"),
        (a_class_without_images, "tulip: a class without images; fill"),
        (
            a_class_of_arrays,
            "tulip: a class without images: by their names, 0.npy and its other files are none",
        ),
        (an_unknown_validation_class, "train has no such class"),
        (other_columns, "one image column"),
        (not_parquet, ".parquet: cannot be read as Parquet"),
        (labels_without_classes, "has label -1"),
    ],
)
def test_sources_that_cannot_be_converted(
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    build: Callable[[Path], None],
    message: str,
) -> None:
    del image_folder  # there to be copied from
    build(tmp_path / "source")
    error = refusal(tmp_path, capsys, tmp_path / "source")
    assert message in error


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            ["--holdout", "half"],
            "convert: argument --holdout: half is not a number between 0 and 1; see --help",
        ),
        (["--jpeg-quality", "best"], "--jpeg-quality: best is not a whole number from 1 to 100"),
        (
            ["--max-unreadable", "few"],
            "--max-unreadable: few is neither a number of images nor a share below 1",
        ),
        (["--max-side", "1e3"], "--max-side: 1e3 is not a whole number from 1 to 65500"),
        (
            ["--write-mode", "png"],
            "argument --write-mode: png is not known: use one of auto, jpg, raw, smart",
        ),
    ],
)
def test_a_wrong_flag_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        convert(tmp_path, tmp_path / "out", *flags)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_a_handful_of_samples_converts_and_says_what_that_is_worth(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):  # one image of each class: none can be trained on and validated with
        folder = tmp_path / "samples" / f"class{number}"
        folder.mkdir(parents=True)
        shutil.copy(image_folder / "rose" / "0.jpg", folder / f"{number}.jpg")
    assert convert(tmp_path / "samples", tmp_path / "out") == 0
    assert "accuracy means nothing" in capsys.readouterr().out
    dataset = open_dataset(tmp_path / "out")
    assert (len(dataset.train), len(dataset.validation)) == (4, 1)


def test_an_out_that_cannot_be_written(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert convert(image_folder, tmp_path / "file" / "out") == 2
    assert "cannot be written" in capsys.readouterr().err


# What is printed


def test_whatever_is_in_a_name_is_printed_in_one_line(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a\nb\x1b]0;title\x07"
    (image_folder / "rose").rename(image_folder / name)
    (image_folder / name / "0.jpg").write_bytes(b"no image")
    (image_folder / f"{name}.jpg").write_bytes(b"in no class")
    assert convert(image_folder, tmp_path / name) == 2
    assert convert(image_folder, tmp_path / name, "--skip-unreadable") == 0
    assert main(["info", str(tmp_path / name), "--sheet", str(tmp_path / f"{name}.png")]) == 0
    assert main(["verify", str(tmp_path / name)]) == 0
    out, err = capsys.readouterr()
    shown = r"a\nb\x1b]0;title\x07"
    assert f"python -m data_prep: {shown}/0.jpg: cannot be decoded" in err
    for line in (
        f"left out {shown}/0.jpg: ",
        f"of no class: {shown}.jpg\n",
        f"wrote {tmp_path / shown}: 11 training and 3 validation images of 3 classes\n",
        f"studies/agc_sweep.py --data $'{tmp_path / shown}'\n",
        f"classes: {shown}, aster, daisy\n",
    ):
        assert line in out
    assert all(line.isprintable() for line in [*out.split("\n"), *err.split("\n")])


def test_a_reader_that_is_gone_and_a_terminal_without_unicode_end_no_conversion(
    image_folder: Path, tmp_path: Path
) -> None:
    (image_folder / "rose").rename(image_folder / "ros\u00e9")
    (image_folder / "ros\u00e9.jpg").write_bytes(b"in no class")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "data_prep", "convert", str(image_folder)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(
        [*command, str(tmp_path / "a")],
        cwd=REPOSITORY,
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert len(open_dataset(tmp_path / "a").train) == 12
    ended = subprocess.run(
        [*command, str(tmp_path / "b")], cwd=REPOSITORY, capture_output=True, env=environment
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert rb"of no class: ros\xe9.jpg" in ended.stdout


def test_only_files_are_waited_for(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(image_folder, tmp_path / "good") == 0
    shutil.copytree(tmp_path / "good", tmp_path / "set")
    (tmp_path / "set" / "train.beton").unlink()
    for name in ("set/train.beton", "pipe.beton", "pipe.jpg", "out.quarantine.csv"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "loop").symlink_to("loop")
    capsys.readouterr()
    for arguments, complaint in (
        (["verify", "set"], "file wrong as a whole"),
        (["verify", "pipe.beton"], "files wrong as a whole"),
        (["info", "set"], "not a regular file"),
        (["info", "/dev/null"], "neither a folder nor a .beton file"),
        (["convert", "flowers", "out"], "is in the way of a list of unreadable images"),
        (["convert", "loop", "new"], "no such file or folder"),
        (["convert", "flowers", "loop"], "a link that leads to itself"),
        (["sheet", "sheet.png", "pipe.jpg"], "cannot be read as a picture (not a regular file)"),
        (
            ["sheet", "sheet.png", "set/train.parquet"],
            "cannot be read as a picture (not a picture of a known for",
        ),
    ):
        run = data_main if arguments[0] == "sheet" else main
        paths = [str(tmp_path / name) for name in arguments[1:]]
        assert run([arguments[0], *paths]) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1


# What is left behind


@pytest.mark.parametrize("out", ["out", "out.beton"])
def test_a_finished_data_set_is_only_replaced_when_asked(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    assert convert(image_folder, tmp_path / out) == 0
    first = open_dataset(tmp_path / out).fingerprint
    shutil.rmtree(image_folder / "rose")
    before = sorted(tmp_path.iterdir())
    assert convert(image_folder, tmp_path / out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert open_dataset(tmp_path / out).fingerprint == first
    assert convert(image_folder, tmp_path / out, "--overwrite") == 0
    assert open_dataset(tmp_path / out).class_names == ("aster", "daisy")
    assert sorted(tmp_path.iterdir()) == before


def test_a_failed_replacement_keeps_the_old_data_set(image_folder: Path, tmp_path: Path) -> None:
    assert convert(image_folder, tmp_path / "out.beton") == 0
    first = open_dataset(tmp_path / "out.beton").fingerprint
    (image_folder / "aster" / "broken.jpg").write_bytes(b"\xff\xd8")
    assert convert(image_folder, tmp_path / "out.beton", "--overwrite") == 2
    assert open_dataset(tmp_path / "out.beton").fingerprint == first


def test_overwrite_never_deletes_what_is_not_a_data_set(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    assert convert(image_folder, tmp_path / "home", "--overwrite") == 2
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_a_source_is_not_overwritten_by_its_own_manifest(tmp_path: Path, encode: Encode) -> None:
    path = tmp_path / "photos.parquet"
    write_shard(path, [encode(number) for number in range(6)], [0, 1] * 3)
    before = path.read_bytes()
    assert convert(path, tmp_path / "photos.beton", "--overwrite") == 2
    assert path.read_bytes() == before


def test_a_disk_that_fails_stops_the_conversion_even_when_skipping(
    image_folder: Path, tmp_path: Path
) -> None:
    (image_folder / "rose" / "gone.jpg").symlink_to(tmp_path / "unmounted" / "gone.jpg")
    assert convert(image_folder, tmp_path / "out", "--skip-unreadable") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("out", ["out", "out.beton"])
def test_an_interrupted_conversion_leaves_nothing(
    image_folder: Path, tmp_path: Path, encode: Encode, out: str, number: signal.Signals, code: int
) -> None:
    picture = encode(90, size=(600, 600))
    for index in range(200):
        (image_folder / "rose" / f"many-{index}.jpg").write_bytes(picture)
    # Neither the image that is waited for nor the others are held out: the validation split is given.
    shutil.copytree(image_folder / "daisy", tmp_path / "split" / "val" / "daisy")
    image_folder.rename(tmp_path / "split" / "train")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    before = sorted(tmp_path.iterdir())

    image = tmp_path / "split" / "train" / "aster" / "0.jpg"
    command = [sys.executable, "-c", HELD, str(image), str(pipe), "convert"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "split"), str(tmp_path / out)],
        cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with open(pipe, "w"):  # waits for the reader, and lets it wait for ever
        assert len(sorted(tmp_path.iterdir())) == len(before) + 1  # it is under way
        process.send_signal(number)
        _, error = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in error
    assert error == "python -m data_prep: stopped; nothing was written\n"
    assert sorted(tmp_path.iterdir()) == before


# A source that does not answer


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event that nobody sets before the test is over; reading may take half a second."""
    monkeypatch.setattr(parallel, "READ_SECONDS", 0.5)
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("flags", [[], ["--skip-unreadable"]])
def test_an_image_that_cannot_be_read_in_time_is_named(
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    never: threading.Event,
    flags: list[str],
) -> None:
    def read(path: Path) -> bytes:
        if path.name == "3.jpg":
            never.wait()
        return path.read_bytes()

    monkeypatch.setattr(image_folder_module, "read_regular_file", read)
    assert convert(image_folder, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert "/3.jpg: cannot be read (" in error
    assert "no answer for 0 s); check the disk" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_list_of_images_that_does_not_come_is_an_error(
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    never: threading.Event,
) -> None:
    def images(split: FolderSplit, indices: np.ndarray) -> Iterator[SourceImage]:
        del split, indices
        never.wait()
        yield from ()

    monkeypatch.setattr(FolderSplit, "images", images)
    assert convert(image_folder, tmp_path / "out") == 2
    assert (
        capsys.readouterr().err
        == "python -m data_prep: SOURCE: cannot be read (no answer for 0 s); check the disk\n"
    )


def test_ctrl_c_does_not_wait_for_what_does_not_answer(never: threading.Event) -> None:
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        parallel.in_own_thread(never.wait)


def test_a_parquet_file_that_is_damaged_in_its_middle_gets_a_line(
    tmp_path: Path, encode: Encode, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "photos.parquet"
    write_shard(path, [encode(number, size=(96, 80)) for number in range(12)], [0, 1] * 6)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path.write_bytes(content)
    assert convert(path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m data_prep: {path}: cannot be read after row ") or "photos/" in error
    assert error.count("\n") == 1
