"""Parquet files in the Hugging Face layout: a column of images, ``struct<bytes, path>``, and one of labels.

Labels are whole numbers or texts, such as ``cat``. A column of images may also be plain binary, if it is named.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.sources.folder_walk import is_left_out, visible_files
from data_prep.sources.image_folder import SPLIT_OF
from data_prep.sources.source import Source, SourceImage
from nfnet_ray.data.decoding.pillow_image import UnreadableImageError
from nfnet_ray.errors import UserError
from nfnet_ray.wording import agree, count

if TYPE_CHECKING:
    import pyarrow as pa

# Rows read at a time: 64 photographs of 100 KB are 6 MB, and the cost per batch is small even at 1 KB.
_BATCH_ROWS = 64
# train-00000-of-00002.parquet, cifar10-test.parquet, …
_SPLIT_IN_NAME = re.compile(rf"(?:^|[-_.])({'|'.join(SPLIT_OF)})(?=[-_.]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class _ParquetSplit:
    files: tuple[Path, ...]
    image_column: str
    names: list[str]
    labels: np.ndarray

    def images(self, indices: np.ndarray) -> Iterator[SourceImage]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = np.zeros(len(self.labels), bool)
        wanted[indices] = True
        row = 0
        for path in self.files:
            try:
                with pq.ParquetFile(path) as file:
                    is_plain = _is_binary(file.schema_arrow.field(self.image_column).type)
                    column = self.image_column if is_plain else f"{self.image_column}.bytes"
                    for batch in file.iter_batches(_BATCH_ROWS, columns=[column]):
                        encoded = batch.column(0) if is_plain else batch.column(0).field("bytes")
                        for position in np.flatnonzero(wanted[row : row + len(batch)]):
                            index = row + int(position)
                            load = _Loader(encoded[int(position)])
                            yield SourceImage(self.names[index], int(self.labels[index]), load)
                        row += len(batch)
            except (pa.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"{path}: cannot be read after row {row:,} ({reason}); copy or download it again"
                ) from error


@dataclass(frozen=True)
class _Loader:
    """Copies an image out of its batch only when a worker asks for it."""

    encoded: pa.BinaryScalar

    def __call__(self) -> bytes:
        if not self.encoded.is_valid:
            raise UnreadableImageError("the row holds no image bytes, at most a path")
        return self.encoded.as_py()


def is_shard(path: Path) -> bool:
    """Whether a path is a Parquet file by its name, and not a hidden one such as macOS makes for each file."""
    return path.suffix.lower() == ".parquet" and not is_left_out(path.name) and path.is_file()


def holds_images(files: Sequence[Path], image_column: str | None) -> bool:
    """Whether one of the files has a column of images, or cannot be read; other tables may be next to image files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schemas = map(pq.read_schema, files)
        return any(image_column in schema.names or _image_columns(schema) for schema in schemas)
    except (pa.ArrowException, OSError):
        return True


def shards_below(folder: Path) -> list[Path]:
    """The Parquet files in folders below one, as Hugging Face's repositories and caches have them.

    Raises:
        UserError: they are those of several data sets.
    """
    files = [Path(path) for _, path in visible_files(str(folder))]
    shards = sorted(path for path in files if is_shard(path))
    parents = sorted({path.parent for path in shards})
    one_per_split = all(path.name.casefold() in SPLIT_OF for path in parents)
    if len(parents) > 1 and not (one_per_split and len({path.parent for path in parents}) == 1):
        names = ", ".join(str(path) for path in parents[:3])
        raise UserError(f"{folder}: holds Parquet files in several folders ({names}); give one of them")
    return shards


def open_parquet(files: Sequence[Path], label_column: str, image_column: str | None) -> Source:
    """List Parquet files: names and labels are read, images are not.

    A file's split is taken from its name, or else from its folder's; files that name none are training data. A
    test split is not read where there is a validation split, or where it has no labels. Where labels are texts these
    are the classes. Else their names come from the ``huggingface`` metadata of the schema, or they are "0", "1", ….

    Args:
        image_column: the column of the images; None: the only one of the type ``struct<bytes, …>``.

    Raises:
        UserError: a column is missing, a file cannot be read, or a class has no training image.
    """
    import pyarrow as pa

    by_split: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_split[_split_of(path)].append(path)
    if "train" not in by_split:
        if len(by_split) > 1:
            raise UserError(f"{files[0].parent}: no training files; name one train-….parquet")
        by_split = {"train": list(files)}  # somebody wants to split this one
    notes = []
    try:
        if "test" in by_split:
            why = _why_not_tested_with(by_split, label_column)
            if why is not None:
                notes.append(f"the test split, {by_split.pop('test')[0].name}, is not read: {why}")
        read = [path for paths in by_split.values() for path in paths]
        class_names, column = _read_schemas(read, label_column, image_column)
        rows = {split: _read_rows(paths, column, label_column) for split, paths in by_split.items()}
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{files[0].parent}: its Parquet files cannot be read ({reason}); copy or download them again"
        ) from error
    for split, (names, _) in rows.items():
        if not names:
            raise UserError(f"{by_split[split][0]}: no rows in the {split} files; remove or fill them")
    labels = {split: given for split, (_, given) in rows.items()}
    if labels["train"].dtype == object:
        class_names = _check_texts(by_split["train"][0], labels)
        number_of = {text: number for number, text in enumerate(class_names)}
        labels = {
            split: np.array([number_of[text] for text in given], np.int64) for split, given in labels.items()
        }
    else:
        _check_labels(by_split["train"][0], labels["train"], class_names)
        if class_names is None:
            class_names = tuple(str(label) for label in range(int(labels["train"].max()) + 1))
    splits = {
        split: _ParquetSplit(tuple(by_split[split]), column, names, labels[split])
        for split, (names, _) in rows.items()
    }
    # A conversion with other images does not resume this one.
    kind = f"Parquet, images of {image_column}" if image_column else "Parquet"
    return Source(kind, class_names, splits, tuple(notes))


def _split_of(path: Path) -> str:
    found = _SPLIT_IN_NAME.findall(path.stem)
    # The last one: the data set's own name comes first, and may have such a word in it (speed-test-train-0).
    return SPLIT_OF[found[-1].casefold()] if found else SPLIT_OF.get(path.parent.name.casefold(), "train")


def _why_not_tested_with(by_split: dict[str, list[Path]], label_column: str) -> str | None:
    """Test splits are published without labels: without the column, with no values in it, or with -1 in each row."""
    import pyarrow.parquet as pq

    if "validation" in by_split:
        return "there is a validation split"
    for path in by_split["test"]:
        if label_column not in pq.read_schema(path).names:
            return "it has no labels"
        with pq.ParquetFile(path) as file:
            labels = file.read(columns=[label_column]).column(label_column)
        if any(label.is_valid and label.as_py() not in (-1, "") for label in labels):
            return None
    return "it has no labels"


def _check_labels(path: Path, labels: np.ndarray, class_names: tuple[str, ...] | None) -> None:
    """Labels are numbered without gaps, or a file is missing: files are often sorted by label."""
    used = np.unique(labels)
    count = len(class_names) if class_names is not None else int(used[-1]) + 1
    if used[0] < 0 or used[-1] >= count or len(used) == count:
        return  # what is out of bounds is an error for every source
    missing = next(label for label in range(count) if label >= len(used) or used[label] != label)
    name = f" ('{class_names[missing]}')" if class_names is not None else ""
    raise UserError(
        f"{path.parent}: no training image has label {missing}{name}, but the labels are 0 to {count - 1}: is a file"
        " missing? If not, number the classes without gaps"
    )


def _check_texts(path: Path, labels: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The classes of labels that are texts, in the texts' order, or in that of the numbers that all of them are.

    Raises UserError for a class without a training image.
    """
    texts = {str(text) for given in labels.values() for text in given}
    are_numbers = all(text.isascii() and text.isdecimal() for text in texts)
    class_names = tuple(sorted(texts, key=lambda text: (int(text), text) if are_numbers else (0, text)))
    trained = set(labels["train"])
    missing = next((name for name in class_names if name not in trained), None)
    if missing is not None:
        raise UserError(
            f"{path.parent}: no training image has label '{missing}', which other splits have: is a file missing? If "
            "not, leave those images out"
        )
    return class_names


def _read_schemas(
    files: Sequence[Path], label_column: str, image_column: str | None
) -> tuple[tuple[str, ...] | None, str]:
    """Class names, if there are any, and the image column; the same in every file, or an error."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = set()
    for path in files:
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path}: cannot be read as Parquet ({reason}); copy or download it again"
            ) from error
        column = _image_column(path, schema, image_column)
        kind = _kind_of_label(path, schema, label_column)
        found.add((_class_names(schema, label_column), column, kind))
    if len(found) > 1:
        raise UserError(
            f"{files[0].parent}: the files' columns or class names differ; convert one data set at a time"
        )
    class_names, column, _ = found.pop()
    return class_names, column


def _image_column(path: Path, schema: pa.Schema, asked: str | None) -> str:
    columns = _image_columns(schema)
    binary = [field.name for field in schema if _is_binary(field.type)]
    if asked is not None:
        if asked in (*columns, *binary):
            return asked
        has = f"it has {', '.join([*columns, *binary])}" if columns or binary else "no column is"
        raise UserError(
            f"{path}: --image-column {asked}: no column of that name is binary or a struct with bytes; {has}"
        )
    if len(columns) > 1:
        raise UserError(
            f"{path}: it has the image columns {', '.join(columns)}; choose one with --image-column"
        )
    if not columns:
        hint = (
            f"; {binary[0]} is binary: if it holds images, give --image-column {binary[0]}" if binary else ""
        )
        raise UserError(
            f"{path}: it needs one image column of type struct<bytes: binary, path: string>, and has none among"
            f" {', '.join(schema.names)}{hint}"
        )
    return columns[0]


def _image_columns(schema: pa.Schema) -> list[str]:
    import pyarrow.types as types

    return [
        field.name
        for field in schema
        if types.is_struct(field.type)
        and (at := field.type.get_field_index("bytes")) >= 0
        and _is_binary(field.type[at].type)
    ]


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind)


def _kind_of_label(path: Path, schema: pa.Schema, label_column: str) -> str:
    """``numbers`` or ``texts``. Raises UserError if the column is missing, or holds neither."""
    import pyarrow.types as types

    integers = [field.name for field in schema if types.is_integer(field.type)]
    texts = [field.name for field in schema if _is_text(field.type)]
    if label_column in integers:
        return "numbers"
    if label_column in texts:
        return "texts"
    others = [
        f"{', '.join(columns)} ({kind})"
        for columns, kind in ((integers, "numbers"), (texts, "texts"))
        if columns
    ]
    way = f"; choose one with --label-column: {', '.join(others)}" if others else ""
    if label_column in schema.names:
        kind = schema.field(label_column).type
        way = way or "; number the classes, or name them"
        raise UserError(
            f"{path}: column '{label_column}' holds {kind}, but labels are whole numbers or texts{way}"
        )
    way = (
        way
        or f"; it has {', '.join(schema.names)}: add a column of labels, a number or a text for each image"
    )
    raise UserError(f"{path}: no column '{label_column}'{way}")


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """The ``names`` of a ClassLabel, as the ``datasets`` library stores its features in a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label_column]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def _read_rows(files: Sequence[Path], image_column: str, label_column: str) -> tuple[list[str], np.ndarray]:
    """Names and labels of the rows of some files; labels are int64, or objects if they are texts."""
    import pyarrow.parquet as pq

    given: list[str | None] = []
    places: list[str] = []
    labels = []
    for path in files:
        kind = pq.read_schema(path).field(image_column).type
        has_path = not _is_binary(kind) and kind.get_field_index("path") >= 0
        columns = [label_column] + ([f"{image_column}.path"] if has_path else [])
        with pq.ParquetFile(path) as file:
            table = file.read(columns=columns)
        label = table.column(label_column)
        is_text = _is_text(label.type)
        texts = label.to_pylist() if is_text else []
        missing = sum(not (text and text.strip()) for text in texts) if is_text else label.null_count
        if missing:
            rows = f"{count(missing, 'row')} {agree(missing, 'has', 'have')} no label"
            raise UserError(f"{path}: {rows}; remove them or label them")
        # Not to_numpy: that imports pandas, which takes 2 s.
        labels.append(
            np.array(texts, object) if is_text else np.from_dlpack(label.combine_chunks()).astype(np.int64)
        )
        given += (
            [image["path"] if image else None for image in table.column(image_column).to_pylist()]
            if has_path
            else [None] * len(table)
        )
        places += [f"{path.name}:{row}" for row in range(len(table))]
    # A path that several rows have, such as image.png, names none of them. What is held out is drawn by the names.
    times = Counter(given)
    names = [name if name and times[name] == 1 else place for name, place in zip(given, places, strict=True)]
    return names, np.concatenate(labels)
