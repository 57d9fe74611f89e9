"""``python -m dashboards.signal_propagation`` measures a new network, and draws and prints the same numbers each time.

Takes about six seconds, most of it torch and Chromium.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dashboards.signal_propagation import QUANTITIES, main
from tests.tracking.chromium import page_after_scripts

PARTS = ["stem", *(f"block_{index:02d}" for index in range(5)), "final_conv"]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_the_signal_page_needs_no_other_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "signal.html"
    lines = printed(capsys, "nfnet_pico", str(page))
    assert lines[-1] == f"wrote {page}"
    assert [line.split()[0] for line in lines[1:-1]] == PARTS
    stage_2, stage_3, stage_4 = 1 / 1.04, 1 / 1.04**2, 1 / 1.04**2 / 1.08  # of 1, 1, 2 and 1 blocks
    expected = [float(line.split()[2]) for line in lines[1:-1]]
    assert expected == pytest.approx([1, 1, stage_2, stage_3, stage_3, stage_4, stage_4], rel=1e-3)
    text = page.read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)
    for words in ("new nfnet_pico", "32×32", "Initial skip gains", "Skip gains of 1", "block_04"):
        assert words in text
    assert printed(capsys, "nfnet_pico", str(page)) == lines  # the same numbers again
    figures = json.loads(re.search(r'id="report">(.*?)</script>', text)[1])["figures"]  # type: ignore[index]
    for figure, column in zip(figures.values(), (1, 3), strict=True):
        drawn = {trace["name"]: trace["y"] for trace in figure["data"]}
        assert list(drawn) == list(QUANTITIES)
        assert [f"{value:.4g}" for value in drawn["variance"]] == [
            line.split()[column] for line in lines[1:-1]
        ]
        assert [value is None for value in drawn["variance of the residual branch"]] == [
            True,
            *[False] * 5,
            True,
        ]


def test_a_browser_draws_both_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "signal.html"
    printed(capsys, "nfnet_pico", str(page), "--size", "16", "--set", "se_ratio=none")
    drawn = page_after_scripts(page.as_uri(), tmp_path / "profile")
    charts = re.split(r'<div class="chart', drawn)[1:]
    assert [len(re.findall(r'<path class="js-line"', chart)) for chart in charts] == [4, 4]
    assert len(re.findall(r"<button[^>]*data-level", drawn)) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet50", "x.html"], ["resnet50", "baseline"]),
        (["nfnet_f9", "x.html"], ["unknown model 'nfnet_f9'", "did you mean"]),
        (["nfnet_pico", "x.html", "--set", "width"], ["--set width", "FIELD=VALUE"]),
        (["nfnet_pico", "/nowhere/x.html"], ["/nowhere"]),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("python -m dashboards.signal_propagation: ")
    assert [word for word in words if word not in captured.err] == []
