"""Lines for people: whatever is in a name, each is one line."""

from __future__ import annotations

import sys

from nfnet_ray.printable import printable


def say(line: str) -> None:
    """Print one line to standard output; what its encoding lacks is shown as an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    print(printable(line).encode(encoding, "backslashreplace").decode(encoding), flush=True)
