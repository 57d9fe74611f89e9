"""The study in docs/new_study.md is planned and trained exactly as it is printed. About five seconds."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nfnet_ray.data.files.dataset import check_dataset
from nfnet_ray.study.cost.plan import check_trials
from nfnet_ray.study.cost.probe_process import Probe
from nfnet_ray.training import PlainContext, train
from studies.running.flags import main

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "new_study.md"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The code block, as a file that is imported."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    path = tmp_path / "momentum_sweep.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("momentum_sweep", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_it_is_planned_by_its_own_command_line(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    measured = Probe(1.0, 1.0, (0.1, 0.1), images=64, image_size=32, eval_seconds=1.0, eval_images=360)
    monkeypatch.setattr("studies.running.planning.plan_text.probe_at_once", lambda *_: measured)
    assert main(study.momentum_sweep, Path(str(study.__file__)), ["--plan"]) == 0
    said = capsys.readouterr().out
    assert "Which momentum is best" in said
    assert "8 trials of nfnet_pico" in said


def test_one_of_its_trials_trains(study: ModuleType, few_digits: Path) -> None:
    data = check_dataset(few_digits)
    trials = study.momentum_sweep(data, 1).trials()
    check_trials(trials, data, workers=1)
    assert train(trials[0].recipe, PlainContext(threads=1)).state == "finished"


def test_it_has_about_thirty_lines() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 31
