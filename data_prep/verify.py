"""``python -m data_prep verify``: is every byte of a data set still what was written?"""

from __future__ import annotations

import time
from pathlib import Path

from data_prep.lines import say
from nfnet_ray.command_line.progress import bytes_on_stderr
from nfnet_ray.data.files.verification import Verification, summary_of, verify
from nfnet_ray.errors import UserError
from nfnet_ray.wording import count

SHOWN_DAMAGES = 20


def run_verify(path: Path, workers: int, *, decode: bool, shown: int = SHOWN_DAMAGES) -> Verification:
    """Check a data set, show progress, and list the first ``shown`` problems.

    Raises:
        UserError: something is wrong; the message sums it up.
    """
    start = time.monotonic()
    verification = verify(path, workers, decode=decode, progress=bytes_on_stderr)
    seconds = max(time.monotonic() - start, 1e-9)
    damages = verification.damages
    for damage in damages[:shown]:
        say(str(damage))
    if len(damages) > shown:
        say(f"… and {len(damages) - shown:,} more (--limit {len(damages)} shows all)")
    say(
        f"{path}: checked {count(verification.checked_images, 'image')}, {verification.checked_bytes / 1e6:,.0f} MB in"
        f" {seconds:.1f} s ({verification.checked_bytes / 1e6 / seconds:,.0f} MB/s)"
        + (", each decoded" if decode else "")
    )
    if damages:
        raise UserError(f"{path}: {summary_of(damages)}; copy or convert the data set again")
    say("every byte is as it was written")
    return verification
