"""The folders of the project ("rooms"), and who may import whom.

An import that points back up (the training loop asking the cluster, the cluster asking a study) is what
turns a platform into one lump that runs nowhere else; `models`, `optim`, `data` and `training` have to run
on a bare machine that has only torch. So the arrows are checked on the source, function bodies included.

Takes less than a second.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.quick.rooms import (
    ARROWS,
    LIBRARY,
    ONLY_IN,
    REPOSITORY,
    circles,
    dotted_name,
    imported_modules,
    imports_of_modules,
    modules,
    reachable,
    room_of,
)

NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc"}
MOST_FILES_IN_A_FOLDER = 15  # Python files, __init__.py included: more is a list that nobody reads
LONGEST_LOOP_LINES = 300  # so that the walk through a training run stays one sitting


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """One line for each import in `source` that the plan does not allow to `module`."""
    room = room_of(module)
    if any(part in NAMES_THAT_SAY_NOTHING for part in module.split(".")):
        return [f"{module}: a name that says nothing about what is inside"]
    if room and room not in ARROWS:
        return [f"{module}: '{room}' is not a room of the plan"]
    # The façade, nfnet_ray/__init__.py, is above all rooms: it may import from each, and none imports from it.
    allowed = {room} | reachable(room) if room else set(ARROWS)
    found = []
    for line, name in imported_modules(source, module, is_package):
        target, top = room_of(name), name.split(".")[0]
        if target is not None and target not in allowed:
            found.append(
                f"{module}:{line}: imports {name}, but {room or LIBRARY} may not import {target or LIBRARY}"
            )
        # Benchmarks compare with what others have.
        if top in ONLY_IN and room not in (ONLY_IN[top], "benchmarks"):
            found.append(f"{module}:{line}: imports {name}; only {ONLY_IN[top]} imports {top}")
    return found


@pytest.mark.parametrize("path", modules(), ids=str)
def test_module_imports_only_what_the_plan_allows(path: Path) -> None:
    source = (REPOSITORY / path).read_text()
    assert violations(source, dotted_name(path), path.name == "__init__.py") == []


def test_no_files_import_each_other_in_a_circle() -> None:
    sources = {
        dotted_name(path): ((REPOSITORY / path).read_text(), path.name == "__init__.py") for path in modules()
    }
    assert circles(imports_of_modules(sources)) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"a": "import b", "b": "import c", "c": ""}, []),
        ({"a": "import b", "b": "def f():\n    from a import x"}, [["a", "b"]]),
        ({"a": "import b", "b": "import c", "c": "import b"}, [["b", "c"]]),
        ({"p.a": "from p import b", "p.b": "from .a import x"}, [["p.a", "p.b"]]),
    ],
)
def test_a_circle_is_found(sources: dict[str, str], expected: list[list[str]]) -> None:
    assert (
        circles(imports_of_modules({name: (source, False) for name, source in sources.items()})) == expected
    )


def test_no_folder_is_a_long_list() -> None:
    counts = Counter(path.parent for path in modules())
    assert {str(folder): count for folder, count in counts.items() if count > MOST_FILES_IN_A_FOLDER} == {}


def test_loop_is_read_in_one_sitting() -> None:
    loop = REPOSITORY / LIBRARY / "training" / "loop.py"
    assert len(loop.read_text().splitlines()) < LONGEST_LOOP_LINES


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nfnet_ray.training.loop", "import ray"),
        ("nfnet_ray.training.loop", "from nfnet_ray.cluster import tuner"),
        ("nfnet_ray.training.loop", "from nfnet_ray import cluster"),
        ("nfnet_ray.training.loop", "from ..cluster.tuner import tune"),
        ("nfnet_ray.training.loop", "from .. import tracking"),
        ("nfnet_ray.training.loop", "def train():\n    import mlflow.tracking"),
        ("nfnet_ray.training.loop", "if TYPE_CHECKING:\n    from ray.train import Checkpoint"),
        ("nfnet_ray.models.nfnet", "import nfnet_ray.optim.agc"),
        ("nfnet_ray.recipe", "from nfnet_ray.models import list_models"),
        ("nfnet_ray.cluster.tuner", "import mlflow"),
        ("nfnet_ray.cluster.tuner", "import studies.agc_sweep"),
        ("nfnet_ray.tracking.delivery.sink", "import importlib\nimportlib.import_module('ray.tune')"),
        ("nfnet_ray.analysis.frontier", "from nfnet_ray.cluster import journal"),
        ("nfnet_ray.cluster.tuner", "import nfnet_ray"),
        ("data_prep.conversion.convert", "from nfnet_ray import __version__"),
        ("studies.agc_sweep", "from nfnet_ray import Study"),
        ("nfnet_ray", "import mlflow"),
        ("studies.agc_sweep", "from ray import tune"),
        ("studies.agc_sweep", "from benchmarks import step"),
        ("dashboards.report", "from nfnet_ray.cluster.driver import run_trials"),
        ("nfnet_ray.errors", "from nfnet_ray.recipe import Recipe"),
        ("nfnet_ray.training.utils", ""),
        ("data_prep.common.paths", ""),
        ("nfnet_ray.attic", ""),
    ],
)
def test_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "is_package", "source"),
    [
        ("nfnet_ray.training.loop", False, "import torch\nfrom nfnet_ray.models import create_model"),
        ("nfnet_ray.training.loop", False, "from .clock import Clock\nfrom ..errors import UserError"),
        ("nfnet_ray.training", True, "from .loop import train\nfrom . import clock"),
        ("nfnet_ray.cluster.tuner", False, "import ray\nfrom nfnet_ray.tracking.delivery import sink"),
        ("nfnet_ray.tracking.delivery.sink", False, "from mlflow import MlflowClient"),
        ("studies.agc_sweep", False, "from nfnet_ray.recipe import Recipe\nfrom dashboards import report"),
        ("nfnet_ray", True, "from nfnet_ray.study import Study\nfrom studies.running import from_python"),
        (
            "data_prep.conversion.convert",
            False,
            "from nfnet_ray.version import __version__\nfrom nfnet_ray.data import beton",
        ),
    ],
)
def test_allowed_imports_pass(module: str, is_package: bool, source: str) -> None:
    assert violations(source, module, is_package) == []
