"""Marks up texts for Plotly, which interprets HTML's tags and entities, TeX between dollars, and names in braces.

The figures of :mod:`dashboards.figures` have plain texts, in which a line break is ``\\n``, because values of fields
and names of networks may contain any characters. A hover template is the exception, because it has Plotly's
placeholders for numbers: texts are marked up before they are inserted.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

# Plotly resolves numeric entities last. "@" begins the name of a colour (dashboards.figures.painting).
_ENTITIES = str.maketrans({**{sign: f"&#{ord(sign)};" for sign in "&<>{}$@"}, "\n": "<br>"})

_LINE_CHARACTERS = 70
TEXTS = frozenset({"name", "text", "hovertext", "ticktext", "x", "y", "tickvals"})
"""The entries of traces and axes that are texts. The places on an axis of categories are their labels."""


def marked_up(text: str) -> str:
    """Marks up a plain text so that Plotly shows it unchanged.

    >>> marked_up("<b> & %{y}")
    '&#60;b&#62; &#38; %&#123;y&#125;'
    """
    return text.translate(_ENTITIES)


def wrapped(text: str) -> str:
    """Wraps a text that is shown under the pointer to lines that fit onto a page: Plotly would cut off longer lines."""
    lines = (textwrap.wrap(line, _LINE_CHARACTERS, break_on_hyphens=False) for line in text.split("\n"))
    return "\n".join("\n".join(line) for line in lines)


def with_marked_up_texts(figure: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figure with marked-up texts for Plotly; ``meta`` keeps its plain texts."""
    marked: dict[str, Any] = _marked_up(figure)
    return marked


def _marked_up(value: Any, of: str = "") -> Any:
    if isinstance(value, str):
        return marked_up(wrapped(value) if of == "hovertext" else value) if of in TEXTS else value
    if isinstance(value, Mapping):
        return {key: inner if key == "meta" else _marked_up(inner, key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        # A list of numbers contains no text; a curve has thousands of numbers.
        if value and all(isinstance(inner, int | float | None) for inner in (value[0], value[-1])):
            return value
        return [_marked_up(inner, of) for inner in value]
    return value
