"""Pages from templates: what is installed, what is escaped, and scripts that run without an error.

Takes about two seconds, most of it Chromium.
"""

from __future__ import annotations

import base64
import json
import re
import tomllib
import zlib
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from plotly.offline import get_plotlyjs

from dashboards.figures.plotly_texts import marked_up
from dashboards.page import TEMPLATES, render_page
from dashboards.report import write_report
from tests.tracking.chromium import page_after_scripts
from tests.tracking.example_study import agc_sweep, study_started, trial_events, write_journal

REPOSITORY = Path(__file__).resolve().parents[2]
ATTACK = """</script></style>"'&<b>\\{{ 7 * 7 }}{% raw %}"""


def test_an_installed_package_has_the_templates() -> None:
    patterns = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    shipped = {
        path for pattern in patterns["dashboards"] for path in (REPOSITORY / "dashboards").glob(pattern)
    }
    assert shipped == {path for path in TEMPLATES.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "path", sorted([*TEMPLATES.glob("*.css"), *TEMPLATES.glob("*.js")]), ids=lambda path: path.name
)
def test_a_style_sheet_or_script_does_not_end_its_element(path: Path) -> None:
    assert "</" not in path.read_text(encoding="utf-8")


def test_a_value_cannot_leave_its_place_in_the_page(tmp_path: Path) -> None:
    """Neither in text, in an attribute, in the data of the script, nor in a style sheet."""
    started = study_started({"model.name": [ATTACK, "b"], "batch_size": [64, 256]}, name=ATTACK)
    events = [event for trial in started["trials"] for event in trial_events(trial["name"], 1.0, [0.5, 0.9])]
    write_journal(tmp_path, [started, *events])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert len(re.findall("<script", page)) == len(re.findall("</script>", page))
    assert "<b>" not in page
    assert "&lt;/script&gt;&lt;/style&gt;&#34;&#39;&amp;&lt;b&gt;\\{{ 7 * 7 }}{% raw %}" in page
    data = re.search(r'<script type="application/json" id="report">(.*?)</script>', page)
    assert data
    told = json.dumps(json.loads(data[1]), ensure_ascii=False).replace('\\"', '"').replace("\\\\", "\\")
    assert marked_up(ATTACK) in told  # as Plotly takes it


def test_a_fact_that_a_template_needs_is_not_left_out_silently() -> None:
    with pytest.raises(UndefinedError, match="'report' is undefined"):
        render_page("report.html.jinja", [])


def test_the_page_has_plotly_in_less_than_half_of_its_size(tmp_path: Path) -> None:
    write_journal(tmp_path, agc_sweep())
    page = write_report(tmp_path).read_text(encoding="utf-8")
    [packed] = re.findall(r'<script type="text/plain" id="plotly">([^<]*)</script>', page)
    assert zlib.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    assert len(page) < len(get_plotlyjs()) / 2


@pytest.mark.parametrize("trials", [12, 60], ids=["a short table", "a table in pages"])
def test_the_scripts_run_without_an_error(trials: int, tmp_path: Path) -> None:
    write_journal(tmp_path / "study", agc_sweep([number / 1000 for number in range(1, trials // 2 + 1)]))
    report = write_report(tmp_path / "study")
    catching = "<script>addEventListener('error', event => { document.title = `error: ${event.message}`; });</script>"
    report.write_text(
        report.read_text(encoding="utf-8").replace("<main>", f"{catching}<main>"), encoding="utf-8"
    )
    page = page_after_scripts(report.as_uri(), tmp_path / "profile")
    assert re.findall("<title>(.*?)</title>", page)[0] == "agc_sweep: report"
    rows = re.findall(r'<tr data-trial="[^"]*"(?: class="best")?( hidden="")?>', page)
    assert (rows.count(""), rows.count(' hidden=""')) == ((12, 0) if trials == 12 else (50, 10))
