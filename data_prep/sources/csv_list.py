"""A CSV file that lists images and their labels, and says which images validate.

A header names the columns: ``path`` (relative to the CSV file), ``label`` (a class name or a number), and, if it
likes, ``split`` (train, validation or test; valid and val are understood). Other columns are ignored.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.sources.image_folder import SPLIT_OF, FolderSplit
from data_prep.sources.source import Source
from nfnet_ray.data.files.regular_file import what_it_is
from nfnet_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# Spreadsheets and data frames write 1 as 1.0 where a row has no number. What is longer is no number of a class.
_INTEGER = re.compile(r"(-?[0-9]{1,18})(?:\.0*)?")


def open_csv(path: Path, label_column: str) -> Source:
    """Read the list; the images are only looked for, not opened.

    Where all labels are numbers, classes are numbered in the numbers' order; else in the names'. Images keep the
    list's order.

    Raises:
        UserError: a column is missing or has gaps, an image is listed twice or does not exist.
    """
    columns = _read_columns(path, label_column)
    names = _checked_paths(path, columns["path"])
    splits = _checked_splits(path, columns.get("split", ["train"] * len(names)))
    texts = columns[label_column]
    class_names = _class_names(path, texts)
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[text] for text in texts], np.int64)
    if not (splits == "train").any():
        raise UserError(f"{path}: no row's split is train; name the images to train with")
    trained = np.bincount(labels[splits == "train"], minlength=len(class_names))
    if not trained.all():
        name = class_names[int(np.argmin(trained))]
        row = texts.index(name) + 1
        raise UserError(f"{path}: row {row}: no training image has label '{name}'; add some or remove it")
    _check_images(path, names)
    found = {
        split: FolderSplit(path.parent, [names[index] for index in at.tolist()], labels[at])
        for split in ("train", "validation", "test")
        if len(at := np.flatnonzero(splits == split))
    }
    return Source("CSV list", class_names, found)


def _read_columns(path: Path, label_column: str) -> dict[str, list[str]]:
    import pyarrow as pa
    from pyarrow import csv

    if label_column in ("path", "split"):
        raise UserError(
            f"--label-column {label_column}: it holds the images' {label_column}s; name the column of the labels"
        )
    needed = ["path", label_column]
    try:
        # Otherwise a file with such values is cut into blocks that begin within one.
        parse = csv.ParseOptions(newlines_in_values=True)
        with csv.open_csv(path, parse_options=parse) as reader:
            header = reader.schema.names
        missing = [name for name in needed if name not in header]
        if missing:
            raise UserError(
                f"{path}: no column '{missing[0]}' among {', '.join(header)}; its first line must name path,"
                f" {label_column} and perhaps split"
            )
        columns = [name for name in (*needed, "split") if name in header]
        # As text, or a label 01 would become a 1. A path or a label may be called "null".
        as_text = csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=False,
        )
        table: pa.Table = csv.read_csv(path, parse_options=parse, convert_options=as_text)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a CSV file in UTF-8 ({reason})") from error
    if len(set(header)) < len(header):
        raise UserError(f"{path}: its first line names a column twice: {', '.join(header)}")
    if not len(table):
        raise UserError(f"{path}: lists no images; add rows below its first line")
    found = {name: table.column(name).to_pylist() for name in columns}
    for name, values in found.items():
        for row, value in enumerate(values, start=1):
            if not value.strip():
                raise UserError(f"{path}: row {row}: no {name}; fill it in or remove the row")
    return found


def _checked_paths(path: Path, listed: Sequence[str]) -> list[str]:
    """The paths in the one way to write them, so that two are the same file only if they are equal."""
    first_row: dict[str, int] = {}
    for row, name in enumerate(listed, start=1):
        if posixpath.isabs(name):
            raise UserError(
                f"{path}: row {row}: {name} is an absolute path; write it relative to the CSV file, so that"
                " the data set does not depend on its location"
            )
        first = first_row.setdefault(posixpath.normpath(name), row)
        if first != row:
            raise UserError(f"{path}: row {row}: {name} is listed already, in row {first}; remove one")
    return list(first_row)


def _checked_splits(path: Path, listed: Sequence[str]) -> np.ndarray:
    known = [name.strip().casefold() for name in listed]
    for row, name in enumerate(known, start=1):
        if name not in SPLIT_OF:
            raise UserError(f"{path}: row {row}: split '{listed[row - 1]}' is none of {', '.join(SPLIT_OF)}")
    return np.array([SPLIT_OF[name] for name in known])


def _class_names(path: Path, texts: Sequence[str]) -> tuple[str, ...]:
    numbers = {
        text: int(match[1]) for text in sorted(set(texts)) if (match := _INTEGER.fullmatch(text.strip()))
    }
    for text, number in numbers.items():
        if number < 0:
            row = texts.index(text) + 1
            raise UserError(
                f"{path}: row {row}: label {text.strip()} is negative, which means no label; remove such rows, or give"
                " the class a name"
            )
    distinct = sorted(set(texts))
    if len(numbers) < len(distinct):
        return tuple(distinct)
    by_number: dict[int, str] = {}
    for text, number in numbers.items():
        other = by_number.setdefault(number, text)
        if other != text:
            raise UserError(f"{path}: labels '{other}' and '{text}' are one number; write it in one way")
    return tuple(by_number[number] for number in sorted(by_number))


def _check_images(path: Path, names: Sequence[str]) -> None:
    # Not Path.is_file(), which raises an error for a name that is too long.
    missing = [row for row, name in enumerate(names, start=1) if not os.path.isfile(path.parent / name)]
    if missing:
        image = path.parent / names[missing[0] - 1]
        what = (
            f"{image} is {what_it_is(image)}, not a file"
            if os.path.exists(image)
            else f"there is no file {image}"
        )
        raise UserError(
            f"{path}: row {missing[0]}: {what} ({len(missing):,} of {len(names):,} are missing); paths are relative to"
            " the CSV file"
        )
