"""Python runs this first in every process that the tests start: ``tests/conftest.py`` puts its folder on their path.

Programs of nfnet_ray look for garbage rarely (``nfnet_ray/command_line/program.py``), but their Ray, an MLflow server
and the tests' own programs do so for every 700 new objects, or 2,000 from Python 3.12 on. Most of what such a process
does in its short life is imports, whose objects stay. A fifth of its time went to looking for garbage, and to
collecting at its end what is freed with it anyway.
"""

import atexit
import gc
import sys

PYTHONS_OWN_THRESHOLD = gc.get_threshold()


def _leave_modules_to_the_system() -> None:
    if "triton" not in sys.modules:  # it would print which of its objects are left
        gc.freeze()


gc.set_threshold(50_000, *PYTHONS_OWN_THRESHOLD[1:])
atexit.register(_leave_modules_to_the_system)
