"""The identity of a conversion, which must be equal for one conversion to resume another."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data_prep.conversion.encode import EncodeSettings
from data_prep.conversion.splits import Selection, SplitPlan
from data_prep.sources.folder_walk import visible_files
from data_prep.sources.source import Source
from nfnet_ray.wording import agree, count


def conversion_identity(source: Source, plan: SplitPlan, encode: EncodeSettings) -> dict[str, str]:
    """Everything that the written bytes depend on except the images themselves, as text.

    The number of workers, the source's path, and how many unreadable images are tolerated are not part of it.
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
    """The first difference, in words, or None."""
    for what in [*before, *now]:
        if before.get(what) != now.get(what):
            return f"{what} was {before.get(what, 'unknown')}, is {now.get(what, 'unknown')}"
    return None


def file_states(paths: Sequence[Path]) -> tuple[list[str], np.ndarray]:
    """All files below ``paths``, and what tells whether they have been changed.

    Args:
        paths: files and folders; links are followed, and hidden files left out.

    Returns:
        N relative names, and (N,) uint64: hashes of name, size in bytes and time of the last change.
    """
    names, states = [], []
    for name, path in _files(paths):
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
    return f"{count(gone, 'file')} {agree(gone, 'is', 'are')} gone" if gone > 0 else None


def _files(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    for top in paths:
        if not top.is_dir():
            yield top.name, str(top)
        else:
            yield from visible_files(os.path.abspath(top))


def _describe(selection: Selection) -> str:
    names = "\0".join(selection.split.names[int(index)] for index in selection.indices)
    labels = np.asarray(selection.split.labels)[selection.indices].astype("<i8").tobytes()
    return _digest(f"{len(selection.indices):,}", os.fsencode(names) + labels)


def _digest(count: str, content: bytes) -> str:
    return f"{count} (names {hashlib.blake2b(content, digest_size=4).hexdigest()})"
