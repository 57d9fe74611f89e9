"""The report of a study of budgets: times at equal accuracy, and a chart of every complete schedule."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from dashboards.figures.budget_chart import budget_chart
from dashboards.report import write_report
from dashboards.report_facts import report_facts
from nfnet_ray.analysis import load_study
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import Study
from tests.tracking.example_study import START, study_started, trial_events, write_journal

NAME, EPOCHS, DECAY = "model.name", "schedule.epochs", "optimizer.weight_decay"
SECONDS = {"nfnet_pico": 10.0, "test_resnet": 20.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    points = tuple(
        {NAME: name, EPOCHS: epochs, DECAY: decay}
        for name, decay in (("nfnet_pico", 2e-5), ("test_resnet", 1e-4))
        for epochs in (2, 4, 8)
    )
    study = Study("s", "?", Recipe(), {}, points=points, asked=(NAME, EPOCHS), seeds=(0, 1))
    started = study_started({})
    started["study"] |= study.description()  # type: ignore[typeddict-item]
    started["trials"] = [study.plan(trial) for trial in study.trials()]
    events = [json.loads(json.dumps(started))]
    for number, trial in enumerate(study.trials()):
        epochs = trial.recipe.schedule.epochs
        last = 0.98 - 0.2 / epochs + 0.002 * trial.recipe.seed
        top1 = [last * epoch / epochs for epoch in range(1, epochs + 1)]
        seconds = SECONDS[trial.recipe.model.name] * (1 + 0.01 * trial.recipe.seed)
        events += trial_events(trial.name, START + 100 * number, top1, seconds_per_epoch=seconds)
    write_journal(tmp_path, events)
    return tmp_path


def test_the_answer_begins_with_the_time_at_equal_accuracy(folder: Path) -> None:
    sentence = report_facts(load_study(folder), START).answer.sentence
    assert sentence.startswith(
        "At equal accuracy (95.0%) nfnet_pico takes 0.50 of test_resnet's training time (95% interval over seeds 0.4"
    )


def test_every_budget_and_every_seed_is_drawn(folder: Path) -> None:
    report = report_facts(load_study(folder), START)
    assert report.curves.budgets is not None
    assert report.settings is None
    seeds, means = report.curves.budgets.figure["data"][:2]
    assert (len(seeds["x"]), len(means["x"])) == (6, 3)
    assert seeds["meta"] == means["meta"] == {"level": 0}
    assert means["x"] == pytest.approx([seconds * 1.01**0.5 for seconds in (20, 40, 80)], rel=1e-3)
    assert [entry.label for entry in report.curves.legend.entries] == list(SECONDS)  # type: ignore[union-attr]
    assert any("2 to 8 epochs, each in a complete schedule" in text for _, text in report.measurement)


@pytest.mark.parametrize("names", [{"nfnet_pico": 0.01, "test_resnet": 0.02}, {}])
def test_budgets_of_settings_that_differ_in_a_number_are_drawn(folder: Path, names: dict[str, float]) -> None:
    record = load_study(folder)
    trials = record.trials.copy()
    trials["model.name"] = pd.Series([names.get(one, one) for one in trials["model.name"]], dtype=object)
    fields = record.fields if names else record.fields[::-1]  # the budget may be the question
    figure = budget_chart(replace(record, trials=trials, fields=fields))
    assert figure is not None
    assert {trace["meta"]["level"] for trace in figure["data"]} == {0, 1}


def test_every_chart_on_the_page_has_its_figure(folder: Path) -> None:
    """The page's script stops at the first box without one, and draws no chart at all."""
    page = write_report(folder).read_text()
    boxes = re.findall(r'<div class="chart" id="([^"]+)"', page)
    assert "budgets" in boxes
    assert sorted(boxes) == sorted(chart.id for chart in report_facts(load_study(folder), START).charts)
