"""What `import nfnet_ray` offers, and that it takes nothing to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nfnet_ray

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = "{'numpy', 'pandas', 'torch', 'ray', 'mlflow', 'rich', 'studies'}"


def names_loaded_by(program: str) -> str:
    """Which of the heavy packages a fresh process has imported after a program."""
    source = f"import sys\n{program}\nprint(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("name", nfnet_ray.__all__)
def test_each_public_name_is_there(name: str) -> None:
    assert getattr(nfnet_ray, name) is not None
    assert name in dir(nfnet_ray)


def test_type_checkers_and_programs_find_a_name_in_the_same_module() -> None:
    source = ast.parse((REPOSITORY / "nfnet_ray" / "__init__.py").read_text())
    for_checkers = {
        alias.name: node.module
        for node in ast.walk(source)
        if isinstance(node, ast.ImportFrom) and node.level == 0
        for alias in node.names
        if alias.name in nfnet_ray.__all__ and alias.name != "__version__"
    }
    assert for_checkers == nfnet_ray._DEFINED_IN
    assert sorted(nfnet_ray.__all__) == sorted([*for_checkers, "__version__"])


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'nfnet_ray' has no attribute 'creat_model'"):
        getattr(nfnet_ray, "creat_model")  # noqa: B009


def test_importing_the_library_imports_nothing_heavy() -> None:
    assert names_loaded_by("import nfnet_ray") == "[]"


def test_a_model_needs_torch_alone() -> None:
    program = "import nfnet_ray; nfnet_ray.create_model('nfnet_pico', 10); sys.modules.pop('numpy', None)"
    assert names_loaded_by(program) == "['torch']"
