"""A study in a notebook: numeric columns, the answer in words, and the report's charts as Plotly figures. About 5 s."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nfnet_ray
from dashboards.catalogue import CHARTS, charts_by_name
from dashboards.figures.time_charts import accuracy_against_time
from dashboards.report_facts import report_facts
from nfnet_ray.errors import UserError
from nfnet_ray.tracking.events import Event
from tests.tracking.example_study import (
    CLIP_FACTOR,
    START,
    agc_sweep,
    study_started,
    trial_events,
    write_journal,
)

RESULTS = Path(__file__).resolve().parents[2] / "studies" / "results"


@pytest.fixture
def study(tmp_path: Path) -> nfnet_ray.StudyResults:
    write_journal(tmp_path, agc_sweep())
    return nfnet_ray.load_study(tmp_path)


def test_columns_are_numeric_where_all_values_are_numbers(study: nfnet_ray.StudyResults) -> None:
    for table in (study.trials, study.epochs):
        assert table["batch_size"].dtype == int
        assert table[CLIP_FACTOR].dtype == object
        assert set(table[CLIP_FACTOR]) == {0.005, 0.01, 0.02, 0.04, 0.08, None}
    assert study.trials["batch_size"].mean() == 160


def test_the_answer_is_what_the_command_line_says(study: nfnet_ray.StudyResults) -> None:
    answers = study.answer().splitlines()
    assert answers[0].startswith("Best setting: clip_factor 0.02 at batch_size 64: top-1 97.2%")
    assert [f"{best.sentence()}." for best in nfnet_ray.best_per_stratum(study)] == answers[:2]


def test_a_record_can_be_looked_for_in_a_list(study: nfnet_ray.StudyResults, tmp_path: Path) -> None:
    """Tables of pandas have no equality that is True or False."""
    again = nfnet_ray.load_study(tmp_path)
    assert [again, study].index(study) == 1
    assert len({study, again, study}) == 2


def test_a_notebook_shows_a_record_as_one_line(study: nfnet_ray.StudyResults) -> None:
    assert repr(study) == (
        "<StudyResults 'agc_sweep': finished; trials: 10 finished, 1 stopped, 1 diverged; "
        "swept: clip_factor, batch_size>"
    )
    assert all(len(repr(response)) < 2_000 for response in study.response())


def test_every_chart_of_the_report_is_a_figure(study: nfnet_ray.StudyResults) -> None:
    report = {chart.id: chart.figure for chart in report_facts(study, START).charts}
    figures = charts_by_name(study)
    named = {chart.id: chart.figure for charts in figures.values() for chart in charts}
    assert study.figures == tuple(figures)
    assert named.pop("heat-map")["data"]  # a table in the report
    assert named == report


@pytest.mark.parametrize("name", ["curves", "joint_sweep", "efficientnet_baselines"])
def test_each_figure_of_a_study_is_drawn_in_both_themes(name: str) -> None:
    study = nfnet_ray.load_study(RESULTS / name)
    assert set(study.figures) <= set(CHARTS)
    assert "accuracy_against_time" in study.figures
    for figure in study.figures:
        for dark in (False, True):
            text = study.figure(figure, dark=dark).to_json()
            assert '"@' not in text
            assert "meta" not in text


def test_panels_are_side_by_side_and_each_value_is_in_the_legend_once(study: nfnet_ray.StudyResults) -> None:
    figure = study.figure("accuracy_against_time")
    assert [note.text for note in figure.layout.annotations] == ["batch_size 64", "batch_size 256"]
    entries = [trace.name for trace in figure.data if trace.showlegend]
    assert entries == ["0.005", "0.01", "0.02", "0.04", "0.08", "none"]


def test_another_axis_and_another_metric(study: nfnet_ray.StudyResults) -> None:
    figure = study.figure("accuracy_against_time", x="images", y="train_loss", log_x=True)
    first = figure.data[0]
    assert list(first.x) == [1440 * epoch for epoch in range(1, 9)]
    rows = study.epochs[study.epochs["trial"] == "agc_sweep-00"]
    assert list(first.y) == pytest.approx(rows["train_loss"].tolist(), rel=1e-3)
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.yaxis.title.text == "train loss"
    assert "train loss" in first.hovertemplate
    hours = study.figure("accuracy_against_time", x="accelerator_hours").data[0].x
    assert hours[-1] == pytest.approx(rows["train_seconds"].iloc[-1] / 3600, rel=1e-3)


def test_money_and_energy_are_axes_where_they_are_known(tmp_path: Path) -> None:
    started = study_started({CLIP_FACTOR: [0.01, 0.02]})
    started["study"]["worker"] = {"workers": 2, "cpus": 4, "gpus": 1}
    started["study"]["caps"] = {"price_per_hour": 2.5}  # type: ignore[typeddict-unknown-key]
    events: list[Event] = [started]
    for trial in started["trials"]:
        events += trial_events(trial["name"], 1.0, [0.5, 0.9], seconds_per_epoch=1800.0)
    for event in events:
        if event["event"] == "epoch":
            event["metrics"]["gpu_energy_joules"] = 3.6e6 * event["epoch"]
    write_journal(tmp_path, events)
    study = nfnet_ray.load_study(tmp_path)
    for axis, last in (("accelerator_hours", 2.0), ("cost", 5.0), ("energy", 2.0), ("epochs", 2)):
        assert study.figure("accuracy_against_time", x=axis).data[0].x[-1] == pytest.approx(last)


def test_a_curve_without_the_metric_is_left_out(tmp_path: Path) -> None:
    events = agc_sweep()
    for event in events:
        if event["event"] == "epoch" and event["trial"] == "agc_sweep-00":
            event["metrics"]["train_loss"] = math.nan
    write_journal(tmp_path, events)
    study = nfnet_ray.load_study(tmp_path)
    assert len(study.figure("accuracy_against_time", y="train_loss").data) == 11


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": "accuracy_agains_time"}, "did you mean accuracy_against_time?"),
        ({"name": "budgets"}, "study agc_sweep has no figure 'budgets'; it has settings"),
        ({"name": "accuracy_against_time", "x": "epoch"}, "did you mean epochs?"),
        ({"name": "accuracy_against_time", "y": "trainloss"}, "did you mean train_loss"),
        ({"name": ["settings"]}, "name = .* is not allowed; it takes the name of a figure"),
        (
            {"name": "accuracy_against_time", "x": None},
            "x = None is not allowed; it takes the name of an axis",
        ),
        (
            {"name": "accuracy_against_time", "log_y": "no"},
            "log_y = 'no' is not allowed; it takes True or False",
        ),
        ({"name": "settings", "log_x": True}, "are for the figure 'accuracy_against_time'"),
    ],
)
def test_a_wrong_name_is_one_line(
    study: nfnet_ray.StudyResults, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        study.figure(**arguments)
    assert "\n" not in str(caught.value)


def test_figures_that_cannot_be_written_are_one_line(study: nfnet_ray.StudyResults, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, names, complaint in (
        (tmp_path / "file", None, "file cannot be written"),
        ("", None, "folder = '' is empty"),
        (5, None, "folder = 5 is not allowed; it takes a path"),
        (tmp_path, "setings", "did you mean settings"),
        (tmp_path, 5, "names = 5 is not allowed"),
    ):
        with pytest.raises(UserError, match=complaint) as caught:
            study.save_figures(folder, names)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "journal.jsonl"]
    assert [path.suffix for path in study.save_figures(tmp_path / "new", "settings")] == [".svg", ".pdf"]


@pytest.mark.parametrize("find", [nfnet_ray.best_setting, nfnet_ray.best_per_stratum])
def test_a_name_is_no_record(find: Callable[[Any], object]) -> None:
    with pytest.raises(UserError, match="record = 'first_try' is not allowed; it takes what"):
        find("first_try")


def test_parallel_coordinates_keep_none(study: nfnet_ray.StudyResults) -> None:
    [chart] = charts_by_name(study)["parallel_coordinates"]
    labels = [text.strip() for text in chart.figure["data"][-1]["text"]]
    assert labels[:6] == ["0.005", "0.01", "0.02", "0.04", "0.08", "none"]
    lines = [trace for trace in chart.figure["data"] if trace["mode"] == "lines"]
    assert sum(trace["x"].count(None) for trace in lines) == 12
    assert "lost" in labels  # one setting diverged


def test_a_panel_says_what_else_it_can_be_drawn_against(study: nfnet_ray.StudyResults) -> None:
    meta = accuracy_against_time(study)[0].figure["layout"]["meta"]
    assert [axis["name"] for axis in meta["x"]] == ["time", "epochs", "images", "accelerator_hours"]
    assert "agc_clipped_fraction" not in {axis["name"] for axis in meta["y"]}  # the same in all epochs
