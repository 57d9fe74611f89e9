"""What has to be the same for one conversion to go on where another stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data_prep.encode import EncodeSettings
from data_prep.sources import Source
from data_prep.splits import Selection, SplitPlan


def conversion_identity(source: Source, plan: SplitPlan, encode: EncodeSettings) -> dict[str, str]:
    """All that the written bytes depend on but the images' own, as text for people.

    The number of workers, where the source lies, and how many unreadable images are tolerated are not part of it.
    """
    return {
        "kind of source": source.kind,
        "classes": _digest(f"{len(source.class_names):,}", json.dumps(source.class_names).encode()),
        "training images": _describe(plan.train),
        "validation images": _describe(plan.validation),
        **{name: str(value) for name, value in dataclasses.asdict(encode).items()},
        "Pillow": version("pillow"),
    }


def difference(before: dict[str, str], now: dict[str, str]) -> str | None:
    """The first thing that is not as it was, for people, or None."""
    for what in [*before, *now]:
        if before.get(what) != now.get(what):
            return f"{what} was {before.get(what, 'unknown')}, is {now.get(what, 'unknown')}"
    return None


def file_states(paths: Sequence[Path], without: Path) -> tuple[list[str], np.ndarray]:
    """All files below ``paths``, and what tells whether they have been changed.

    Args:
        paths: files and folders; links are followed.
        without: a file or folder below one of them that is left out, with all whose names begin with its name.

    Returns:
        N relative names, and (N,) uint64: hashes of name, size in bytes and time of the last change.
    """
    names, states = [], []
    for name, path in _files(paths, os.path.abspath(without)):
        try:
            found = os.stat(path)
            state = f"{name}\0{found.st_size}\0{found.st_mtime_ns}"
        except OSError:  # a link to nowhere; reading it will say so
            state = f"{name}\0gone"
        names.append(name)
        states.append(hashlib.blake2b(os.fsencode(state), digest_size=8).digest())
    return names, np.frombuffer(b"".join(states), "<u8")


def changed_file(
    before: np.ndarray, names: Sequence[str], states: np.ndarray, to_come: Collection[str]
) -> str | None:
    """A file that is new or not as it was, or None. An image that is still to come may have been repaired."""
    changed = [names[int(index)] for index in np.flatnonzero(~np.isin(states, before))]
    for name in changed:
        if name not in to_come:
            return f"{name} has been changed or added"
    gone = int((~np.isin(before, states)).sum()) - len(changed)
    return f"{gone:,} files are gone" if gone > 0 else None


def _files(paths: Sequence[Path], without: str) -> Iterator[tuple[str, str]]:
    for top in paths:
        if not top.is_dir():
            yield top.name, str(top)
            continue
        root = os.path.abspath(top)
        inside = without.startswith(root + os.sep)
        for parent, folders, files in os.walk(root, followlinks=True):
            if inside:
                folders[:] = [name for name in folders if not os.path.join(parent, name).startswith(without)]
            for name in files:
                path = os.path.join(parent, name)
                if not (inside and path.startswith(without)):
                    yield os.path.relpath(path, root).replace(os.sep, "/"), path


def _describe(selection: Selection) -> str:
    names = "\0".join(selection.split.names[int(index)] for index in selection.indices)
    labels = np.asarray(selection.split.labels)[selection.indices].astype("<i8").tobytes()
    return _digest(f"{len(selection.indices):,}", os.fsencode(names) + labels)


def _digest(count: str, content: bytes) -> str:
    return f"{count} (names {hashlib.blake2b(content, digest_size=4).hexdigest()})"
