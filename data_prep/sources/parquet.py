"""Parquet files in the Hugging Face layout: an image column ``struct<bytes, path>`` and an integer label."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
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
                    for batch in file.iter_batches(_BATCH_ROWS, columns=[f"{self.image_column}.bytes"]):
                        encoded = batch.column(0).field("bytes")
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


def holds_images(files: Sequence[Path]) -> bool:
    """Whether one of the files has a column of images, or cannot be read; other tables may be next to image files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return any(_image_columns(pq.read_schema(path)) for path in files)
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


def open_parquet(files: Sequence[Path], label_column: str) -> Source:
    """List Parquet files: names and labels are read, images are not.

    A file's split is taken from its name, or else from its folder's; files that name none are training data. A
    test split is not read where there is a validation split, or where it has no labels. Class names come from the
    ``huggingface`` metadata of the schema, else they are "0", "1", ….

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
        class_names, image_column = _read_schemas(read, label_column)
        splits = {split: _open_split(paths, image_column, label_column) for split, paths in by_split.items()}
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{files[0].parent}: its Parquet files cannot be read ({reason}); copy or download them again"
        ) from error
    for split, found in splits.items():
        if not found.names:
            raise UserError(f"{by_split[split][0]}: no rows in the {split} files; remove or fill them")
    _check_labels(by_split["train"][0], splits["train"].labels, class_names)
    if class_names is None:
        class_names = tuple(str(label) for label in range(int(splits["train"].labels.max()) + 1))
    return Source("Parquet", class_names, splits, tuple(notes))


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
        if any(label.is_valid and label.as_py() != -1 for label in labels):
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


def _read_schemas(files: Sequence[Path], label_column: str) -> tuple[tuple[str, ...] | None, str]:
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
        found.add((_class_names(schema, label_column), _image_column(path, schema)))
        _check_label_column(path, schema, label_column)
    if len(found) > 1:
        raise UserError(
            f"{files[0].parent}: the files' columns or class names differ; convert one data set at a time"
        )
    return found.pop()


def _image_column(path: Path, schema: pa.Schema) -> str:
    columns = _image_columns(schema)
    if len(columns) > 1:
        raise UserError(f"{path}: it has the image columns {', '.join(columns)}; leave out all but one")
    if not columns:
        binary = [field.name for field in schema if _is_binary(field.type)]
        hint = f"; {binary[0]} is binary: put it into such a struct" if binary else ""
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


def _check_label_column(path: Path, schema: pa.Schema, label_column: str) -> None:
    import pyarrow.types as types

    integers = [field.name for field in schema if types.is_integer(field.type)]
    if label_column in integers:
        return
    others = (
        f"; its integer columns: {', '.join(integers)}; choose one with --label-column" if integers else ""
    )
    if label_column in schema.names:
        kind = schema.field(label_column).type
        way = others or "; number the classes, or list the images in a CSV, where labels may be names"
        raise UserError(f"{path}: column '{label_column}' holds {kind}, but labels are whole numbers{way}")
    way = (
        others or f"; it has {', '.join(schema.names)}: add a column of whole numbers, a label for each image"
    )
    raise UserError(f"{path}: no column '{label_column}'{way}")


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """The ``names`` of a ClassLabel, as the ``datasets`` library stores its features in a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label_column]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def _open_split(files: Sequence[Path], image_column: str, label_column: str) -> _ParquetSplit:
    import pyarrow.parquet as pq

    given: list[str | None] = []
    places: list[str] = []
    labels = []
    for path in files:
        has_path = pq.read_schema(path).field(image_column).type.get_field_index("path") >= 0
        columns = [label_column] + ([f"{image_column}.path"] if has_path else [])
        with pq.ParquetFile(path) as file:
            table = file.read(columns=columns)
        label = table.column(label_column)
        if label.null_count:
            rows = f"{count(label.null_count, 'row')} {agree(label.null_count, 'has', 'have')} no label"
            raise UserError(f"{path}: {rows}; remove them or label them")
        # Not to_numpy: that imports pandas, which takes 2 s.
        labels.append(np.from_dlpack(label.combine_chunks()).astype(np.int64))
        given += (
            [image["path"] if image else None for image in table.column(image_column).to_pylist()]
            if has_path
            else [None] * len(table)
        )
        places += [f"{path.name}:{row}" for row in range(len(table))]
    # A path that several rows have, such as image.png, names none of them. What is held out is drawn by the names.
    times = Counter(given)
    names = [name if name and times[name] == 1 else place for name, place in zip(given, places, strict=True)]
    return _ParquetSplit(tuple(files), image_column, names, np.concatenate(labels))
