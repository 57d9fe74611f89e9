"""Class folders as users have them: leftovers of programs, splits, links, entries that are not files. About 6 s."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.sources.choose import open_source
from data_prep.sources.folder_walk import visible_files
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.errors import UserError

from .conftest import Encode, convert


def names_of(dataset: Dataset) -> list[str]:
    return sorted(name for split in (dataset.train, dataset.validation) for name in split.manifest.sources())


FLOWERS = [f"{flower}/{number}.jpg" for flower in ("aster", "daisy", "rose") for number in range(5)]


@pytest.fixture
def splits(image_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """``splits("Train", "val")``: a folder with copies of the flowers below each name."""

    def build(*names: str) -> Path:
        root = tmp_path / "source"
        for name in names:
            shutil.copytree(image_folder, root / name)
        return root

    return build


# What nobody put there


PROGRAMS_FOLDERS = (
    [
        ".ipynb_checkpoints",
        ".git",
        ".thumbnails",
        ".AppleDouble",
        ".Trash-1000",
        "__MACOSX",
        "@eaDir",
        "#recycle",
    ],
    ["lost+found", "$RECYCLE.BIN", "System Volume Information", "__pycache__"],
)


def test_a_folder_that_a_program_made_is_no_class_and_in_none(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (image_folder, image_folder / "rose", image_folder / "rose" / "more"):
        for name in itertools.chain(*PROGRAMS_FOLDERS):
            (place / name / "deep").mkdir(parents=True)
            shutil.copy(image_folder / "aster" / "0.jpg", place / name / "deep" / "copy.jpg")
    shutil.copy(image_folder / "rose" / "0.jpg", image_folder / "rose" / "more" / "x.jpg")
    assert convert(image_folder, tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.class_names == ("aster", "daisy", "rose")
    assert names_of(dataset) == sorted([*FLOWERS, "rose/more/x.jpg"])
    count = 3 * sum(map(len, PROGRAMS_FOLDERS))
    assert (
        f"note: skipped {count} hidden or system folders with {count} images: #recycle, "
        in capsys.readouterr().out
    )


def test_a_class_may_be_called_recycled(image_folder: Path) -> None:
    (image_folder / "aster").rename(image_folder / "Recycled")
    (image_folder / "daisy").rename(image_folder / "CVS")
    assert open_source([image_folder], "label").class_names == ("CVS", "Recycled", "rose")


def test_files_that_a_program_made_are_not_read(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("._0.jpg", ".hidden.png", "Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "list"):
        (image_folder / "rose" / name).write_bytes(b"\0\5\x16\7 no picture")
    assert convert(image_folder, tmp_path / "out") == 0
    assert names_of(open_dataset(tmp_path / "out")) == FLOWERS
    printed = capsys.readouterr().out
    assert "note: skipped 2 hidden files: rose/._0.jpg, rose/.hidden.png\n" in printed
    assert "note: ignored 2 files with no image's name: 1 without an extension, 1 .txt\n" in printed


def test_a_hidden_folder_may_be_given(image_folder: Path, tmp_path: Path) -> None:
    hidden = image_folder.rename(tmp_path / ".flowers")
    assert convert(hidden, tmp_path / "out") == 0
    assert names_of(open_dataset(tmp_path / "out")) == FLOWERS


def test_all_names_of_images_are_read(image_folder: Path, tmp_path: Path, encode: Encode) -> None:
    more = {
        "a.gif": encode(1, "GIF", mode="P"),
        "b.JFIF": encode(2),
        "c.jpe": encode(3),
        "d.tga": encode(4, "TGA"),
    }
    for name, image in more.items():
        (image_folder / "rose" / name).write_bytes(image)
    assert convert(image_folder, tmp_path / "out") == 0
    assert names_of(open_dataset(tmp_path / "out")) == sorted([*FLOWERS, *(f"rose/{name}" for name in more)])


def test_images_beside_class_folders_are_said(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(image_folder / "rose" / "0.jpg", image_folder / "stray.jpg")
    assert convert(image_folder, tmp_path / "out") == 0
    assert names_of(open_dataset(tmp_path / "out")) == FLOWERS
    assert (
        "note: ignored 1 image outside the class folders, of no class: stray.jpg" in capsys.readouterr().out
    )


# Splits


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("Training", "Testing"), ("TRAIN", "valid"), ("Train", "Validation"), ("train", "VAL"), ("training", "test"),
        ("seg_train", "seg_test"), ("training_set", "test_set"), ("train2017", "val2017"),
    ],
)  # fmt: skip
def test_splits_have_many_names(splits: Callable[..., Path], train: str, validation: str) -> None:
    source = open_source([splits(train, validation)], "label")
    assert source.class_names == ("aster", "daisy", "rose")
    assert source.splits["train"].names == [f"{train}/{name}" for name in FLOWERS]
    (other,) = set(source.splits) - {"train"}
    assert source.splits[other].names == [f"{validation}/{name}" for name in FLOWERS]
    assert other == ("test" if "est" in validation else "validation")


def test_a_split_may_be_unpacked_into_a_folder_of_its_name(splits: Callable[..., Path]) -> None:
    source = open_source([splits("seg_train/seg_train", "seg_test/seg_test")], "label")
    assert source.splits["train"].names == [f"seg_train/seg_train/{name}" for name in FLOWERS]


@pytest.mark.parametrize("names", [("bullet_train", "freight_train"), ("train", "car"), ("test", "track")])
def test_classes_may_have_the_names_of_splits(
    image_folder: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in names:
        shutil.copytree(image_folder / "rose", tmp_path / "source" / name)
    assert convert(tmp_path / "source", tmp_path / "out") == 0
    assert open_dataset(tmp_path / "out").class_names == tuple(sorted(names))


def unlabelled(source: Path) -> None:
    for number, image in enumerate(sorted((source / "train").rglob("*.jpg"))[:4]):
        (source / "test").mkdir(exist_ok=True)
        shutil.copy(image, source / "test" / f"{number}.jpg")


def unknown(source: Path) -> None:
    unlabelled(source)
    (source / "test").rename(source / "unknown")
    (source / "test").mkdir()
    (source / "unknown").rename(source / "test" / "unknown")


@pytest.mark.parametrize("build", [unlabelled, unknown])
@pytest.mark.parametrize(
    ("others", "why"),
    [
        (["val"], "val is there to validate with"),
        ([], "it holds 4 images, but no folder with the name of a class"),
    ],
)
def test_a_test_split_without_labels_is_not_read(
    splits: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    build: Callable[[Path], None],
    others: list[str],
    why: str,
) -> None:
    source = splits("train", *others)
    build(source)
    assert convert(source, tmp_path / "out") == 0
    assert names_of(open_dataset(tmp_path / "out")) == sorted(
        f"{split}/{name}" for split in ("train", *others) for name in FLOWERS
    )
    assert f"note: test is not read: {why}\n" in capsys.readouterr().out


def test_a_folder_beside_splits_that_is_no_split_is_named(
    splits: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = splits("train", "val", "extra")
    (source / "annotations").mkdir()
    (source / "annotations" / "list.xml").write_text("")
    shutil.copy(source / "train" / FLOWERS[0], source / "train" / "stray.jpg")
    shutil.copy(source / "train" / FLOWERS[0], source / "logo.png")
    assert convert(source, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "note: extra is not read: it is none of the splits (it holds 15 images)\n" in printed
    assert "note: ignored 1 image outside the class folders, of no class: train/stray.jpg\n" in printed
    assert "note: ignored 1 image outside the folders of splits: logo.png\n" in printed
    assert "annotations" not in printed


def test_an_empty_folder_does_not_hide_the_split_beside_it(
    splits: Callable[..., Path], tmp_path: Path
) -> None:
    source = splits("train", "validation")
    (source / "val" / "rose").mkdir(parents=True)
    assert convert(source, tmp_path / "out") == 0
    assert len(open_dataset(tmp_path / "out").validation) == 15


def flat(source: Path, name: str) -> None:
    for image in sorted((source / name).rglob("*.jpg")):
        image.rename(source / name / f"{image.parent.name}-{image.name}")
    for folder in list((source / name).iterdir()):
        if folder.is_dir():
            folder.rmdir()


@pytest.mark.parametrize(
    ("names", "flattened", "message"),
    [
        (("train", "val", "validation"), (), "val and validation both hold the validation split"),
        (("train", "Train", "val"), (), "Train and train both hold the train split"),
        (("val", "test"), (), "test and val, but nothing to train with"),
        (
            ("train", "val"),
            ("val",),
            "source/val: no class folders in it; sort its images into folders of the cl",
        ),
        (("train", "test"), ("train", "test"), "a split by its name, but its images are in no class folders"),
        (
            ("train_images", "test_images"),
            ("train_images", "test_images"),
            "a split by its name, but its images",
        ),
    ],
)
def test_splits_that_are_none_get_a_line(
    splits: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: tuple[str, ...],
    flattened: tuple[str, ...],
    message: str,
) -> None:
    source = splits(*names)
    for name in flattened:
        flat(source, name)
    assert convert(source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_around_the_classes_or_splits_is_named(
    splits: Callable[..., Path], image_folder: Path
) -> None:
    source = splits("photos/train", "photos/val")
    for outer, inner in ((source, source / "photos"), (image_folder.parent, None)):
        if inner is None:
            shutil.rmtree(source)
            inner = image_folder
        with pytest.raises(UserError) as error:
            open_source([outer], "label")
        assert str(error.value) == f"{outer}: only one class, {inner.name}; is SOURCE perhaps {inner}?"


def test_a_conversion_into_its_own_source_is_refused(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(image_folder)
    for out in (
        image_folder / "out",
        image_folder / "rose" / "out.beton",
        tmp_path / "link" / "out",
        image_folder,
    ):
        assert convert(image_folder, out) == 2
        error = capsys.readouterr().err
        assert (
            f"OUT is inside SOURCE, {image_folder}, and the next conversion would read it as images" in error
        )
        assert f"such as {tmp_path / 'flowers.beton'}" in error
    # One that an earlier version put there.
    assert convert(image_folder, tmp_path / "out") == 0
    (tmp_path / "out").rename(image_folder / "out")
    capsys.readouterr()
    assert convert(image_folder, tmp_path / "out") == 2
    assert (
        "out: a data set that a conversion wrote, not a class; move it out of SOURCE"
        in capsys.readouterr().err
    )


# Links


def to_itself(root: Path) -> Path:
    (root / "aster" / "self").symlink_to(".")
    return root / "aster" / "self"


def to_the_source(root: Path) -> Path:
    (root / "aster" / "up").symlink_to("..")
    return root / "aster" / "up"


def above_the_source(root: Path) -> Path:
    (root / "aster" / "up").symlink_to("../..")
    return root / "aster" / "up"


def to_another_class(root: Path) -> Path:
    (root / "aster" / "more").symlink_to(root / "rose")
    return root / "aster" / "more"


def into_another_class(root: Path) -> Path:
    (root / "rose" / "deep").mkdir()
    shutil.copy(root / "rose" / "0.jpg", root / "rose" / "deep" / "9.jpg")
    (root / "aster" / "more").symlink_to("../rose/deep")
    return root / "aster" / "more"


def a_class_that_is_another(root: Path) -> Path:
    (root / "anemone").symlink_to("rose")
    return root / "anemone"


def a_class_that_is_another_through_a_chain(root: Path) -> Path:
    (root.parent / "elsewhere").symlink_to(root / "aster")
    (root / "zinnia").symlink_to(root.parent / "elsewhere")
    return root / "zinnia"


def a_cycle(root: Path) -> Path:
    (root / "aster" / "one").symlink_to("two")
    (root / "aster" / "two").symlink_to("one")
    return root / "aster" / "one"


def two_folders_that_lead_to_each_other(root: Path) -> Path:
    (root / "aster" / "a").mkdir()
    (root / "rose" / "b").mkdir()
    (root / "aster" / "a" / "rose").symlink_to("../../rose/b")
    (root / "rose" / "b" / "aster").symlink_to("../../aster/a")
    return root / "aster" / "a" / "rose" / "aster"


def a_class_that_is_gone(root: Path) -> Path:
    shutil.rmtree(root / "aster")
    (root / "aster").symlink_to("../store/aster")
    return root / "aster"


def images_that_are_gone(root: Path) -> Path:
    (root / "aster" / "more").symlink_to("/nowhere/more")
    return root / "aster" / "more"


def an_image_that_is_gone(root: Path) -> Path:
    (root / "aster" / "9.jpg").symlink_to("/nowhere/9.jpg")
    return root / "aster" / "9.jpg"


def an_image_of_another_class(root: Path) -> Path:
    (root / "aster" / "9.jpg").symlink_to("../rose/0.jpg")
    return root / "aster" / "9.jpg"


def one_image_in_two_classes(root: Path) -> Path:
    shutil.copy(root / "rose" / "0.jpg", root.parent / "0.jpg")
    for name in ("aster", "rose"):
        (root / name / "9.jpg").symlink_to(root.parent / "0.jpg")
    return root / "rose" / "9.jpg"


@pytest.mark.parametrize(
    "build",
    [
        to_itself, to_the_source, above_the_source, to_another_class, into_another_class, a_class_that_is_another,
        a_class_that_is_another_through_a_chain, a_cycle, two_folders_that_lead_to_each_other, a_class_that_is_gone,
        images_that_are_gone, an_image_that_is_gone, an_image_of_another_class, one_image_in_two_classes,
    ],
)  # fmt: skip
def test_a_link_that_would_give_wrong_data_is_named(
    image_folder: Path, build: Callable[[Path], Path]
) -> None:
    link = build(image_folder)
    with pytest.raises(UserError, match="remove") as error:
        open_source([image_folder], "label")
    assert str(error.value).startswith(f"{link}: a link ")


def test_a_validation_split_that_is_a_link_to_the_training_split_is_named(
    splits: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = splits("train")
    (source / "val").symlink_to("train")
    assert convert(source, tmp_path / "out") == 2
    assert f"{source / 'val'}: a link that leads to {source / 'train'}" in capsys.readouterr().err


def test_links_to_what_is_not_there_yet_are_followed(image_folder: Path, tmp_path: Path) -> None:
    """Absolute and relative ones, through a chain, to folders and to images; SOURCE may be one, too."""
    store = tmp_path / "store"
    store.mkdir()
    (image_folder / "aster").rename(store / "aster")
    (store / "chain").symlink_to("aster")
    (image_folder / "aster").symlink_to(store / "chain")
    (image_folder / "rose" / "0.jpg").rename(store / "image.jpg")
    (image_folder / "rose" / "0.jpg").symlink_to("../../store/image.jpg")
    (tmp_path / "source").symlink_to(image_folder)
    assert convert(tmp_path / "source", tmp_path / "out") == 0
    assert names_of(open_dataset(tmp_path / "out")) == FLOWERS


def test_a_link_to_an_image_of_the_same_class_is_skipped(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "rose" / "00.jpg").symlink_to("0.jpg")
    assert convert(image_folder, tmp_path / "out") == 0
    assert names_of(open_dataset(tmp_path / "out")) == FLOWERS
    assert (
        "note: skipped 1 link to an image that its class has already: rose/00.jpg\n"
        in capsys.readouterr().out
    )


def test_links_that_multiply_are_each_looked_at_once(image_folder: Path) -> None:
    for name in ("one", "two", "three"):
        (image_folder / "aster" / name).symlink_to("..")
    assert sorted(name for name, _ in visible_files(str(image_folder))) == FLOWERS


# What is no file


def test_a_pipe_or_socket_among_the_images_is_skipped(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(image_folder / "rose" / "pipe.jpg")
    (image_folder / "rose" / "null.jpg").symlink_to("/dev/null")
    monkeypatch.chdir(image_folder / "rose")  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        assert convert(image_folder, tmp_path / "out") == 0
    assert names_of(open_dataset(tmp_path / "out")) == FLOWERS
    printed = capsys.readouterr().out
    assert (
        "note: skipped 3 named pipes, sockets or devices: rose/null.jpg, rose/pipe.jpg, rose/socket.jpg"
        in printed
    )


def test_an_image_that_becomes_a_pipe_is_an_error_of_its_disk(image_folder: Path) -> None:
    split = open_source([image_folder], "label").splits["train"]
    (image,) = split.images([0])  # type: ignore[arg-type]
    (image_folder / image.name).unlink()
    os.mkfifo(image_folder / image.name)
    with pytest.raises(OSError, match="not a regular file"):
        image.load()
