"""Charts as files for a paper, and tables as files for other programs. About 10 s."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dashboards.catalogue import chart_colors, charts_by_name
from dashboards.figures.paper.drawing import COLUMN_INCHES, draw
from dashboards.figures.paper.files import write_figures
from dashboards.figures.time_charts import levels
from dashboards.report import main
from nfnet_ray.analysis import StudyRecord, load_study
from tests.tracking.example_study import (
    CLIP_FACTOR,
    START,
    agc_sweep,
    study_started,
    trial_events,
    write_journal,
)

RESULTS = Path(__file__).resolve().parents[2] / "studies" / "results"


def figure_files(record: StudyRecord, folder: Path, names: set[str]) -> list[Path]:
    charts = {name: panels for name, panels in charts_by_name(record).items() if name in names}
    assert charts.keys() == names
    return write_figures(charts, levels(record).labels, chart_colors(record), folder)


def test_the_command_line_writes_charts_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_journal(tmp_path / "study", agc_sweep())
    figures, data = tmp_path / "figures", tmp_path / "data"
    assert main([str(tmp_path / "study"), "--figures", str(figures), "--data", str(data)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("report.html")
    written = sorted(path.name for path in figures.iterdir())
    assert said[1:] == [f"{figures}: {len(written)} files", f"{data}: 5 files"]
    assert {path.rpartition(".")[0] for path in written} >= {
        "settings",
        "settings_heat_map",
        "parallel_coordinates",
        "accuracy_against_time-batch_size_64",
        "accuracy_against_time-batch_size_256",
    }
    assert [name.replace(".svg", ".pdf") for name in written if name.endswith(".svg")] == [
        name for name in written if name.endswith(".pdf")
    ]
    record = load_study(tmp_path / "study")
    for suffix, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
        trials: Any = read(data / f"trials{suffix}")  # type: ignore[operator]
        epochs: Any = read(data / f"epochs{suffix}")  # type: ignore[operator]
        assert trials[CLIP_FACTOR].tolist().count("none") == 2
        assert trials["batch_size"].tolist() == record.trials["batch_size"].tolist()
        assert len(epochs) == len(record.epochs)
        assert epochs["validation_top1"].tolist() == pytest.approx(
            record.epochs["validation_top1"].tolist(), rel=1e-5, nan_ok=True
        )


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_journal(tmp_path / "study", agc_sweep((0.01,), (64,)))
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for flag in ("--figures", "--data"):
        assert main([str(tmp_path / "study"), flag, str(in_the_way)]) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_a_file_is_as_wide_as_a_column_and_its_text_is_text(tmp_path: Path) -> None:
    write_journal(tmp_path, agc_sweep())
    record = load_study(tmp_path)
    figure_files(record, tmp_path / "a", {"accuracy_against_time", "settings"})
    svg = (tmp_path / "a" / "accuracy_against_time-batch_size_64.svg").read_text()
    assert f'width="{72 * COLUMN_INCHES:g}pt"' in svg
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"training time (minutes)", "validation top-1", "batch_size 64", "0.005", "none"} <= set(texts)
    pdf = (tmp_path / "a" / "settings.pdf").read_bytes()
    assert b"/Type3" not in pdf  # which IEEE and ACM refuse
    figure_files(record, tmp_path / "b", {"accuracy_against_time", "settings"})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_curves_without_names_at_their_ends_have_a_legend(tmp_path: Path) -> None:
    paths = figure_files(load_study(RESULTS / "curves"), tmp_path, {"accuracy_against_time", "response"})
    svg = next(path for path in paths if path.name == "accuracy_against_time.svg").read_text()
    assert len(re.findall(r">[\d.]+ to [\d.]+</text>", svg)) > 1


def test_a_kind_of_trace_that_nobody_draws_is_an_error() -> None:
    figure = {
        "data": [{"type": "pie", "meta": {"tone": "quiet"}, "y": []}],
        "layout": {"xaxis": {}, "yaxis": {}},
    }
    with pytest.raises(NotImplementedError, match="pie"):
        draw(figure, "", (), {"quiet": "#000000"}, 3.0)


def test_labels_of_close_accuracies_differ(tmp_path: Path) -> None:
    started = study_started({CLIP_FACTOR: [0.01, 0.02]}, epochs=2)
    trials = [
        trial_events(plan["name"], START + 100 * number, [0.9712, 0.972 + 0.001 * number])
        for number, plan in enumerate(started["trials"])
    ]
    write_journal(tmp_path, [started, *trials[0], *trials[1]])
    [svg, _] = sorted(
        figure_files(load_study(tmp_path), tmp_path, {"accuracy_against_time"}),
        key=lambda path: path.suffix != ".svg",
    )
    labels = re.findall(r">([\d.]+%)<", svg.read_text())
    assert len(labels) > 3
    assert len(set(labels)) == len(labels)
