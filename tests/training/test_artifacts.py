"""What one process has compiled another one finds, and nothing but that; no file can stop a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.compiler._cache import CacheArtifactManager

from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext, train
from nfnet_ray.training.form import compilation
from nfnet_ray.training.form.artifacts import CompiledFiles, file_name

NAME = "x.compiled"
# Its graphs are products of matrices alone, which need no code: a C++ compiler takes seconds.
NETWORK = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on this process is one of another machine, which has compiled nothing yet."""
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")

    def enter(name: str) -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / name))
        CacheArtifactManager.clear()
        torch._dynamo.reset()
        counters.clear()

    return enter


def compile_step() -> dict[str, int]:
    """{found, missed: graphs in the compiler's cache} of a forward and a backward pass."""
    network = compilation.compiled(NETWORK, Recipe(compile=True))
    network(torch.ones(4, 8, requires_grad=True)).sum().backward()
    return {what: counters["inductor"][f"fxgraph_cache_{what}"] for what in ("hit", "miss")}


def files(place: Path, hashes: dict[str, str]) -> CompiledFiles:
    """Those of one process."""
    return CompiledFiles(str(place), hashes.get, hashes.__setitem__)


def test_another_machine_compiles_nothing_again(machine: Callable[[str], None], tmp_path: Path) -> None:
    place, hashes = tmp_path / "shared", dict[str, str]()
    machine("first")
    first = files(place, hashes)
    assert not first.load(NAME)
    assert compile_step() == {"hit": 0, "miss": 2}
    assert first.save(NAME)
    assert not first.save(NAME)
    assert [path.name for path in place.iterdir()] == [NAME]

    machine("without")
    assert compile_step() == {"hit": 0, "miss": 2}
    assert not files(place, hashes).save(NAME)  # there is one

    machine("second")
    second = files(place, hashes)
    assert second.load(NAME)
    assert not second.load(NAME)  # once is enough
    assert compile_step() == {"hit": 2, "miss": 0}


@pytest.mark.parametrize("damage", ["changed", "cut off", "gone", "nobody's", "of another version"])
def test_a_file_that_is_not_as_it_was_written_is_left_alone(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"what was compiled", None))
    hashes: dict[str, str] = {}
    assert files(tmp_path, hashes).save(NAME)
    path = tmp_path / NAME
    if damage == "changed":
        path.write_bytes(b"what was Compiled")
    elif damage == "cut off":
        path.write_bytes(b"what was")
    elif damage == "gone":
        path.unlink()
    elif damage == "nobody's":
        hashes.clear()
    if damage == "of another version":  # torch takes what it cannot read for nothing
        read: list[bytes] = []
        monkeypatch.setattr(torch.compiler, "load_cache_artifacts", read.append)
        assert not files(tmp_path, hashes).load(NAME)
        assert read == [b"what was compiled"]
    else:

        def read_it(_content: bytes) -> None:
            raise AssertionError("code that nobody vouches for")

        monkeypatch.setattr(torch.compiler, "load_cache_artifacts", read_it)
        assert not files(tmp_path, hashes).load(NAME)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.rpartition(": ")[2] for line in lines] == (
        [] if damage == "nobody's" else ["compiling anew"]
    )


def test_a_storage_or_a_head_that_is_away_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"what was compiled", None))

    def away(*_: Any) -> Any:
        raise OSError("away")

    assert not CompiledFiles(str(tmp_path), away, away).load(NAME)
    assert not CompiledFiles(str(tmp_path), away, away).save(NAME)
    (tmp_path / "file").touch()
    assert not files(tmp_path / "file", {}).save(NAME)
    assert len(caplog.records) == 3


def test_a_run_takes_what_is_there_before_it_compiles_and_hands_on_what_it_made(
    quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Telling:
        def load(self, name: str) -> None:
            done.append(f"load {name}")

        def save(self, name: str) -> None:
            done.append(f"save {name}")

    class Network(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: Any) -> Any:
            if not done[1:]:
                done.append("compile")
            return self.network(*inputs)

    monkeypatch.setattr("nfnet_ray.training.gradient.compiled", lambda network, _recipe: Network(network))
    context: Any = PlainContext(device=torch.device("cpu"), threads=1)
    context.compiled_files = Telling()
    recipe = quick.with_values({"compile": True, "schedule.epochs": 1})
    assert train(recipe, context).state == "finished"
    assert [step.partition(" ")[0] for step in done] == ["load", "compile", "save"]
    assert done[0].partition(" ")[2] == done[2].partition(" ")[2]


def test_trials_whose_steps_have_the_same_code_share_a_file() -> None:
    def name(values: dict[str, Any], images: int = 64, workers: int = 1) -> str:
        recipe = resolve(Recipe(compile=True).with_values(values))
        return file_name(recipe, (images, 32, 32, 3), workers, "a processor")

    same: list[dict[str, Any]] = [
        {"optimizer.agc.clip_factor": None},
        {"schedule.base_learning_rate": 0.7, "seed": 3},
        {"data.path": "elsewhere"},
        {"model.dropout": 0.4, "model.stochastic_depth": 0.1},
    ]
    assert {name(values) for values in same} == {name({})}
    baseline = {"model.name": "test_efficientnet"}
    assert name(baseline) != name({**baseline, "model.dropout": 0.4})
    other: list[dict[str, Any]] = [
        {"model.dropout": 0.0},
        {"precision": "bfloat16"},
        {"memory_format": "channels_last"},
        {"activation_memory_budget": 0.5},
        {"optimizer.sam.rho": 0.1},
    ]
    names = {name({}), name({}, images=32), name({}, workers=2), *map(name, other)}
    assert len(names) == 3 + len(other)
