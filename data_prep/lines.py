"""Lines for people: whatever is in a name, each is one line, and nobody reading on is no error."""

from __future__ import annotations

import os
import sys

from nfnet_ray.printable import printable


def say(line: str) -> None:
    """Print one line to standard output.

    What the terminal's encoding lacks is shown as an escape. Where the reader has gone (``| head``), nothing more is
    printed, and what is under way goes on.
    """
    text = printable(line)
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        # Python would say it once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
