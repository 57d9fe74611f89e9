"""A study's report is one self-contained page that leaves nothing out.

Takes about eight seconds, most of it Chromium.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dashboards.effects_section import effects_section
from dashboards.figures.level_styles import (
    LEVELS_AT_MOST,
    PAPER,
    READABLE_CONTRAST,
    color_distance,
    contrast,
    levels_of,
    looks_of,
)
from dashboards.figures.time_charts import trial_label
from dashboards.measurement import measurement, shared_recipe
from dashboards.report import main, write_report
from dashboards.report_tables import trials_table
from nfnet_ray.analysis import load_study
from nfnet_ray.tracking.events import Event
from tests.tracking.chromium import page_after_scripts
from tests.tracking.example_study import (
    CLIP_FACTOR,
    START,
    agc_sweep,
    study_started,
    trial_events,
    write_journal,
)


class Page(HTMLParser):
    """What a page says and what it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = ""
        self.data: dict[str, dict[str, object]] = {}
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = "data" if ("id", "report") in attrs else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag in ("script", "style") else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data = json.loads(data)
        elif self._inside == "style":
            self.style += data
        elif self._inside != "script":
            self.text += data

    @property
    def trials(self) -> list[str | None]:
        return [attributes["data-trial"] for tag, attributes in self.tags if "data-trial" in attributes]


def report(directory: Path, events: list[Event]) -> Page:
    write_journal(directory, events)
    return Page(write_report(directory))


def test_damaged_images_that_were_left_out_are_told(tmp_path: Path) -> None:
    events = agc_sweep()
    assert "Damaged images" not in report(tmp_path / "sound", events).text
    epochs = [event for event in events if event["event"] == "epoch"]
    for event in epochs:
        event["metrics"] |= {"damaged_train_images": 0, "damaged_validation_images": 0}  # type: ignore[operator]
    assert "Damaged images" not in report(tmp_path / "skip", events).text
    epochs[0]["metrics"]["damaged_train_images"] = 1203  # type: ignore[index]
    assert "skipped, at most in one trial: 1,203 training images" in report(tmp_path / "damaged", events).text


def test_the_report_says_what_early_stopping_did(tmp_path: Path) -> None:
    events = agc_sweep()
    text = report(tmp_path, events).text
    stopped = [event for event in events if event["event"] == "trial_ended" and event["state"] == "stopped"]
    assert {event["epochs"] for event in stopped} == {3}
    reached = {event["trial"] for event in events if event["event"] == "epoch" and event["epoch"] == 3}
    assert f"after epoch 3, {len(stopped)} of {len(reached)} trials ended" in text
    trained = sum(event["event"] == "epoch" for event in events)
    assert (
        f"{trained} of 96 epochs were trained; the best clip_factor may be another one at the first rung"
        in text
    )
    assert "rank correlation " in text


def test_the_report_has_the_question_the_answer_every_trial_and_how_it_was_measured(tmp_path: Path) -> None:
    events = agc_sweep()
    page = report(tmp_path, events)
    assert page.trials == [f"agc_sweep-{number:02}" for number in range(12)]
    for words in (
        "How strongly should AGC clip the gradients",
        "Best setting: clip_factor 0.02 at batch_size 64: top-1 97.2%",
        "cannot be told apart from",
        "best clip_factor",
        "train_loss was NaN in epoch 3",
        "python studies/agc_sweep.py --data data/imagenet_samples.beton",
        "360 validation images",
        "9f86d081884c",
        "torch 2.15.0",
        "float32",
        "2 × CPU (x86-64), no GPU",
        "1 seed (0)",
    ):
        assert words in page.text
    assert "Not complete" not in page.text


def fact(directory: Path, events: list[Event], name: str) -> str:
    """A fact of how a study was measured; empty if the report does not have it."""
    write_journal(directory, events)
    return dict(measurement(load_study(directory))).get(name, "")


def test_the_recipe_that_all_trials_share_has_no_value_that_some_do_not_have(tmp_path: Path) -> None:
    one_size = agc_sweep((0.01, 0.02), (64,), epochs=1)
    write_journal(tmp_path / "one", one_size)
    shared = dict(shared_recipe(load_study(tmp_path / "one")))
    assert CLIP_FACTOR not in shared
    assert (
        shared["batch_size"] == "64"
    )  # the value of the trials, and not the one that the study started from
    assert (shared["seed"], shared["schedule.epochs"]) == ("0", "1")
    write_journal(tmp_path / "two", agc_sweep((0.01,), (64, 256), seeds=(0, 1), epochs=1))
    shared = dict(shared_recipe(load_study(tmp_path / "two")))
    assert shared[CLIP_FACTOR] == "0.01"
    assert not shared.keys() & {"batch_size", "seed"}


def test_a_study_of_which_nothing_was_measured_says_no_empty_words(tmp_path: Path) -> None:
    lost: list[Event] = [study_started({CLIP_FACTOR: (None,)}, epochs=2)]
    for event in trial_events(
        "agc_sweep-00", START, [], "diverged", "the training loss became nan in step 4"
    ):
        lost.append(event)
    lost.append({"event": "study_ended", "time": START + 5, "state": "finished", "wall_seconds": 5.4})
    assert fact(tmp_path, lost, "Time").startswith("5.4 s from start to end; paid for ")
    page = report(tmp_path / "page", lost).text
    assert "The trial diverged." in page
    assert "No trial has finished an epoch." in page
    assert "Marks at the ends of curves" not in page


def test_no_trial_can_be_given_up_before_the_first_rung(tmp_path: Path) -> None:
    short, long = agc_sweep((0.01,), (64,), epochs=3), agc_sweep((0.01,), (64,), epochs=4)
    assert fact(tmp_path / "short", short, "Trials") == "1 seed (0); 3 epochs each"
    assert "4 epochs each, unless given up early: at epoch 3" in fact(tmp_path / "long", long, "Trials")


@pytest.mark.parametrize(
    ("space", "recipe", "words"),
    [
        (
            {},
            {"optimizer.ema.decay": 0.9999, "data.eval_crop": "squash"},
            "Accuracyof the averaged weights (EMA, decay 0.9999); single crop “squash”: both sides resized",
        ),
        (
            {},
            {"optimizer.ema.decay": None, "data.eval_crop": "central"},
            "Accuracyof the weights after the last step of an epoch; single crop “central”: the central square",
        ),
        (
            {},
            {"optimizer.ema.decay": None, "data.eval_crop": "whole"},
            "Accuracyof the weights after the last step of an epoch; whole images, both sides resized to eval_size",
        ),
        (
            {"optimizer.ema.decay": [0.99, None]},
            {"data.eval_crop": "squash"},
            "averaged weights (EMA, decay 0.99), without EMA of the weights themselves; single crop “squash”",
        ),
    ],
)
def test_the_report_says_which_weights_and_which_crop_were_evaluated(
    tmp_path: Path, space: dict[str, list[Any]], recipe: dict[str, Any], words: str
) -> None:
    started = study_started(space)
    started["study"]["recipe"] |= recipe
    assert words in report(tmp_path, [started]).text


def test_a_journal_that_is_older_than_a_field_of_the_recipe_has_a_report(tmp_path: Path) -> None:
    events = agc_sweep((0.01,), (64,))
    assert events[0]["event"] == "study_started"
    del events[0]["study"]["recipe"]["optimizer.ema.decay"], events[0]["study"]["recipe"]["data.eval_crop"]
    text = report(tmp_path, events).text
    assert "averaged weights" not in text
    assert "single crop" not in text


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    page = report(tmp_path, agc_sweep())
    loading = [
        attributes for _, attributes in page.tags if {"src", "href", "srcset", "data"} & set(attributes)
    ]
    assert loading == []
    assert "url(" not in page.style
    assert "@import" not in page.style
    policies = [tag["content"] for _, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert "default-src 'none'" in str(policies[0])


def test_names_from_outside_are_shown_not_run(tmp_path: Path) -> None:
    events = agc_sweep()
    assert events[0]["event"] == "study_started"
    attack = "</script><script>alert(1)</script>"
    events[0]["study"]["question"] = attack
    for trial in events[0]["trials"]:
        trial["name"] += attack
    for event in events:
        if "trial" in event:
            event["trial"] += attack
    page = report(tmp_path, events)
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert attack in page.text


def test_a_study_in_which_all_trials_diverged_has_a_report(tmp_path: Path) -> None:
    started = study_started({CLIP_FACTOR: [0.08, None]})
    page = report(
        tmp_path,
        [
            started,
            *trial_events("agc_sweep-00", 1.0, [0.2, math.nan], "diverged", "train_loss was NaN in epoch 2"),
            *trial_events("agc_sweep-01", 9.0, [], "diverged", "train_loss was inf in epoch 1"),
            {"event": "study_ended", "time": 20.0, "state": "finished", "wall_seconds": 20.0},
        ],
    )
    assert "Every one of the 2 trials diverged." in page.text
    assert page.trials == ["agc_sweep-00", "agc_sweep-01"]
    assert list(page.data["figures"]) == ["settings", "time-0"]


def test_an_interrupted_study_has_a_report_that_says_so(tmp_path: Path) -> None:
    whole = agc_sweep()
    ended: Event = {
        "event": "study_ended",
        "time": whole[30]["time"],
        "state": "interrupted",
        "wall_seconds": 100.0,
    }
    page = report(tmp_path, [*whole[:30], ended])
    assert "Not complete. The study was interrupted: 3 of 12 trials have ended." in page.text
    assert "not started" in page.text
    assert len(page.trials) == 12


def test_the_report_of_a_running_study_says_what_runs_and_reloads_itself(tmp_path: Path) -> None:
    events = agc_sweep()[:30]
    for event in events:
        event["time"] += time.time() - events[-1]["time"]  # the driver said something just now
    page = report(tmp_path, events)
    assert "Running. 3 of 12 trials have ended. This page shows the results so far." in page.text
    assert "It reloads itself" in page.text
    assert page.data["written"]
    assert "running" in page.text.partition("All 12 trials")[2]
    ended: Event = {
        "event": "study_ended",
        "time": time.time(),
        "state": "interrupted",
        "wall_seconds": 100.0,
    }
    page = report(tmp_path, [ended])
    assert "reloads itself" not in page.text
    assert page.data["written"] is None


def test_a_study_of_which_nothing_was_heard_for_long_may_be_dead(tmp_path: Path) -> None:
    page = report(tmp_path, agc_sweep()[:30])
    assert re.search(
        "Running, or cut off. 3 of 12 trials have ended; the last event was recorded [^.]* ago.", page.text
    )
    assert "running or cut off" in page.text.partition("All 12 trials")[2]
    assert not re.search("running(?! or cut off)", page.text)


def test_reports_are_written_by_several_at_once_while_the_journal_grows(tmp_path: Path) -> None:
    """Whoever reads meanwhile finds a whole page; nothing is left behind but that."""
    events = agc_sweep()
    write_journal(tmp_path, events[:10])
    write_report(tmp_path)
    pages = set()
    with ThreadPoolExecutor(3) as threads:
        writers = [threads.submit(write_report, tmp_path) for _ in range(6)]
        for event in events[10:]:
            write_journal(tmp_path, [event])
            pages.add((tmp_path / "report.html").read_text(encoding="utf-8")[-len("</html>\n") :])
        assert [writer.result() for writer in writers] == [tmp_path / "report.html"] * 6
    assert pages == {"</html>\n"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl", "report.html"]


@pytest.mark.parametrize("events", [0, 1, 2], ids=["just started", "first trial started", "first epoch"])
def test_a_study_that_has_hardly_begun_has_a_report(tmp_path: Path, events: int) -> None:
    page = report(tmp_path, agc_sweep()[: events + 1])
    assert "No trial can be compared yet: of 12" in page.text
    assert len(page.trials) == 12


def test_a_study_without_a_space_has_a_report_with_its_trials_names(tmp_path: Path) -> None:
    page = report(tmp_path, [study_started({}), *trial_events("agc_sweep-00", 1.0, [0.5, 0.9])])
    assert "Result: top-1 90.0%" in page.text
    assert "agc_sweep-00" in page.text


def test_repetitions_are_told_apart(tmp_path: Path) -> None:
    page = report(tmp_path, agc_sweep((0.01, 0.02), (64,), seeds=(0, 1)))
    assert len(page.trials) == 4
    assert "2 seeds (0, 1)" in page.text
    headings = re.findall(r"seed", page.text.partition("All 4 trials")[2])
    assert headings


def test_a_browser_draws_the_curves(tmp_path: Path) -> None:
    write_journal(tmp_path / "study", agc_sweep())
    path = write_report(tmp_path / "study")
    page = page_after_scripts(path.as_uri(), tmp_path / "profile")
    _, *parts = re.split(r'<div class="chart[^>]* id="([^"]+)"', page)
    by_id = dict(zip(parts[::2], parts[1::2], strict=True))
    panels = [by_id[name] for name in ("settings", "time-0", "time-1")]
    curves = [len(re.findall(r'<path class="js-line"', panel)) for panel in panels]
    assert curves == [2, 6, 6]
    assert all("xtitle" in panel for panel in parts[1::2])  # every chart is drawn
    axes = [re.findall(r'class="xtitle"[^>]*>([^<]*)', panel) for panel in panels]
    assert axes == [["clip_factor"], ["training time (minutes)"], ["training time (minutes)"]]
    assert len(re.findall(r'<path class="yerror"', panels[0])) == 10
    assert len(re.findall(r'class="annotation-text"', panels[1])) == 6  # labels at the ends of the curves
    assert "4 of 8" not in panels[0]
    assert ">3 of 8<" not in panels[0]  # the caption says so of the only trial that was stopped early


def test_hollow_marks_have_labels_where_trials_ended_after_different_epochs(tmp_path: Path) -> None:
    events, cut = agc_sweep(), "agc_sweep-02"
    for labels, kept in (
        (set(), events),
        ({"3 of 8", "5 of 8"}, [e for e in events if not _is_late(e, cut)]),
    ):
        traces = report(tmp_path, kept).data["figures"]["settings"]["data"]  # type: ignore[index]
        assert {text for trace in traces for text in trace.get("text", [])} == labels


def _is_late(event: Event, trial: str) -> bool:
    """Whether it is what a trial did after its fifth epoch."""
    if event["event"] == "epoch":
        return event["trial"] == trial and event["epoch"] > 5
    return event["event"] in ("trial_ended", "study_ended") and event.get("trial", trial) == trial


def test_every_setting_has_a_mark_and_a_cell(tmp_path: Path) -> None:
    page = report(tmp_path, agc_sweep())
    traces = page.data["figures"]["settings"]["data"]  # type: ignore[index]
    marks = {
        text: symbol_at(trace, i) for trace in traces for i, text in enumerate(trace.get("hovertext", []))
    }
    assert len(marks) == 12
    assert marks["clip_factor none, batch_size 256<br>diverged after 3 epochs"] == "x"
    [stopped] = [text for text in marks if "after 3 of 8 epochs, stopped early" in text]
    assert stopped.startswith("clip_factor 0.005, batch_size 256<br>")
    assert marks[stopped] == "square-open"
    assert sorted(marks.values()).count("circle") == 6
    cells = [
        attributes.get("class")
        for tag, attributes in page.tags
        if tag == "td" and "data-sort" not in attributes
    ]
    # The first is the corner of the table.
    assert [cells.count(kind) for kind in ("unknown", "partial", "lost", "best", None)] == [1, 1, 1, 1, 9]
    assert "hollow: after 3 of 8 epochs" in page.text


def symbol_at(trace: dict[str, Any], place: int) -> str:
    """The marker's symbol of a point; one that shares its place in the trace with others has theirs."""
    symbol = trace["marker"]["symbol"]
    return str(symbol if isinstance(symbol, str) else symbol[place])


def test_twelve_networks_can_be_told_apart(tmp_path: Path) -> None:
    names = [f"tf_efficientnetv2_{number}" for number in range(12)]
    started = study_started({"model.name": names})
    events: list[Event] = [started]
    for number, trial in enumerate(started["trials"]):
        events += trial_events(trial["name"], 1.0, [0.3 + number / 100, 0.8 - number / 100])
    page = report(tmp_path, events)
    assert "Best setting: model tf_efficientnetv2_0: top-1 80.0%" in page.text
    curves, settings = (page.data["figures"][name] for name in ("time-0", "settings"))  # type: ignore[index]
    looks = looks_of(levels_of(names))
    for theme, paper in PAPER.items():
        assert len({(getattr(look, theme), look.dash, look.symbol) for look in looks}) == 12
        assert all(contrast(getattr(look, theme), paper) >= READABLE_CONTRAST for look in looks)
    assert len({(trace["line"]["dash"], trace["marker"]["symbol"][0]) for trace in curves["data"]}) >= 5
    assert [end["text"] for end in curves["layout"]["meta"]["ends"]] == names
    assert settings["layout"]["xaxis"]["ticktext"] == names
    assert {trace["mode"] for trace in settings["data"]} == {
        "markers"
    }  # words have no order: no line joins them


@pytest.mark.parametrize("count", [2, 6, 12, 1000])
def test_numbers_keep_their_order_and_can_be_seen(count: int) -> None:
    levels = levels_of([number / 1000 for number in range(count, 0, -1)])
    looks = looks_of(levels)
    assert len(looks) == len(levels) <= LEVELS_AT_MOST
    assert levels.index[0.001] == 0
    assert levels.index[count / 1000] == len(levels) - 1
    for theme, paper in PAPER.items():
        colors = [getattr(look, theme) for look in looks]
        assert all(contrast(color, paper) >= READABLE_CONTRAST for color in colors)
        lightness = [contrast(color, "#000000") for color in colors]
        assert lightness == sorted(lightness)
        distances = [color_distance(a, b) for a, b in itertools.pairwise(colors)]
        assert max(distances) < 1.5 * min(distances)


def test_each_panel_is_zoomed_to_its_own_best_trials(tmp_path: Path) -> None:
    started = study_started({CLIP_FACTOR: [0.01, 0.02, 0.04, 0.08], "batch_size": [64, 256]})
    last = iter([0.94, 0.3, 0.96, 0.31, 0.98, 0.29, 0.5, 0.3])
    events: list[Event] = [started]
    for trial in started["trials"]:
        events += trial_events(trial["name"], 1.0, [0.2, next(last)])
    figures: Any = report(tmp_path, events).data["figures"]
    ranges = [figures[f"time-{number}"]["layout"]["meta"]["top"] for number in (0, 1)]
    assert ranges[0] == pytest.approx([0.93, 0.99])
    assert ranges[1] == pytest.approx([0.28, 0.32])


def test_of_many_trials_the_best_have_curves_and_the_table_has_pages(tmp_path: Path) -> None:
    started = study_started({"schedule.base_learning_rate": [number / 100 for number in range(1, 61)]})
    events: list[Event] = [started]
    for number, trial in enumerate(started["trials"]):
        events += trial_events(trial["name"], 1.0, [0.2 + number / 1000, 0.3 + number / 100])
    page = report(tmp_path, events)
    figures: Any = page.data["figures"]
    kinds = [("band" in t["meta"], t["meta"].get("all", False)) for t in figures["time-0"]["data"]]
    assert kinds.count((True, False)) == 3
    assert kinds.count((False, False)) == 10
    points = [t for t in figures["time-0"]["data"] if t["meta"].get("all")]
    assert sum(label_points for t in points for _, label_points in t["meta"]["trials"]) == 120
    rows = [attributes for tag, attributes in page.tags if "data-trial" in attributes]
    assert [("hidden" in row) for row in rows] == [False] * 50 + [True] * 10
    assert rows[0]["data-trial"] == "agc_sweep-59"  # the best first


def test_long_curves_of_many_trials_are_thinned_but_keep_their_ends_and_their_best(tmp_path: Path) -> None:
    started = study_started(
        {"schedule.base_learning_rate": [number / 100 for number in range(1, 42)]}, epochs=200
    )
    events: list[Event] = [started]
    for number, trial in enumerate(started["trials"]):
        top1 = [(epoch + number) / 1000 for epoch in range(200)]
        top1[number] = 0.999
        events += trial_events(trial["name"], 1.0, top1, seconds_per_epoch=1.0)
    figures: Any = report(tmp_path, events).data["figures"]
    whole = [t for t in figures["time-0"]["data"] if not t["meta"].get("all") and "band" not in t["meta"]]
    assert {len(t["x"]) for t in whole} == {200}
    curves = []
    for trace in figures["time-0"]["data"]:
        at = 0
        for _, points in trace["meta"].get("trials", ()):
            curves.append((trace["x"][at : at + points], trace["y"][at : at + points]))
            at += points + 1
    assert len(curves) == 41
    for x, y in curves:
        assert 50 <= len(x) == len(y) <= 51
        assert (x == sorted(x), max(y)) == (True, 0.999)
        assert (x[0], x[-1]) == pytest.approx((1 / 60, 200 / 60), rel=1e-3)


def test_the_command_line_finds_a_study_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_journal(tmp_path / "runs" / "agc_sweep", agc_sweep((0.01,), (64,)))
    assert main(["agc_sweep"]) == 0
    assert capsys.readouterr().out.strip() == "runs/agc_sweep/report.html"
    assert main(["runs/agc_sweep", "--output", "elsewhere/page.html"]) == 0
    assert (tmp_path / "elsewhere" / "page.html").stat().st_size > 1_000_000
    capsys.readouterr()
    assert main(["agc_swep"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "did you mean agc_sweep?" in message
    assert main(["other"]) == 2
    assert "the studies in ./runs are: agc_sweep" in capsys.readouterr().err
    assert main(["agc_sweep", "--output", "runs/agc_sweep/journal.jsonl/page.html"]) == 2


def test_seeds_that_contenders_had_later_are_told() -> None:
    """Trials of the same setting are told apart, and no text says that there was one seed."""
    results = Path(__file__).resolve().parents[2] / "studies" / "results"
    record = load_study(results / "sam_cifar10")
    assert dict(measurement(record))["Trials"].startswith("1 seed (0), and 2 more (1, 2) for contenders; ")
    labels = [trial_label(record, trial) for trial in record.trials.to_dict("records")]
    assert len(set(labels)) == len(labels) == len(record.trials)
    effects = effects_section(record)
    assert effects is not None
    [caption] = [one.caption for one in effects.charts if one.chart.id == "best-so-far"]
    assert "95% interval of the best so far over seeds and images" in caption


def test_swept_epochs_and_those_that_were_trained_have_columns_of_two_names() -> None:
    record = load_study(Path(__file__).resolve().parents[2] / "studies" / "results" / "efficientnet_cifar10")
    names = [column.name for column in trials_table(record, None).columns]
    assert len(set(names)) == len(names)
    assert {"epochs", "trained epochs"} <= set(names)
