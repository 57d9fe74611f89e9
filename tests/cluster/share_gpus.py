"""A study through ``nfnet_ray.run`` whose trials say what they were given: ``python share_gpus.py ADDRESS STORAGE``.

The trials train nothing. Each notes, in a file of its own name in STORAGE, the node, the GPUs that it may use and its
threads, and waits until as many trials as there are places run at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import Study
from tests.deadlines import wait_until

TRIALS, PLACES = 5, 4


def noting(storage: Path) -> Callable[[dict[str, Any]], None]:
    """The function of a trial. Of __main__, it travels to the actors by value."""

    def note(config: Any, _started_at: float) -> Any:
        import ray
        import torch

        from nfnet_ray.cluster.contexts import TuneContext
        from nfnet_ray.cluster.messages.notes import FinalReport
        from nfnet_ray.training.determinism import reset_process

        context = TuneContext(config)
        reset_process(0, context.threads)
        told = {
            "node": ray.get_runtime_context().get_node_id(),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "threads": [context.threads, torch.get_num_threads(), int(os.environ["OMP_NUM_THREADS"])],
        }
        (storage / f"{config['name']}.json").write_text(json.dumps(told))
        wait_until(lambda: len(list(storage.glob("*.json"))) >= PLACES, "the other places")
        context.report({"epoch": 1, METRIC: 0.5, "train_seconds": 0.1}, None)
        return FinalReport("finished", None, 1)

    def note_in_actor(space: dict[str, Any]) -> None:
        from nfnet_ray.cluster import trial

        with mock.patch.object(trial, "train_alone", note):
            trial.run_in_actor(space)

    return note_in_actor


def main(address: str, storage: Path) -> None:
    """Runs it on one half of a GPU and one core for each trial, more of them than the nodes that are up take."""
    from studies.running.from_python import run

    factors = tuple(number / 100 for number in range(1, TRIALS + 1))
    recipe = Recipe().with_values({"schedule.epochs": 1, "batch_size": 64})
    study = Study("shared", "?", recipe, {"optimizer.agc.clip_factor": factors})
    no_check = mock.patch("nfnet_ray.cluster.connection.nodes.check_gpus")  # the nodes' GPUs do not exist
    with no_check, mock.patch("nfnet_ray.cluster.driver.run_in_actor", noting(storage)):
        run(
            study,
            address=address,
            storage=storage,
            name="shared",
            cpus_per_worker=1,
            gpus_per_worker=0.5,
            trials_at_once=PLACES,
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
