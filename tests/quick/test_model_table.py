"""``python -m nfnet_ray.models`` prints what the plan says, quickly and without torch, and names mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nfnet_ray.models import list_models
from nfnet_ray.models.__main__ import main
from nfnet_ray.models.costs import count_multiply_adds
from nfnet_ray.models.variants import block_plan, get_variant

REPOSITORY = Path(__file__).resolve().parents[2]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_all_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    heading, *lines = printed(capsys)
    assert heading.split() == ["model", "parameters", "train", "px", "MACs", "test", "px", "MACs"]
    assert [line.split()[0] for line in lines] == list_models()
    f0 = next(line for line in lines if line.startswith("nfnet_f0 "))
    assert f0.split() == [
        "nfnet_f0",
        "71,489,284",
        "192",
        "6.977",
        "G",
        "256",
        "12.384",
        "G",
    ]  # paper table 3
    assert any(line.startswith("resnet50 ") for line in lines)


def test_classes_count(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "--classes", "10")
    pico = next(line for line in lines if line.startswith("nfnet_pico "))
    assert pico.split()[1] == "192,703"


def test_a_network_is_printed_block_by_block(capsys: pytest.CaptureFixture[str]) -> None:
    heading, *lines = printed(capsys, "nfnet_f0")
    columns = re.split(r"\s{2,}", heading.strip())
    wanted = ["part", "stage", "channels", "bottleneck", "groups", "stride", "beta", "drop rate", "SE"]
    assert columns == [*wanted, "out px", "parameters", "MACs"]
    blocks = [re.split(r"\s{2,}", line) for line in lines if line.startswith("block_")]
    assert len(blocks) == len(block_plan(get_variant("nfnet_f0")))
    # The last row of F0 in the official structure: tests/fixtures/nfnet_structure.json.
    assert blocks[-1][:9] == [
        *("block_11", "4", "1536 → 1536", "768", "6", "1", "0.96225", "0.22917", "768"),
    ]
    assert [block[9] for block in blocks] == ["48", *["24"] * 2, *["12"] * 6, *["6"] * 3]
    assert blocks[3][1:6] == ["3", "512 → 1536", "768", "6", "2"]
    assert lines[0].split()[:2] == ["stem", "3"]
    assert "3 → 16 → 32 → 64 → 128" in lines[0]
    millions = [
        float(line.split()[-2].replace(",", ""))
        for line in lines
        if line.startswith(("stem", "block", "fin", "cla"))
    ]
    assert sum(millions) == pytest.approx(
        count_multiply_adds(get_variant("nfnet_f0"), 192, 1000) / 1e6, abs=1
    )
    assert lines[-3:] == [
        "nfnet_f0: 71,489,284 parameters for 1,000 classes",
        "multiply-adds: 6.977 G at 192 px (training), 12.384 G at 256 px (test)",
        "dropout 0.2, stochastic depth 0.25, alpha 0.2, activation gelu",
    ]


def test_families_print_what_they_have(capsys: pytest.CaptureFixture[str]) -> None:
    resnet = printed(capsys, "nf_resnet50", "--size", "32")
    assert [line.split()[0] for line in resnet[1:-3]] == [
        "stem",
        *(f"block_{index:02d}" for index in range(16)),
        "classifier",
    ]
    assert "at 32 px, 4.089 G at 224 px (training and test)" in resnet[-2]
    regnet = printed(capsys, "nf_regnet_b0")
    assert re.split(r"\s{2,}", regnet[2])[2:5] == ["36 → 36", "32", "4"]
    baseline = printed(capsys, "resnet50")
    assert baseline[0] == "resnet50: 25,557,032 parameters for 1,000 classes"


def test_settings_change_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", "depth=[1,1,1,1]", "--set", "activation=silu", "--set", "se_ratio = none"]
    lines = printed(capsys, "nfnet_pico", *settings)
    assert sum(line.startswith("block_") for line in lines) == 4
    assert lines[-1].endswith("activation silu")
    assert len(lines[2].split()) < len(printed(capsys, "nfnet_pico")[2].split())  # no SE


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nfnet_f9"], ["unknown model 'nfnet_f9'", "did you mean"]),
        (["nfnet_f0", "--set", "widht=[1]"], ["unknown override 'widht'", "did you mean width"]),
        (["nfnet_f0", "--set", "width=[1,2]"], ["width=(1, 2)", "four whole numbers"]),
        (["nfnet_f0", "--set", "width"], ["--set width", "FIELD=VALUE"]),
        (["nfnet_f0", "--set", "activation=swish"], ["activation='swish'", "silu"]),
        (["resnet50", "--set", "width=[1,2,3,4]"], ["resnet50", "overrides"]),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("python -m nfnet_ray.models: ")
    assert [word for word in words if word not in captured.err] == []


def test_a_table_needs_no_torch() -> None:
    program = (
        "import sys; from nfnet_ray.models.__main__ import main; main([]); main(['nfnet_f7']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'plotly', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)


def test_a_bad_name_exits_with_2() -> None:
    command = [sys.executable, "-m", "nfnet_ray.models", "nfnet_g0"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
