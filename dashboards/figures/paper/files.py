"""Writes the charts of a study to a folder, as SVG and as PDF."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dashboards.figures.paper.drawing import COLUMN_INCHES, STYLE, draw
from dashboards.page import Chart
from nfnet_ray.whole_file import whole_file

FORMATS = ("svg", "pdf")
# Neither contains the time of writing, so the same study yields the same files.
_METADATA: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def write_figures(
    figures: Mapping[str, Sequence[Chart]],
    labels: Sequence[str],
    colors: Mapping[str, str],
    folder: Path,
) -> list[Path]:
    """Writes each panel of each figure, as ``accuracy_against_time-batch_size_64.svg``, and returns the paths.

    Args:
        figures: {name: panels}, from :func:`dashboards.catalogue.charts_by_name`.
        labels: the labels of the levels of the swept field by which curves are coloured.
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
    """Returns the names of the panels' files: the figure's name, with the panel's title if there are several."""
    if len(panels) == 1:
        return [name]
    titles = [re.sub(r"[^\w.+-]+", "_", panel.title).strip("_") for panel in panels]
    return [
        f"{name}-{title if title and titles.count(title) == 1 else number}"
        for number, title in enumerate(titles, start=1)
    ]
