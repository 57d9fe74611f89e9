"""Converts a chart of the report to a stand-alone Plotly figure, with colours, a legend, and all panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dashboards.figures.painting import Theme, painted, themed
from dashboards.figures.plotly_texts import marked_up, with_marked_up_texts
from dashboards.figures.time_charts import Figure

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

_COLUMNS_AT_MOST = 2
_PANEL_WIDTH, _PANEL_HEIGHT = 520, 400  # pixels
_MARGIN = {"l": 70, "r": 20, "t": 50, "b": 60}


def plotly_figure(
    panels: Sequence[tuple[str, Figure]], labels: Sequence[str], colors: Mapping[str, str], theme: Theme
) -> PlotlyFigure:
    """Returns one figure with all panels.

    Args:
        panels: (title, figure) of each panel, with names in place of colours.
        labels: the labels of the levels of traces, for the legend.
        colors: {name: colour} of the theme.
    """
    from plotly.subplots import make_subplots

    columns = min(len(panels), _COLUMNS_AT_MOST)
    rows = -(-len(panels) // columns)
    titles = [marked_up(title) for title, _ in panels]
    figure = make_subplots(rows, columns, subplot_titles=titles if any(titles) else None)
    axis = {
        "color": colors["quiet"],
        "gridcolor": colors["grid"],
        "linecolor": colors["rule"],
        "zeroline": False,
        "automargin": True,
    }
    named: set[str] = set()
    for number, (_, panel) in enumerate(panels):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        is_last = number == len(panels) - 1
        drawn = themed(with_marked_up_texts(painted(panel)), colors)
        for trace in drawn["data"]:
            figure.add_trace(_stand_alone(trace, labels, named, is_last=is_last), **place)
        figure.update_xaxes({**axis, **drawn["layout"]["xaxis"]}, **place)
        figure.update_yaxes({**axis, **drawn["layout"]["yaxis"]}, **place)
    layout = {key: value for key, value in panels[0][1]["layout"].items() if key in ("barmode", "bargap")}
    figure.update_layout(
        **layout,
        template="plotly_dark" if theme == "dark" else "plotly_white",
        hovermode="closest",
        paper_bgcolor=colors["paper"],
        plot_bgcolor=colors["paper"],
        font={"color": colors["ink"]},
        width=_PANEL_WIDTH * columns + (120 if named else 0) if len(panels) > 1 else None,
        height=_PANEL_HEIGHT * rows,
        margin=_MARGIN,
        showlegend=len(named) > 1,
    )
    return figure


def shown_at_first(figure: Figure) -> Figure:
    """Keeps the traces that the report shows before a button is pressed: of many trials, the best and their spread."""
    return {**figure, "data": [trace for trace in figure["data"] if not trace["meta"].get("all")]}


def _stand_alone(
    trace: dict[str, Any], labels: Sequence[str], named: set[str], *, is_last: bool
) -> dict[str, Any]:
    """Returns the trace under the name of its level, with an entry in the legend for the first trace of that name."""
    meta = trace["meta"]
    rest = {key: value for key, value in trace.items() if key not in ("meta", "name")}
    if trace["type"] == "heatmap":
        return rest if is_last or "colorbar" not in rest else {**rest, "showscale": False}
    name, rank = "", 1000  # Plotly's own rank
    if "level" in meta and meta["level"] < len(labels):
        name, rank = marked_up(labels[meta["level"]]), meta["level"]
    elif "shade" in meta or meta.get("reference"):
        name = trace.get("name", "")
    elif meta.get("band") == 0:
        name = "median of all trials"
    if not name:
        return {**rest, "showlegend": False}
    is_first = name not in named
    named.add(name)
    return {**rest, "name": name, "legendgroup": name, "legendrank": rank, "showlegend": is_first}
