"""Writes the charts of a study into a folder, as SVG and as PDF."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dashboards.figures.paper.drawing import COLUMN_INCHES, STYLE, draw
from dashboards.page import Chart
from nfnet_ray.whole_file import whole_file

FORMATS = ("svg", "pdf")
# Neither has the time of writing in it, so the same study gives the same files.
_METADATA: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def write_figures(
    figures: Mapping[str, Sequence[Chart]],
    labels: Sequence[str],
    colors: Mapping[str, str],
    folder: Path,
) -> list[Path]:
    """Writes each panel of each figure, ``accuracy_against_time-batch_size_64.svg``, and returns the paths.

    Args:
        figures: {name: panels}, as of :func:`dashboards.catalogue.charts_by_name`.
        labels: of the levels of the swept field that curves are of.
        colors: {name: colour} of the light theme.

    Raises OSError.
    """
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):  # the stubs name each key
        for name, panels in figures.items():
            for stem, panel in zip(_stems(name, panels), panels, strict=True):
                paper = draw(panel.figure, panel.title, labels, colors, COLUMN_INCHES)
                for suffix in FORMATS:
                    path = folder / f"{stem}.{suffix}"
                    with whole_file(path, sync=False) as file:
                        paper.savefig(file, format=suffix, metadata=_METADATA[suffix])
                    written.append(path)
    return written


def _stems(name: str, panels: Sequence[Chart]) -> list[str]:
    """The names of the panels' files: that of the figure, with the panel's title where there are several."""
    if len(panels) == 1:
        return [name]
    titles = [re.sub(r"[^\w.+-]+", "_", panel.title).strip("_") for panel in panels]
    return [
        f"{name}-{title if title and titles.count(title) == 1 else number}"
        for number, title in enumerate(titles, start=1)
    ]
