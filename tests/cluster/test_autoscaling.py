"""An autoscaler starts nodes for the trials of a study that have no place, and two trials share each GPU.

The autoscaler is Ray's, and its nodes are processes on this machine whose GPUs are numbers (``fake_multinode``). Half a
minute.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfnet_ray.tracking.state import StudyState
from tests.cluster import share_gpus
from tests.cluster.machines import Machines
from tests.cluster.training import environment
from tests.deadlines import HANG_SECONDS
from tests.ports import unused_port


@pytest.fixture
def autoscaled(tmp_path: Path) -> Iterator[str]:
    """The address of a head without cores, whose autoscaler may start two nodes of two cores and a GPU each."""
    port = unused_port()
    nothing = {
        "auth": {},
        "docker": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }
    config = nothing | {
        "cluster_name": "fake",
        "max_workers": 2,
        "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}", "launch_multiple": True},
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 2, "GPU": 1, "object_store_memory": 100_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
    }
    file = tmp_path / "autoscaler.json"
    file.write_text(json.dumps(config))
    ports = [f"--{name}-port={unused_port()}" for name in ("dashboard", "dashboard-agent-listen")]
    machines = Machines(
        variables={"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
        port=port,
        head_command=[
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-name=head"),
            *(f"--port={port}", f"--ray-client-server-port={unused_port()}", *ports),
            *("--node-ip-address=127.0.0.1", "--num-cpus=0", f"--autoscaling-config={file}"),
            *("--include-dashboard=false", "--include-log-monitor=false"),
        ],
    )
    try:
        yield machines.address
    finally:
        machines.close()


@pytest.mark.slow
def test_nodes_come_for_the_trials_that_wait_and_each_gpu_is_shared(autoscaled: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, share_gpus.__file__, autoscaled, str(tmp_path)],
        env=environment() | {"MLFLOW_TRACKING_URI": "none"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(file.read_text()) for file in tmp_path.glob("clip_factor=*.json")]
    assert len(told) == share_gpus.TRIALS
    # Four at once: two on each of two nodes, which were not there when the study began. The fifth came later.
    assert sorted(Counter(trial["node"] for trial in told).values()) == [2, 3]
    assert {trial["gpus"] for trial in told} == {"0"}
    assert [trial["threads"] for trial in told] == [[1, 1, 1]] * share_gpus.TRIALS
    state, started = StudyState.read(tmp_path / "shared")
    assert started["study"]["places"] == share_gpus.PLACES
    assert {trial.state for trial in state.trials.values()} == {"finished"}
