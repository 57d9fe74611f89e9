"""Runs docs/notebook.ipynb from its first cell to its last and writes it with what came out.

python -m tests.dashboards.run_notebook
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tests.deadlines import HANG_SECONDS

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebook.ipynb"


def run(notebook: Any) -> Any:
    """The notebook with the outputs of a kernel of this interpreter, which starts in docs/ as Jupyter's do."""
    client = NotebookClient(
        notebook,
        timeout=HANG_SECONDS,
        kernel_name="python3",
        coalesce_streams=True,  # else prints are one output or several, by chance
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    executed = client.execute()
    for cell in executed.cells:
        # Times of day, which differ from run to run.
        cell.metadata.pop("execution", None)
    return executed


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def main() -> int:
    nbformat.write(run(read()), NOTEBOOK)  # type: ignore[no-untyped-call]
    print(f"wrote {NOTEBOOK}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
