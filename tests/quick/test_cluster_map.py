"""The map in nfnet_ray/cluster/__init__.py names every file, and what it says of imports is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nfnet_ray.cluster
from nfnet_ray.cluster import connection
from tests.quick.rooms import imported_modules

CLUSTER = Path(nfnet_ray.cluster.__file__).parent


def test_every_file_is_on_the_map() -> None:
    files = {path.name for path in CLUSTER.glob("*.py")} - {"__init__.py"}
    named = set(re.findall(r"``(\w+\.py)``", nfnet_ray.cluster.__doc__ or ""))
    assert files <= named
    assert all((CLUSTER / name).exists() for name in named)


def test_connection_imports_nothing_else_of_the_cluster() -> None:
    for path in sorted(CLUSTER.glob("connection/*.py")):
        module = f"{connection.__name__}.{path.stem}"
        names = [name for _, name in imported_modules(path.read_text(), module, path.name == "__init__.py")]
        others = [name for name in names if name.startswith("nfnet_ray.cluster")]
        assert [name for name in others if not name.startswith("nfnet_ray.cluster.connection")] == [], path


@pytest.mark.parametrize(
    "module", ["messages", "mailbox", "exit_rules", "worker", "trainer", "follower", "connection.session"]
)
def test_these_are_imported_before_ray_and_torch(module: str) -> None:
    """Ray reads its settings when it is imported, and torch takes seconds."""
    code = f"import nfnet_ray.cluster.{module}, sys; print(sorted({{'ray', 'torch'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
