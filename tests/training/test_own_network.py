"""A network of one's own, outside this repository: built, tried, identified by its code, trained and resumed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.__main__ import main as models
from nfnet_ray.models.own import source
from nfnet_ray.models.own.cost import cost_of
from nfnet_ray.models.own.source import keep_copies, pinned_network, source_of
from nfnet_ray.models.published import published_recipe, resolve, with_published_values
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext, train
from nfnet_ray.training.own_network import check_own_network
from tests.resume.test_checkpoints import StoppedContext

NETWORK = """\
import torch
from torch import nn
from {layers} import convolution

class Net(nn.Module):
    def __init__(self, num_classes, dropout=0.0):
        super().__init__()
        self.convolution = convolution(3, 8)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.classifier(self.dropout(self.convolution(images).relu().mean((2, 3))))

def build(num_classes, dropout=0.0):
    return Net(num_classes, dropout)

def raises(num_classes):
    raise ValueError("no such" + chr(10) + "width")

def one_class_more(num_classes):
    return Net(num_classes + 1)

def lacks_a_batch(num_classes):
    return nn.Sequential(Net(num_classes), nn.Flatten(0))

def with_a_head(num_classes):
    network = nn.Sequential(convolution(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.add_module("head", nn.Linear(8, num_classes))
    return network

def of_28_pixels(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, num_classes))

def on_a_cpu(num_classes):
    network = Net(num_classes)
    network.register_buffer("mean", torch.zeros(1, device="cpu"))
    network.forward = lambda images: Net.forward(network, images - network.mean.numpy()[0])
    return network

def lazy(num_classes):
    return nn.LazyLinear(num_classes)

def no_network(num_classes):
    return 3

NUMBER = 3
"""
LAYERS = """\
from torch import nn

def convolution(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, stride=2)
"""
ON_DIGITS = {
    "data.image_size": 32,
    "data.crop": "padded",
    "data.randaugment.layers": 0,
    "schedule.epochs": 2,
    "schedule.warmup_epochs": 0.0,
    "batch_size": 80,
}


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``my_net:build`` in the current folder, which Python does not search; each test has other code."""
    (tmp_path / "my_net.py").write_text(NETWORK.format(layers="my_layers"))
    (tmp_path / "my_layers.py").write_text(LAYERS + f"# {tmp_path}\n")
    (tmp_path / "unrelated.py").write_text("import nothing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source, "_copies", [])
    yield "my_net:build"
    for module in ("my_net", "my_layers"):
        sys.modules.pop(module, None)


def recipe_of(name: str, **values: object) -> Recipe:
    return Recipe().with_values({"model.name": name, **ON_DIGITS, **values})


def test_it_is_built_with_what_its_function_takes(name: str) -> None:
    network = create_model(name, 7, dropout=0.25)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    assert network.get_submodule("dropout").p == 0.25  # type: ignore[comparison-overlap]
    assert isinstance(create_model("my_net:Net", 7), nn.Module)
    assert "num_classes" not in str(create_model("torchvision.models:squeezenet1_1", 7))
    with pytest.raises(
        UserError, match=r"^model\.dropout = 0\.5: my_net:with_a_head has no parameter dropout; "
    ):
        create_model("my_net:with_a_head", 7, dropout=0.5)
    with pytest.raises(UserError, match="my_net:build: overrides width are not possible"):
        create_model(name, 7, overrides={"width": (8,)})


def test_its_code_is_what_it_is_now_and_not_what_was_imported_before(name: str, tmp_path: Path) -> None:
    first = create_model(name, 7)
    (tmp_path / "my_layers.py").write_text(LAYERS.replace("outputs, 3", "outputs, 5"))
    second = create_model(name, 7)
    kernels = [network.get_parameter("convolution.weight").shape[-1] for network in (first, second)]
    assert kernels == [3, 5]


def test_ones_own_import_of_the_module_stays(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_net  # type: ignore[import-not-found]

    create_model(name, 7)
    assert sys.modules["my_net"] is my_net


def test_its_hash_is_that_of_all_files_that_it_imports_from_beside_it(name: str, tmp_path: Path) -> None:
    found = source_of(name)
    assert [str(file) for file in found.files] == ["my_layers.py", "my_net.py"]
    assert found.root == tmp_path
    assert source_of(found.pinned) == found
    assert found.sentence() == f"my_net:build from my_net.py and my_layers.py (sha256 {found.digest})"
    (tmp_path / "unrelated.py").write_text("")
    assert pinned_network(name) == found.pinned
    (tmp_path / "my_layers.py").write_text(LAYERS.replace("stride=2", "stride=1"))
    assert pinned_network(name) != found.pinned
    with pytest.raises(UserError, match=f"is not the code that was meant .* not {found.digest}"):
        create_model(found.pinned, 7)


@pytest.mark.usefixtures("name")
def test_a_package_is_identified_by_all_its_files(tmp_path: Path) -> None:
    package = tmp_path / "my_nets"
    (package / "parts").mkdir(parents=True)
    for file in ("__init__.py", "parts/__init__.py", "unused.py"):
        (package / file).write_text("")
    shutil.move(tmp_path / "my_layers.py", package / "parts" / "layers.py")
    (package / "net.py").write_text(NETWORK.format(layers=".parts.layers"))
    found = source_of("my_nets.net:build")
    assert len(found.files) == 5
    assert found.root == tmp_path
    assert found.units == [package]
    assert create_model("my_nets.net:build", 3)(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    (package / "unused.py").write_text("CHANGED = True")
    assert source_of("my_nets.net:build").digest != found.digest


def test_an_installed_package_is_named_with_its_version() -> None:
    found = source_of("torchvision.models:resnet18")
    assert found.is_installed
    assert found.units == []
    assert re.fullmatch(r"torchvision==\S+", *found.requirements)
    assert found.sentence().startswith("torchvision.models:resnet18 from torchvision ")


def test_copies_are_used_when_the_files_have_changed(name: str, tmp_path: Path) -> None:
    pinned = pinned_network(name)
    keep_copies(tmp_path / "networks", [source_of(name)])
    (tmp_path / "my_layers.py").unlink()
    found = source_of(pinned)
    assert found.root == tmp_path / "networks" / found.digest
    assert create_model(pinned, 7)(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    copy = found.root / "my_net.py"
    copy.write_text(copy.read_text() + "# changed")
    with pytest.raises(UserError, match="is not the code that was meant"):
        source_of(pinned)


@pytest.mark.usefixtures("name")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("my_net:nothing", r"my_net has no function nothing; it has Net, build, raises"),
        ("my_net:NUMBER", r"my_net calls something else than a function NUMBER"),
        ("my_nat:build", r"Python finds no module my_nat; put my_nat\.py next to your program"),
        ("my_net.py:build", r"is named by module:function, .* such as my_net:build$"),
        ("nets/my_net.py:build", r"is named by module:function, .* such as my_net:build$"),
        ("my_net.sub:build", r"my_net has no module my_net\.sub"),
        ("my_net:", r"is named by module:function"),
        ("__main__:build", r"put the network into a file of its own"),
        ("sys:exit", r"sys has no source"),
        ("unrelated:build", r"unrelated cannot be imported: ModuleNotFoundError: .* \(unrelated\.py, line 1\)$"),
        ("my_net:raises", r"for 10 classes: ValueError: no such width \(my_net\.py, line 19\)$"),
        ("my_net:no_network", r"^my_net:no_network returns 3, and not a torch\.nn\.Module"),
        ("my_net:one_class_more", r"returns \(2, 11\) for images \(2, 3, 32, 32\): it must return logits \(2, 10\)"),
        ("my_net:lacks_a_batch", r"returns \(20,\) for images"),
        ("my_net:of_28_pixels", r"^my_net:of_28_pixels fails on images of 32 px: RuntimeError"),
        ("my_net:lazy", r"lazy layers"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_said_in_one_line(wrong: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        cost_of(wrong, 32, 10)
    assert "\n" not in str(error.value)


def test_its_cost_is_counted_without_changing_torchs_generators(name: str) -> None:
    state = torch.get_rng_state()
    cost = cost_of(name, 32, 10)
    assert cost.parameters == 3 * 8 * 9 + 8 + 8 * 10 + 10
    assert cost.multiply_adds == 3 * 8 * 9 * 15**2 + 8 * 10
    assert cost_of("my_net:on_a_cpu", 32, 10).multiply_adds == cost.multiply_adds
    assert torch.equal(torch.get_rng_state(), state)


def test_its_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert models([name, "--size", "32", "--classes", "10"]) == 0
    assert capsys.readouterr().out.endswith(
        "my_net:build: 314 parameters for 10 classes\nmultiply-adds: 0.000 G at 32 px\n"
    )


def test_nothing_was_published_for_it(name: str) -> None:
    with pytest.raises(
        UserError, match=r"nothing was published for my_net:build: start from another network's"
    ):
        published_recipe(name)
    with pytest.raises(UserError, match=r"images of my_net:build: set data\.image_size"):
        with_published_values(Recipe().with_values({"model.name": name}))
    with pytest.raises(UserError, match=r"signal_epochs = 1: the signal of my_net:build has no expectation"):
        resolve(recipe_of(name, signal_epochs=1))
    recipe = resolve(recipe_of(name))
    assert (recipe.model.dropout, recipe.model.stochastic_depth, recipe.data.eval_size) == (0.0, 0.0, 32)


@pytest.mark.usefixtures("name")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"exclude names classifier\.weight, which my_net:with_a_head does not have; .* is head\.weight"),
        (
            {"optimizer.agc.exclude": ("head.weight",), "model.trained": "classifier"},
            r"^the classifier of Sequential is not known",
        ),
        (
            {"optimizer.agc.exclude": ("head.weight",), "model.stochastic_depth": 0.1},
            r"has no parameter stochastic_depth",
        ),
        ({"optimizer.agc.exclude": ("head.weight",)}, None),
    ],
)
def test_a_recipe_that_it_cannot_be_trained_with_is_refused(
    values: dict[str, Any], message: str | None
) -> None:
    recipe = resolve(recipe_of("my_net:with_a_head", **values))
    if message is None:
        check_own_network(recipe, 10)
        return
    with pytest.raises(UserError, match=message):
        check_own_network(recipe, 10)


def test_it_trains_and_resumes_with_the_code_that_it_began_with(
    name: str, few_digits: Path, tmp_path: Path, one_thread: Callable[..., PlainContext]
) -> None:
    recipe = recipe_of(name, **{"data.path": str(few_digits), "model.dropout": 0.1})
    whole = train(recipe, one_thread())
    assert whole.epochs == 2
    checkpoints = tmp_path / "checkpoints"
    assert train(recipe, StoppedContext(after=1 + 1 / 3, checkpoints=checkpoints)).state == "stopped"
    resumed = train(recipe, one_thread(checkpoints=checkpoints))
    expected, got = whole.model.state_dict(), resumed.model.state_dict()
    assert [key for key in expected if not torch.equal(expected[key], got[key])] == []
    (tmp_path / "my_layers.py").write_text(LAYERS + "# changed")
    with pytest.raises(UserError, match=r"written with other settings \(model\.name my_net:build@sha256:"):
        train(recipe, one_thread(checkpoints=checkpoints))


SETTINGS = """\
import torch
torch.manual_seed(0)
torch.set_num_threads(2)
torch.set_float32_matmul_precision("medium")
"""


def test_what_its_module_sets_when_it_is_imported_changes_no_training(
    name: str, few_digits: Path, tmp_path: Path
) -> None:
    """A process imports it once: the first training would have other weights and rounding than the next ones."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    (tmp_path / "my_layers.py").write_text(SETTINGS + LAYERS + f"# sets, {tmp_path}\n")
    recipe = recipe_of(name, **{"data.path": str(few_digits), "schedule.epochs": 1})
    settings: list[tuple[int, str]] = []

    class Watched(PlainContext):
        def progress(self, epochs: float) -> None:
            del epochs
            settings.append((torch.get_num_threads(), torch.get_float32_matmul_precision()))

    weights = []
    try:
        for _ in range(2):
            outcome = train(recipe, Watched(device=torch.device("cpu"), threads=1))
            weights.append(outcome.model.state_dict())
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
    assert set(settings) == {(1, "highest")}
    assert [key for key in weights[0] if not torch.equal(weights[0][key], weights[1][key])] == []


@pytest.fixture
def one_thread() -> Callable[..., PlainContext]:
    return lambda **options: PlainContext(device=torch.device("cpu"), threads=1, **options)
