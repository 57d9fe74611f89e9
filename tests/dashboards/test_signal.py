"""The report shows how the activations' variance goes with depth, epoch by epoch, and leaves out nothing silently.

Takes about four seconds, most of it Chromium.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from dashboards.figures.level_styles import looks_of
from dashboards.figures.signal_charts import EPOCHS_AT_MOST, SignalCharts, epoch_shades, signal_charts
from dashboards.figures.time_charts import levels
from dashboards.report import write_report
from nfnet_ray.analysis import load_study, signal_by_depth
from nfnet_ray.tracking.events import EpochEnded, Event
from tests.tracking.chromium import page_after_scripts
from tests.tracking.example_study import CLIP_FACTOR, agc_sweep, study_started, trial_events, write_journal

BLOCKS = ("stem", *(f"block_{number:02}" for number in range(5)), "final_conv")


def variance(epoch: int, depth: int) -> float:
    """A made-up variance that no other epoch and depth have."""
    return (1 + 0.04 * depth) * (1 + 0.25 * epoch)


def expected_variance(epoch: int, depth: int) -> float:
    """As with skip gains that are 0 at first and grow."""
    return 1 + 0.01 * depth * epoch


def signal_metrics(epoch: int, prefix: str = "signal") -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for depth, block in enumerate(BLOCKS):
        name = f"{prefix}/{depth:02}_{block}"
        metrics[f"{name}/variance"] = variance(epoch, depth)
        metrics[f"{name}/mean_square"] = 10 * variance(epoch, depth)
        metrics[f"{name}/expected_variance"] = expected_variance(epoch, depth)
    return metrics


def with_signal(events: list[Event], interval: int = 2) -> list[Event]:
    """The events with what ``signal_epochs = interval`` adds to them."""
    for event in events:
        if event["event"] == "epoch":
            if event["epoch"] == 1:
                event["metrics"] |= signal_metrics(0, "initial_signal")
            if event["epoch"] % interval == 0:
                event["metrics"] |= signal_metrics(event["epoch"])
    return events


def charts_of(directory: Path, events: list[Event]) -> SignalCharts:
    write_journal(directory, events)
    charts = signal_charts(load_study(directory))
    assert charts is not None
    return charts


def epoch_event(events: list[Event], trial: str, epoch: int) -> EpochEnded:
    for event in events:
        if event["event"] == "epoch" and (event["trial"], event["epoch"]) == (trial, epoch):
            return event
    raise LookupError(trial, epoch)


def curves(figure: dict[str, Any]) -> dict[str, list[Any]]:
    return {trace["name"]: trace["y"] for trace in figure["data"]}


def test_measurements_become_a_table_by_epoch_and_depth(tmp_path: Path) -> None:
    write_journal(tmp_path, with_signal(agc_sweep((0.01,), (64,), epochs=5)))
    table = signal_by_depth(load_study(tmp_path))
    assert sorted(set(table["epoch"])) == [0, 2, 4]  # no row for an epoch without a measurement
    assert len(table) == 3 * len(BLOCKS)
    assert list(table["block"][: len(BLOCKS)]) == list(BLOCKS)
    for row in table.to_dict("records"):
        assert row["variance"] == variance(row["epoch"], row["depth"])
        assert row["mean_square"] == 10 * row["variance"]
        assert row["expected_variance"] == expected_variance(row["epoch"], row["depth"])


def test_a_study_that_measured_nothing_has_no_section(tmp_path: Path) -> None:
    write_journal(tmp_path, agc_sweep())
    record = load_study(tmp_path)
    assert signal_by_depth(record).empty
    assert signal_charts(record) is None
    assert "Signal propagation" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_curve_for_each_measured_epoch_and_the_expectation(tmp_path: Path) -> None:
    charts = charts_of(tmp_path, with_signal(agc_sweep((0.01,), (64,), epochs=5)))
    ((title, figure),) = charts.panels
    assert title == "clip_factor 0.01, batch_size 64: best setting"
    drawn = curves(figure)
    assert list(drawn) == [
        "initialisation",
        "epoch 2",
        "epoch 4",
        "initialisation, expected",
        "epoch 4, expected",
    ]
    assert drawn["initialisation"] == [variance(0, depth) for depth in range(len(BLOCKS))]
    assert drawn["epoch 4"] == [variance(4, depth) for depth in range(len(BLOCKS))]
    assert drawn["initialisation, expected"] == [1.0] * len(BLOCKS)
    assert drawn["epoch 4, expected"] == [expected_variance(4, depth) for depth in range(len(BLOCKS))]
    assert [trace["meta"] for trace in figure["data"]] == [
        *({"shade": number} for number in range(3)),
        *[{"reference": True}] * 2,
    ]
    assert [trace["line"].get("dash") for trace in figure["data"]] == [None, None, None, "dot", "dash"]
    low, high = figure["layout"]["yaxis"]["range"]
    assert 10**low < min(map(min, drawn.values()))
    assert 10**high > max(map(max, drawn.values()))
    hover = figure["data"][1]["hovertext"][3]
    assert hover == "block_02, epoch 2\nvariance 1.68, expected 1.06\nmean square 16.8"


def test_best_of_each_stratum_and_diverged_trials_are_shown(tmp_path: Path) -> None:
    events = with_signal(agc_sweep())
    epoch_event(events, "agc_sweep-11", 2)["metrics"]["signal/06_final_conv/variance"] = 1e9
    charts = charts_of(tmp_path, events)
    assert [title for title, _ in charts.panels] == [
        "clip_factor 0.02, batch_size 64: best setting",
        "clip_factor 0.01, batch_size 256: best setting",
        "clip_factor none, batch_size 256: diverged",
    ]
    assert curves(charts.panels[2][1]).keys() == {
        "initialisation",
        "epoch 2",
        "initialisation, expected",
        "epoch 2, expected",
    }
    ranges = [figure["layout"]["yaxis"]["range"] for _, figure in charts.panels]
    assert ranges[0] == ranges[1]
    assert ranges[1][1] < 1 < 9 < ranges[2][1]  # what diverged does not flatten the others
    assert (charts.trials_left_out, charts.unmeasured, charts.undrawable) == (0, (), 0)


def test_an_expectation_that_does_not_move_is_drawn_once(tmp_path: Path) -> None:
    events = with_signal(agc_sweep((0.01,), (64,), epochs=4))
    for event in events:
        if event["event"] == "epoch":
            event["metrics"] |= {name: 1.0 for name in event["metrics"] if "expected" in name}
    drawn = curves(charts_of(tmp_path, events).panels[0][1])
    assert [name for name in drawn if "expected" in name] == ["initialisation, expected"]


def test_before_a_trial_has_finished_the_one_with_the_highest_accuracy_is_shown(tmp_path: Path) -> None:
    started = study_started({CLIP_FACTOR: [0.01, 0.02]})
    running = [
        *trial_events("agc_sweep-00", 1.0, [0.2, 0.3])[:-1],
        *trial_events("agc_sweep-01", 2.0, [0.2, 0.4])[:-1],
    ]
    charts = charts_of(tmp_path, with_signal([started, *running]))
    assert [title for title, _ in charts.panels] == ["clip_factor 0.02: highest top-1"]


def test_a_study_without_a_space_shows_its_first_seed_under_its_name(tmp_path: Path) -> None:
    events: list[Event] = [study_started({})]
    charts = charts_of(tmp_path, with_signal([*events, *trial_events("agc_sweep-00", 1.0, [0.5, 0.9])]))
    assert [title for title, _ in charts.panels] == ["agc_sweep-00: best setting"]


def test_a_deep_network_has_some_of_its_blocks_named(tmp_path: Path) -> None:
    events = agc_sweep((0.01,), (64,), epochs=4)
    for depth in range(84):  # as many as NFNet-F6 has
        name = f"signal/{depth:02}_block_{depth:02}/variance"
        epoch_event(events, "agc_sweep-00", 4)["metrics"][name] = 1.0
    ((_, figure),) = charts_of(tmp_path, events).panels
    axis = figure["layout"]["xaxis"]
    assert 8 <= len(axis["tickvals"]) <= 16
    assert axis["ticktext"] == [f"block_{depth:02}" for depth in axis["tickvals"]]
    assert len(figure["data"][0]["hovertext"]) == 84


def test_trials_and_epochs_that_are_left_out_are_told(tmp_path: Path) -> None:
    factors = [0.01 * number for number in range(1, 11)]
    started = study_started({CLIP_FACTOR: factors}, epochs=30)
    events: list[Event] = [started, *trial_events("agc_sweep-00", 1.0, [0.5] * 30)]
    for number in range(1, 9):
        events += trial_events(f"agc_sweep-{number:02}", 1.0 + number, [0.1] * 3, "diverged")
    events += trial_events("agc_sweep-09", 20.0, [], "diverged")
    charts = charts_of(tmp_path, with_signal(events, interval=1))
    assert len(charts.panels) == 6
    assert charts.trials_left_out == 1 + 8 - 6
    assert charts.unmeasured == ("clip_factor 0.1",)
    assert charts.epochs_left_out
    assert charts.epochs[0] == 0
    assert charts.epochs[-1] == 30
    assert 3 in charts.epochs  # the last thing that is known of those that diverged
    assert len(charts.epochs) <= EPOCHS_AT_MOST + 1
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "3 more measured trials of these kinds are left out" in page
    assert "Diverged before the first measurement: clip_factor 0.1." in page
    assert "Some measured epochs are left out." in page


def test_what_a_log_axis_cannot_show_is_told_and_breaks_the_curve(tmp_path: Path) -> None:
    events = with_signal(agc_sweep((0.01,), (64,), epochs=4))
    metrics = epoch_event(events, "agc_sweep-00", 2)["metrics"]
    metrics["signal/03_block_02/variance"] = math.inf
    metrics["signal/04_block_03/variance"] = math.nan
    metrics["signal/05_block_04/variance"] = 0.0
    charts = charts_of(tmp_path, events)
    drawn = curves(charts.panels[0][1])["epoch 2"]
    assert drawn[3:6] == [None, None, None]
    assert None not in drawn[:3]
    assert charts.undrawable == 3
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Not drawn, because a log axis cannot show them: 3 variances of 0, infinity or NaN." in page


def test_a_network_without_an_expectation_has_a_chart_without_one(tmp_path: Path) -> None:
    events = with_signal(agc_sweep((0.01,), (64,), epochs=4))
    for event in events:
        if event["event"] == "epoch":
            event["metrics"] = {
                name: value for name, value in event["metrics"].items() if "expected" not in name
            }
    charts = charts_of(tmp_path, events)
    assert list(curves(charts.panels[0][1])) == ["initialisation", "epoch 2", "epoch 4"]
    assert not charts.has_expectation
    assert "expected" not in charts.panels[0][1]["data"][0]["hovertext"][0]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_later_epochs_stand_out_more(theme: str) -> None:
    def brightness(color: str) -> float:
        red, green, blue = (float(part) for part in re.findall(r"[\d.]+", color))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lights = [brightness(color) for color in epoch_shades(6)[theme]]
    assert lights == sorted(lights, reverse=theme == "light")
    assert len(set(lights)) == 6


def test_a_browser_draws_the_panels(tmp_path: Path) -> None:
    write_journal(tmp_path / "study", with_signal(agc_sweep()))
    path = write_report(tmp_path / "study")
    page = page_after_scripts(path.as_uri(), tmp_path / "profile")
    panels = {
        match[1]: match[2]
        for match in re.finditer(r'<div class="chart[^>]*id="([^"]+)"(.*?)</figure>', page, re.DOTALL)
    }
    lines = {name: len(re.findall(r'<path class="js-line"', panel)) for name, panel in panels.items()}
    # initialisation, four measured epochs, two expectations; the diverged trial ended in its third epoch
    assert {name: lines[name] for name in lines if name.startswith("signal")} == {
        "signal-0": 7,
        "signal-1": 7,
        "signal-2": 4,
    }
    assert ">block_03<" in panels["signal-0"]
    # Each curve has the colour that its epoch has in the legend, as the colours of levels are in theirs.
    shades = epoch_shades(5)["light"]
    keys = re.findall(r'data-shade="\d+"><i style="color: var\((--shade-\d+)\)', page)
    assert [re.search(f"{key}: ([^;]+);", page)[1] for key in keys] == shades  # type: ignore[index]
    drawn = re.findall(r'class="js-line"[^>]*style="[^"]*stroke: ([^;]+);', panels["signal-0"])
    assert drawn[:5] == shades
    assert len(set(drawn[5:])) == 1
    assert drawn[5] not in shades
    looks = looks_of(levels(load_study(tmp_path / "study")))
    level_colors = ["rgb({}, {}, {})".format(*bytes.fromhex(look.light[1:])) for look in looks]
    assert re.search(r'class="js-line"[^>]*stroke: ([^;]+);', panels["time-0"])[1] in level_colors  # type: ignore[index]
