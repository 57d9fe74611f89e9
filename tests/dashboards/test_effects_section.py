"""The report's section on what each field does shows what the study can support, and is legible.

Takes about ten seconds, most of it Chromium.
"""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from dashboards.effects_section import EffectsSection, effects_section
from dashboards.report import write_report
from nfnet_ray.analysis import effect_sentences, load_study
from nfnet_ray.errors import UserError
from nfnet_ray.tracking.events import Event
from studies.managing.commands import main
from tests.tracking.chromium import page_after_scripts
from tests.tracking.example_study import (
    CLIP_FACTOR,
    START,
    agc_sweep,
    study_started,
    trial_events,
    write_journal,
)

FACTORS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, None)
RHO = "optimizer.sam.rho"
RESULTS = Path(__file__).parents[2] / "studies" / "results"


def sweep(factors: tuple[Any, ...] = FACTORS, batch_sizes: tuple[int, ...] = (64, 256)) -> list[Event]:
    """A grid without early stopping, three seeds: the best factor is 0.02 at batch size 64 and 0.01 at 256."""
    draw = random.Random(5)
    started = study_started({CLIP_FACTOR: factors, "batch_size": batch_sizes}, (0, 1, 2))
    started["study"]["halving"] = None
    events: list[Event] = [started]
    for number, trial in enumerate(started["trials"]):
        factor, batch = trial["point"][CLIP_FACTOR] or 1.0, trial["point"]["batch_size"]
        top1 = 0.93 - 0.01 * math.log2(factor / (0.02 if batch == 64 else 0.01)) ** 2 + draw.gauss(0, 0.002)
        events += trial_events(
            trial["name"], START + 400 * number, [max(0.1, top1 * epoch / 8) for epoch in range(1, 9)]
        )
    return events


def random_search(settings: int = 40) -> list[Event]:
    """Three fields, of which the worse half of the settings was given up at epoch 2."""
    draw = random.Random(6)
    started = study_started({}, name="joint")
    started["study"] |= {  # type: ignore[typeddict-item]
        "space": {
            CLIP_FACTOR: {"low": 0.002, "high": 0.3, "log": True, "or_none": True},
            "model.dropout": {"low": 0.0, "high": 0.5},
            RHO: {"low": 0.005, "high": 0.2, "log": True},
        },
        "search": {"name": "random", "settings": settings, "seed": 0},
    }
    results = []
    started["trials"] = []
    for number in range(settings):
        point = {
            CLIP_FACTOR: None if draw.random() < 0.15 else 0.002 * 150 ** draw.random(),
            "model.dropout": draw.uniform(0, 0.5),
            RHO: 0.005 * 40 ** draw.random(),
        }
        merit = (
            -0.012 * math.log2((point[CLIP_FACTOR] or 0.6) / 0.03) ** 2
            - 0.2 * (point["model.dropout"] - 0.1) ** 2
        )
        results.append(merit + draw.gauss(0, 0.003))
        started["trials"].append(
            {"name": f"joint-{number:02}", "point": point, "recipe": {**point, "seed": 0}}  # type: ignore[dict-item]
        )
    bound = sorted(results)[settings // 2]
    events: list[Event] = [started]
    for number, merit in enumerate(results):
        curve = [0.4 + merit, 0.6 + merit] + [0.9 + merit] * (6 if merit >= bound else 0)
        state = "finished" if merit >= bound else "stopped"
        events += trial_events(started["trials"][number]["name"], START + 400 * number, curve, state)
    return events


def section(directory: Path, events: list[Event]) -> EffectsSection | None:
    write_journal(directory, events)
    return effects_section(load_study(directory))


def test_a_study_that_supports_nothing_has_no_section(tmp_path: Path) -> None:
    few = study_started({CLIP_FACTOR: (0.01, 0.02)})
    events: list[Event] = [few]
    for trial in few["trials"]:
        events += trial_events(trial["name"], START, [0.5] * 8)
    assert section(tmp_path / "few", events) is None
    nothing = study_started({})
    assert (
        section(
            tmp_path / "nothing", [nothing, *trial_events(nothing["trials"][0]["name"], START, [0.5] * 8)]
        )
        is None
    )
    points = sweep()
    points[0]["study"]["points"] = [trial["point"] for trial in points[0]["trials"]]  # type: ignore[typeddict-item]
    points[0]["study"]["space"] = {}  # type: ignore[typeddict-item]
    assert section(tmp_path / "points", points) is None
    started = sweep()[0]
    assert started["event"] == "study_started"
    lost: list[Event] = [started]
    for trial in started["trials"]:
        lost += trial_events(trial["name"], START, [0.5, 0.1], "diverged", "the loss became nan")
    assert section(tmp_path / "lost", lost) is None
    assert "What each field does" not in write_report(tmp_path / "few").read_text(encoding="utf-8")


def test_a_grid_has_isolation_responses_importance_parallel_coordinates_and_best_so_far(
    tmp_path: Path,
) -> None:
    found = section(tmp_path, sweep())
    assert found is not None
    charts = {one.chart.id: one for one in found.charts}
    responses = ["response-0", "response-1"]
    assert list(charts) == ["isolation", *responses, "importance", "parallel-coordinates", "best-so-far"]
    assert charts["response-1"].chart.title == "Response to clip_factor, batch_size 256"
    # Plotly's own ticks of a log axis would be powers of ten.
    axis = charts["response-0"].chart.figure["layout"]["xaxis"]
    assert axis["ticktext"] == ["0.0025", "0.005", "0.01", "0.02", "0.04", "0.08", "0.16", "none"]
    assert axis["type"] == "log"
    assert axis["range"][1] > math.log10(axis["tickvals"][-1])
    assert found.sentences[0].startswith("Optimum of clip_factor at batch_size 64: 0.0")
    assert "none is " in found.sentences[0]
    for one in found.charts:
        assert one.caption
        if one.chart.id == "parallel-coordinates":  # each field has an axis of its own
            continue
        layout = one.chart.figure["layout"]
        assert layout["xaxis"]["title"]["text"]
        assert layout["yaxis"].get("title") or one.chart.id == "importance"
    assert "no other order is drawn" in charts["best-so-far"].caption
    assert "over seeds and images" in charts["best-so-far"].caption


def test_one_field_has_no_isolation_as_there_are_no_others(tmp_path: Path) -> None:
    found = section(tmp_path, sweep(batch_sizes=(64,)))
    assert found is not None
    assert [one.chart.id for one in found.charts] == ["response-0", "best-so-far"]


def test_a_curve_is_missed_where_early_stopping_left_too_few_values(tmp_path: Path) -> None:
    events = agc_sweep((0.005, 0.01, 0.02, 0.04, 0.08, None))
    # At batch size 256 two of six are stopped or diverge anyway.
    given_up = {"agc_sweep-00", "agc_sweep-06", "agc_sweep-07"}
    events = [
        event
        for event in events
        if not (event["event"] == "epoch" and event["trial"] in given_up and event["epoch"] > 3)
    ]
    for event in events:
        if event["event"] == "trial_ended" and event["trial"] in given_up:
            event["state"], event["epochs"] = "stopped", 3
    found = section(tmp_path, events)
    assert found is not None
    assert not any(one.chart.id.startswith("response") for one in found.charts)
    told = "a curve at the end needs 5 values, and early stopping left fewer under 2 of 2 conditions"
    assert any(told in sentence for sentence in found.sentences)


def test_a_random_search_has_both_importances_a_pair_and_a_band_over_orders(tmp_path: Path) -> None:
    found = section(tmp_path, random_search())
    assert found is not None
    charts = {one.chart.id: one for one in found.charts}
    assert {"isolation", "importance", "pair", "best-so-far"} <= charts.keys()
    bars = charts["importance"].chart.figure["data"]
    # The first stage is the upper of two bars, so it is the second trace.
    assert [trace["meta"]["tone"] for trace in bars] == ["accent", "quiet"]
    assert "Grey: after epoch 2 of 8 over all 40 settings; colour: at the end" in charts["importance"].caption
    assert "over all orders" in charts["best-so-far"].caption
    assert "Hollow" in charts["isolation"].caption
    sentences = effect_sentences(load_study(tmp_path))
    assert sentences[-1].startswith(
        "Of the differences in accuracy after epoch 2 of 8 (all 40 settings), clip_factor explains"
    )
    assert any("that early stopping left" in sentence for sentence in found.sentences)


def test_a_curve_says_where_it_holds_if_the_optimum_depends_on_another_field() -> None:
    found = effects_section(load_study(RESULTS / "curves"))
    assert found is not None
    [drawn] = [one for one in found.charts if one.chart.id == "response-0"]
    assert (
        "It is that at base_learning_rate 0.53: the optimum depends on base_learning_rate." in drawn.caption
    )
    assert "Dashed and dotted: the curve at base_learning_rate 0.24 and 1.2." in drawn.caption
    low, high = (trace for trace in drawn.chart.figure["data"] if trace["mode"] == "lines+text")
    assert [trace["text"][-1] for trace in (low, high)] == [" 0.24", " 1.2"]
    best = [trace["x"][max(range(61), key=trace["y"].__getitem__)] for trace in (low, high)]
    assert best == [pytest.approx(0.097, rel=0.05), pytest.approx(0.0076, rel=0.05)]
    [moves] = [sentence for sentence in found.sentences if "and it moves: 0.097 at 0.24" in sentence]
    assert moves.startswith("Optimum of clip_factor: 0.026")
    assert found.sentences[-1].startswith("What clip_factor does depends on base_learning_rate (p = 8e-07")


def test_show_says_what_the_fields_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_journal(tmp_path / "grid", sweep())
    assert main(["show", "grid", "--storage", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    sentences = effect_sentences(load_study(tmp_path / "grid"))
    assert len(sentences) == 2
    assert all(f"{sentence}." in said for sentence in sentences)


def test_chromium_draws_every_chart(tmp_path: Path) -> None:
    write_journal(tmp_path / "grid", sweep())
    write_journal(tmp_path / "random", random_search())
    html = page_after_scripts(write_report(tmp_path / "grid").as_uri(), tmp_path / "profile")
    part = html[html.index("What each field does") : html.index("Accuracy against training time")]
    titles = re.findall(r'class="[xy]title"[^>]*>([^<]*)<', part)
    assert titles.count("validation top-1") == 3
    assert "clip_factor (log scale)" in titles
    assert "epochs of all trials so far" in titles
    assert "share of the differences in accuracy" in titles
    assert part.count('class="main-svg"') >= 2 * 5
    html = page_after_scripts(write_report(tmp_path / "random").as_uri(), tmp_path / "profile")
    part = html[html.index("What each field does") : html.index("Accuracy against training time")]
    assert len(re.findall(r'class="hm"', part)) == 1
    assert "best validation top-1 so far" in part


def test_a_record_says_which_fields_there_are(tmp_path: Path) -> None:
    write_journal(tmp_path, sweep())
    record = load_study(tmp_path)
    assert record.isolation("batch_size")["label"].tolist() == ["64", "256"]
    assert record.isolation().equals(record.isolation(CLIP_FACTOR))
    with pytest.raises(UserError, match="sweeps no field 'dropout'; swept are clip_factor, batch_size"):
        record.response("dropout")
