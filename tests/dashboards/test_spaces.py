"""Reports of studies with ranges, conditional and tied fields, and plain lists of points."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dashboards.figures.level_styles import LEVELS_AT_MOST, levels_of, looks_of
from dashboards.figures.setting_axis import _linear_ticks, _logarithmic_ticks
from dashboards.page import legend_entry
from dashboards.report_facts import Report, report_facts
from nfnet_ray.analysis import best_per_stratum, load_study
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.space import Range, SameAs, Space, When, domain_to_json
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.labels import ABSENT
from nfnet_ray.tracking.swept import possible_values, swept_fields
from tests.tracking.example_study import START, study_started, trial_events, write_journal

CLIP, RHO, SHARE = "optimizer.agc.clip_factor", "optimizer.sam.rho", "optimizer.sam.ascent_share"
MOMENTUM = "optimizer.momentum"
SAM: Space = {RHO: (None, 0.02, 0.05), SHARE: When((1.0, 0.2), RHO)}


def journal(
    directory: Path, space: Space, points: Sequence[Mapping[str, Any]] | None = None, settings: int = 24
) -> Study:
    """The journal of a finished study, and the study that it describes."""
    told = None if points is None else tuple(points)
    study = Study(
        "s", "?", Recipe().with_values({"data.image_size": 64}), space, points=told, trial_limit=settings
    )
    started = study_started({})
    started["study"] |= {  # type: ignore[typeddict-item]
        "space": {name: domain_to_json(domain) for name, domain in space.items()},
        "halving": None,
        "recipe": study.recipe.to_values(),
    }
    if told is not None:
        started["study"]["points"] = [dict(point) for point in told]
    started["trials"] = [study.plan(trial) for trial in study.trials()]
    draw, events = random.Random(3), [json.loads(json.dumps(started))]
    for number, trial in enumerate(study.trials()):
        clip = trial.recipe.optimizer.agc.clip_factor or 1.0
        top1 = 0.95 - 0.02 * abs(math.log(clip / 0.03)) + draw.uniform(-0.01, 0.01)
        events += trial_events(trial.name, START + 100 * number, [top1 / 2, top1], seconds_per_epoch=10)
    write_journal(directory, events)
    return study


def report_of(directory: Path) -> Report:
    return report_facts(load_study(directory), START)


def test_a_range_is_points_on_a_logarithmic_axis_and_none_is_at_its_right(tmp_path: Path) -> None:
    space: Space = {
        CLIP: Range(0.002, 0.3, log=True, or_none=True),
        MOMENTUM: Range(0.5, 0.95),
        "batch_size": (64, 256),
    }
    study = journal(tmp_path, space)
    report = report_of(tmp_path)
    assert report.settings is not None
    clip, momentum = (chart.figure for chart in report.settings.charts)
    axis = clip["layout"]["xaxis"]
    assert axis["ticktext"] == ["0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "none"]
    assert axis["tickvals"][2] == pytest.approx(-2)
    drawn = sorted(x for trace in clip["data"] for x in trace["x"])
    known = sorted(
        axis["tickvals"][-1] if (value := trial.point[CLIP]) is None else math.log10(value)
        for trial in study.trials()
    )
    assert drawn == pytest.approx(known, abs=1e-4)
    assert max(axis["tickvals"]) < axis["range"][1]
    assert momentum["layout"]["xaxis"]["title"]["text"] == "momentum"
    assert {trace["mode"] for trace in clip["data"]} == {
        "markers"
    }  # no line: neighbours differ in momentum too


def test_ranges_are_no_conditions(tmp_path: Path) -> None:
    journal(
        tmp_path, {CLIP: Range(0.002, 0.3, log=True), MOMENTUM: Range(0.5, 0.95), "batch_size": (64, 256)}
    )
    record = load_study(tmp_path)
    assert record.fields == (CLIP, MOMENTUM, "batch_size")
    assert record.conditions == ("batch_size",)
    assert [answer.best.point["batch_size"] for answer in best_per_stratum(record)] in ([64, 256], [256, 64])
    sentence = best_per_stratum(record)[0].sentence()
    assert sentence.startswith("Best setting: clip_factor 0.0")
    assert ", momentum 0." in sentence
    assert " at batch_size " in sentence


def test_a_field_that_is_absent_is_a_dash(tmp_path: Path) -> None:
    journal(tmp_path, SAM)
    record, report = load_study(tmp_path), report_of(tmp_path)
    assert list(record.trials[SHARE]) == [ABSENT, 1.0, 1.0, 0.2, 0.2]
    assert [cell.text for cell in report.trials.rows[0].cells[:2]] == ["none", "–"]
    assert [chart.title for chart in report.curves.charts] == [
        "ascent_share –",
        "ascent_share 0.2",
        "ascent_share 1",
    ]
    assert report.settings is not None
    assert report.settings.charts[0].title == "● ascent_share –, ■ ascent_share 0.2, ◆ ascent_share 1"


def test_a_plain_list_of_points_competes_as_one(tmp_path: Path) -> None:
    journal(tmp_path, {}, points=({CLIP: 0.03, "batch_size": 64}, {CLIP: 0.3}, {}))
    record = load_study(tmp_path)
    assert (record.fields, record.conditions) == ((CLIP, "batch_size"), ())
    [answer] = best_per_stratum(record)
    assert answer.sentence().startswith("Best setting: clip_factor 0.03, batch_size 64: top-1")
    assert "cannot be told apart from the Recipe (" in answer.sentence()


def test_points_that_differ_in_several_fields_are_shown_side_by_side(tmp_path: Path) -> None:
    """None and absent values of the first field have looks of their own, and neither is what was asked."""
    points: list[dict[str, Any]] = [
        {},
        {CLIP: None},
        {CLIP: 0.02},
        {MOMENTUM: 0.5},
        {CLIP: None, MOMENTUM: 0.5},
    ]
    journal(tmp_path, {}, points)
    report = report_of(tmp_path)
    labels = [
        "the Recipe",
        "clip_factor none",
        "clip_factor 0.02",
        "momentum 0.5",
        "clip_factor none, momentum 0.5",
    ]
    assert report.settings is not None
    (chart,) = report.settings.charts
    assert chart.figure["layout"]["xaxis"]["ticktext"] == labels
    assert sorted(place for trace in chart.figure["data"] for place in trace["x"]) == [0, 1, 2, 3, 4]
    assert report.settings.heat_table is None
    assert report.curves.legend is not None
    assert (report.curves.legend.name, [entry.label for entry in report.curves.legend.entries]) == (
        "setting",
        labels,
    )


def test_every_look_of_a_level_can_be_drawn_in_a_legend() -> None:
    words = [f"network {number}" for number in range(LEVELS_AT_MOST * 2)]
    for values in (words, [*range(LEVELS_AT_MOST), None, ABSENT], [None, ABSENT]):
        for level, look in enumerate(looks_of(levels_of(values))):
            legend_entry(level, "", look)


def test_a_tied_field_is_told_with_the_recipe_and_has_no_column(tmp_path: Path) -> None:
    journal(tmp_path, {"data.image_size": (64, 96), "data.eval_size": SameAs("data.image_size")})
    report = report_of(tmp_path)
    assert report.trials.columns[0].name == "image_size"
    assert all(column.name != "eval_size" for column in report.trials.columns)
    assert ("data.eval_size", "that of data.image_size") in report.recipe


@pytest.mark.parametrize(
    "space", [SAM, {CLIP: Range(0.01, 0.1, or_none=True)}, {CLIP: (0.1,), MOMENTUM: (0.9,)}]
)
def test_a_journal_gives_the_study_back(tmp_path: Path, space: Space) -> None:
    study = journal(tmp_path, space)
    from nfnet_ray.tracking.state import StudyState

    _, started = StudyState.read(tmp_path)
    again = Study.from_event(started)
    assert dict(again.space) == dict(study.space)
    assert [trial.name for trial in again.trials()] == [trial.name for trial in study.trials()]
    assert [trial.recipe for trial in again.trials()] == [trial.recipe for trial in study.trials()]


def test_mlflow_draws_parallel_coordinates_of_numbers_alone(tmp_path: Path) -> None:
    journal(tmp_path, SAM)
    study = load_study(tmp_path).study
    assert {name: possible_values(study, name) for name in swept_fields(study)} == {
        RHO: [None, 0.02, 0.05],
        SHARE: [1.0, 1.0, 0.2],
    }


@pytest.mark.parametrize(
    ("ticks", "expected"),
    [
        (_logarithmic_ticks(0.002, 0.3), [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]),
        (_logarithmic_ticks(1e-6, 1), [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1]),
        (_logarithmic_ticks(0.03, 0.04), [0.03, 0.04]),
        (_linear_ticks(0.5, 0.95), [0.5, 0.6, 0.7, 0.8, 0.9]),
        (_linear_ticks(1, 5), [1, 2, 3, 4, 5]),
        (_linear_ticks(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (_linear_ticks(16, 256), [50, 100, 150, 200, 250]),
    ],
)
def test_the_labels_of_an_axis(ticks: list[float], expected: list[float]) -> None:
    assert ticks == expected
