"""The report's section on what AGC clips, and what MLflow is given of it.

Takes some seconds, most of them Chromium.
"""

from __future__ import annotations

import re
from pathlib import Path

from dashboards.figures.clipping_charts import clipping_charts
from dashboards.report import write_report
from nfnet_ray.analysis import load_study
from nfnet_ray.tracking.delivery.writer import _clipping_metrics
from tests.quick.test_clip_factor import record_of, with_clipping
from tests.tracking.chromium import page_after_scripts
from tests.tracking.example_study import agc_sweep, write_journal


def test_a_study_that_counted_nothing_has_no_section(tmp_path: Path) -> None:
    write_journal(tmp_path, agc_sweep())
    assert clipping_charts(load_study(tmp_path)) is None
    assert "What AGC clips" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_map_of_layers_by_epochs_for_the_best_that_clips_under_each_condition(tmp_path: Path) -> None:
    write_journal(tmp_path, with_clipping(agc_sweep((0.01, 0.02, None), (64, 256), epochs=4)))
    charts = clipping_charts(load_study(tmp_path))
    assert charts is not None
    assert [title for title, _ in charts.panels] == [
        "clip_factor 0.02, batch_size 64",
        "clip_factor 0.01, batch_size 256",
    ]
    [trace] = charts.panels[0][1]["data"]
    assert (trace["x"], trace["y"]) == ([1, 2, 3, 4], ["stem.0", "blocks.0.conv0"])
    # 2 of the 6 octaves that the planted ratios span lie above 0.02.
    assert all(abs(share - 1 / 3) < 0.01 for row in trace["z"] for share in row)
    first = charts.table.rows[0]
    assert [column.name for column in charts.table.columns] == [
        "clip_factor", "batch_size", "all units", "stem", "stage 1", "epochs",
    ]  # fmt: skip
    assert [cell.text for cell in first.cells] == ["0.01", "64", "50.0%", "50.0%", "50.0%", "4"]
    assert "differ from step 1 on" in charts.remarks


def test_table_and_suggestion_count_all_seeds_of_a_setting(tmp_path: Path) -> None:
    events = with_clipping(agc_sweep((0.01,), (64,), seeds=(0, 1), epochs=1))
    for event in events:
        if event["event"] == "epoch" and event["trial"].endswith("-01"):
            event["clipping"] = record_of(0.04, 0.01).to_text()
    write_journal(tmp_path, events)
    charts = clipping_charts(load_study(tmp_path))
    assert charts is not None
    # Half of the units with one seed, five octaves of six with the other.
    [row] = charts.table.rows
    assert row.cells[2].text == "66.6%"
    [(_, reasoning)] = charts.suggestions
    assert reasoning.startswith("Only 0.01 was tried, which clips 66.6% of the units; at 0.0")


def test_chromium_draws_the_maps(tmp_path: Path) -> None:
    events = with_clipping(agc_sweep((0.02, 0.04, 0.08, None)))
    write_journal(tmp_path, events)
    page = write_report(tmp_path)
    html = page_after_scripts(page.as_uri(), tmp_path / "profile")
    assert len(re.findall(r'class="hm"', html)) == 2
    assert "--extend agc_sweep --sweep optimizer.agc.clip_factor=" in html
    assert "batch_size 64:" in html


def test_mlflow_is_given_the_shares_and_medians_of_each_part() -> None:
    [event] = [
        event for event in with_clipping(agc_sweep((0.01,), (64,), epochs=1)) if event["event"] == "epoch"
    ]
    metrics = _clipping_metrics(event)
    assert sorted(metrics) == [
        f"agc/{part}/{name}" for part in ("stage_1", "stem") for name in ("clipped_fraction", "ratio_median")
    ]
    assert abs(metrics["agc/stem/clipped_fraction"] - 0.5) < 0.01
    assert 0.009 < metrics["agc/stem/ratio_median"] < 0.011
    event["clipping"] = "written by another version"
    assert _clipping_metrics(event) == {}
