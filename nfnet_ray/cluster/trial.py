"""One trial of a study on Ray: a Tune function in a warm actor, or a TorchTrainer when it has several workers.

Both call the same ``train(recipe, context)``; only the Context differs.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from ray import tune

from nfnet_ray.cluster.mailbox import Mailbox
from nfnet_ray.cluster.trainer import torch_trainer
from nfnet_ray.cluster.worker import (
    OUTCOME,
    REASON,
    STOP,
    STOPS_STUDY,
    WorkerConfig,
    is_fault,
    kept_trace,
    train_alone,
)
from nfnet_ray.places import lost_place


def run_in_actor(space: dict[str, Any]) -> None:
    """Tune function of a trial with one worker. ``space["trial"]`` is its :class:`WorkerConfig`."""
    started_at = time.perf_counter()
    config: WorkerConfig = space["trial"]
    if _comes_too_late(config):
        return
    try:
        last_word = train_alone(config, started_at)
    except Exception as error:
        import torch

        last_word = {OUTCOME: "failed", REASON: kept_trace(config, error), "epoch": 0}
        if lost_place(error):
            last_word[STOPS_STUDY] = True
        if torch.cuda.is_initialized() and not is_fault(error):
            raise  # the process may be broken, and the next trial must not get it
    finally:
        with suppress(Exception):  # the cluster's head may be away, and nothing else depends on it
            Mailbox(config["mailbox"]).remove()
    tune.report(last_word)


def run_worker_group(space: dict[str, Any]) -> None:
    """Tune function of a trial with several workers: runs a TorchTrainer and passes its reports on."""
    from ray.tune.integration.ray_train import TuneReportCallback

    config: WorkerConfig = space["trial"]
    if _comes_too_late(config):
        return
    try:
        torch_trainer(config, [TuneReportCallback()]).fit()
    except Exception as error:
        tune.report({OUTCOME: "failed", REASON: kept_trace(config, error), "epoch": 0})
    finally:
        Mailbox(config["mailbox"]).remove()


def _comes_too_late(config: WorkerConfig) -> bool:
    """Whether the study is being stopped: Tune starts waiting trials in the places of those that have stopped."""
    if not Mailbox(config["mailbox"]).get(STOP):
        return False
    tune.report({OUTCOME: "stopped", REASON: None, "epoch": 0})
    return True
