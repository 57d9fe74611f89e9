"""The settings of a study as a LaTeX table. About 2 s."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import nfnet_ray
from dashboards.report import main as report
from nfnet_ray.analysis.files.latex import SETTINGS_FILE
from nfnet_ray.errors import UserError
from tests.tracking.example_study import CLIP_FACTOR, study_started, trial_events, write_journal


def record(folder: Path) -> nfnet_ray.StudyResults:
    """Two clip factors with two seeds and none, which diverged; the names of networks have signs of LaTeX."""
    space = {
        CLIP_FACTOR: (0.01, 0.02, None),
        "model.name": ("nfnet_pico", "my_net:build@sha256:0123456789ab"),
    }
    started = json.loads(json.dumps(study_started(space, seeds=(0, 1), epochs=2)))
    events = [started]
    for number, trial in enumerate(started["trials"]):
        has_diverged = trial["point"][CLIP_FACTOR] is None
        top1 = [0.1] if has_diverged else [0.5, 0.9 - 0.01 * number]
        state = "diverged" if has_diverged else "finished"
        events += trial_events(trial["name"], 1.0, top1, state)
    write_journal(folder, events)
    return nfnet_ray.load_study(folder)


def test_it_has_a_row_for_each_setting_with_the_best_in_bold(tmp_path: Path) -> None:
    lines = record(tmp_path).to_latex().splitlines()
    assert lines[:4] == [
        r"\begin{tabular}{rlrrrrl}",
        r"\toprule",
        r"clip factor & model & top-1 (\%) & 95\% interval & seeds & train s &  \\",
        r"\midrule",
    ]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = [[cell.strip() for cell in line.removesuffix(r"\\").split("&")] for line in lines[4:-2]]
    assert [row[:3] + row[4:] for row in rows] == [
        ["0.01", r"nfnet\_pico", r"\textbf{89.5}", "2", "80.0", ""],
        ["0.01", r"my\_net:build", r"\textbf{87.5}", "2", "80.0", ""],
        ["0.02", r"nfnet\_pico", "85.5", "2", "80.0", ""],
        ["0.02", r"my\_net:build", "83.5", "2", "80.0", ""],
        ["none", r"nfnet\_pico", "--", "0", "--", "diverged after 1 epoch"],
        ["none", r"my\_net:build", "--", "0", "--", "diverged after 1 epoch"],
    ]
    low, high = map(float, rows[0][3].split("--"))
    assert low < 89.5 < high


def test_with_a_caption_it_is_a_float(tmp_path: Path) -> None:
    text = record(tmp_path).to_latex(caption="Clipping, $n = 2$.", label="tab:clip")
    assert text.startswith(
        "\\begin{table}\n\\caption{Clipping, $n = 2$.}\n\\label{tab:clip}\n\\begin{tabular}"
    )
    with pytest.raises(UserError, match="caption = 3 is not allowed"):
        record(tmp_path / "other").to_latex(caption=3)  # type: ignore[arg-type]


def test_a_training_that_has_not_begun_has_a_table_too(tmp_path: Path) -> None:
    write_journal(tmp_path, [study_started({})])
    assert "-- & -- & 0 & -- & not started \\\\\n" in nfnet_ray.load_study(tmp_path).to_latex()


def test_the_report_writes_it_with_the_other_tables(tmp_path: Path) -> None:
    table = record(tmp_path / "study").to_latex()
    assert report([str(tmp_path / "study"), "--data", str(tmp_path / "tables")]) == 0
    written = (tmp_path / "tables" / SETTINGS_FILE).read_text()
    assert written.startswith(
        "% agc_sweep; needs \\usepackage{booktabs}\n% Best setting: clip_factor 0.01 at "
    )
    assert written.endswith(table)
