"""A folder per class, holding that class's images; optionally below a folder per split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.sources import Source, SourceImage
from nfnet_ray.errors import UserError

# The file names that torchvision's ImageFolder takes for images.
_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
SPLIT_FOLDERS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}


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
            path = self.root / self.names[index]
            yield SourceImage(self.names[index], int(self.labels[index]), path.read_bytes)


def open_image_folder(root: Path) -> Source:
    """List ``root/CLASS/**/IMAGE`` or ``root/{train,val|valid|validation,test}/CLASS/**/IMAGE``.

    Classes are numbered in the order of their folders' names, as torchvision's ImageFolder does; the
    training split decides which there are. Links are followed.
    """
    folders = {"train": root}
    if _class_folders(root / "train"):  # a class may be called "train", but then it holds no folders
        folders = {
            split: root / name
            for split, names in SPLIT_FOLDERS.items()
            for name in reversed(names)
            if (root / name).is_dir()
        }
    class_names = _class_folders(folders["train"])
    if not class_names:
        raise UserError(
            f"{root}: no class folders and no .parquet files in it; SOURCE needs a folder of images per"
            " class, or .parquet files"
        )
    ignored = 0
    splits = {}
    for split, folder in folders.items():
        unknown = sorted(set(_class_folders(folder)) - set(class_names))
        if unknown:
            raise UserError(f"{folder / unknown[0]}: train has no such class; remove it or add it to train")
        names: list[str] = []
        counts = []
        for class_name in class_names:
            images, others = _list_images(root, folder / class_name)
            if not images and split == "train":
                raise UserError(f"{folder / class_name}: a class without images; fill or remove the folder")
            names += images
            counts.append(len(images))
            ignored += others
        if not names:
            raise UserError(f"{folder}: no images in its class folders; fill or remove it")
        _check_text(root, names)
        labels = np.repeat(np.arange(len(class_names), dtype=np.int64), counts)
        splits[split] = FolderSplit(root, names, labels)
    notes = (f"{ignored:,} files are not images and were ignored",) if ignored else ()
    return Source("image folder", tuple(class_names), splits, notes)


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def _check_text(root: Path, names: list[str]) -> None:
    """Names go into a Parquet file, as text; a file system allows bytes that are none."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{root}: {name!a} is not a name in UTF-8; rename it") from error


def _list_images(root: Path, folder: Path) -> tuple[list[str], int]:
    """The images below ``folder``, sorted, as paths relative to ``root``; and how many files are none."""
    images = []
    others = 0
    for parent, _, files in os.walk(folder, followlinks=True):
        relative = Path(parent).relative_to(root).as_posix()
        for name in files:
            if os.path.splitext(name)[1].lower() in _EXTENSIONS and name[0] != ".":
                images.append(f"{relative}/{name}")
            elif name[0] != ".":
                others += 1
    return sorted(images), others
