"""``python -m studies COMMAND``: list, show, compare, replay, export, publish, annotate, delete and clean studies."""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import sys

from studies.managing.commands import main

if __name__ == "__main__":
    sys.exit(main())
