"""Two workers of a run that talk to each other, for little more than the import of torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.deadlines import HANG_SECONDS


def two_workers(imports: str, work: str, folder: Path, *arguments: str) -> list[str]:
    """What each of them has printed.

    ``work`` is given its ``rank``, the name of a ``store`` at which they meet, and ``arguments`` as ``sys.argv[2:]``.
    A process is forked after the ``imports``, which takes half of what two processes would.
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
    command = [sys.executable, "-c", program, str(folder), *arguments]
    process = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=HANG_SECONDS, check=False)
    assert process.returncode == 0, process.stderr
    return [(folder / f"said-{rank}").read_text() for rank in range(2)]
