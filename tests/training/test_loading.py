"""A run's metrics of its images: their size if it grows, who made them, and how many were skipped. About 15 s."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.loading import source as source_module
from nfnet_ray.data.loading.loader import TrainLoader
from nfnet_ray.data.loading.sharing import Sharing
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import Outcome, PlainContext, train
from tests.resume.test_checkpoints import StoppedContext
from tests.training.two_workers import two_workers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resident images go there, and none are remembered from another test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(source_module, "_RESIDENT", {})


def run(recipe: Recipe, **settings: Any) -> tuple[Outcome, list[dict[str, float]]]:
    epochs: list[dict[str, float]] = []

    def keep(metrics: Any) -> None:
        epochs.append(dict(metrics))
        if len(epochs) == settings.get("stop_after"):
            raise KeyboardInterrupt

    context = PlainContext(
        device=CPU,
        threads=1,
        checkpoints=settings.get("checkpoints"),
        on_report=keep,
        shares_batches="shares_batches" in settings,
    )
    return train(recipe, context), epochs


def test_growing_images_are_reported_and_a_resumed_run_ends_with_the_same_weights(
    quick: Recipe, tmp_path: Path
) -> None:
    growing = quick.with_values({"data.progressive.start_size": 8, "data.progressive.step": 4})
    whole, epochs = run(growing)
    assert [metrics["image_size"] for metrics in epochs] == [8, 12, 16]
    with pytest.raises(KeyboardInterrupt):
        run(growing, checkpoints=tmp_path / "kept", stop_after=1)
    resumed, rest = run(growing, checkpoints=tmp_path / "kept")
    assert [metrics["image_size"] for metrics in rest] == [8, 12, 16]  # the first is told again
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "image_size" not in run(quick.with_values({"schedule.epochs": 1}))[1][0]


def test_a_run_on_batches_of_another_one_ends_with_the_same_weights_and_says_whose_they_are(
    quick: Recipe,
) -> None:
    """A third process, which is at its second batch, is why the first run leaves its batches in memory."""
    mixed = quick.with_values(
        {"data.mixing.mixup_alpha": 0.2, "data.mixing.cutmix_alpha": 1.0, "schedule.epochs": 2}
    )
    alone, epochs = run(mixed)
    assert "shared_batches" not in epochs[0]
    data = open_dataset(mixed.data.path).train
    with Sharing() as sharing:
        loader = TrainLoader(
            data, resolve(mixed).data, batch_size=mixed.batch_size, seed=0, rank=0, world_size=1, device=CPU,
            threads=1, sharing=sharing,
        )  # fmt: skip
        next(loader.epoch(0))
        _, epochs = run(mixed.with_values({"optimizer.agc.clip_factor": 0.5}), shares_batches=True)
        assert "shared_batches" not in epochs[0]
        shared, epochs = run(mixed, shares_batches=True)
        assert [metrics["shared_batches"] for metrics in epochs] == [2 / 3, 1]
    ours, theirs = shared.model.state_dict(), alone.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def damaged(few_digits: Path, tmp_path: Path) -> Path:
    """Two training images and one validation image are nothing but zeros."""
    folder = tmp_path / "damaged"
    shutil.copytree(few_digits, folder)
    dataset = open_dataset(folder)
    for split, indices in ((dataset.train, (3, 100)), (dataset.validation, (7,))):
        with split.beton.path.open("r+b") as file:
            for index in indices:
                file.seek(int(split.beton.offsets[index]))
                file.write(bytes(int(split.beton.sizes[index])))
    return folder


@pytest.mark.parametrize("resident", ["always", "never"])
def test_damaged_images_stop_a_run_or_are_counted(quick: Recipe, damaged: Path, resident: str) -> None:
    values = {"data.path": str(damaged), "data.resident": resident, "schedule.epochs": 2}
    with pytest.raises(UserError, match=r"train\.beton: sample (3|100) is damaged"):
        run(quick.with_values(values))
    _, epochs = run(quick.with_values(values | {"data.on_damaged": "skip"}))
    for metrics in epochs:
        assert (metrics["damaged_train_images"], metrics["damaged_validation_images"]) == (2, 1)


def test_where_nothing_is_skipped_nothing_is_said(quick: Recipe) -> None:
    one = quick.with_values({"schedule.epochs": 1})
    assert not [name for name in run(one)[1][0] if name.startswith("damaged")]
    metrics = run(one.with_values({"data.on_damaged": "skip"}))[1][0]
    assert (metrics["damaged_train_images"], metrics["damaged_validation_images"]) == (0, 0)


IMPORTS = """\
import torch.distributed as dist
from types import SimpleNamespace
from nfnet_ray.recipe import DataRecipe
from nfnet_ray.training.damage import loading_metrics
"""
WORK = """\
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
train, validation = ({3, 5}, {1}) if rank == 0 else ({5, 8}, set())
loaders = [SimpleNamespace(damaged=dict.fromkeys(found, ""), shared_share=None) for found in (train, validation)]
print(loading_metrics(DataRecipe(on_damaged="skip"), *loaders, 0, SimpleNamespace(world_size=2)))
dist.destroy_process_group()
"""


def test_a_sample_that_two_workers_found_damaged_counts_once(tmp_path: Path) -> None:
    said = two_workers(IMPORTS, WORK, tmp_path)
    assert said == 2 * ["{'damaged_train_images': 3, 'damaged_validation_images': 1}\n"]


TO_TRAIN = """\
import json
import torch, torch.distributed as dist
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext, train
"""
WITHOUT_WEIGHTS = """\
recipe = json.loads(sys.argv[2])
recipe["model.weights"] = f"{store}-weights-{rank}"
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
context = PlainContext(device=torch.device("cpu"), threads=1)
context.rank, context.world_size, context.replicas = rank, 2, 2
try:
    train(Recipe.from_values(recipe), context)
except UserError as error:
    print(error, error.others_wait)
dist.destroy_process_group()
"""


def test_a_file_that_one_worker_does_not_see_ends_them_all(quick: Recipe, tmp_path: Path) -> None:
    """With one sentence, where the others would wait for that worker."""
    (tmp_path / "store-weights-0").touch()
    recipe = json.dumps(quick.to_values())
    said = two_workers(TO_TRAIN, WITHOUT_WEIGHTS, tmp_path, recipe)
    assert said[0] == said[1]
    assert "store-weights-1 on " in said[0]
    assert said[0].endswith("give a path that every node sees False\n")


def test_a_resumed_run_knows_what_was_damaged_before(quick: Recipe, damaged: Path, tmp_path: Path) -> None:
    recipe = quick.with_values(
        {"data.path": str(damaged), "data.resident": "never", "data.on_damaged": "skip", "schedule.epochs": 1}
    )
    stopped = StoppedContext(after=1.0, checkpoints=tmp_path)  # all training images have been read
    assert train(recipe, stopped).state == "stopped"
    metrics = train(recipe, StoppedContext(after=9.0, checkpoints=tmp_path)).metrics
    assert metrics["damaged_train_images"] == 2
