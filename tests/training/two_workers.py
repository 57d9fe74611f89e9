"""Two workers of a run that talk to each other."""

from __future__ import annotations

from pathlib import Path

from tests.preloaded import run_program


def two_workers(imports: str, work: str, folder: Path, *arguments: str) -> list[str]:
    """What each of them has printed.

    ``work`` is given its ``rank``, the name of a ``store`` at which they meet, and ``arguments`` as ``sys.argv[2:]``.
    A process is forked after the ``imports``.
    """
    program = (
        f"import os, sys\n{imports}\n"
        "is_second = os.fork() == 0\n"
        "rank, store = int(is_second), sys.argv[1] + '/store'\n"
        "sys.stdout = open(f'{sys.argv[1]}/said-{rank}', 'w')\n"
        f"{work}\n"
        "sys.stdout.close()\n"
        "os._exit(0 if is_second else int(os.wait()[1] != 0))\n"
    )
    process = run_program(program, str(folder), *arguments)
    assert process.returncode == 0, process.stderr
    return [(folder / f"said-{rank}").read_text() for rank in range(2)]
