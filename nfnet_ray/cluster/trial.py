"""A trial of one worker: a function that Ray Tune calls in an actor, which stays up for the next trial."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from ray import tune

from nfnet_ray.cluster.exit_rules import is_fault, keep_trace
from nfnet_ray.cluster.mailbox import Register, remove_run
from nfnet_ray.cluster.messages import STOP, FinalReport, WorkerConfig
from nfnet_ray.cluster.worker import train_alone
from nfnet_ray.places import lost_place


def run_in_actor(space: dict[str, Any]) -> None:
    """Tune function of a trial with one worker. ``space["trial"]`` is its :class:`WorkerConfig`."""
    started_at = time.perf_counter()
    config: WorkerConfig = space["trial"]
    if _starts_too_late(config):
        return
    try:
        report = train_alone(config, started_at)
    except Exception as error:
        import torch

        report = FinalReport(
            "failed", keep_trace(config["directory"], error), stops_study=lost_place(error) is not None
        )
        if torch.cuda.is_initialized() and not is_fault(error):
            raise  # the process may be broken, and the next trial must not get it
    finally:
        with suppress(Exception):  # the cluster's head may be away, and nothing else depends on it
            remove_run(config["mailbox"])
    tune.report(report.to_result())


def _starts_too_late(config: WorkerConfig) -> bool:
    """Whether the study is being stopped: Tune starts waiting trials in the places of those that have stopped."""
    if not Register(config["mailbox"]).get(STOP):
        return False
    tune.report(FinalReport("stopped").to_result())
    return True
