"""Reads real folders: with tools' leftovers, with links, and with entries that are not files.

Hidden folders and those that operating systems, editors and archivers make are skipped and counted. Links are followed,
but each folder is entered once: a link that leads to one that is read already would double its images or give
them a second class, so it is an error, and so is a link that leads nowhere.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nfnet_ray.errors import UserError
from nfnet_ray.wording import count

# What torchvision's ImageFolder takes for images, and the other names that Pillow reads still pictures by.
IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
    | {
        ".jpe",
        ".jfif",
        ".jif",
        ".pjpeg",
        ".pjp",
        ".mpo",
        ".gif",
        ".apng",
        ".dib",
        ".pbm",
        ".pnm",
        ".tga",
        ".jp2",
        ".avif",
    }
)
# Folders and files that no person made, in lower case; those whose names begin with a dot are known by it. macOS (also
# on disks of others), Windows, Linux' fsck, Synology and QNAP, NetApp, Python. Words that may be the name of a class
# are not among them: Recycled (waste; a folder of old versions of Windows), CVS (a brand; an old version control).
_MADE_BY_SYSTEMS = frozenset(
    {"__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder", "icon\r"}
    | {
        "$recycle.bin",
        "system volume information",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    }
    | {"lost+found", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "~snapshot"}
    | {"__pycache__", "_vti_cnf"}
)


def is_left_out(name: str) -> bool:
    """Whether a file or folder of this name was made by a program for itself, or is hidden."""
    return name.startswith(".") or name.casefold() in _MADE_BY_SYSTEMS


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


@dataclass(frozen=True)
class _Entry:
    name: str
    path: str
    is_folder: bool
    is_file: bool
    is_link: bool


@dataclass
class LeftOut:
    """Entries that were found and are not read; paths are relative to the root."""

    folders: list[str] = field(default_factory=list)
    """Hidden ones and those that systems make."""
    images_in_folders: int = 0
    hidden_images: list[str] = field(default_factory=list)
    no_files: list[str] = field(default_factory=list)
    """Named pipes, sockets, devices."""
    linked_twice: list[str] = field(default_factory=list)
    """Links to images of the same class and split."""
    others: Counter[str] = field(default_factory=Counter)
    """Files that are not images, by extension in lower case."""

    def notes(self) -> Iterator[str]:
        """A line for each kind, for people."""
        if self.folders:
            yield (
                f"skipped {count(len(self.folders), 'hidden or system folder')} with"
                f" {count(self.images_in_folders, 'image')}: {_some(self.folders)}"
            )
        if self.hidden_images:
            yield f"skipped {count(len(self.hidden_images), 'hidden file')}: {_some(self.hidden_images)}"
        if self.no_files:
            what = (
                "named pipe, socket or device"
                if len(self.no_files) == 1
                else "named pipes, sockets or devices"
            )
            yield f"skipped {len(self.no_files):,} {what}: {_some(self.no_files)}"
        if self.linked_twice:
            yield (
                f"skipped {count(len(self.linked_twice), 'link')} to an image that its class has already:"
                f" {_some(self.linked_twice)}"
            )
        if self.others:
            kinds = [
                f"{number:,} {kind or 'without an extension'}" for kind, number in self.others.most_common(5)
            ]
            more = ["…"] if len(self.others) > len(kinds) else []
            total = self.others.total()
            yield f"ignored {count(total, 'file')} with no image's name: {', '.join(kinds + more)}"


class FolderWalk:
    """Lists what is below a root. Folders and images are named by their paths relative to it, with forward slashes.

    All methods raise UserError where a folder cannot be read, or for a link as this module says.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.left_out = LeftOut()
        self._real_root = os.path.realpath(root)
        self._entries: dict[str, dict[str, _Entry]] = {}
        # The real path of each folder that was entered, the name it was entered by, and the link that led there.
        self._entered: dict[str, tuple[str, str | None]] = {self._real_root: (".", None)}
        self._linked_images: dict[str, str] = {}
        self._real_folders: dict[str, str] = {}

    def folders(self, folder: str = ".") -> list[str]:
        """The names of the folders in one, sorted, less those that are left out."""
        return [entry.name for entry in self._list(folder).values() if entry.is_folder]

    def stray_images(self, folder: str = ".") -> list[str]:
        """The images directly in a folder."""
        return [
            joined(folder, entry.name)
            for entry in self._list(folder).values()
            if entry.is_file and is_image_name(entry.name)
        ]

    def enter(self, folder: str) -> None:
        """Note that a folder's folders are about to be read, so that no link leads here again."""
        self._enter(folder, self._entry(folder), None)

    def images(self, folder: str) -> list[str]:
        """All images below a folder, sorted."""
        found: list[str] = []
        to_read: list[tuple[str, _Entry, str | None]] = [(folder, self._entry(folder), None)]
        while to_read:
            name, entry, link = to_read.pop()
            link = self._enter(name, entry, link)
            for inner in self._list(name).values():
                inner_name = joined(name, inner.name)
                if inner.is_folder:
                    to_read.append((inner_name, inner, link))
                elif not inner.is_file:
                    self.left_out.no_files.append(inner_name)
                elif is_image_name(inner.name):
                    found.append(inner_name)
                    if inner.is_link:
                        self._linked_images[inner_name] = os.path.realpath(inner.path)
                else:
                    self.left_out.others[os.path.splitext(inner.name)[1].lower()] += 1
            del self._entries[name]  # it is not read again, and may be of a million files
        return sorted(found)

    def has_images(self, folder: str) -> bool:
        return any(self._visible_images(folder))

    def count_images(self, folder: str) -> int:
        """How many images there are below a folder, whether it is read or not."""
        return sum(self._visible_images(folder))

    def _visible_images(self, folder: str) -> Iterator[bool]:
        return (is_image_name(name) for name, _ in visible_files(os.path.join(self.root, folder)))

    def without_doubles(self, names: dict[tuple[str, str], list[str]]) -> dict[tuple[str, str], list[str]]:
        """The images by split and class, less links to images that are there already.

        Raises UserError for a link to an image of another class or split.
        """
        if not self._linked_images:
            return names
        place: dict[str, tuple[tuple[str, str], str]] = {}
        doubles: set[str] = set()
        # Files before links: where two are one image, it is the link that goes.
        for is_link, (key, own) in itertools.product((False, True), names.items()):
            for name in own:
                if (name in self._linked_images) != is_link:
                    continue
                first_key, first = place.setdefault(self._real_image(name), (key, name))
                if first_key != key:
                    raise UserError(
                        f"{self.root / name}: a link to the image {first}, which is of another class or split;"
                        " remove one of them"
                    )
                if first != name:
                    doubles.add(name)
        self.left_out.linked_twice += sorted(doubles)
        return {key: [name for name in own if name not in doubles] for key, own in names.items()}

    def _real_image(self, name: str) -> str:
        linked = self._linked_images.get(name)
        if linked is not None:
            return linked
        folder, _, file = name.rpartition("/")
        return os.path.join(self._real_folders[folder], file)

    def _entry(self, folder: str) -> _Entry:
        parent, _, name = folder.rpartition("/")
        return self._list(parent or ".")[name]

    def _list(self, folder: str) -> dict[str, _Entry]:
        if folder not in self._entries:
            self._entries[folder] = {entry.name: entry for entry in self._scan(folder)}
        return self._entries[folder]

    def _scan(self, folder: str) -> Iterator[_Entry]:
        """The visible entries of a folder, sorted by name; all others are counted."""
        path = os.path.normpath(os.path.join(self.root, folder))
        try:
            with os.scandir(path) as scanned:
                found = sorted(scanned, key=lambda entry: entry.name)
            for entry in found:
                if is_left_out(entry.name):
                    self._leave_out(folder, entry)
                    continue
                is_link = entry.is_symlink()
                if is_link:
                    self._check_link(entry)
                yield _Entry(entry.name, entry.path, entry.is_dir(), entry.is_file(), is_link)
        except OSError as error:
            raise UserError(
                f"{error.filename or path}: cannot be read ({error.strerror}); mend that, or move it out of SOURCE"
            ) from error

    def _leave_out(self, folder: str, entry: os.DirEntry[str]) -> None:
        name = joined(folder, entry.name)
        if entry.is_dir(follow_symlinks=False):
            self.left_out.folders.append(name)
            self.left_out.images_in_folders += _count_all_images(entry.path)
        elif is_image_name(entry.name):
            self.left_out.hidden_images.append(name)

    def _check_link(self, entry: os.DirEntry[str]) -> None:
        try:
            os.stat(entry.path)
        except OSError as error:
            raise UserError(
                f"{entry.path}: a link to {os.readlink(entry.path)}, which leads nowhere ({error.strerror}); mend or"
                " remove the link"
            ) from error

    def _enter(self, folder: str, entry: _Entry, link: str | None) -> str | None:
        """Note a folder as entered; gives the link that led here last."""
        if entry.is_link:
            link = folder
        real = os.path.realpath(entry.path)
        if entry.is_link and self._real_root.startswith(real.rstrip(os.sep) + os.sep):
            raise UserError(f"{entry.path}: a link to {real}, which holds SOURCE itself; remove the link")
        first, first_link = self._entered.setdefault(real, (folder, link))
        if first != folder:
            culprit = link or first_link or folder
            other = first if culprit != first_link else folder
            what = "SOURCE itself" if other == "." else f"{self.root / other}, which is read already"
            raise UserError(f"{self.root / culprit}: a link that leads to {what}; remove the link")
        self._real_folders[folder] = real
        return link


def visible_files(root: str) -> Iterator[tuple[str, str]]:
    """The names, relative to ``root`` and with forward slashes, and paths of all files that are not left out.

    Links to folders are followed, each folder once.
    """
    seen = {os.path.realpath(root)}
    for parent, folders, files in os.walk(root, followlinks=True):
        visible = [
            (name, os.path.realpath(os.path.join(parent, name))) for name in folders if not is_left_out(name)
        ]
        folders[:] = [name for name, real in visible if real not in seen]
        seen.update(real for _, real in visible)
        below = os.path.relpath(parent, root).replace(os.sep, "/")
        for name in files:
            if not is_left_out(name):
                yield joined(below, name), os.path.join(parent, name)


def _count_all_images(path: str) -> int:
    return sum(is_image_name(name) for _, _, files in os.walk(path) for name in files)


def joined(folder: str, name: str) -> str:
    """The path of what is in a folder; ``.`` is the folder that is walked."""
    return name if folder == "." else f"{folder}/{name}"


def _some(names: list[str]) -> str:
    return ", ".join([*names[:3], *(["…"] if len(names) > 3 else [])])
