"""Figures have names of colours; a theme has a colour for each. Less than a second."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dashboards.figures.painting import COLORS, all_colors, painted, themed
from dashboards.page import TEMPLATES
from dashboards.report_facts import report_facts
from nfnet_ray.analysis import load_study
from tests.tracking.example_study import START, agc_sweep, write_journal


def names_in(value: Any) -> set[str]:
    """The names of colours in a part of a figure."""
    if isinstance(value, dict):
        return set().union(*(names_in(inner) for key, inner in value.items() if key != "meta"))
    if isinstance(value, list | tuple):
        return set().union(*map(names_in, value))
    return {value} if isinstance(value, str) and value.startswith("@") else set()


def test_each_theme_has_every_colour_of_the_reports_charts(tmp_path: Path) -> None:
    write_journal(tmp_path, agc_sweep())
    report = report_facts(load_study(tmp_path), START)
    figures = [painted(chart.figure) for chart in report.charts]
    assert {"@accent", "@quiet", "@level-0", "@level-5"} <= names_in([figure["data"] for figure in figures])
    for theme in COLORS:
        colors = all_colors(theme, report.looks, report.shades)
        assert names_in(themed(figures, colors)) == set()
        assert all(re.fullmatch(r"#[0-9a-f]{6}|rgb\(.*\)", color) for color in colors.values())


def test_a_text_that_begins_like_a_name_stays_as_it_is() -> None:
    figure = {
        "text": ["@home", "@accent/22"],
        "color": ["@home", "@accent/22"],
        "colorscale": [[0, "@raised"], [1, "@accent"]],
    }
    assert themed(figure, {"accent": "#123456", "raised": "#ffffff"}) == {
        "text": ["@home", "@accent/22"],
        "color": ["@home", "#12345622"],
        "colorscale": [[0, "#ffffff"], [1, "#123456"]],
    }


@pytest.mark.parametrize("sheet", ["page.css", "report.css"])
def test_style_sheets_name_colours_that_there_are(sheet: str) -> None:
    named = set(re.findall(r"var\(--([a-z]+)\)", (TEMPLATES / sheet).read_text()))
    assert named - {"shadow", "share"} <= set(COLORS["light"]) == set(COLORS["dark"])
