"""A folder per class, holding that class's images; optionally below a folder per split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.sources.folder_walk import FolderWalk, is_left_out, joined
from data_prep.sources.source import Source, SourceImage
from nfnet_ray.data.files.regular_file import read_regular_file
from nfnet_ray.errors import UserError
from nfnet_ray.wording import count

SPLIT_OF = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
"""The names of splits, in lower case, and what they mean."""


@dataclass(frozen=True)
class FolderSplit:
    """Images that are files below one folder."""

    root: Path
    names: list[str]
    """Paths relative to ``root``, with forward slashes."""
    labels: np.ndarray
    """(N,) int64."""

    def images(self, indices: np.ndarray) -> Iterator[SourceImage]:
        for index in indices:
            load = partial(read_regular_file, self.root / self.names[index])
            yield SourceImage(self.names[index], int(self.labels[index]), load)


def open_image_folder(root: Path) -> Source:
    """List ``root/CLASS/**/IMAGE`` or ``root/SPLIT/CLASS/**/IMAGE``, where SPLIT is a name of :data:`SPLIT_OF`.

    The names of splits may be in capitals, and among other words where all folders are such: ``Training``,
    ``seg_test``. Classes are numbered in the order of their folders' names, as torchvision's ImageFolder does; the
    training split decides which there are. What is skipped, and how links are followed, says
    :mod:`data_prep.sources.folder_walk`.

    Raises:
        UserError: there are no classes, or two folders for one split, or a folder or link cannot be read.
    """
    walk = FolderWalk(root)
    notes: list[str] = []
    folders = _split_folders(walk, notes)
    class_names = walk.folders(folders["train"])
    if not class_names:
        raise UserError(
            f"{root / folders['train']}: no class folders and no .parquet files in it; SOURCE needs a folder of images"
            " per class, or .parquet files"
        )
    if len(class_names) == 1 and len(walk.folders(joined(folders["train"], class_names[0]))) > 1:
        inner = root / folders["train"] / class_names[0]
        raise UserError(
            f"{root / folders['train']}: only one class, {class_names[0]}; is SOURCE perhaps {inner}?"
        )
    names: dict[tuple[str, str], list[str]] = {}
    for split, folder in folders.items():
        if folder != ".":
            walk.enter(folder)
        own = walk.folders(folder)
        _check_known(root / folder, own, class_names)
        for class_name in class_names:
            images = walk.images(joined(folder, class_name)) if class_name in own else []
            if not images and split == "train":
                raise UserError(_why_no_images(root / folder / class_name))
            names[split, class_name] = images
        if not any(names[split, class_name] for class_name in class_names):
            raise UserError(f"{root / folder}: no images in its class folders; fill or remove it")
        strays = walk.stray_images(folder)
        if strays:
            notes.append(
                f"ignored {count(len(strays), 'image')} outside the class folders, of no class:"
                f" {strays[0]}{', …' if len(strays) > 1 else ''}"
            )
    names = walk.without_doubles(names)
    splits = {
        split: _split(root, [names[split, class_name] for class_name in class_names]) for split in folders
    }
    return Source("image folder", tuple(class_names), splits, (*notes, *walk.left_out.notes()))


def _split(root: Path, names_by_class: list[list[str]]) -> FolderSplit:
    names = [name for own in names_by_class for name in own]
    _check_text(root, names)
    labels = np.repeat(np.arange(len(names_by_class), dtype=np.int64), list(map(len, names_by_class)))
    return FolderSplit(root, names, labels)


def _split_folders(walk: FolderWalk, notes: list[str]) -> dict[str, str]:
    """The folder of each split that is read, training first; ``{"train": "."}`` where there are no splits."""
    top = walk.folders()
    found = {name: SPLIT_OF[name.casefold()] for name in top if name.casefold() in SPLIT_OF}
    # A class may be called "train", but then it holds no folders.
    if not any(split == "train" and walk.folders(name) for name, split in found.items()):
        found = {name: split for name in top if (split := _split_among_words(name)) is not None}
        if not _are_splits(walk, top, found):
            return {"train": "."}
    folders = {}
    for split in ("train", "validation", "test"):
        own = [name for name, meant in found.items() if meant == split]
        full = [name for name in own if walk.has_images(name)] if len(own) > 1 else own
        if len(full) > 1:
            raise UserError(
                f"{walk.root}: {' and '.join(full)} both hold the {split} split; move one of them out of SOURCE"
            )
        if own:
            folders[split] = _unwrapped(walk, (full or own)[0])
    if "test" in folders:
        why = _why_not_tested_with(walk, folders)
        if why is not None:
            notes.append(f"{folders.pop('test')} is not read: {why}")
    for name in top:
        images = walk.count_images(name) if name not in found else 0
        if images:
            notes.append(f"{name} is not read: it is none of the splits (it holds {count(images, 'image')})")
    strays = walk.stray_images()
    if strays:
        notes.append(f"ignored {count(len(strays), 'image')} outside the folders of splits: {strays[0]}")
    return folders


def _why_not_tested_with(walk: FolderWalk, folders: dict[str, str]) -> str | None:
    if "validation" in folders:
        return f"{folders['validation']} is there to validate with"
    if not set(walk.folders(folders["test"])) & set(walk.folders(folders["train"])):
        images = count(walk.count_images(folders["test"]), "image")
        return f"it holds {images}, but no folder with the name of a class"
    return None


def _check_known(folder: Path, names: list[str], class_names: list[str]) -> None:
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise UserError(
            f"{folder / unknown[0]}: train has no such class; remove it, add it to train, or move {folder.name} out of"
            " SOURCE"
        )
    if not names:
        raise UserError(
            f"{folder}: no class folders in it; sort its images into folders of the classes of train, or move it out of"
            " SOURCE"
        )


def _are_splits(walk: FolderWalk, top: list[str], found: dict[str, str]) -> bool:
    """Whether the folders, none of which is named ``train`` and holds folders, are those of splits all the same.

    Raises UserError where they can be nothing else, and nothing can be trained with them.
    """
    splits = set(found.values())
    certain = any(name.casefold() in SPLIT_OF for name in found)
    if not splits or (len(splits) == 1 and not certain):
        return False
    if any(walk.has_images(name) for name in top if name not in found):
        return False
    flat = [name for name in found if not walk.folders(name)]
    if len(splits) > 1 and flat and walk.has_images(flat[0]):
        raise UserError(
            f"{walk.root / flat[0]}: a split by its name, but its images are in no class folders; sort them into"
            " a folder per class, or list them with their labels in a CSV file"
        )
    if "train" not in splits and len(flat) < len(found):
        raise UserError(
            f"{walk.root}: {' and '.join(found)}, but nothing to train with; name a folder of class folders train"
        )
    return len(flat) < len(found)


def _split_among_words(name: str) -> str | None:
    """The split of ``Training``, ``seg_test`` or ``train2017``; None where no word, or more than one, is one's name."""
    splits = {SPLIT_OF[word] for word in re.split("[^a-z]+", name.casefold()) if word in SPLIT_OF}
    return splits.pop() if len(splits) == 1 else None


def _unwrapped(walk: FolderWalk, folder: str) -> str:
    """``seg_train/seg_train`` for ``seg_train``: archives are often unpacked into a folder of their own name."""
    name = folder.rpartition("/")[2]
    return _unwrapped(walk, f"{folder}/{name}") if walk.folders(folder) == [name] else folder


def _why_no_images(folder: Path) -> str:
    if (folder / "train.beton").exists() or (folder / "progress").is_dir():
        return f"{folder}: a data set that a conversion wrote, not a class; move it out of SOURCE"
    others = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_file() and not is_left_out(entry.name)
    )
    if others:
        return (
            f"{folder}: a class without images: by their names, {others[0]} and its other files are none; save them as"
            " PNG or JPEG, or remove the folder"
        )
    return f"{folder}: a class without images; fill or remove the folder"


def _check_text(root: Path, names: list[str]) -> None:
    """Names go into a Parquet file, as text; a file system allows bytes that are none."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{root / name}: is not a name in UTF-8; rename it") from error
