"""The transfer study before it runs: its trials, its plan, and the weights that it makes itself. About 10 s."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from rich.console import Console

from data_prep.digits import SECOND_HALF_FEW, describe_digits
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model, model_of
from nfnet_ray.models.weights.pretrained import check_pretrained, recognise_model
from nfnet_ray.recipe import ModelRecipe, Overrides
from nfnet_ray.study.cost.plan import check_trials, training_multiply_adds
from nfnet_ray.study.cost.probe_process import Probe
from nfnet_ray.training.context import PlainContext
from nfnet_ray.training.step import TrainStep
from studies import transfer
from studies.running.flags import main

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = REPOSITORY / "studies" / "transfer.py"
DIGITS = describe_digits(Path("data") / "digits", SECOND_HALF_FEW)
FLOWERS = DatasetSummary(Path("flowers"), 1020, 1020, tuple(map(str, range(102))), "f", None)


def test_pretrained_and_drawn_weights_meet_whole_and_frozen_networks() -> None:
    study = transfer.transfer(DIGITS, 3)
    trials = study.trials()
    check_trials(trials, DIGITS, workers=1)
    assert len({trial.name for trial in trials}) == len(trials) == 16
    assert len({trial.recipe.fingerprint() for trial in trials}) == 16
    assert len({trial.stratum for trial in trials}) == 4
    assert {(t.recipe.model.weights is None, t.recipe.model.trained) for t in trials} == {
        (drawn, trained) for drawn in (True, False) for trained in ("all", "classifier")
    }
    assert study.epochs == 3
    assert DIGITS.train_images // study.recipe.batch_size == 5


def test_the_recipe_is_the_papers_for_fine_tuning(tmp_path: Path) -> None:
    torch.save(create_model("nfnet_nano", 5).state_dict(), tmp_path / "w.pt")
    recipe = transfer.transfer(FLOWERS, weights=str(tmp_path / "w.pt")).recipe
    assert recipe.model.name == "nfnet_nano"  # seen from the weights
    assert (recipe.model.dropout, recipe.model.stochastic_depth) == (0.25, 0.1)
    assert (recipe.optimizer.weight_decay, recipe.optimizer.sam.rho) == (1e-5, 0.05)
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (24, 8)
    # 0.1 for 2,048 images (A.5) is among the rates that are tried.
    assert (
        0.1 / 2048 * 256
        in transfer.transfer(FLOWERS, weights=str(tmp_path / "w.pt")).space["schedule.base_learning_rate"]
    )


def test_a_baseline_is_fine_tuned_without_clipping(tmp_path: Path) -> None:
    torch.save(create_model("test_resnet", 5).state_dict(), tmp_path / "w.pt")
    recipe = transfer.transfer(FLOWERS, weights=str(tmp_path / "w.pt")).recipe
    assert recipe.model.name == "test_resnet"
    assert recipe.optimizer.agc.clip_factor is None
    chosen = recipe.with_values({"memory_format": "channels_last"})  # a run's own choice
    TrainStep(create_model("test_resnet", 5), chosen, PlainContext(), steps_per_epoch=1)


@pytest.mark.parametrize("skip_gain", [True, False])
def test_the_network_has_gains_if_its_weights_have(skip_gain: bool, tmp_path: Path) -> None:
    overrides = {"skip_gain": skip_gain}
    torch.save(create_model("nfnet_pico", 5, overrides=overrides).state_dict(), tmp_path / "w.pt")
    model = transfer.transfer(FLOWERS, weights=str(tmp_path / "w.pt")).recipe.model
    assert check_pretrained(model, num_classes=7).tensors == len(list(model_of(model, 5).parameters())) - 2


def test_data_of_ones_own_want_weights_of_ones_own() -> None:
    with pytest.raises(UserError, match="from which weights should"):
        transfer.transfer(FLOWERS)


def test_what_is_frozen_costs_no_backward_pass() -> None:
    recipe = transfer.transfer(DIGITS).recipe
    frozen = recipe.with_values({"model.trained": "classifier"})
    assert training_multiply_adds(recipe, 5) == 3 * training_multiply_adds(frozen, 5)


def test_the_plan_makes_nothing_and_needs_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    measured = Probe(1.0, 1.0, (0.1, 0.1), images=64, image_size=32)
    monkeypatch.setattr("studies.running.planning.plan_text.probe_at_once", lambda *_: measured)

    def plan(*flags: str) -> int:
        return main(transfer.PROGRAM, FILE, ["--plan", *flags])

    assert plan() == 0
    assert "16 trials of nfnet_pico" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert plan("--weights", "nowhere.npz") == 2
    assert "cannot read nowhere.npz" in capsys.readouterr().err
    torch.save(create_model("nfnet_pico", 7).state_dict(), "w.pt")
    assert plan("--weights", "w.pt", "--set", "model.name=nfnet_nano") == 2
    assert "they are those of nfnet_pico" in capsys.readouterr().err
    assert plan("--weights", "w.pt", "--set", "model.overrides.skip_gain=false") == 2
    assert "they are those of nfnet_pico with model.overrides.skip_gain=true" in capsys.readouterr().err
    assert plan("--weights", "w.pt", "--set", "model.weights=none") == 0
    assert "8 trials" in capsys.readouterr().out


def test_trials_are_built_without_ray_and_torch() -> None:
    program = """
import sys
from pathlib import Path
from data_prep.digits import SECOND_HALF_FEW, describe_digits
from studies.transfer import transfer
transfer(describe_digits(Path("digits"), SECOND_HALF_FEW)).trials()
print({"ray", "torch", "mlflow"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_stopped_pretraining_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transfer, "PRETRAINING_EPOCHS_A_LINE", 1)
    recipe = transfer._pretraining_recipe
    small = {"data.image_size": 16, "data.eval_size": 16, "data.train_share": 0.2}  # two steps an epoch
    monkeypatch.setattr(transfer, "_pretraining_recipe", lambda *given: recipe(*given).with_values(small))
    said: list[str] = []

    class Noting(Console):
        def print(self, *objects: object, **_: object) -> None:
            said.append(str(objects[0]))

    class Impatient(Noting):
        """Somebody presses Ctrl-C when the second epoch is through."""

        def print(self, *objects: object, **more: object) -> None:
            super().print(*objects, **more)
            if "epoch 2" in said[-1]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer.pretrain(tmp_path / "a.pt", Impatient(), epochs=3)
    assert "resumes from the last epoch" in said[-1]
    assert not (tmp_path / "a.pt").exists()
    transfer.pretrain(tmp_path / "a.pt", Noting(), epochs=3)
    transfer.pretrain(tmp_path / "b.pt", Console(quiet=True), epochs=3)
    assert sum("epoch 1" in line for line in said) == 1
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "b.pt"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert recognise_model(tmp_path / "a.pt") == ModelRecipe(
        "nfnet_pico", overrides=Overrides(skip_gain=False)
    )
    assert not (tmp_path / "a.checkpoints").exists()
    before = (tmp_path / "a.pt").stat().st_mtime_ns
    transfer.pretrain(tmp_path / "a.pt", Console(quiet=True), epochs=3)
    assert (tmp_path / "a.pt").stat().st_mtime_ns == before


def test_who_waits_for_another_pretraining_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    other = FileLock(tmp_path / "a.lock")
    other.acquire()

    class Listening(Console):
        """The other process has written the weights when it is mentioned."""

        def print(self, *objects: object, **_: object) -> None:
            said.append(str(objects[0]))
            (tmp_path / "a.pt").touch()
            other.release()

    transfer.pretrain(tmp_path / "a.pt", Listening())
    assert said == ["Another process trains the weights of the digits 0 to 4: waiting for a.pt."]


def test_the_study_says_how_it_is_run_and_what_came_out() -> None:
    for part in ("Question.", "Command. ``python studies/transfer.py``", "Cost.", "Result."):
        assert part in (transfer.__doc__ or "")
