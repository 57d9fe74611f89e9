"""Draws one chart of the report with Matplotlib for the column of a paper.

It supports what the charts of this project use: lines, marks, bars, bands, error bars, texts and heat maps on linear,
logarithmic and category axes. An unsupported kind of trace is an error, and is never silently left out.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dashboards.figures.painting import painted, themed
from dashboards.figures.plotly_figures import shown_at_first
from dashboards.figures.time_charts import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as PaperFigure

COLUMN_INCHES = 3.25
"""The width of a column in the style files of ICML and of IEEE's conferences (3.5 inches)."""
HEIGHT_INCHES = 2.3
STYLE: dict[str, Any] = {
    # Papers' captions have 8 to 9 points. TrueType in PDF and text in SVG stay editable and searchable. IEEE and ACM
    # refuse Type 3, which is Matplotlib's default in PDF.
    "font.size": 7.5,
    "font.family": "sans-serif",
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    # So that the same figure yields the same file.
    "svg.hashsalt": "nfnet_ray",
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Values of fields and names are not formulas.
    "text.parse_math": False,
}
_SCALE = 0.55
"""The ratio of sizes in points, in a column, to sizes in pixels on a page, which is twice as wide."""
_LABEL_POINTS = 6.5
_CHARACTERS_PER_INCH = 16
_DASHES: dict[str, Any] = {
    "solid": "solid",
    "dot": (0, (1, 1.5)),
    "dash": (0, (4, 2)),
    "longdash": (0, (7, 2)),
    "dashdot": (0, (4, 1.5, 1, 1.5)),
    "longdashdot": (0, (7, 1.5, 1, 1.5)),
}
_MARKS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "star": "*",
    "x": "x",
    "line-ew": "_",
}
_TEXT_PLACES = {
    "middle right": ("left", "center", 4, 0),
    "middle left": ("right", "center", -4, 0),
    "top center": ("center", "bottom", 0, 3),
}


def draw(
    figure: Figure, title: str, labels: Sequence[str], colors: Mapping[str, str], width_inches: float
) -> PaperFigure:
    """Returns the chart as a Matplotlib figure of this width, in the colours of the light theme.

    Args:
        figure: a figure of the report, with names in place of colours.
        labels: the labels of the levels of traces, for a legend if curves have no names at their ends.
    """
    from matplotlib.figure import Figure as NewFigure

    chart = themed(painted(shown_at_first(figure)), colors)
    layout = chart["layout"]
    rows = max((len(trace["y"]) for trace in chart["data"] if trace["type"] in ("heatmap", "bar")), default=0)
    height = max(HEIGHT_INCHES, 0.9 + 0.055 * rows)
    paper = NewFigure(figsize=(width_inches, height), layout="constrained")
    axes = paper.add_subplot()
    for trace in chart["data"]:
        match trace["type"]:
            case "scatter":
                _scatter(axes, trace, layout)
            case "bar":
                _bars(axes, trace, [other for other in chart["data"] if other["type"] == "bar"])
            case "heatmap":
                _heat_map(paper, axes, trace, layout)
            case kind:
                raise NotImplementedError(f"a trace of the kind {kind}")
    axes.spines[:].set_edgecolor(colors["quiet"])
    has_cells = any(trace["type"] == "heatmap" for trace in chart["data"])
    for name in ("x", "y"):
        described = layout[f"{name}axis"]
        if not has_cells:  # they have set their ticks
            _scale(axes, name, described, colors)
        _axis(axes, name, described, colors)
    if title:
        axes.set_title(
            textwrap.fill(title, int(_CHARACTERS_PER_INCH * width_inches)), loc="left", color=colors["ink"]
        )
    _end_labels(axes, layout, colors, paper)
    if not (layout.get("meta") or {}).get("ends"):
        _legend(paper, chart["data"], labels)
    return paper


def _scatter(axes: Axes, trace: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
    x, y = ([math.nan if value is None else value for value in trace[name]] for name in ("x", "y"))
    if trace.get("fill"):
        _area(axes, trace, x, y)
        return
    if "lines" in trace["mode"]:
        _line(axes, trace, x, y)
    for name in ("x", "y"):
        if "array" in trace.get(f"error_{name}", {}):
            _error_bars(axes, name, trace[f"error_{name}"], x, y)
    if "markers" in trace["mode"]:
        marker = trace.get("marker", {})
        inside = [_is_inside(place, layout) for place in zip(x, y, strict=True)]
        _marks(axes, x, y, inside, marker, trace.get("opacity", 1) * marker.get("opacity", 1))
    if "text" in trace["mode"]:
        _texts(axes, trace, x, y)


def _area(axes: Axes, trace: Mapping[str, Any], x: Sequence[float], y: Sequence[float]) -> None:
    """Fills the area within the points, or between them and the line that was drawn last, as Plotly does."""
    look = {"color": _rgba(trace["fillcolor"]), "linewidth": 0, "zorder": 1}
    if trace["fill"] == "toself":
        axes.fill(x, y, **look)
    else:
        step: Literal["post"] | None = "post" if trace.get("line", {}).get("shape") == "hv" else None
        axes.fill_between(x, axes.lines[-1].get_ydata(), y, step=step, **look)


def _line(axes: Axes, trace: Mapping[str, Any], x: Sequence[float], y: Sequence[float]) -> None:
    line = trace.get("line", {})
    is_edge = "fillcolor" in trace and line.get("width") == 0  # the edge of an area
    axes.plot(
        x,
        y,
        color=(0, 0, 0, 0) if is_edge else _rgba(line.get("color", "#00000000")),
        linewidth=_SCALE * line.get("width", 2),
        linestyle=_DASHES[line.get("dash", "solid")],
        drawstyle="steps-post" if line.get("shape") == "hv" else "default",
        alpha=trace.get("opacity", 1),
        zorder=2,
    )


def _error_bars(
    axes: Axes, name: str, error: Mapping[str, Any], x: Sequence[float], y: Sequence[float]
) -> None:
    """Draws error bars along the axis ``name``, x or y."""
    lengths: dict[str, Any] = {f"{name}err": [error["arrayminus"], error["array"]]}
    axes.errorbar(
        x,
        y,
        **lengths,
        fmt="none",
        ecolor=_rgba(error["color"]),
        elinewidth=_SCALE * error.get("thickness", 1),
        capsize=_SCALE * error.get("width", 3),
        capthick=_SCALE * error.get("thickness", 1),
        zorder=2.5,
    )


def _texts(axes: Axes, trace: Mapping[str, Any], x: Sequence[float], y: Sequence[float]) -> None:
    across, up, dx, dy = _TEXT_PLACES[trace["textposition"]]
    for place, height, text in zip(x, y, trace["text"], strict=True):
        axes.annotate(
            text.strip(),
            (place, height),
            (dx, dy),
            textcoords="offset points",
            ha=across,
            va=up,
            fontsize=_LABEL_POINTS - 1,
            color=_rgba(trace["textfont"]["color"]),
            annotation_clip=False,
        )


def _marks(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    inside: Sequence[bool],
    marker: Mapping[str, Any],
    opacity: float,
) -> None:
    """Draws marks of one look at a time; hollow marks are filled with the paper's colour, so lines end at their
    rims."""

    def each(value: Any) -> list[Any]:
        return value if isinstance(value, list) else [value] * len(x)

    looks: dict[tuple[Any, ...], list[int]] = {}
    for number, look in enumerate(
        zip(
            each(marker.get("symbol", "circle")),
            each(marker.get("size", 6)),
            each(marker["color"]),
            strict=True,
        )
    ):
        if look[1] and inside[number]:
            looks.setdefault(look, []).append(number)
    for (symbol, size, color), numbers in looks.items():
        axes.plot(
            [x[number] for number in numbers],
            [y[number] for number in numbers],
            linestyle="none",
            marker=_MARKS[symbol.removesuffix("-open")],
            markersize=_SCALE * size,
            markerfacecolor="white" if symbol.endswith("-open") else _rgba(color),
            markeredgecolor=_rgba(color),
            markeredgewidth=_SCALE * 1.4,
            alpha=opacity,
            clip_on=False,
            zorder=3,
        )


def _bars(axes: Axes, trace: Mapping[str, Any], group: Sequence[Mapping[str, Any]]) -> None:
    number = next(place for place, other in enumerate(group) if other is trace)
    height = 0.65 / len(group)
    places = [row + height * (number - (len(group) - 1) / 2) for row in range(len(trace["y"]))]
    error = trace["error_x"]
    axes.barh(
        places,
        trace["x"],
        height=0.92 * height,
        color=_rgba(trace["marker"]["color"]),
        alpha=trace["marker"].get("opacity", 1),
        xerr=[error["arrayminus"], error["array"]],
        error_kw={"elinewidth": 0.6, "capsize": 1.5, "ecolor": _rgba(error["color"])},
    )
    axes.set_yticks(range(len(trace["y"])), trace["y"])


def _heat_map(paper: PaperFigure, axes: Axes, trace: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("heat", [color for _, color in trace["colorscale"]])
    cells = [[math.nan if value is None else value for value in row] for row in trace["z"]]
    low, high = trace["zmin"], trace["zmax"]
    mesh = axes.pcolormesh(
        cells,
        cmap=scale,
        vmin=low,
        vmax=high if high > low else low + 1,
        edgecolors="white",
        linewidth=0.4 if trace["xgap"] or trace["ygap"] else 0,
    )
    columns = len(trace["x"])
    step = math.ceil(columns / 12)
    names = layout["xaxis"].get("ticktext", trace["x"])
    axes.set_xticks([place + 0.5 for place in range(0, columns, step)], names[::step])
    ticks = layout["yaxis"].get("tickvals", trace["y"])
    labels = layout["yaxis"].get("ticktext", ticks)
    axes.set_yticks([trace["y"].index(tick) + 0.5 for tick in ticks], labels)
    if "texttemplate" in trace:
        for row, texts in enumerate(trace["text"]):
            for column, text in enumerate(texts):
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    text,
                    ha="center",
                    va="center",
                    fontsize=_LABEL_POINTS - 1,
                )
    if trace.get("showscale", True):
        bar = paper.colorbar(mesh, ax=axes, format=_percent(".0%"), aspect=30)
        bar.outline.set_visible(False)


def _scale(axes: Axes, name: str, described: Mapping[str, Any], colors: Mapping[str, str]) -> None:
    """Sets the scale, range, ticks and grid of the axis ``name``, x or y, as Plotly's layout describes them."""
    axis = getattr(axes, f"{name}axis")
    is_log = described.get("type") == "log"
    if is_log:
        axes.set(**{f"{name}scale": "log"})
    if "ticktext" in described:
        axis.set_ticks(described["tickvals"], described["ticktext"])
        if is_log:
            axis.set_minor_locator(_no_minor_ticks())
    elif str(described.get("tickformat", "")).endswith("%"):
        axis.set_major_formatter(_percent(described["tickformat"]))
    elif described.get("type") != "category" and not is_log:
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    if "range" in described:
        axes.set(**{f"{name}lim": [10**end if is_log else end for end in described["range"]]})
    if described.get("showgrid", True):
        axis.grid(color=colors["grid"], linewidth=0.5)
        axes.set_axisbelow(True)


def _axis(axes: Axes, name: str, described: Mapping[str, Any], colors: Mapping[str, str]) -> None:
    """Sets the title, colours and direction of the axis ``name``, and the angle of its tick labels."""
    axis = getattr(axes, f"{name}axis")
    axis.set_label_text(described.get("title", {}).get("text", ""), color=colors["ink"])
    axis.set_tick_params(colors=colors["quiet"], labelcolor=colors["ink"])
    if described.get("visible") is False:
        axis.set_visible(False)
        axes.spines["left" if name == "y" else "bottom"].set_visible(False)
    if described.get("tickangle") and "ticktext" in described:
        for label in axis.get_ticklabels():
            label.set(rotation=-described["tickangle"], ha="right", rotation_mode="anchor")
    if described.get("autorange") == "reversed":
        axis.set_inverted(True)


def _end_labels(axes: Axes, layout: Mapping[str, Any], colors: Mapping[str, str], paper: PaperFigure) -> None:
    """Writes the names of curves in a column at the right, each level at its end unless another name is there."""
    ends = (layout.get("meta") or {}).get("ends") or []
    if not ends:
        return
    bounds = [layout[name]["range"] for name in ("xaxis", "yaxis")]
    room_points = 72 * (paper.get_size_inches()[1] - 0.55)
    step = min((_LABEL_POINTS + 1.5) / room_points, 1 / len(ends))
    (left, right), (bottom, top) = bounds
    found = sorted(
        (
            {**end, "up": (end["y"] - bottom) / (top - bottom), "across": (end["x"] - left) / (right - left)}
            for end in ends
        ),
        key=lambda end: end["up"],
    )
    last = -math.inf
    for end in found:
        last = end["at"] = max(end["up"], last + step)
    following = 1 + step / 2
    for end in reversed(found):
        following = end["at"] = min(end["at"], following - step)
    for end in found:
        color = _rgba(colors[f"level-{end['level']}"])
        axes.annotate(
            end["text"],
            (end["across"], end["up"]),
            (1.02, end["at"]),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=color,
            fontsize=_LABEL_POINTS,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colors["rule"], "linewidth": 0.4, "shrinkB": 3},
        )


def _legend(paper: PaperFigure, traces: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> None:
    """Draws a legend below the chart with the levels, or the epochs, of the curves."""
    from matplotlib.lines import Line2D

    entries: dict[str, Mapping[str, Any]] = {}
    for trace in sorted(traces, key=lambda trace: trace["meta"].get("level", 0)):
        meta = trace["meta"]
        is_level = "level" in meta and meta["level"] < len(labels)
        name = labels[meta["level"]] if is_level else trace.get("name", "") if "level" not in meta else ""
        if name and (is_level or "shade" in meta or meta.get("reference")):
            entries.setdefault(name, trace)
    if len(entries) < 2:
        return
    handles = [
        Line2D(
            [],
            [],
            color=_rgba(trace["line"]["color"]),
            linestyle=_DASHES[trace["line"].get("dash", "solid")],
            linewidth=_SCALE * trace["line"].get("width", 2),
        )
        for trace in entries.values()
    ]
    paper.legend(handles, list(entries), loc="outside lower center", ncols=3, frameon=False, handlelength=2.2)


def _is_inside(place: tuple[float, float], layout: Mapping[str, Any]) -> bool:
    """Whether a mark is in the visible part of the axes."""
    for value, name in zip(place, ("xaxis", "yaxis"), strict=True):
        axis = layout[name]
        if "range" in axis:
            low, high = axis["range"]
            at = math.log10(value) if axis.get("type") == "log" and value > 0 else value
            if not low <= at <= high:
                return False
    return True


def _rgba(color: str) -> Any:
    """Converts a colour of CSS, ``#rrggbbaa`` or ``rgb(8, 48, 107)``, for Matplotlib."""
    if color.startswith("rgb("):
        return tuple(float(part) / 255 for part in re.findall(r"[\d.]+", color))
    return color


def _percent(tickformat: str) -> Any:
    """Returns a formatter for a Plotly format such as ``.1%``; with a ``~``, trailing zeros are left out."""
    from matplotlib.ticker import FuncFormatter

    digits, trims = int(tickformat[1]), "~" in tickformat

    def shown(value: float, _: object) -> str:
        text = f"{100 * value:.{digits}f}"
        return f"{text.rstrip('0').rstrip('.') if trims and '.' in text else text}%"

    return FuncFormatter(shown)


def _no_minor_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
