"""The page of several studies: common axes where they can be compared, and what differs said and marked."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dashboards.report import main, write_comparison, write_report
from dashboards.study_results import load_study
from nfnet_ray.analysis.comparison import compare_studies
from nfnet_ray.tracking.events import study_resumed
from tests.quick.test_comparability import OTHER_MACHINE, VERSIONS, resumed_in_the_middle
from tests.quick.test_several_studies import budgets, part, recipe, study


def page_of(*studies: Path) -> tuple[str, dict[str, Any]]:
    """The page's text, and its figures."""
    written = write_comparison([str(each) for each in studies], studies[0].parent / "page.html").read_text()
    data = re.search(r'<script type="application/json" id="report">(.*?)</script>', written, re.S)
    assert data is not None
    visible = re.sub(r"<(script|style).*?</\1>", "", written, flags=re.S)
    return html.unescape(re.sub(r"<[^>]+>", "", visible)), json.loads(data[1])["figures"]


def test_equal_studies_share_a_chart_without_a_word(tmp_path: Path) -> None:
    text, figures = page_of(study(tmp_path, "a"), study(tmp_path, "b"))
    assert "Not everything on this page can be compared" not in text
    assert list(figures) == ["time-0"]
    assert {trace["meta"]["level"] for trace in figures["time-0"]["data"]} == {0, 1}
    assert "All 4 trials" in text


def test_another_evaluation_size_is_marked_in_the_legend_and_at_the_top(tmp_path: Path) -> None:
    text, figures = page_of(study(tmp_path, "a"), study(tmp_path, "b", recipe(data__eval_size=72)))
    assert list(figures) == ["time-0"]
    assert "Evaluation size differs, which affects accuracy: 64 (a); 72 (b)." in text
    assert "b · evaluation size 72" in text
    assert "There is no best setting of all studies, as they differ in evaluation size." in text
    assert [end["text"] for end in figures["time-0"]["layout"]["meta"]["ends"]] == ["a", "b"]


def test_times_on_other_hardware_get_a_panel_of_their_own(tmp_path: Path) -> None:
    text, figures = page_of(
        study(tmp_path, "a"), study(tmp_path, "b", part("hardware", description="8 × H200"))
    )
    assert list(figures) == ["time-0", "time-1"]
    assert "hardware 8 × H200" in text
    assert "Hardware differs, which affects time" in text


def test_networks_of_two_studies_are_compared_at_equal_accuracy(tmp_path: Path) -> None:
    free = budgets(tmp_path, "free", "nfnet_f0", 10.0)
    baseline = budgets(tmp_path, "baseline", "tf_efficientnet_b0", 20.0)
    text, figures = page_of(free, baseline)
    assert list(figures) == ["time-0", "budgets-0"]
    assert "nfnet_f0 (free) takes 0.50 of tf_efficientnet_b0 (baseline)'s training time" in text
    assert "Nothing faster is as accurate" in text
    assert "to 96.0%" in text


def test_the_time_of_a_study_of_one_budget_is_at_most_what_it_took(tmp_path: Path) -> None:
    """Its trials have 97.2% after 4:30. How long a schedule that ends at 96% takes was not tried."""
    text, _ = page_of(budgets(tmp_path, "free", "nfnet_f0", 10.0), study(tmp_path, "a"))
    assert text.count("at most 4 min 30 s") == 2
    assert "as no shorter schedule was tried" in text


def test_the_command_takes_several_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = study(tmp_path, "a"), study(tmp_path, "b")
    monkeypatch.chdir(tmp_path)
    assert main([str(a), str(b)]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    assert (tmp_path / "comparison.html").is_file()
    assert main([str(a), str(a)]) == 2
    assert "named twice" in capsys.readouterr().err


def test_the_answer_of_several_says_first_what_differs(tmp_path: Path) -> None:
    answer = load_study(study(tmp_path, "a"), study(tmp_path, "b", recipe(data__eval_size=72))).answer()
    first, *others = answer.split("\n")
    assert first.startswith("Evaluation size differs")
    assert len(others) == 2


def test_the_report_of_one_study_says_that_a_trial_moved(tmp_path: Path) -> None:
    event = study_resumed({}, hardware=OTHER_MACHINE, versions=VERSIONS)
    written = write_report(resumed_in_the_middle(tmp_path, event)).read_text()
    assert "Not everything on this page can be compared" in written
    assert "Hardware differs, which affects time" in written


def test_two_studies_are_compared_with_what_differs(tmp_path: Path) -> None:
    found = compare_studies(
        load_study(study(tmp_path, "a")), load_study(study(tmp_path, "b", recipe(data__eval_size=72)))
    )
    assert found.cautions == ("evaluation size differs, which affects accuracy: 64 (a); 72 (b)",)
    same = compare_studies(load_study(tmp_path / "a"), load_study(study(tmp_path, "c")))
    assert same.cautions == ()
