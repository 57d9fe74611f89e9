"""The looks of a field's values in the report's charts: distinguishable colours, dashes and markers.

Colours differ between the light and the dark page. Numbers have colours from Plotly's Plasma scale, whose lightness
increases evenly, so the order is visible to colour-blind readers and in print; the steps are perceptually equal. Words,
such as names of networks, have no order: colour, dash and marker together distinguish any twelve. None and an absent
value are grey and dotted, because they are not numbers.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nfnet_ray.analysis.effects.levels import group_labels, grouped

LEVELS_AT_MOST = 12
"""With more numbers, as in a random search, neighbouring numbers share a look."""
_GROUPS = 8
LABEL_CHARACTERS = 32
"""The longest label on axes and at the ends of curves. Longer labels would leave no room for the curves."""

PAPER = {"light": "#ffffff", "dark": "#161615"}
"""The colours that the page's style sheet calls ``--paper``."""
INK = {"light": "#1c1c1a", "dark": "#ecece6"}
"""The colours that the page's style sheet calls ``--ink``."""
READABLE_CONTRAST = 3.0
"""The least contrast of a line against the page: WCAG 2.2, success criterion 1.4.11."""

_GREY = {"light": "#767676", "dark": "#9a9a9a"}
# Okabe and Ito's palette, darkened on the light page and lightened on the dark one until the contrast suffices.
_UNORDERED = {
    "light": ("#0072b2", "#d55e00", "#00805f", "#b8478f", "#6a3fc0", "#8a6d00"),
    "dark": ("#56b4e9", "#e69f00", "#2fbf8f", "#e08bbd", "#f0e442", "#b9a3ff"),
}
_DASHES = ("solid", "dash", "dashdot", "longdash")
# Their number shares no factor with the six colours, so that neighbours differ in both.
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down")


@dataclass(frozen=True)
class Levels:
    """The values of a swept field in the order of legends and axes: ascending numbers, words, none, and absent.

    Attributes:
        labels: the name of each level.
        index: {value: index of its level}.
        ordered: whether all levels except none and absent are numbers.
        outside: the number of levels at the end that are none or absent.
    """

    labels: tuple[str, ...]
    index: dict[Any, int]
    ordered: bool
    outside: int

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Look:
    """The look of one level: Plotly's names of its dash and its marker, and a colour for each theme."""

    light: str
    dark: str
    dash: str
    symbol: str


def levels_of(values: Iterable[Any]) -> Levels:
    """Returns the levels of these values; more than :data:`LEVELS_AT_MOST` numbers form groups of about equal size."""
    numbers, words, outside = grouped(values, LEVELS_AT_MOST, _GROUPS)
    groups = [*numbers, *words, *outside]
    return Levels(
        labels=group_labels(groups),
        index={value: number for number, group in enumerate(groups) for value in group},
        ordered=not words,
        outside=len(outside),
    )


def looks_of(levels: Levels) -> list[Look]:
    """Returns the look of each level, or of the single line if no field was swept."""
    count = max(1, len(levels)) - levels.outside
    looks = []
    if levels.ordered:
        scales = {theme: _even_steps(count, theme) for theme in PAPER}
        for number in range(count):
            # With few colours, the steps between them are sufficiently large without dashes.
            dash = "dash" if count > 5 and number % 2 else "solid"
            looks.append(
                Look(scales["light"][number], scales["dark"][number], dash, _SYMBOLS[number % len(_SYMBOLS)])
            )
    else:
        for number in range(count):
            color = number % len(_UNORDERED["light"])
            dash = _DASHES[number // len(_UNORDERED["light"]) % len(_DASHES)]
            symbol = _SYMBOLS[number % len(_SYMBOLS)]
            looks.append(Look(_UNORDERED["light"][color], _UNORDERED["dark"][color], dash, symbol))
    outside = [Look(_GREY["light"], _GREY["dark"], dash, "circle") for dash in ("dot", "longdashdot")]
    return looks + outside[: levels.outside]


def contrast(color: str, paper: str) -> float:
    """Returns WCAG's contrast ratio of two ``#rrggbb`` colours, 1 to 21."""
    dark, light = sorted(_xyz(each)[1] for each in (color, paper))
    return (light + 0.05) / (dark + 0.05)


def color_distance(a: str, b: str) -> float:
    """Returns the perceptual difference of two ``#rrggbb`` colours: their distance in CIELAB (ΔE of 1976)."""
    return math.dist(_lab(a), _lab(b))


def short_labels(labels: Sequence[str], most: int = LABEL_CHARACTERS) -> list[str]:
    """Shortens labels to at most ``most`` characters; labels with the same beginning keep their ends, too.

    Each label becomes one line.

    >>> short_labels(["classifier.weight", "stem.conv1.weight", "stem.conv1.gain", "none"], 9)
    ['classifi…', 'stem…ight', 'stem…gain', 'none']
    """
    labels = [" ".join(label.split()) for label in labels]
    cut = [label if len(label) <= most else f"{label[: most - 1]}…" for label in labels]
    tail = (most - 1) // 2
    return [
        short if short == label or cut.count(short) == 1 else f"{label[: most - 1 - tail]}…{label[-tail:]}"
        for short, label in zip(cut, labels, strict=True)
    ]


def _even_steps(count: int, theme: str) -> list[str]:
    """Returns colours from the readable part of Plasma, from its blue end, in equal perceptual steps."""
    readable, along = _readable(theme)
    places = [along[-1] * step / max(1, count - 1) for step in range(count)]
    return [
        min(zip(readable, along, strict=True), key=lambda item: abs(item[1] - place))[0] for place in places
    ]


@functools.cache
def _readable(theme: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Returns the readable colours of Plasma, and the distance of each along the scale."""
    from plotly.colors import sample_colorscale

    scale = [_hex(color) for color in sample_colorscale("Plasma", [i / 255 for i in range(256)])]
    readable = [color for color in scale if contrast(color, PAPER[theme]) >= READABLE_CONTRAST]
    steps = itertools.starmap(color_distance, itertools.pairwise(readable))
    return tuple(readable), tuple(itertools.accumulate(steps, initial=0.0))


def _hex(color: str) -> str:
    """Converts ``rgb(13, 8, 135)`` to ``#0d0887``."""
    return "#" + "".join(f"{round(float(part)):02x}" for part in color[4:-1].split(","))


def _xyz(color: str) -> Sequence[float]:
    """Returns CIE XYZ of an sRGB colour (IEC 61966-2-1), with white's Y at 1."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return (
        0.4124 * r + 0.3576 * g + 0.1805 * b,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        0.0193 * r + 0.1192 * g + 0.9505 * b,
    )


def _lab(color: str) -> tuple[float, float, float]:
    """Returns CIELAB of an sRGB colour, for the white point D65."""

    def scaled(share: float) -> float:
        return share ** (1 / 3) if share > 0.008856 else 7.787 * share + 16 / 116

    x, y, z = (scaled(part / white) for part, white in zip(_xyz(color), (0.9505, 1.0, 1.089), strict=True))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)
