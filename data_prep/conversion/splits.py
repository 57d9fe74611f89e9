"""Splits images into training and validation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.sources.source import Source, SourceSplit
from nfnet_ray.errors import UserError
from nfnet_ray.wording import agree, count


@dataclass(frozen=True)
class Selection:
    """Some images of one of a source's splits."""

    split: SourceSplit
    indices: np.ndarray
    """Ascending positions in the split."""


@dataclass(frozen=True)
class SplitPlan:
    """Where the two splits of a data set come from."""

    train: Selection
    validation: Selection
    note: str
    """One line for people."""


def plan_splits(source: Source, holdout: float, validation_share: float | None = None) -> SplitPlan:
    """Take the source's validation split, else its test split, else hold a share of its training images out.

    With ``validation_share``, that share of each class of the source's own split is kept, and the rest is left out.

    Raises:
        UserError: fewer than two classes, or labels without a class.
    """
    train = source.splits["train"]
    if len(source.class_names) < 2:
        raise UserError("SOURCE has only one class; a classifier needs at least two")
    _check_labels("train", train.labels, source.class_names)
    if len(np.unique(train.labels)) < 2:
        raise UserError("SOURCE's training images all have one label; a classifier needs at least two")
    for name in ("validation", "test"):
        if name in source.splits:
            split = source.splits[name]
            _check_labels(name, split.labels, source.class_names)
            note = f"validation: the source's {name} split, {count(len(split.labels), 'image')}"
            if name == "validation" and "test" in source.splits:
                note += " (its test split is not used)"
            kept = _everything(split)
            if validation_share is not None:
                kept = Selection(split, np.flatnonzero(held_out(split.names, split.labels, validation_share)))
                note += f", of which {len(kept.indices):,} are kept, {validation_share:.0%} of each class"
            return SplitPlan(_everything(train), kept, note)
    if validation_share is not None:
        raise UserError(
            "SOURCE has no validation or test split of which --validation-share could keep a part; give --holdout"
        )
    held = held_out(train.names, train.labels, holdout)
    manner = f"{holdout:.0%} of each class"
    if not held.any():
        # A handful of samples, to try the machinery with. Each class keeps what little it has, or gives it away.
        held = held_out(train.names, np.zeros_like(train.labels), holdout)
        manner = "of classes that are then not trained on: no class has two images, so accuracy means nothing"
    note = (
        f"validation: the source has no such split, so {int(held.sum()):,} of its {count(len(held), 'image')}"
        f" {agree(int(held.sum()), 'is', 'are')} held out, {manner}"
    )
    return SplitPlan(Selection(train, np.flatnonzero(~held)), Selection(train, np.flatnonzero(held)), note)


def held_out(names: Sequence[str], labels: np.ndarray, share: float) -> np.ndarray:
    """A share of each class, chosen by the hash of the images' names: the same ones on every machine.

    ``ceil(share * N)`` images in all are dealt to the classes in proportion (largest remainders, ties to the
    lower label); then every class of two or more images gives at least one and keeps at least one.

    Args:
        names: N names.
        labels: (N,) int64.
        share: between 0 and 1, both excluded.

    Returns:
        (N,) bool: True where an image is held out.
    """
    counts = np.bincount(labels)
    shares = share * counts
    quotas = np.floor(shares).astype(np.int64)
    # 0.2 * 1797 is 359.40000000000003: the small number keeps such noise from adding an image.
    missing = math.ceil(share * len(labels) - 1e-9) - int(quotas.sum())
    quotas[np.argsort(quotas - shares, kind="stable")[:missing]] += 1
    quotas = np.where(counts >= 2, np.clip(quotas, 1, counts - 1), 0)

    digests = np.array([hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names], "S8")
    order = np.lexsort((np.arange(len(labels)), digests, labels))
    rank_in_class = np.empty(len(labels), np.int64)
    class_starts = np.cumsum(counts) - counts
    rank_in_class[order] = np.arange(len(labels)) - class_starts[labels[order]]
    return rank_in_class < quotas[labels]


def _everything(split: SourceSplit) -> Selection:
    return Selection(split, np.arange(len(split.labels)))


def _check_labels(name: str, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
    wrong = (labels < 0) | (labels >= len(class_names))
    if wrong.any():
        index = int(np.argmax(wrong))
        label = int(labels[index])
        why = (
            "which means no label: remove it"
            if label < 0
            else "which no training image has: remove it or add some"
        )
        raise UserError(
            f"the {name} split's image {index} has label {label}, {why} (the classes are 0 to {len(class_names) - 1})"
        )
