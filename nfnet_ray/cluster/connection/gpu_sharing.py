"""Several trials on one GPU: do they run at once, or do they take turns?

By default the processes on a GPU take turns (*time-slicing*), which gains about nothing: three copies of a service on
an H100 did 3% more than one, and with NVIDIA's Multi-Process Service (MPS), which lets their kernels run at once, 116%
more (github.com/sgl-project/sglang-omni, issue 986). An operator starts MPS for a whole machine, so it is looked for
and never started here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from nfnet_ray.cluster.connection.resources import WorkerResources, workers_on_a_gpu
from nfnet_ray.wording import count

PIPES_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
DEFAULT_PIPES = "/tmp/nvidia-mps"
"""docs.nvidia.com/deploy/mps, section 5.1."""


def mps_is_up(environment: Mapping[str, str] | None = None) -> bool:
    """Whether processes of this machine that start with ``environment`` (default: ours) find an MPS daemon.

    Runs on the node that it is asked about. A pipe that a dead daemon has left behind does not count.
    """
    environment = os.environ if environment is None else environment
    control = Path(environment.get(PIPES_VARIABLE) or DEFAULT_PIPES) / "control"
    try:
        mode = control.stat().st_mode
    except OSError:
        return False
    if stat.S_ISSOCK(mode):
        return True
    if not stat.S_ISFIFO(mode):
        return False
    try:
        os.close(os.open(control, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        return (
            error.errno != errno.ENXIO
        )  # nobody reads it; anything else, such as a missing right, says nothing
    return True


def sharing_sentence(worker: WorkerResources, nodes: Mapping[str, bool]) -> str:
    """Says at the start that workers share a GPU; empty if they do not. ``nodes`` is {name: whether MPS runs there}."""
    shared = workers_on_a_gpu(worker.gpus)
    if shared < 2 or not nodes:
        return ""
    without = [name for name, is_up in nodes.items() if not is_up]
    each = f"{count(shared, 'worker')} share each GPU"
    if not without:
        return f"{each}, through MPS."
    where = "" if len(without) == len(nodes) else f" on {', '.join(without)}"
    return (
        f"{each}, without MPS{where}: they take turns, which gains about nothing. The machine's operator can start MPS "
        "with nvidia-cuda-mps-control -d."
    )
