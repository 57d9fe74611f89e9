"""Parquet files of Hugging Face as a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources.choose import open_source
from nfnet_ray.errors import UserError

from .conftest import Encode, convert, refusal


def write_parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


IMAGE = pa.array([{"bytes": b"x", "path": "x"}] * 2)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, 1]}, "it needs one image column"),
        ({"picture": [b"x", b"y"], "label": [0, 1]}, "picture is binary: if it holds images, give --image"),
        ({"image": IMAGE}, "no column 'label'; it has image: add a column of labels"),
        ({"image": IMAGE, "fine": [0, 1]}, "no column 'label'; choose one with --label-column: fine (numbers)"),
        ({"image": IMAGE, "label": [0.5, 1]}, "column 'label' holds double, but labels are whole numbers or texts; n"),
        ({"image": IMAGE, "label": [0.5, 1], "n": [0, 1]}, "or texts; choose one with --label-column: n (numbers)"),
        ({"image": IMAGE, "label": ["a", " "]}, "1 row has no label"),
        ({"image": IMAGE, "label": ["a", None]}, "1 row has no label"),
        ({"image": IMAGE, "label": ["a", "a"]}, "only one class"),
        ({"image": IMAGE, "second": IMAGE, "label": [0, 1]}, "image columns image, second; choose one with --image-c"),
        ({"image": IMAGE, "label": [0, None]}, "1 row has no label"),
        ({"image": IMAGE, "label": [0, 0]}, "only one class"),
        ({"image": IMAGE, "label": [0, 5]}, "no training image has label 1, but the labels are 0 to 5: is a file mi"),
        ({"image": IMAGE, "label": [1, 2]}, "no training image has label 0, but the labels are 0 to 2"),
        ({"image": IMAGE, "label": [0, 10**12]}, "no training image has label 1, but the labels are 0 to 10000000"),
        ({"image": IMAGE, "label": [-1, 1]}, "the train split's image 0 has label -1, which means no label"),
    ],
)  # fmt: skip
def test_parquet_without_its_columns_gets_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, object], message: str
) -> None:
    write_parquet(tmp_path / "source" / "train.parquet", pa.table(columns))
    error = refusal(tmp_path, capsys, tmp_path / "source")
    assert message in error


def test_two_parquet_classes_of_one_name_get_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = '{"info": {"features": {"label": {"names": ["crane", "crane"], "_type": "ClassLabel"}}}}'
    table = pa.table({"image": IMAGE, "label": [0, 1]}).replace_schema_metadata({"huggingface": features})
    write_parquet(tmp_path / "source" / "train.parquet", table)
    assert convert(tmp_path / "source", tmp_path / "out") == 2
    assert "two classes of SOURCE have one name, 'crane' and 'crane'" in capsys.readouterr().err


def test_a_class_of_parquet_files_without_a_training_image_is_named(tmp_path: Path) -> None:
    features = '{"info": {"features": {"label": {"names": ["cat", "cow", "dog"], "_type": "ClassLabel"}}}}'
    table = pa.table({"image": IMAGE, "label": [0, 2]}).replace_schema_metadata({"huggingface": features})
    write_parquet(tmp_path / "source" / "train.parquet", table)
    with pytest.raises(
        UserError, match=r"no training image has label 1 \('cow'\), but the labels are 0 to 2"
    ):
        open_source([tmp_path / "source"], "label")


@pytest.mark.parametrize(
    ("train", "validation", "class_names", "labels"),
    [
        (["dog", "cat"], ["cat", "cat"], ("cat", "dog"), [1, 0]),
        (pa.array(["dog", "cat"]).dictionary_encode(), ["dog", "cat"], ("cat", "dog"), [1, 0]),
        (pa.array(["dog", "cat"], pa.large_string()), ["dog", "cat"], ("cat", "dog"), [1, 0]),
        (["10", "9"], ["10", "9"], ("9", "10"), [1, 0]),
    ],
)
def test_labels_of_parquet_files_may_be_texts(
    tmp_path: Path, train: object, validation: object, class_names: tuple[str, ...], labels: list[int]
) -> None:
    for split, given in (("train", train), ("validation", validation)):
        write_parquet(tmp_path / f"{split}-0.parquet", pa.table({"image": IMAGE, "species": given}))
    source = open_source([tmp_path], "species")
    assert source.class_names == class_names
    assert source.splits["train"].labels.tolist() == labels
    assert source.splits["train"].labels.dtype == "int64"


def test_a_text_without_a_training_image_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", pa.table({"image": IMAGE, "label": ["cat", "dog"]}))
    write_parquet(tmp_path / "validation-0.parquet", pa.table({"image": IMAGE, "label": ["cat", "cow"]}))
    with pytest.raises(UserError, match="no training image has label 'cow', which other splits have"):
        open_source([tmp_path], "label")
    write_parquet(tmp_path / "validation-0.parquet", pa.table({"image": IMAGE, "label": [0, 1]}))
    with pytest.raises(UserError, match="the files' columns or class names differ"):
        open_source([tmp_path], "label")


def test_an_unlabelled_test_split_of_texts_is_not_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", pa.table({"image": IMAGE, "label": ["cat", "dog"]}))
    write_parquet(tmp_path / "test-0.parquet", pa.table({"image": IMAGE, "label": ["", ""]}))
    assert open_source([tmp_path], "label").notes == (
        "the test split, test-0.parquet, is not read: it has no labels",
    )


@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
def test_the_column_of_images_may_be_chosen(
    tmp_path: Path, encode: Encode, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    encoded = [encode(number) for number in range(8)]
    columns = {
        "struct": [{"bytes": image, "path": None} for image in encoded],
        "binary": pa.array(encoded, pa.binary()),
        "large_binary": pa.array(encoded, pa.large_binary()),
    }
    other = pa.array([{"bytes": b"no image", "path": "x"}] * 8)
    table = pa.table({"mask": other, "picture": columns[kind], "label": 4 * ["a", "b"]})
    write_parquet(tmp_path / "source" / "train.parquet", table)
    assert convert(tmp_path / "source", tmp_path / "out", "--image-column", "picture") == 0
    assert "Parquet, images of picture: 8 images" in capsys.readouterr().out
    assert convert(tmp_path / "source", tmp_path / "b", "--image-column", "image") == 2
    assert "--image-column image: no column of that name is binary or a struct with bytes; it has mask" in (
        capsys.readouterr().err
    )


def test_a_column_of_images_is_for_parquet_files_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("path,label\nlist.csv,a\n")
    assert convert(tmp_path / "list.csv", tmp_path / "out", "--image-column", "picture") == 2
    assert "--image-column picture is for Parquet files, and SOURCE is: CSV list" in capsys.readouterr().err


LABELLED = {"image": IMAGE, "label": [0, 1]}


def test_the_name_of_a_data_set_of_parquet_files_may_be_that_of_a_split(tmp_path: Path) -> None:
    for split, rows in (("train", 3), ("validation", 1)):
        table = pa.concat_tables(rows * [pa.table(LABELLED)])
        write_parquet(tmp_path / "source" / f"speed-test-{split}-0.parquet", table)
    splits = open_source([tmp_path / "source"], "label").splits
    assert {name: len(split.labels) for name, split in splits.items()} == {"train": 6, "validation": 2}


def test_rows_whose_images_all_have_one_name_are_named_by_file_and_row(tmp_path: Path) -> None:
    image = [{"bytes": b"x", "path": path} for path in ("a.jpg", "image.jpg", "image.jpg", None)]
    for file in ("train-0", "train-1"):
        write_parquet(tmp_path / f"{file}.parquet", pa.table({"image": image, "label": [0, 1, 0, 1]}))
        image[0]["path"] = "b.jpg"
    split = open_source([tmp_path], "label").splits["train"]
    assert split.names == [
        "a.jpg", "train-0.parquet:1", "train-0.parquet:2", "train-0.parquet:3",
        "b.jpg", "train-1.parquet:1", "train-1.parquet:2", "train-1.parquet:3",
    ]  # fmt: skip


def test_unreadable_images_of_one_name_in_both_splits_are_both_counted(
    tmp_path: Path, encode: Encode, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        image = [{"bytes": encode(number), "path": f"{number}.jpg"} for number in range(8)]
        image[3]["bytes"] = b"none"
        write_parquet(
            tmp_path / "source" / f"{split}.parquet", pa.table({"image": image, "label": 4 * [0, 1]})
        )
    assert convert(tmp_path / "source", tmp_path / "out", "--skip-unreadable") == 0
    printed = capsys.readouterr().out
    assert printed.count("left out 3.jpg: ") == 2
    assert "left out 2 unreadable images in all" in printed


@pytest.mark.parametrize("names", [("train-0", "Test-0"), ("training_0", "testing_0"), ("train", "test")])
def test_parquet_files_may_name_their_splits_in_capitals(tmp_path: Path, names: Sequence[str]) -> None:
    for name in names:
        write_parquet(tmp_path / "source" / f"{name}.PARQUET", pa.table(LABELLED))
    assert set(open_source([tmp_path / "source"], "label").splits) == {"train", "test"}


@pytest.mark.parametrize(
    ("test", "others", "why"),
    [
        ({"image": IMAGE, "label": [-1, -1]}, (), "it has no labels"),
        ({"image": IMAGE, "label": pa.array([None, None], pa.int64())}, (), "it has no labels"),
        ({"image": IMAGE}, (), "it has no labels"),
        ({"image": IMAGE}, ("validation",), "there is a validation split"),
        (LABELLED, ("valid",), "there is a validation split"),
    ],
)
def test_a_test_split_of_parquet_files_without_labels_is_not_read(
    tmp_path: Path, test: dict[str, object], others: Sequence[str], why: str
) -> None:
    for name in ("train", *others):
        write_parquet(tmp_path / "source" / f"{name}-0.parquet", pa.table(LABELLED))
    write_parquet(tmp_path / "source" / "test-0.parquet", pa.table(test))
    source = open_source([tmp_path / "source"], "label")
    assert set(source.splits) == {"train", *(["validation"] if others else [])}
    assert source.notes == (f"the test split, test-0.parquet, is not read: {why}",)


@pytest.mark.parametrize(
    "files",
    [
        ("data/train-0.parquet", "data/test-0.parquet", "README.md", ".git/other.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("snapshots/abc/plain_text/train-0.parquet", "snapshots/abc/plain_text/test-0.parquet", "refs/main"),
        ("train-0.parquet", "test-0.parquet", "._train-0.parquet", "assets/sample.png"),
    ],
)
def test_a_repository_of_hugging_face_is_read(tmp_path: Path, files: Sequence[str]) -> None:
    for file in files:
        if (file.endswith("-0.parquet") and "._" not in file) or file.endswith("0000.parquet"):
            write_parquet(tmp_path / file, pa.table(LABELLED))
        else:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text("something else")
    source = open_source([tmp_path], "label")
    assert {name: len(split.names) for name, split in source.splits.items()} == {"train": 2, "test": 2}


def test_several_data_sets_of_parquet_files_get_a_line(tmp_path: Path) -> None:
    for name in ("small", "large"):
        write_parquet(tmp_path / name / "train.parquet", pa.table(LABELLED))
    with pytest.raises(
        UserError, match=r"holds Parquet files in several folders \(.*large, .*small\); give one of them"
    ):
        open_source([tmp_path], "label")
