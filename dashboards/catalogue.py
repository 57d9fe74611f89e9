"""Lists the charts of a study's report by name, for notebooks and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dashboards.effects_section import effects_section
from dashboards.figures.clipping_charts import clipping_charts
from dashboards.figures.level_styles import looks_of
from dashboards.figures.painting import Theme, all_colors
from dashboards.figures.setting_charts import heat_map, heat_map_figure, setting_outcomes
from dashboards.figures.signal_charts import epoch_shades, signal_charts
from dashboards.figures.time_axes import with_axes
from dashboards.figures.time_charts import levels
from dashboards.page import Chart
from dashboards.report_facts import clipping_section, curves_section, settings_section, signal_section
from nfnet_ray.analysis import StudyRecord, best_setting, setting_results
from nfnet_ray.command_line.python_arguments import a_text
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.settings import did_you_mean

TIME_CHART = "accuracy_against_time"
CHARTS = {
    "settings": "settings",
    "settings_heat_map": "heat-map",
    "isolation": "isolation",
    "response": "response",
    "importance": "importance",
    "pairwise_effects": "pair",
    "parallel_coordinates": "parallel-coordinates",
    "best_so_far": "best-so-far",
    "budgets": "budgets",
    TIME_CHART: "time",
    "agc_clipping": "clipping",
    "signal_propagation": "signal",
}
"""{name of a figure: beginning of the ids of its charts in the report}, in the order of the report."""


def charts_by_name(record: StudyRecord) -> dict[str, tuple[Chart, ...]]:
    """Returns the figures that this study has, each with its panels, in the order of the report."""
    charts = _charts(record)
    found = {
        name: tuple(chart for chart in charts if chart.id.rstrip("-0123456789") == start)
        for name, start in CHARTS.items()
    }
    return {name: panels for name, panels in found.items() if panels}


def chosen_charts(charts: Mapping[str, tuple[Chart, ...]], name: str, study: str) -> tuple[Chart, ...]:
    """Returns the panels of a figure. Raises UserError if the study has no figure of that name."""
    a_text("name", name, "the name of a figure")
    if name in charts:
        return charts[name]
    if name in CHARTS:
        raise UserError(f"study {study} has no figure {name!r}; it has {', '.join(charts)}")
    raise UserError(f"there is no figure {name!r}: {did_you_mean(name, list(CHARTS), similarity=0.5)}")


def with_chosen_axes(charts: Sequence[Chart], x: str, y: str, *, log_x: bool, log_y: bool) -> list[Chart]:
    """Returns the charts with other axes, which only charts of accuracy against time support."""
    if (x, y, log_x, log_y) == ("time", METRIC, False, False):
        return list(charts)
    if not all(chart.id.startswith(CHARTS[TIME_CHART]) for chart in charts):
        raise UserError(f"x, y, log_x and log_y are for the figure {TIME_CHART!r}; leave them out")
    figures = [with_axes(chart.figure, x, y, log_x=log_x, log_y=log_y) for chart in charts]
    for name in ("xaxis", "yaxis"):  # the same for all panels, as in the report
        ranges = [figure["layout"][name]["range"] for figure in figures]
        shared = [min(low for low, _ in ranges), max(high for _, high in ranges)]
        for figure in figures:
            figure["layout"][name] = {**figure["layout"][name], "range": shared}
    return [replace(chart, figure=figure) for chart, figure in zip(charts, figures, strict=True)]


def chart_colors(record: StudyRecord, theme: Theme = "light") -> dict[str, str]:
    """Returns {name: colour} of a study's charts."""
    signal = signal_charts(record)
    return all_colors(theme, looks_of(levels(record)), epoch_shades(len(signal.epochs) if signal else 0))


def _charts(record: StudyRecord) -> list[Chart]:
    settings = settings_section(record, best_setting(record))
    effects, curves = effects_section(record), curves_section(record)
    clipping, signal = clipping_charts(record), signal_charts(record)
    charts = [*(settings.charts if settings else ())]
    cells = heat_map(record, setting_outcomes(record, setting_results(record)))
    if cells is not None:
        across, down = (record.names[field] for field in (cells.across, cells.down))
        label = f"Validation top-1 by {across} and {down}"
        charts.append(Chart("heat-map", heat_map_figure(record, cells), label))
    charts += [one.chart for one in effects.charts] if effects else []
    charts += [curves.budgets] if curves.budgets else []
    # In the report, a stratum in which no trial has begun has an empty panel.
    charts += [chart for chart in curves.charts if chart.figure["data"]]
    charts += clipping_section(clipping).charts if clipping else []
    charts += signal_section(signal).charts if signal else []
    return charts
