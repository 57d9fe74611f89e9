"""A CSV list as a source: names, labels and splits, and a line for every wrong list."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_prep.sources.choose import open_source
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.errors import UserError

from .conftest import convert, refusal


def write_csv(root: Path, *rows: str, header: str = "path,label,split") -> Path:
    path = root / "list.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_a_csv_list_names_images_labels_and_splits(image_folder: Path, tmp_path: Path) -> None:
    rows = [
        "aster/0.jpg,b,Train",
        "daisy/1.jpg,a,training",
        '"./rose/../rose/2.jpg",b,VALID',
        "rose/3.jpg,a,test",
    ]
    source = write_csv(image_folder, *rows)
    assert convert(source, tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.class_names == ("a", "b")
    assert dataset.train.manifest.sources() == ["aster/0.jpg", "daisy/1.jpg"]
    assert dataset.train.beton.labels.tolist() == [1, 0]
    assert dataset.validation.manifest.sources() == ["rose/2.jpg"]
    assert dataset.train.beton.image_bytes(1).tobytes() == (image_folder / "daisy" / "1.jpg").read_bytes()


def test_a_csv_list_may_number_its_classes_and_leave_the_split_to_us(
    image_folder: Path, tmp_path: Path
) -> None:
    """10 comes after 9 and 2.0 before it, and the header may name columns in any order and others besides."""
    names = sorted(path.relative_to(image_folder).as_posix() for path in image_folder.glob("*/*"))
    rows = [f"{number},{(9, 10, 2.0)[number % 3]},{name}" for number, name in enumerate(names)]
    source = write_csv(image_folder, *rows, header="id,class,path")
    assert convert(source, tmp_path / "out", "--label-column", "class") == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.class_names == ("2.0", "9", "10")
    assert (len(dataset.train), len(dataset.validation)) == (12, 3)
    for split in (dataset.train, dataset.validation):
        for name, label in zip(split.manifest.sources(), split.beton.labels.tolist(), strict=True):
            assert dataset.class_names[label] == str((9, 10, 2.0)[names.index(name) % 3])


def test_a_name_in_a_long_csv_list_may_have_several_lines(tmp_path: Path) -> None:
    """Long: of several megabytes, since Arrow reads one at a time, and not every place where it cuts does harm."""
    rows = (f'"some/long/folder/name\n{number}.jpg",{"ab"[number % 2]}\n' for number in range(100_000))
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(rows))
    with pytest.raises(UserError, match=r"\(100,000 of 100,000 are missing\)"):
        open_source([tmp_path / "list.csv"], "label")


TWO = ("aster/0.jpg,a,train", "daisy/0.jpg,b,train")


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (TWO, "file,label,split", "no column 'path' among file, label, split"),
        (TWO, "path,class,split", "no column 'label'"),
        (TWO, "path,label,label", "names a column twice"),
        ((), "path,label,split", "lists no images"),
        ((*TWO, "rose/0.jpg,a"), "path,label,split", "cannot be read as a CSV"),
        ((*TWO, "rose/0.jpg,,train"), "path,label,split", "row 3: no label"),
        ((*TWO, "./aster/0.jpg,b,train"), "path,label,split", "row 3: ./aster/0.jpg is listed already, in row 1"),
        ((*TWO, "rose/x.jpg,b,train", "rose/y.jpg,b,train"), "path,label,split", "(2 of 4 are missing)"),
        ((*TWO, "/etc/passwd,b,train"), "path,label,split", "absolute path"),
        ((*TWO, "rose/0.jpg,b,trian"), "path,label,split", "row 3: split 'trian' is none of train, training, val"),
        ((*TWO, "rose/0.jpg,c,val"), "path,label,split", "row 3: no training image has label 'c'"),
        (("rose/0.jpg,a,val", "rose/1.jpg,b,test"), "path,label,split", "no row's split is train"),
        ((TWO[0], "rose/0.jpg,a,train"), "path,label,split", "only one class"),
        (("rose/0.jpg,01,train", "rose/1.jpg,1,train"), "path,label,split", "'01' and '1' are one number"),
        ((*TWO, "rose/0.jpg, a,train"), "path,label,split", "two classes of SOURCE have one name"),
        (("rose/0.jpg,-1,train", "rose/1.jpg,1,train"), "path,label,split", "row 1: label -1 is negative, which m"),
        ((*TWO, "rose/0.jpg,-1.0,train"), "path,label,split", "row 3: label -1.0 is negative, which means no la"),
        ((*TWO, "rose,a,train"), "path,label,split", "flowers/rose is a folder, not a file (1 of 3 are missing)"),
    ],
)  # fmt: skip
def test_wrong_csv_lists_each_get_a_line(
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: Sequence[str],
    header: str,
    message: str,
) -> None:
    source = write_csv(image_folder, *rows, header=header)
    error = refusal(tmp_path, capsys, source)
    assert message in error


def test_a_csv_list_may_come_from_a_spreadsheet(image_folder: Path, tmp_path: Path) -> None:
    """With a byte order mark and Windows' line ends; its labels may look like missing values."""
    lines = [
        "path,label,split",
        *(f"rose/{number}.jpg,{('null', 'NA')[number % 2]},train" for number in range(5)),
    ]
    (image_folder / "list.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert convert(image_folder / "list.csv", tmp_path / "out") == 0
    assert open_dataset(tmp_path / "out").class_names == ("NA", "null")


def test_a_csv_list_may_have_its_suffix_in_capitals(image_folder: Path) -> None:
    shutil.move(write_csv(image_folder, *TWO), image_folder / "LIST.CSV")
    assert open_source([image_folder / "LIST.CSV"], "label").class_names == ("a", "b")


def test_a_label_of_many_digits_is_a_name(image_folder: Path) -> None:
    path = write_csv(image_folder, f"aster/0.jpg,{'9' * 5000},train", "rose/0.jpg,1,train")
    assert open_source([path], "label").class_names == ("1", "9" * 5000)


def test_a_csv_list_in_another_encoding_gets_a_line(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for header in ("path,label", "p\xe4th,label"):
        (image_folder / "list.csv").write_bytes(f"{header}\nrose/0.jpg,caf\xe9\n".encode("latin-1"))
        assert convert(image_folder / "list.csv", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert "cannot be read as a CSV file in UTF-8" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("column", ["path", "split"])
def test_a_column_with_a_meaning_of_its_own_holds_no_labels(image_folder: Path, column: str) -> None:
    """pyarrow's KeyError: it would have been read twice."""
    with pytest.raises(UserError, match=f"--label-column {column}: it holds the images' {column}s"):
        open_source([write_csv(image_folder, *TWO)], column)


def test_classes_that_differ_only_in_case_are_noted(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "rose").rename(image_folder / "Daisy")
    assert convert(image_folder, tmp_path / "out") == 0
    assert "classes 'Daisy' and 'daisy' differ only in upper and lower case" in capsys.readouterr().out
