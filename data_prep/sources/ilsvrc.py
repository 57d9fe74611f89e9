"""ImageNet (ILSVRC-2012) as it is distributed: two tar files of images and the development kit.

``ILSVRC2012_img_train.tar`` holds a tar per class, ``n01440764.tar`` to ``n15075141.tar``;
``ILSVRC2012_img_val.tar`` the images ``ILSVRC2012_val_00000001.JPEG`` and so on, in no folders;
``ILSVRC2012_devkit_t12.tar.gz`` the validation images' classes (``data/ILSVRC2012_validation_ground_truth.txt``, an
ILSVRC2012_ID a line) and what an ILSVRC2012_ID means (``data/meta.mat``). Source: the kit's ``readme.txt``.

Nothing is unpacked: the tars are indexed once, and images are read where they lie. Names and order are those of a
folder ``train/WNID/IMAGE``, ``val/WNID/IMAGE``, so that the data set is the same one as from the unpacked images.
"""

from __future__ import annotations

import io
import itertools
import re
import tarfile
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import basename

import numpy as np

from data_prep.sources.source import Source
from data_prep.sources.tar_index import TarMember, TarSplit, first_names, tar_members
from nfnet_ray.command_line.progress import Progress, silent
from nfnet_ray.errors import UserError
from nfnet_ray.wording import count

_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_TEST_IMAGE = re.compile(r"ILSVRC2012_test_\d{8}\.JPEG")
_META, _GROUND_TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_FILES = {
    "train": "ILSVRC2012_img_train.tar",
    "validation": "ILSVRC2012_img_val.tar",
    "kit": "ILSVRC2012_devkit_t12.tar.gz",
}
_NEEDED = "ImageNet is given by " + ", ".join(_FILES.values())


@dataclass(frozen=True)
class _Kit:
    """The content of the development kit. K is the number of classes."""

    path: Path
    wnids: tuple[str, ...]
    """K WordNet ids, sorted; a position is a label."""
    train_images: dict[str, int]
    """How many there are of each class."""
    validation_labels: np.ndarray
    """(N,) int64: of ILSVRC2012_val_00000001.JPEG and so on."""


def holds_ilsvrc(folder: Path) -> bool:
    """Whether ``folder`` looks like one with ILSVRC's tar files in it, rather than unpacked images."""
    if (folder / "train").is_dir():
        return False
    return any(path.is_file() and _role(path) is not None for path in folder.glob("*.tar"))


def open_ilsvrc(paths: Sequence[Path], progress: Progress = silent) -> Source:
    """Index the three files, or a folder that holds them; the kit may be an unpacked folder.

    Which is which is told by what they hold, so their order and names do not matter.

    Raises:
        UserError: one is missing, cut short or another one, or they do not belong together.
    """
    found = _tell_apart(paths)
    kit = _read_kit(found["kit"])
    train, others = _index_train(found["train"], kit, progress)
    validation = _index_validation(found["validation"], kit, progress)
    notes = []
    if others:
        notes.append(f"ignored {count(others, 'file')} of other kinds than images")
    counts = np.bincount(train.labels, minlength=len(kit.wnids)).tolist()
    for wnid, images in zip(kit.wnids, counts, strict=True):
        if images != kit.train_images[wnid]:
            notes.append(
                f"{wnid} has {count(images, 'training image')}, the development kit says"
                f" {kit.train_images[wnid]:,}: the tar file is not complete, or not the original"
            )
            break  # one is enough to make people look
    return Source("ILSVRC-2012", kit.wnids, {"train": train, "validation": validation}, tuple(notes))


def _tell_apart(paths: Sequence[Path]) -> dict[str, Path]:
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        paths = [
            path
            for path in sorted(folder.iterdir())
            if path.is_dir() or (path.is_file() and ".t" in path.name)
        ]
        paths = [path for path in paths if _role(path) is not None]
        if not paths:
            raise UserError(f"{folder}: none of its tar files is one of ILSVRC-2012; {_NEEDED}")
    found: dict[str, Path] = {}
    for path in paths:
        role = _role(path)
        if role == "test":
            if len(paths) > 3:
                continue  # somebody has downloaded all there is
            raise UserError(f"{path}: holds the test images, which have no labels; {_NEEDED}")
        if role is None:
            raise UserError(f"{path}: {_what_it_is(path)}; {_NEEDED}")
        if role in found and role == "kit" and path.is_dir() != found[role].is_dir():
            continue  # the kit and the folder it was unpacked to
        if role in found:
            raise UserError(
                f"{path}: holds the same as {found[role].name} ({_FILES[role]}); {_NEEDED}, each once"
            )
        found[role] = path
    for role, name in _FILES.items():
        if role not in found:
            raise UserError(f"{paths[0].parent}: {name} is missing; {_NEEDED}")
    return found


def _role(path: Path) -> str | None:
    if path.is_dir():
        return "kit" if any(folder.joinpath(_META).is_file() for folder in (path, path / "data")) else None
    for name in map(basename, first_names(path, count=1)):
        for role, pattern in (
            ("train", _CLASS_TAR),
            ("validation", _VALIDATION_IMAGE),
            ("test", _TEST_IMAGE),
        ):
            if pattern.fullmatch(name):
                return role
    return "kit" if {_META, _GROUND_TRUTH}.intersection(map(basename, first_names(path))) else None


def _what_it_is(path: Path) -> str:
    if path.is_dir():
        return f"holds no data/{_META}"
    names = first_names(path, count=1)
    return f"holds {names[0]}, which is not ILSVRC-2012's" if names else "not a tar file, or an empty one"


# The development kit


def _read_kit(path: Path) -> _Kit:
    read = _kit_reader(path)
    try:
        ids, children, train_images = _read_meta(read(_META))
    except Exception as error:  # SciPy's reader raises whatever a damaged file leads it into
        raise UserError(
            f"{path}: its {_META} cannot be read ({error}); download the development kit again"
        ) from error
    leaves = {number: wnid for number, wnid in ids.items() if not children[wnid]}
    wnids = tuple(sorted(leaves.values()))
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    if len(label_of) != len(leaves):
        raise UserError(f"{path}: its {_META} names a class twice; download the development kit again")
    labels = []
    for row, line in enumerate(read(_GROUND_TRUTH).decode("ascii", "replace").split(), start=1):
        wnid = leaves.get(int(line)) if line.isdecimal() else None
        if wnid is None:
            raise UserError(
                f"{path}: line {row} of its ground truth is '{line}', which is no class of its {_META};"
                " download the development kit again"
            )
        labels.append(label_of[wnid])
    return _Kit(path, wnids, train_images, np.array(labels, np.int64))


def _kit_reader(path: Path) -> Callable[[str], bytes]:
    """Gives a file of the kit's ``data`` folder; the kit is a few MB, so it is read whole."""
    contents: dict[str, bytes] = {}
    try:
        if path.is_dir():
            folder = path / "data" if (path / "data").is_dir() else path
            contents = {
                name: (folder / name).read_bytes()
                for name in (_META, _GROUND_TRUTH)
                if (folder / name).is_file()
            }
        else:
            with tarfile.open(path) as tar:
                for member in tar:
                    if basename(member.name) in (_META, _GROUND_TRUTH) and (file := tar.extractfile(member)):
                        contents[basename(member.name)] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); download the development kit again") from error

    def read(name: str) -> bytes:
        if name not in contents:
            raise UserError(f"{path}: has no data/{name}; give {_FILES['kit']} (tasks 1 and 2)")
        return contents[name]

    return read


def _read_meta(content: bytes) -> tuple[dict[int, str], dict[str, int], dict[str, int]]:
    """WordNet ids by ILSVRC2012_ID; then their numbers of children (0: a class) and of training images."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(content), variable_names=["synsets"])["synsets"].ravel()
    # MATLAB knows matrices only: each number and string is one of a single row.
    wnids = [str(value.item()) for value in synsets["WNID"]]
    numbers = {
        name: [int(value.item()) for value in synsets[name]]
        for name in ("ILSVRC2012_ID", "num_children", "num_train_images")
    }
    return (
        dict(zip(numbers["ILSVRC2012_ID"], wnids, strict=True)),
        dict(zip(wnids, numbers["num_children"], strict=True)),
        dict(zip(wnids, numbers["num_train_images"], strict=True)),
    )


# The tar files


def _index_train(path: Path, kit: _Kit, progress: Progress) -> tuple[TarSplit, int]:
    """The training images, by class and then by name; and how many files are none."""
    class_tars: dict[str, TarMember] = {}
    for member in tar_members(path):
        match = _CLASS_TAR.fullmatch(basename(member.name))
        if match is None or match[1] in class_tars:
            what = "holds twice" if match else "holds, besides classes' tar files,"
            raise UserError(f"{path}: {what} {member.name}; give {_FILES['train']} as it was downloaded")
        class_tars[match[1]] = member
    _check_classes(path, kit, set(class_tars))
    # A million members: numbers in arrays take 16 bytes of each, objects ten times as much.
    names: list[str] = []
    offsets, sizes, counts = array("q"), array("q"), []
    others = 0
    with progress("index of train", sum(kit.train_images[wnid] for wnid in kit.wnids)) as advance:
        for wnid in kit.wnids:
            images = []
            for member in tar_members(path, inside=class_tars[wnid]):
                advance()
                if member.name.lower().endswith((".jpeg", ".jpg")):
                    images.append(TarMember(basename(member.name), member.offset, member.size))
                else:
                    others += 1
            if not images:
                raise UserError(f"{path}: {wnid}.tar: a class without images; copy or download it again")
            images.sort(key=lambda member: member.name)
            for first, second in itertools.pairwise(images):
                if first.name == second.name:
                    raise UserError(f"{path}: {wnid}.tar holds {first.name} twice; download it again")
            names += [f"train/{wnid}/{image.name}" for image in images]
            offsets.extend(image.offset for image in images)
            sizes.extend(image.size for image in images)
            counts.append(len(images))
    labels = np.repeat(np.arange(len(kit.wnids), dtype=np.int64), counts)
    return TarSplit(path, names, labels, np.array(offsets), np.array(sizes)), others


def _check_classes(path: Path, kit: _Kit, found: set[str]) -> None:
    missing, unknown = sorted(set(kit.wnids) - found), sorted(found - set(kit.wnids))
    if missing or unknown:
        example = f"{missing[0]}.tar is not in it" if missing else f"{unknown[0]}.tar is none of them"
        raise UserError(
            f"{path}: holds {count(len(found), 'class')}, the development kit names {len(kit.wnids):,}"
            f" ({example}); give {_FILES['train']} and the kit of the same year and task"
        )


def _index_validation(path: Path, kit: _Kit, progress: Progress) -> TarSplit:
    """The validation images, by class and then by name, as they are in ``val/WNID``."""
    expected = len(kit.validation_labels)
    by_number: dict[int, TarMember] = {}
    with progress("index of validation", expected) as advance:
        for member in tar_members(path):
            match = _VALIDATION_IMAGE.fullmatch(basename(member.name))
            if match is None or int(match[1]) in by_number:
                what = "holds twice" if match else "holds, besides validation images,"
                raise UserError(
                    f"{path}: {what} {member.name}; give {_FILES['validation']} as it was downloaded"
                )
            by_number[int(match[1])] = member
            advance()
    if len(by_number) != expected or set(by_number) != set(range(1, expected + 1)):
        raise UserError(
            f"{path}: holds {count(len(by_number), 'image')}, up to number {max(by_number):,}, and the development"
            f" kit's ground truth is of {expected:,}; give {_FILES['validation']} and the kit of the same year"
        )
    order = np.lexsort((np.arange(expected), kit.validation_labels)).tolist()
    members = [by_number[position + 1] for position in order]
    labels = kit.validation_labels[order]
    return TarSplit(
        path,
        [
            f"val/{kit.wnids[label]}/{basename(member.name)}"
            for label, member in zip(labels.tolist(), members, strict=True)
        ],
        labels,
        np.array([member.offset for member in members], np.int64),
        np.array([member.size for member in members], np.int64),
    )
