"""The network of a trial, from its checkpoint: with the weights that its accuracy was measured with. About 5 s."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import nfnet_ray
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.loading.loader import EvalLoader
from nfnet_ray.data.normalise import normalise
from nfnet_ray.errors import UserError
from nfnet_ray.models.own.source import COPIES_FOLDER, keep_copies, source_of
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import TRIALS_FOLDER
from nfnet_ray.training import Outcome, PlainContext, train
from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore
from tests.tracking.example_study import study_started, trial_events, write_journal

TRIAL = "agc_sweep-00"
NETWORK = """\
from torch import nn

def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))
"""


@pytest.fixture(scope="module")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("network") / "net_to_load.py"
    file.write_text(NETWORK)
    return file


@pytest.fixture(scope="module")
def trained(
    few_digits: Path, network_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """The folder of a study of one trial, a network of one's own with a moving average, and its outcome."""
    folder = tmp_path_factory.mktemp("runs") / "own"
    recipe = Recipe().with_values(
        {
            "model.name": "net_to_load:build",
            "data.path": str(few_digits),
            "data.image_size": 32,
            "data.crop": "padded",
            "data.mixing.mixup_alpha": None,
            "data.mixing.cutmix_alpha": None,
            "data.randaugment.layers": 0,
            "optimizer.agc.clip_factor": None,
            "schedule.epochs": 2,
            "schedule.warmup_epochs": 0.0,
            "batch_size": 16,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(network_file.parent)
        keep_copies(folder / COPIES_FOLDER, [source_of(recipe.model.name)])
        accuracies: list[float] = []
        context = PlainContext(
            checkpoints=folder / TRIALS_FOLDER / TRIAL / "checkpoints",
            device=torch.device("cpu"),
            threads=1,
            on_report=lambda metrics: accuracies.append(metrics["validation_top1"]),
        )
        outcome = train(recipe, context)
    started = study_started({}, epochs=2)
    started["study"]["recipe"] = json.loads(json.dumps(recipe.to_values()))
    write_journal(folder, [started, *trial_events(TRIAL, 1.0, accuracies)])
    return folder, outcome


@pytest.fixture
def folder(trained: tuple[Path, Outcome], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "own"))


def accuracy(network: nn.Module, data: Path) -> float:
    dataset = open_dataset(data)
    recipe = resolve(Recipe().with_values({"data.image_size": 32, "data.eval_size": 32})).data
    loader = EvalLoader(
        dataset.validation, recipe, batch_size=32, rank=0, world_size=1, device=torch.device("cpu"), threads=1
    )
    with torch.no_grad():
        correct = sum(
            int((network(normalise(batch.images)).argmax(1) == batch.labels).sum()) for batch in loader
        )
    return correct / len(dataset.validation)


def test_it_has_the_accuracy_of_its_trial_and_the_average_where_there_is_one(
    trained: tuple[Path, Outcome], folder: Path, network_file: Path, few_digits: Path
) -> None:
    """The file of the network has been removed: the study has a copy."""
    network_file.unlink(missing_ok=True)
    state = torch.get_rng_state()
    record = nfnet_ray.load_study(folder)
    network = record.load_model(TRIAL)
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    average = trained[1].average
    assert average is not None
    expected = average.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    assert accuracy(network, few_digits) == record.trials["last_top1"].item()
    alone = record.load_model()
    assert torch.equal(alone.get_parameter("1.weight"), network.get_parameter("1.weight"))
    best = record.load_model(TRIAL, epoch="best")
    assert accuracy(best, few_digits) == record.trials["best_top1"].item()


def test_a_trial_of_several_studies_is_called_by_its_study(folder: Path, tmp_path: Path) -> None:
    write_journal(
        tmp_path / "other", [study_started({}, name="other"), *trial_events("other-00", 1.0, [0.5])]
    )
    record = nfnet_ray.load_study(folder, tmp_path / "other")
    assert isinstance(record.load_model(f"agc_sweep/{TRIAL}"), nn.Module)
    with pytest.raises(UserError, match=r"which trial\? There are several"):
        record.load_model()


def test_of_complete_schedules_it_is_the_last_ones(folder: Path) -> None:
    """A trial that trains several has checkpoints and epochs of its own for each."""
    checkpoints = folder / TRIALS_FOLDER / TRIAL / "checkpoints"
    kept = CheckpointStore(checkpoints)
    state = kept.load(kept.entries()[0])
    shutil.rmtree(checkpoints)
    for length, value in ((1, 1.0), (2, 2.0)):
        weights = {name: torch.full_like(tensor, value) for name, tensor in state["model"].items()}
        store = CheckpointStore(checkpoints / f"epochs-{length}")
        store.save({**state, "model": weights, "step": {}}, step=1, epoch=length, time=0.0, metric=0.5)
    started = json.loads((folder / "journal.jsonl").read_text().splitlines()[0])
    events = trial_events(TRIAL, 1.0, [0.1, 0.2, 0.3])
    for event, (epoch, length) in zip(events[1:4], ((1, 1), (1, 2), (2, 2)), strict=True):
        assert event["event"] == "epoch"
        event["metrics"] |= {"schedule_epoch": epoch, "schedule_epochs": length}
    (folder / "journal.jsonl").unlink()
    write_journal(folder, [started, *events])
    network = nfnet_ray.load_study(folder).load_model()
    assert network.get_parameter("1.bias").unique().tolist() == [2.0]


def without_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / TRIALS_FOLDER / TRIAL / "checkpoints")


def without_the_last_one(folder: Path) -> None:
    newest = CheckpointStore(folder / TRIALS_FOLDER / TRIAL / "checkpoints").entries()[0].name
    for file in folder.rglob(f"{newest}.*"):
        file.unlink()


def damaged(folder: Path) -> None:
    for file in folder.rglob("*.pt"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def without_trials(folder: Path) -> None:
    shutil.rmtree(folder / TRIALS_FOLDER)


@pytest.mark.parametrize(
    ("change", "trial", "message"),
    [
        (without_checkpoints, TRIAL, r"checkpoints: the checkpoint of any epoch of agc_sweep-00 is gone"),
        (without_the_last_one, TRIAL, r"the checkpoint of epoch 2 of agc_sweep-00 is gone"),
        (damaged, TRIAL, r"\.pt is damaged \(its bytes are not those that were written\): restore it"),
        (without_trials, TRIAL, r"has no checkpoints, as an export has none"),
        (lambda _: None, "agc_sweep-01", r"there is no trial 'agc_sweep-01'; did you mean agc_sweep-00"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    folder: Path, change: Callable[[Path], None], trial: str, message: str
) -> None:
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        nfnet_ray.load_study(folder).load_model(trial)
    assert "\n" not in str(error.value)


def test_a_trial_without_an_epoch_has_no_network(folder: Path, tmp_path: Path) -> None:
    (folder / TRIALS_FOLDER).rename(tmp_path / TRIALS_FOLDER)
    write_journal(tmp_path, [study_started({})])
    with pytest.raises(UserError, match=r"agc_sweep-00 of agc_sweep has finished no epoch"):
        nfnet_ray.load_study(tmp_path).load_model()
    with pytest.raises(UserError, match="epoch = 'third' is not allowed"):
        nfnet_ray.load_study(tmp_path).load_model(epoch="third")  # type: ignore[arg-type]
