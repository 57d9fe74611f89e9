"""Transfer: loaded weights, a new classifier, the body trained or frozen; and what is refused. About 15 s."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.models.weights.deepmind import to_deepmind_arrays
from nfnet_ray.models.weights.pretrained import (
    check_pretrained,
    classifier_of,
    load_pretrained,
    recognise_model,
    set_training_mode,
    start_from,
)
from nfnet_ray.models.weights.timm_weights import to_timm_state
from nfnet_ray.models.weights.weights_file import pinned, with_pinned_weights
from nfnet_ray.recipe import ModelRecipe, Recipe, RecipeError, split_weights
from nfnet_ray.training import Outcome, PlainContext, train
from nfnet_ray.training.step import TrainStep
from tests.training import replicas

CPU = torch.device("cpu")


def network(name: str = "nfnet_pico", classes: int = 7, seed: int = 0) -> NFNet:
    """With weights of which none is what a new network has."""
    torch.manual_seed(seed)
    model = create_model(name, classes)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    assert isinstance(model, NFNet)
    return model


def body(model: nn.Module) -> dict[str, torch.Tensor]:
    last = {id(parameter) for parameter in classifier_of(model).parameters()}
    return {name: p.detach().clone() for name, p in model.named_parameters() if id(p) not in last}


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def write_official(model: NFNet, path: Path) -> None:
    path.write_bytes(pickle.dumps(to_deepmind_arrays(model)))


def write_checkpoint(model: NFNet, path: Path) -> None:
    """With a moving average, which is what is wanted, beside weights that are not."""
    step = {"average": model.state_dict(), "number": 3}
    torch.save({"model": network(seed=9).state_dict(), "step": step, "recipe": "f"}, path)


WRITERS: dict[str, Callable[[NFNet, Path], None]] = {
    "published": write_official,
    "timm": lambda model, path: torch.save(to_timm_state(model), path),
    "timm in an old file": lambda model, path: torch.save(
        to_timm_state(model), path, _use_new_zipfile_serialization=False
    ),
    "timm in safetensors": lambda model, path: save_file(to_timm_state(model), path),
    "ours": lambda model, path: torch.save(model.state_dict(), path),
    "ours in safetensors": lambda model, path: save_file(model.state_dict(), path),
    "wrapped": lambda model, path: torch.save({"state_dict": model.state_dict(), "epoch": 3}, path),
    "a checkpoint": write_checkpoint,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_body_and_leaves_the_classifier_new(kind: str, tmp_path: Path) -> None:
    source, path = network(), tmp_path / "weights"  # no suffix says what it is
    WRITERS[kind](source, path)
    assert recognise_model(path) == ModelRecipe("nfnet_pico")

    target = create_model("nfnet_pico", num_classes=3)
    drawn = {name: p.detach().clone() for name, p in target.classifier.named_parameters()}
    loaded = load_pretrained(target, path)
    assert equal(body(target), body(source))
    assert equal(dict(target.classifier.named_parameters()), drawn)
    assert loaded.tensors == len(body(source))
    assert "classifier: a new one" in loaded.sentence()

    whole = create_model("nfnet_pico", num_classes=7)
    load_pretrained(whole, path, classifier="loaded")
    assert equal(whole.state_dict(), source.state_dict())


def test_bfloat16_and_a_file_without_a_classifier_will_do(tmp_path: Path) -> None:
    source = network()
    torch.save({name: tensor.bfloat16() for name, tensor in body(source).items()}, tmp_path / "w.pt")
    target = create_model("nfnet_pico", num_classes=3)
    load_pretrained(target, tmp_path / "w.pt")
    assert equal(body(target), {name: tensor.bfloat16().float() for name, tensor in body(source).items()})


def test_a_baseline_starts_from_timms_weights_statistics_included(tmp_path: Path) -> None:
    source = create_model("test_resnet", num_classes=4)
    source.bn1.running_mean += 3
    torch.save(source.state_dict(), tmp_path / "w.pth")
    assert recognise_model(tmp_path / "w.pth") == ModelRecipe("test_resnet")
    target = create_model("test_resnet", num_classes=2)
    load_pretrained(target, tmp_path / "w.pth")
    assert equal(body(target), body(source))
    assert torch.equal(target.bn1.running_mean, source.bn1.running_mean)
    write_official(network(), tmp_path / "nfnet")
    with pytest.raises(UserError, match="weights of an NFNet, which a ResNet cannot start from"):
        load_pretrained(target, tmp_path / "nfnet")


class _Runs:
    """A pickle of it runs something."""

    def __reduce__(self) -> Any:
        return (print, ("ran",))


def refusal(name: str, path: Path, **settings: Any) -> str:
    model = create_model(name, num_classes=3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_pretrained(model, path, **settings)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 900
    assert equal(model.state_dict(), before)
    return str(error.value)


def test_what_does_not_fit_is_refused_in_one_line_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pico = network()
    torch.save(pico.state_dict(), tmp_path / "pico.pt")
    for name in ("nfnet_nano", "nf_resnet50"):
        said = refusal(name, tmp_path / "pico.pt")
        assert "they are those of nfnet_pico" in said
        assert "more. Check model.name and model.overrides" in said

    torch.save(
        create_model("nfnet_pico", 7, overrides={"skip_gain": False}).state_dict(), tmp_path / "no_gains.pt"
    )
    said = refusal("nfnet_pico", tmp_path / "no_gains.pt")
    assert "they are those of nfnet_pico with model.overrides.skip_gain=false" in said

    wide = NFNet(replicas.network(replicas.recipe("no_sam", False, False, 1)).variant, 3)
    torch.save(wide.state_dict(), tmp_path / "other.pt")
    assert "they belong to no known network" in refusal("nfnet_pico", tmp_path / "other.pt")

    assert "7" in refusal("nfnet_pico", tmp_path / "pico.pt", classifier="loaded")

    broken = pico.state_dict() | {"final_conv.gain": torch.full_like(pico.final_conv.gain, torch.nan)}
    torch.save(broken, tmp_path / "nan.pt")
    assert "final_conv.gain holds NaN" in refusal("nfnet_pico", tmp_path / "nan.pt")

    (tmp_path / "cut.pt").write_bytes((tmp_path / "pico.pt").read_bytes()[:-1000])
    assert "damaged" in refusal("nfnet_pico", tmp_path / "cut.pt")
    (tmp_path / "cut.safetensors").write_bytes((8).to_bytes(8, "little") + b'{"a": 1}')
    assert "damaged" in refusal("nfnet_pico", tmp_path / "cut.safetensors")
    torch.save({"model": _Runs()}, tmp_path / "hostile.pt")
    assert "nothing in it is run" in refusal("nfnet_pico", tmp_path / "hostile.pt")
    assert capsys.readouterr().out == ""
    torch.save([1, 2], tmp_path / "list.pt")
    assert "holds a list" in refusal("nfnet_pico", tmp_path / "list.pt")
    torch.save({"lr": 0.1}, tmp_path / "settings.pt")
    assert "lr is a float" in refusal("nfnet_pico", tmp_path / "settings.pt")
    assert "cannot read" in refusal("nfnet_pico", tmp_path / "missing.pt")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    assert "is an archive that torch.save did not write" in refusal("nfnet_pico", tmp_path / "arrays.npz")


def test_a_recipe_holds_the_content_of_its_weights_and_not_their_place(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"one"), ("b.pt", b"one"), ("c.pt", b"two")):
        (tmp_path / name).write_bytes(content)
    recipes = [
        Recipe().with_values({"model.weights": str(tmp_path / name)}) for name in ("a.pt", "b.pt", "c.pt")
    ]
    a, b, c = (with_pinned_weights(recipe) for recipe in recipes)
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
    assert a.fingerprint() != Recipe().fingerprint()
    assert a.model.weights is not None
    assert a != b
    assert with_pinned_weights(a) == a
    assert with_pinned_weights(Recipe()) == Recipe()
    (tmp_path / "a.pt").write_bytes(b"two")
    with pytest.raises(UserError, match="not the file that was meant"):
        pinned(a.model.weights)
    with pytest.raises(UserError, match="is a folder"):
        pinned(str(tmp_path))
    (tmp_path / "a.pt").unlink()
    with pytest.raises(UserError, match="put that file there, or a link to it"):
        pinned(a.model.weights)
    assert split_weights("a@b/c.pt") == ("a@b/c.pt", None)


def test_a_folder_of_checkpoints_is_refused_with_its_newest_file(tmp_path: Path) -> None:
    for step, written_at in ((12, 200), (9, 100)):
        file = tmp_path / f"step-{step:08d}-7bfb0b17.pt"
        torch.save(network().state_dict(), file)
        os.utime(file, (written_at, written_at))
    for refused in (lambda: pinned(str(tmp_path)), lambda: load_pretrained(network(), tmp_path)):
        with pytest.raises(UserError, match=r"is a folder; .* the newest is step-00000012-7bfb0b17\.pt$"):
            refused()


def test_a_loaded_classifier_needs_weights() -> None:
    with pytest.raises(
        RecipeError, match=r"model\.classifier = 'loaded' is not allowed without model\.weights"
    ):
        ModelRecipe(classifier="loaded")


def test_weights_are_tried_before_anything_is_started(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "pico.pt")
    recipe = ModelRecipe("nfnet_pico", weights=pinned(str(tmp_path / "pico.pt")))
    assert "moving average" not in check_pretrained(recipe, 3).sentence()
    with pytest.raises(UserError, match="they are those of nfnet_pico"):
        check_pretrained(ModelRecipe("nfnet_nano", weights=recipe.weights), 3)


# Training.


def run(recipe: Recipe, directory: Path | None = None, **more: Any) -> Outcome:
    return train(recipe, PlainContext(device=CPU, threads=1, checkpoints=directory, **more))


@pytest.fixture(scope="module")
def pretrained(quick: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the quick network of 10 classes after an epoch."""
    path = tmp_path_factory.mktemp("pretrained") / "weights.pt"
    torch.save(run(quick.with_values({"schedule.epochs": 1})).model.state_dict(), path)
    return path


EVERYTHING = {
    "optimizer.weight_decay": 0.01,
    "optimizer.ema.decay": 0.9,
    "optimizer.sam.rho": 0.05,
    "model.trained": "classifier",
}


@pytest.mark.parametrize("method", ["sam", "asam", "looksam", "esam"])
def test_a_frozen_body_stays_what_it_was_under_every_technique(
    quick: Recipe, pretrained: Path, method: str
) -> None:
    recipe = quick.with_values(
        EVERYTHING
        | {
            "model.weights": str(pretrained),
            "optimizer.sam.method": method,
            "schedule.epochs": 1,
            "micro_batches": 2,
        }
    )
    outcome = run(recipe)
    weights = torch.load(pretrained, weights_only=True)
    assert outcome.state == "finished"
    assert outcome.average is not None
    for model in (outcome.model, outcome.average):
        assert equal(body(model), {name: weights[name] for name in body(model)})
        assert not torch.equal(model.classifier.weight, weights["classifier.weight"])
        assert model.classifier.bias.abs().max() > 0


def test_no_gradient_and_no_state_is_there_for_a_frozen_body(quick: Recipe, pretrained: Path) -> None:
    recipe = with_pinned_weights(quick.with_values(EVERYTHING | {"model.weights": str(pretrained)}))
    model = create_model(
        quick.model.name, 10, dropout=0.1, stochastic_depth=0.1, overrides=recipe.model.overrides.chosen()
    )
    start_from(model, recipe.model)
    set_training_mode(model)
    features = model.pooled_features(torch.zeros(2, 3, 32, 32))
    assert not features.requires_grad  # no graph was recorded
    step = TrainStep(model, recipe, PlainContext(device=CPU, threads=1), steps_per_epoch=5)
    step(replicas.global_batch(0))
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert len(step.optimizer.state_dict()["state"]) == 2
    assert sum(len(group["params"]) for group in step.optimizer.param_groups) == 2


def test_a_frozen_body_gives_the_features_of_evaluation_and_dropout_is_the_classifiers() -> None:
    recipe = ModelRecipe("nfnet_pico", trained="classifier")
    model = create_model("nfnet_pico", 3, dropout=0.5, stochastic_depth=0.5)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    start_from(model, recipe)
    images, keys = torch.randn(8, 3, 32, 32), torch.arange(8)
    model.eval()
    expected, logits = model.pooled_features(images), model(images)
    set_training_mode(model)
    assert torch.equal(model.pooled_features(images, keys), expected)
    assert not torch.equal(model(images, keys), logits)


def test_training_a_classifier_sees_no_stochastic_depth(quick: Recipe, pretrained: Path) -> None:
    frozen = {"model.trained": "classifier", "model.weights": str(pretrained), "schedule.epochs": 1}
    rates = [
        run(quick.with_values(frozen | {"model.stochastic_depth": rate})).model.state_dict()
        for rate in (0.0, 0.9)
    ]
    assert equal(*rates)


def test_a_frozen_baseline_keeps_its_batch_statistics() -> None:
    model = create_model("resnet50", 3)
    start_from(model, ModelRecipe("resnet50", trained="classifier"))
    set_training_mode(model)
    model(torch.randn(2, 3, 32, 32))
    assert model.bn1.running_mean.abs().max() == 0
    set_training_mode(model.requires_grad_(True))
    model(torch.randn(2, 3, 32, 32))
    assert model.bn1.running_mean.abs().max() > 0


def test_the_classifier_is_drawn_alike_with_weights_and_without(quick: Recipe, pretrained: Path) -> None:
    """So trials that differ in their weights differ in nothing else."""
    models = []
    for weights in (None, str(pretrained)):
        torch.manual_seed(3)
        models.append(create_model(quick.model.name, 10, overrides=quick.model.overrides.chosen()))
        start_from(models[-1], ModelRecipe(quick.model.name, weights=weights))
    assert torch.equal(models[0].classifier.weight, models[1].classifier.weight)
    assert not equal(body(models[0]), body(models[1]))


@pytest.mark.parametrize("decay", [0.9, None])
def test_a_checkpoint_of_a_run_gives_what_its_accuracy_was_measured_on(
    quick: Recipe, tmp_path: Path, decay: float | None
) -> None:
    recipe = quick.with_values({"schedule.epochs": 1, "optimizer.ema.decay": decay})
    outcome = run(recipe, tmp_path)
    (checkpoint,) = tmp_path.glob("*.pt")
    target = create_model(quick.model.name, 3, overrides=recipe.model.overrides.chosen())
    loaded = load_pretrained(target, checkpoint)
    assert equal(body(target), body(outcome.average or outcome.model))
    assert ("moving average" in loaded.origin) == (decay is not None)


class PulledPlug(Exception):
    """Stands for a process that dies."""


@pytest.mark.parametrize("trained", ["all", "classifier"])
def test_a_transfer_resumes_to_the_same_weights_and_not_with_other_ones(
    quick: Recipe, pretrained: Path, tmp_path: Path, trained: str
) -> None:
    own = tmp_path / "weights.pt"
    own.write_bytes(pretrained.read_bytes())
    recipe = quick.with_values(
        EVERYTHING | {"model.trained": trained, "model.weights": str(own), "schedule.epochs": 2}
    )
    whole = run(recipe)

    def pull(metrics: Any) -> None:
        if metrics["epoch"] == 1:
            raise PulledPlug

    with pytest.raises(PulledPlug):
        run(recipe, tmp_path / "run", on_report=pull)
    moved = tmp_path / "moved.pt"
    own.rename(moved)
    resumed = run(recipe.with_values({"model.weights": str(moved)}), tmp_path / "run")
    assert equal(resumed.model.state_dict(), whole.model.state_dict())

    torch.save(run(quick.with_values({"schedule.epochs": 1, "seed": 5})).model.state_dict(), own)
    with pytest.raises(UserError, match=r"other settings \(model\.weights sha256:\w+, now sha256:\w+\)"):
        run(recipe, tmp_path / "run")
