"""nfnet_ray: a platform for studying normaliser-free image networks at scale."""

import sys

__version__ = "0.1.0"

# So it is while `python -m nfnet_ray.models` looks for that program, which imports this and other packages.
if getattr(sys, "argv", [])[:1] == ["-m"]:
    from nfnet_ray.command_line.program import begin

    begin()
