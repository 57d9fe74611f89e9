"""Stores the metrics of an epoch in little memory: a study of 1,000 trials of 100 epochs has two million metrics.

As a dictionary of Python floats, the metrics of an epoch take 1.5 kB; packed, 0.3 kB. Of a trial that has ended, a
driver needs only two numbers of each epoch and all metrics of the last one, i.e. 16 bytes for each epoch
(:func:`brief`).
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

from nfnet_ray.metric import METRIC

KEPT = (METRIC, "train_seconds")
"""The metrics of all epochs that decisions, searches and means over seeds need."""

Metrics = Mapping[str, float | None]


class _Columns:
    """The names of the metrics of many epochs, and the layout of their values: doubles, with no space for None."""

    def __init__(self, names: tuple[str, ...], absent: frozenset[str]) -> None:
        self.names, self.absent = names, absent
        known = [name for name in names if name not in absent]
        self.places = {name: 8 * number for number, name in enumerate(known)}
        self.layout = struct.Struct(f"={len(known)}d")


_KNOWN: dict[tuple[tuple[str, ...], tuple[str, ...]], _Columns] = {}
_ONE = struct.Struct("=d")


class PackedMetrics(Mapping[str, "float | None"]):
    """An immutable {name: value}; integers are converted to floats."""

    __slots__ = ("_columns", "_values")

    def __init__(self, columns: _Columns, values: bytes) -> None:
        self._columns, self._values = columns, values

    def __getitem__(self, name: str) -> float | None:
        place = self._columns.places.get(name)
        if place is not None:
            value: float = _ONE.unpack_from(self._values, place)[0]
            return value
        if name in self._columns.absent:
            return None
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Overrides :meth:`Mapping.get`, without an exception for each missing name."""
        place = self._columns.places.get(name)
        if place is not None:
            return _ONE.unpack_from(self._values, place)[0]
        return None if name in self._columns.absent else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.names)

    def __len__(self) -> int:
        return len(self._columns.names)

    def __contains__(self, name: object) -> bool:
        return name in self._columns.places or name in self._columns.absent

    def __reduce__(self) -> tuple[Any, ...]:
        return packed, (dict(self),)

    def __repr__(self) -> str:
        return repr(dict(self))


def packed(metrics: Metrics) -> Metrics:
    """Returns the metrics in little memory; unchanged if a value is not a number, as in a journal edited by hand."""
    names = tuple(metrics)
    absent: tuple[str, ...] = ()
    values: Any = metrics.values()
    if None in values:
        absent = tuple(name for name, value in metrics.items() if value is None)
        values = [value for value in values if value is not None]
    columns = _KNOWN.get((names, absent))
    if columns is None:
        columns = _KNOWN[names, absent] = _Columns(names, frozenset(absent))
    try:
        return PackedMetrics(columns, columns.layout.pack(*values))
    except (struct.error, OverflowError):
        return metrics


def columns_of(rows: Sequence[Metrics], wanted: Collection[str] | None = None) -> dict[str, Any]:
    """Returns {name: values in all rows, NaN where a row lacks the name}, as an array or else as a list.

    A metric that is None in all rows is None in the result, too. With ``wanted``, only these metrics are returned.
    """
    import numpy as np

    names = dict.fromkeys(name for row in {id(_layout(row)): row for row in rows}.values() for name in row)
    if wanted is not None:
        names = {name: None for name in names if name in wanted}
    if not all(isinstance(row, PackedMetrics) for row in rows):
        return {name: [row.get(name, math.nan) for row in rows] for name in names}
    places: dict[_Columns, list[int]] = {}
    for place, row in enumerate(cast(Sequence[PackedMetrics], rows)):
        places.setdefault(row._columns, []).append(place)
    found: dict[str, Any] = {
        name: np.full(len(rows), math.nan)
        for name in names
        if any(name in layout.places for layout in places)
    }
    for layout, own in places.items():
        packed_rows = b"".join(cast(PackedMetrics, rows[place])._values for place in own)
        values = np.frombuffer(packed_rows).reshape(len(own), -1)
        for name in found.keys() & layout.places.keys():
            found[name][own] = values[:, layout.places[name] // 8]
    return {name: found.get(name, [None] * len(rows)) for name in names}


def _layout(row: Metrics) -> object:
    return row._columns if isinstance(row, PackedMetrics) else row


class BriefEpochs(Mapping[int, Metrics]):
    """An immutable {epoch: metrics} with only :data:`KEPT` for all epochs but the last, which has all metrics."""

    __slots__ = ("_epochs", "_last", "_values")

    def __init__(self, epochs: range, values: tuple[array[float], ...], last: Metrics) -> None:
        self._epochs, self._values, self._last = epochs, values, last

    def __getitem__(self, epoch: int) -> Metrics:
        if epoch not in self._epochs:
            raise KeyError(epoch)
        if epoch == self._epochs[-1]:
            return self._last
        place = epoch - self._epochs[0]
        return packed(dict(zip(KEPT, (values[place] for values in self._values), strict=True)))

    def __iter__(self) -> Iterator[int]:
        return iter(self._epochs)

    def __reversed__(self) -> Iterator[int]:
        return reversed(self._epochs)

    def __len__(self) -> int:
        return len(self._epochs)

    def __contains__(self, epoch: object) -> bool:
        return epoch in self._epochs

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._epochs, self._values, self._last)

    def __repr__(self) -> str:
        return repr(dict(self))


def images_per_second(number: int, last: Metrics, before: Metrics | None) -> float | None:
    """Returns a trial's training images per second of training; None if the last epoch lacks the speed.

    All epochs have the same number of images, so the last epoch is sufficient to compute it. If it cannot be computed,
    the speed of the last epoch is returned.

    >>> first = {"images_per_second": 100.0, "train_seconds": 2.0}  # 200 images
    >>> second = {"images_per_second": 50.0, "train_seconds": 6.0}  # in four seconds
    >>> images_per_second(1, first, None), round(images_per_second(2, second, first), 1)
    (100.0, 66.7)

    Args:
        number: the number of the last epoch, counted from 1.
        last: the metrics of the last epoch.
        before: the metrics of the epoch before; None if they are unknown.
    """
    speed, seconds = last.get("images_per_second"), last.get("train_seconds")
    seconds_before = 0.0 if number == 1 else before.get("train_seconds") if before is not None else None
    if speed is None or seconds is None or seconds_before is None or not seconds > seconds_before:
        return speed
    return number * speed * (seconds - seconds_before) / seconds


def brief(epochs: Mapping[int, Metrics]) -> Mapping[int, Metrics]:
    """Returns the epochs with most metrics dropped; unchanged if an epoch or a metric in :data:`KEPT` is missing."""
    numbers = list(epochs)
    if not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return epochs
    columns = [[metrics.get(name) for metrics in epochs.values()] for name in KEPT]
    values = tuple(
        array("d", known) for known in ([v for v in column if v is not None] for column in columns)
    )
    if any(len(known) < len(numbers) for known in values):
        return epochs
    return BriefEpochs(range(numbers[0], numbers[-1] + 1), values, epochs[numbers[-1]])
