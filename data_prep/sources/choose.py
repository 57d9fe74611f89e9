"""Recognises what a source is and opens it.

To add a kind of source, write a function that returns a :class:`~data_prep.sources.source.Source` and name it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.sources.folder_walk import is_image_name, visible_files
from data_prep.sources.source import Source
from nfnet_ray.command_line.progress import Progress, silent
from nfnet_ray.data.files.regular_file import what_it_is
from nfnet_ray.errors import UserError


def open_source(
    paths: Sequence[Path], label_column: str, progress: Progress = silent, image_column: str | None = None
) -> Source:
    """Recognise and list a source.

    Args:
        paths: one folder of images; Parquet files or one folder of them; a CSV list; ILSVRC-2012's files or one
            folder of them; CIFAR's binary version, as a folder or as the tar file.
        label_column: the column of Parquet files or a CSV list that holds the labels.
        progress: told of what takes long: the index of a tar file.
        image_column: the column of Parquet files that holds the images; None: the only one.

    Raises:
        UserError: there is nothing there that can be converted, or nothing that has columns of images.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; check SOURCE")
        if not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: is {what_it_is(path)}; give a file or a folder")
    source = _open(paths, label_column, image_column, progress)
    if image_column is not None and not source.kind.startswith("Parquet"):
        raise UserError(
            f"--image-column {image_column} is for Parquet files, and SOURCE is: {source.kind}; leave it out"
        )
    _check_class_names(source.class_names)
    notes = [*source.notes, *_notes_on_class_names(source.class_names)]
    return replace(source, notes=tuple(notes))


def _open(paths: Sequence[Path], label_column: str, image_column: str | None, progress: Progress) -> Source:
    # A source's module is imported once it is chosen: --help needs none of them.
    if all(path.is_file() and path.suffix.lower() == ".parquet" for path in paths):
        return _parquet(paths, label_column, image_column)
    if len(paths) == 1 and paths[0].is_dir():
        return _open_folder(paths[0], label_column, image_column, progress)
    if len(paths) == 1 and paths[0].suffix.lower() == ".csv":
        from data_prep.sources.csv_list import open_csv

        return open_csv(paths[0], label_column)
    from data_prep.sources.cifar10 import holds_cifar, open_cifar
    from data_prep.sources.ilsvrc import open_ilsvrc

    tars = [
        path for path in paths if path.is_file() and {"tar", "tgz"} & set(path.name.lower().split(".")[1:])
    ]
    if len(paths) == 1 and tars and holds_cifar(paths[0]):
        return open_cifar(paths[0])
    if tars:
        return open_ilsvrc(paths, progress)
    if len(paths) > 1:
        raise UserError(
            "several SOURCEs are understood only if each is a Parquet file, or if they are ImageNet's tar files;"
            " give one folder"
        )
    raise UserError(
        f"{paths[0]}: neither .parquet, .csv nor .tar; give a folder of images, or one of these files"
    )


def _open_folder(folder: Path, label_column: str, image_column: str | None, progress: Progress) -> Source:
    from data_prep.sources.cifar10 import holds_cifar, open_cifar
    from data_prep.sources.ilsvrc import holds_ilsvrc, open_ilsvrc
    from data_prep.sources.image_folder import open_image_folder
    from data_prep.sources.parquet import holds_images, is_shard, shards_below

    shards = sorted(path for path in folder.iterdir() if is_shard(path))
    if shards and (holds_images(shards, image_column) or not _holds_image_files(folder)):
        return _parquet(shards, label_column, image_column)
    if holds_cifar(folder):
        return open_cifar(folder)
    if holds_ilsvrc(folder) or (any(folder.glob("*.tar")) and not _holds_image_files(folder)):
        return open_ilsvrc([folder], progress)
    if not _holds_image_files(folder) and (shards := shards_below(folder)):
        return _parquet(shards, label_column, image_column)
    return open_image_folder(folder)


def _holds_image_files(folder: Path) -> bool:
    return any(is_image_name(name) for name, _ in visible_files(str(folder)))


def _parquet(files: Sequence[Path], label_column: str, image_column: str | None) -> Source:
    from data_prep.sources.parquet import open_parquet

    return open_parquet(files, label_column, image_column)


def _check_class_names(class_names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in class_names:
        other = seen.setdefault(name.strip(), name)
        if other is not name:
            raise UserError(f"two classes of SOURCE have one name, '{other}' and '{name}'; rename one")


def _notes_on_class_names(class_names: Sequence[str]) -> list[str]:
    """Lists of ImageNet's classes have Cardigan, a dog, and cardigan, a garment: no error, but worth a line."""
    seen: dict[str, str] = {}
    notes = []
    for name in class_names:
        other = seen.setdefault(name.casefold(), name)
        if other is not name:
            notes.append(f"classes '{other}' and '{name}' differ only in upper and lower case")
    return notes
