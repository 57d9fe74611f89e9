"""Names and values hold whatever a journal does; charts show them as they are, and keep room for themselves.

One page in a browser, about 8 s.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dashboards.catalogue import chart_colors, charts_by_name
from dashboards.figures.level_styles import LABEL_CHARACTERS, levels_of, short_labels
from dashboards.figures.paper.files import write_figures
from dashboards.figures.plotly_texts import TEXTS, with_marked_up_texts, wrapped
from dashboards.figures.time_axes import with_axes
from dashboards.report import write_report
from dashboards.report_facts import report_facts
from dashboards.study_results import StudyResults
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

ODD = (
    "<b>B</b> & <i>I</i>",
    "<a href='//e.org'>L</a>",
    "%{y} {metric} $x^2$",
    "&lt;&amp; @accent",
    "@ink",
    "שלום",
)
LONG = "nfnet_" + "x" * 194

# Every text of every chart, and what is under the pointer at the first mark of each curve.
READER = """
addEventListener("error", event => { document.title = `error: ${event.message}`; });
setTimeout(async () => {
  const found = [];
  for (const chart of charts) {
    for (const [curveNumber, trace] of chart.data.entries())
      if (chart.id === "time-0") {
        Plotly.Fx.hover(chart, [{curveNumber, pointNumber: 0}]);
        await new Promise(done => setTimeout(done, 60));  // Plotly shows one at most every 50 ms
        found.push(...[...chart.querySelectorAll(".hoverlayer text")].map(text => text.textContent));
      }
    found.push(...[...chart.querySelectorAll("text")].map(text => text.textContent));
  }
  const styled = ".chart text [style*='font-weight: bold'], .chart text [style*='italic'], .chart text a";
  document.title = JSON.stringify({
    found, styled: document.querySelectorAll(styled).length,
    narrow: charts.filter(chart => chart.querySelector(".bglayer .bg")?.getBoundingClientRect().width < 100).length,
  });
}, 5000);
"""


def odd_study(values: tuple[Any, ...]) -> list[Event]:
    started = study_started({"model.name": list(values), "batch_size": [64, 256]})
    events: list[Event] = [started]
    for number, trial in enumerate(started["trials"]):
        events += trial_events(trial["name"], START, [0.2, 0.5 + 0.02 * number], seconds_per_epoch=1.0)
    return events


def test_a_browser_shows_texts_as_they_are(tmp_path: Path) -> None:
    write_journal(tmp_path / "study", odd_study((*ODD, LONG)))
    page = write_report(tmp_path / "study")
    page.write_text(page.read_text().replace("</body>", f"<script>{READER}</script></body>"))
    html = page_after_scripts(page.as_uri(), tmp_path / "profile")
    [title] = re.findall("<title>(.*?)</title>", html, re.DOTALL)[:1]
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        title = title.replace(entity, sign)
    shown = json.loads(title)
    for odd in ODD:
        assert odd in shown["found"], "an axis or the end of a curve"
        assert [text for text in shown["found"] if f"model {odd}, batch_size 64" in text], (
            f"{odd} under the pointer"
        )
    assert shown["styled"] == 0
    assert shown["narrow"] == 0
    assert LONG not in shown["found"]
    assert any(text.startswith("nfnet_xxx") and text.endswith("…") for text in shown["found"])


def test_every_text_of_every_chart_is_marked_up_for_plotly(tmp_path: Path) -> None:
    write_journal(tmp_path, odd_study(("<1>", "<2>", "<3>")))
    record = load_study(tmp_path)

    def plain(value: Any, of: str = "") -> list[str]:
        if isinstance(value, dict):
            return [text for key, inner in value.items() if key != "meta" for text in plain(inner, key)]
        if isinstance(value, list | tuple):
            return [text for inner in value for text in plain(inner, of)]
        return [value] if isinstance(value, str) and of in TEXTS and re.search("<[123]>", value) else []

    charts = [chart for panels in charts_by_name(record).values() for chart in panels]
    assert sum(len(plain(chart.figure)) for chart in charts) > 20
    assert [plain(with_marked_up_texts(chart.figure)) for chart in charts] == [[]] * len(charts)
    for name in ("accuracy_against_time", "settings_heat_map"):
        assert "<1>" not in StudyResults.of(record).figure(name).to_json(engine="json")
        assert "&#60;1&#62;" in StudyResults.of(record).figure(name).to_json(engine="json")


def test_a_paper_has_plain_texts(tmp_path: Path) -> None:
    write_journal(tmp_path / "study", odd_study(("$a$b", "<b>&", "@ink")))
    record = load_study(tmp_path / "study")
    [svg, *_] = write_figures(
        {"settings": charts_by_name(record)["settings"]}, (), chart_colors(record), tmp_path
    )
    texts = re.findall(r"<text[^>]*>(.*?)</text>", svg.read_text())
    assert {"$a$b", "&lt;b&gt;&amp;", "@ink"} <= set(texts)


def test_long_labels_leave_room_and_stay_apart() -> None:
    labels = ["none", LONG, f"{LONG}y", "a\nb"]
    short = short_labels(labels)
    assert short[0] == "none"
    assert short[3] == "a b"
    assert len(set(short)) == 4
    assert max(map(len, short)) <= LABEL_CHARACTERS
    assert [len(line) for line in wrapped(f"{LONG}\nb").split("\n")] == [70, 70, 60, 1]


def test_groups_of_close_numbers_have_names_that_differ() -> None:
    levels = levels_of([0.1 + number / 10_000 for number in range(40)])
    assert len(set(levels.labels)) == len(levels) == 8
    assert levels.labels[0] == "0.1 to 0.1004"


def test_of_grouped_numbers_no_line_goes_up_and_down(tmp_path: Path) -> None:
    started = study_started({CLIP_FACTOR: [number / 1000 for number in range(1, 31)]})
    events: list[Event] = [started]
    for number, trial in enumerate(started["trials"]):
        top1, state = ([0.2, 0.4], "stopped") if number % 5 == 0 else ([0.2] * 7 + [0.5], "finished")
        events += trial_events(trial["name"], START, top1, state)
    write_journal(tmp_path, events)
    [chart] = charts_by_name(load_study(tmp_path))["settings"]
    assert {trace["mode"] for trace in chart.figure["data"]} == {"markers"}


def test_a_caption_says_that_there_are_intervals_only_where_there_are(tmp_path: Path) -> None:
    conditions = {"batch_size": [64, 128, 256, 512], "loss.label_smoothing": [0.0, 0.1]}
    for name, space in (("few", {}), ("many", conditions)):
        started = study_started({CLIP_FACTOR: [0.01, 0.02], **space})
        events: list[Event] = [started]
        for trial in started["trials"]:
            events += trial_events(trial["name"], START, [0.5] * 8)
        write_journal(tmp_path / name, events)
        settings = report_facts(load_study(tmp_path / name), START).settings
        assert settings is not None
        has_bars = any("error_y" in trace for trace in settings.charts[0].figure["data"])
        assert has_bars == (name == "few") == ("95% interval" in settings.caption)


def test_no_axis_of_a_share_goes_beyond_it(tmp_path: Path) -> None:
    events = agc_sweep(clip_factors=(0.01, 0.02), batch_sizes=(64,))
    for event in events:
        if event["event"] == "epoch":
            event["metrics"] |= {"agc_clipped_fraction": float(event["epoch"] < 4), "validation_top1": 1.0}
    write_journal(tmp_path, events)
    named = charts_by_name(load_study(tmp_path))
    [curves] = named["accuracy_against_time"]
    ranges = [
        with_axes(curves.figure, y="agc_clipped_fraction")["layout"]["yaxis"]["range"],
        *(chart.figure["layout"]["yaxis"]["range"] for chart in (curves, *named["settings"])),
    ]
    assert ranges[0][0] == 0
    assert [top for _, top in ranges] == [1.005] * 3
