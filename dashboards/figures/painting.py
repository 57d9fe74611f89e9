"""Gives traces the names of their colours, according to what their ``meta`` says that they show.

A colour depends on whether the reader's screen is light or dark, so a painted figure has names, such as ``@accent`` or
``@level-3``, in place of Plotly's colours; ``@accent/22`` has the opacity 0x22 of 0xff. The page's script replaces them
by the colours of the reader's theme, and :func:`themed` by those of one theme, for a notebook or a file.

====================== ==============================================================================================
``level``, ``levels``  the level of a swept field that a trace, or each of its points, belongs to
``shade``              the epoch of a curve of signal propagation
``reference``          an expectation, drawn as text is
``tone``               ``accent`` or ``quiet``: a line, marks or bars of one colour
``area``               a band around an accented line
``band``               0 for the median of many trials, 1 and 2 for the bands around it
``quietLine``          a line that joins marks of several colours
``heat``, ``pairs``    a heat map, from the colour of a raised surface to the accent or to that of tables
====================== ==============================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dashboards.figures.level_styles import INK, PAPER, Look
from dashboards.figures.plotly_texts import TEXTS
from dashboards.figures.time_charts import Figure

Theme = Literal["light", "dark"]

COLORS: dict[Theme, dict[str, str]] = {
    "light": {
        "paper": PAPER["light"],
        "raised": "#f6f6f4",
        "ink": INK["light"],
        "quiet": "#5f5f5a",
        "rule": "#dcdcd6",
        "grid": "#e9e9e4",
        "accent": "#3f1e9c",
        "heat": "#6fa8dc",
    },
    "dark": {
        "paper": PAPER["dark"],
        "raised": "#1f1f1d",
        "ink": INK["dark"],
        "quiet": "#a3a39b",
        "rule": "#383834",
        "grid": "#2b2b28",
        "accent": "#f0a35e",
        "heat": "#2f6ea8",
    },
}
"""{theme: {name: colour}} of pages and charts. Style sheets call them ``--paper`` and so on."""

_BAND_OPACITY = ("00", "20", "30")
_AREA_OPACITY = "22"


def all_colors(theme: Theme, looks: Sequence[Look], shades: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Returns {name: colour} of a theme, including the colours of the levels and of the shades."""
    return {
        **COLORS[theme],
        **{f"level-{number}": getattr(look, theme) for number, look in enumerate(looks)},
        **{f"shade-{number}": color for number, color in enumerate(shades.get(theme, ()))},
    }


def painted(figure: Figure) -> Figure:
    """Returns the figure with the names of its colours."""
    return {**figure, "data": [_painted(trace) for trace in figure["data"]]}


def themed(value: Any, colors: Mapping[str, str]) -> Any:
    """Returns a painted figure, or a part of it, with colours in place of their names."""
    if isinstance(value, dict):
        as_they_are = {"meta", *TEXTS}
        return {key: inner if key in as_they_are else themed(inner, colors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [themed(inner, colors) for inner in value]
    if isinstance(value, str) and value.startswith("@"):
        name, _, opacity = value[1:].partition("/")
        return colors[name] + opacity if name in colors else value
    return value


def _painted(trace: Mapping[str, Any]) -> dict[str, Any]:
    meta = trace["meta"]
    if "band" in meta:
        fill = f"@quiet/{_BAND_OPACITY[meta['band']]}"
        return _with(trace, line={"color": "@quiet"}, fillcolor=fill)
    if meta.get("heat"):
        scale = [[0, "@raised"], [1, "@accent"]]
        return _with(trace, colorscale=scale, colorbar={"tickfont": {"color": "@quiet"}})
    if meta.get("pairs"):
        return _with(trace, colorscale=[[0, "@raised"], [1, "@heat"]], textfont={"color": "@ink"})
    if meta.get("area"):
        return _with(trace, fillcolor=f"@accent/{_AREA_OPACITY}")
    if "tone" in meta:
        return _toned(trace, f"@{meta['tone']}")
    if meta.get("quietLine"):
        return _with(trace, line={"color": "@quiet"})
    if "levels" in meta:
        own = [f"@level-{level}" for level in meta["levels"]]
        return _with(
            trace,
            error_y={"color": "@quiet"},
            textfont={"color": "@quiet"},
            opacity=0.5 if meta.get("quiet") else 1,
            marker={"color": own, "line": {"width": 1.4, "color": own}},
        )
    if meta.get("reference"):
        color = "@ink"
    else:
        color = f"@shade-{meta['shade']}" if "shade" in meta else f"@level-{meta['level']}"
    return _with(
        trace, line={"color": color}, marker={"color": color, "line": {"width": 1.6, "color": color}}
    )


def _toned(trace: Mapping[str, Any], color: str) -> dict[str, Any]:
    if trace["type"] == "bar":
        return _with(trace, marker={"color": color, "opacity": 0.75}, error_x={"color": "@ink"})
    return _with(
        trace,
        line={"color": color},
        marker={"color": color, "line": {"width": 1.4, "color": color}},
        error_x={"color": color},
        error_y={"color": color},
        textfont={"color": "@quiet"},
    )


def _with(trace: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Returns a copy with further entries; dictionaries are merged with existing ones."""
    added = {
        key: {**trace.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in more.items()
    }
    return {**trace, **added}
