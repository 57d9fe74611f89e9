"""The menus above the curves, the download of a chart and the copying of commands, in a browser. About 10 s."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dashboards.catalogue import charts_by_name, with_chosen_axes
from dashboards.report import write_report
from nfnet_ray.analysis import load_study
from tests.tracking.chromium import page_after_scripts
from tests.tracking.example_study import agc_sweep, write_journal

# What a reader does, and what the page then shows, as the page's title.
READER = """
addEventListener("error", event => { document.title = `error: ${event.message}`; });
setTimeout(async () => {
  for (const [name, value] of Object.entries(CHOICE)) {
    const control = document.querySelector(`.axes [name=${name}]`);
    if (control.type === "checkbox") control.checked = value; else control.value = value;
    control.dispatchEvent(new Event("change"));
  }
  const {data, layout} = document.getElementById("time-0");
  const chart = await downloaded("time-0");
  let clipboard = null;
  // The browser's own takes real time, which the page's does not wait for.
  Object.defineProperty(navigator, "clipboard", {value: {writeText: async text => { clipboard = text; }}});
  document.querySelector(".copy").click();
  await new Promise(done => setTimeout(done, 200));
  document.title = JSON.stringify({
    x: data[0].x, y: data[0].y, hover: data[0].hovertemplate, traces: data.length,
    xaxis: [layout.xaxis.title.text, layout.xaxis.range], yaxis: [layout.yaxis.title.text, layout.yaxis.range],
    svg: chart.slice(0, 19), zoom: document.querySelectorAll(".zoom:not(:disabled)").length,
    copied: [document.querySelector(".copy").textContent, clipboard],
    command: document.querySelector(".command pre").textContent,
  });
}, 5000);
"""


@pytest.mark.parametrize(
    ("x", "y", "log"),
    [
        ("images", "train_loss", True),
        ("accelerator_hours", "validation_top1", False),
        ("time", "agc_clipped_fraction", False),
    ],
)
def test_a_menu_does_what_a_notebook_does(x: str, y: str, log: bool, tmp_path: Path) -> None:
    events = agc_sweep()
    for event in events:
        if event["event"] == "epoch":
            event["metrics"]["agc_clipped_fraction"] = float(event["epoch"] < 4)
    write_journal(tmp_path / "study", events)
    page = write_report(tmp_path / "study")
    choice = json.dumps({"x": x, "y": y, "logX": log, "logY": log})
    script = READER.replace("CHOICE", choice)
    page.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    html = page_after_scripts(page.as_uri(), tmp_path / "profile")
    [title] = re.findall("<title>(.*?)</title>", html)[:1]
    shown = json.loads(title.replace("&lt;", "<").replace("&gt;", ">"))
    named = charts_by_name(load_study(tmp_path / "study"))
    charts = named["accuracy_against_time"]
    figure = with_chosen_axes(charts, x, y, log_x=log, log_y=log)[0].figure
    trace, layout = figure["data"][0], figure["layout"]
    assert shown["x"] == pytest.approx(trace["x"])
    assert shown["y"] == pytest.approx(trace["y"])
    assert shown["hover"] == trace["hovertemplate"]
    assert shown["traces"] == len(figure["data"])
    for axis in ("xaxis", "yaxis"):
        assert shown[axis][0] == layout[axis]["title"]["text"]
        assert shown[axis][1] == pytest.approx(layout[axis]["range"], rel=1e-4)
    assert shown["svg"] == "data:image/svg+xml,"
    others = [chart for name, panels in named.items() if name != "accuracy_against_time" for chart in panels]
    assert shown["zoom"] == sum(chart.zoomable for chart in others)
    assert shown["copied"] == ["Copied", shown["command"]]
