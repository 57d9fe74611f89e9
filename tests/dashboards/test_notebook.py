"""The notebook of the documentation runs and gives the outputs that it shows. About 15 s, mostly a kernel's start."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.dashboards import run_notebook

MOST_BYTES = 100_000  # a page that is read before it is run


def texts(notebook: Any) -> list[str]:
    """What each cell printed, and the text of what its last line gave."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            if not text.startswith("<IPython.core.display"):
                found.append(text)
    return found


def test_it_gives_the_outputs_that_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel is a process of this interpreter.
    monkeypatch.setenv(
        "PYTHONPATH",
        os.pathsep.join([str(run_notebook.NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]),
    )
    shown = run_notebook.read()
    ran = run_notebook.run(run_notebook.read())
    assert texts(ran) == texts(shown)
    kinds = [set(output.get("data", ())) for cell in ran.cells for output in cell.get("outputs", [])]
    assert any("image/svg+xml" in kind for kind in kinds)


def test_it_is_small_and_has_nothing_of_the_machine_that_it_ran_on() -> None:
    text = run_notebook.NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) < MOST_BYTES
    for word in ("Traceback", "/home/", "/root/", "/tmp/"):
        assert word not in text
