"""Renders pages from templates: each is one HTML file with its style sheet, scripts and data, which loads nothing.

The templates, style sheets and scripts are in ``dashboards/templates``. Jinja2 escapes every value that a template
shows.
"""

from __future__ import annotations

import base64
import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashboards.figures.level_styles import Look
from dashboards.figures.painting import all_colors, painted
from dashboards.figures.plotly_texts import with_marked_up_texts
from dashboards.figures.time_charts import Figure

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")

_MARK_PATHS = {
    "circle": "M15 2.5a3.5 3.5 0 1 0 .01 0z",
    "square": "M12 3h6v6h-6z",
    "diamond": "M15 1.5l4.5 4.5l-4.5 4.5l-4.5-4.5z",
    "triangle-up": "M15 2l4 7.5h-8z",
    "triangle-down": "M15 10l4-7.5h-8z",
}
_DASH_ARRAYS = {
    "solid": "",
    "dash": "6 3",
    "dashdot": "6 2 1.5 2",
    "longdash": "10 3",
    "longdashdot": "10 2 1.5 2",
    "dot": "1.5 2.5",
}


@dataclass(frozen=True)
class Chart:
    """A Plotly figure on a page.

    Attributes:
        id: the id of the HTML element, by which the page's script finds the figure.
        figure: the figure without colours; :mod:`dashboards.figures.painting` adds the names of its colours.
        label: a description of the chart, for a reader who cannot see it.
        title: the line above the chart, which may be empty.
    """

    id: str
    figure: Figure
    label: str
    title: str = ""

    @property
    def zoomable(self) -> bool:
        """Whether the figure has a close-up, which a button shows."""
        return bool(self.figure["layout"].get("meta", {}).get("top"))


@dataclass(frozen=True)
class LegendEntry:
    """A level of the legend, with a sample of its curve as SVG: a line's dashes and, if the curve has one, a mark."""

    level: int
    label: str
    dash_array: str
    mark_path: str | None


@dataclass(frozen=True)
class Legend:
    """Buttons that hide and show levels.

    Attributes:
        name: the field whose values the levels are.
        more, fewer: captions of a button before and after it shows all curves; empty without such a button.
    """

    name: str
    entries: tuple[LegendEntry, ...]
    more: str = ""
    fewer: str = ""


def legend_entry(level: int, label: str, look: Look, *, with_mark: bool = True) -> LegendEntry:
    """Returns the entry of a level that is drawn with this look."""
    return LegendEntry(level, label, _DASH_ARRAYS[look.dash], _MARK_PATHS[look.symbol] if with_mark else None)


def render_page(
    template: str,
    charts: Sequence[Chart],
    *,
    looks: Sequence[Look] = (),
    shades: Mapping[str, Sequence[str]] | None = None,
    written: float | None = None,
    **facts: object,
) -> str:
    """Renders the page of a template that extends ``page.html.jinja``.

    Args:
        looks: the looks of the levels that traces and the legend name, for their colours.
        shades: ``{"light": [colour of each shade], "dark": […]}``.
        written: the time of writing in Unix seconds if the page will be rewritten, so that it reloads itself.
        facts: the variables of the template.
    """
    colors = {
        theme: {f"--{name}": color for name, color in all_colors(theme, looks, shades or {}).items()}
        for theme in ("light", "dark")
    }
    return (
        _environment()
        .get_template(template)
        .render(
            data={
                "written": written,
                "figures": {chart.id: with_marked_up_texts(painted(chart.figure)) for chart in charts},
            },
            colors=colors,
            plotly=_compressed_plotly(),
            **facts,
        )
    )


@functools.cache
def _compressed_plotly() -> str:
    """Returns Plotly's script as base64 of zlib's format, 2.0 MB instead of 4.8; charts.js decompresses it."""
    from plotly.offline import get_plotlyjs

    # Level 9 would be 4% smaller but takes 0.2 s, three times as long.
    return base64.b64encode(zlib.compress(get_plotlyjs().encode(), 4)).decode()


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["css_string"] = _css_string
    names: dict[str, Any] = environment.globals
    names["source"] = _source
    # NaN is not valid JSON, and a page with it would show nothing.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _source(name: str) -> Markup:
    """Returns a style sheet or a script of ours, to be inserted in a page unescaped."""
    from markupsafe import Markup

    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _css_string(text: str) -> Markup:
    """Returns a string for a style sheet, in which no character can end the string or the element around it."""
    from markupsafe import Markup

    escaped = "".join(c if c.isalnum() or c in " ,._-()/" else f"\\{ord(c):x} " for c in text)
    return Markup(f'"{escaped}"')
