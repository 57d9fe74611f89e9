"""One trial of a study on Ray: a Tune function in a warm actor, or a TorchTrainer when it has several workers.

Both call the same ``train(recipe, context)``; only the Context differs.
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

from ray import tune

from nfnet_ray.cluster.mailbox import Mailbox
from nfnet_ray.cluster.trainer import torch_trainer
from nfnet_ray.cluster.worker import OUTCOME, REASON, WorkerConfig, train_alone


def run_in_actor(space: dict[str, Any]) -> None:
    """Tune function of a trial with one worker. ``space["trial"]`` is its :class:`WorkerConfig`."""
    started_at = time.perf_counter()
    config: WorkerConfig = space["trial"]
    try:
        last_word = train_alone(config, started_at)
    except Exception as error:
        import torch

        last_word = _failure(config, error)
        if torch.cuda.is_initialized() and not isinstance(error, torch.OutOfMemoryError):
            raise  # the process may be broken, and the next trial must not get it
    tune.report(last_word)


def run_worker_group(space: dict[str, Any]) -> None:
    """Tune function of a trial with several workers: runs a TorchTrainer and passes its reports on."""
    from ray.tune.integration.ray_train import TuneReportCallback

    config: WorkerConfig = space["trial"]
    try:
        torch_trainer(config, [TuneReportCallback()]).fit()
    except Exception as error:
        tune.report(_failure(config, error))
    finally:
        Mailbox(config["mailbox"]).remove()


def _failure(config: WorkerConfig, error: Exception) -> dict[str, Any]:
    """The last report of a trial that raised: one line for the table, the trace in a file."""
    trace = Path(config["directory"]) / "error.txt"
    trace.parent.mkdir(parents=True, exist_ok=True)
    trace.write_text("".join(traceback.format_exception(error)))
    line = next(iter(str(error).splitlines()), "")
    return {OUTCOME: "failed", REASON: f"{type(error).__name__}: {line} (trace in {trace})", "epoch": 0}
