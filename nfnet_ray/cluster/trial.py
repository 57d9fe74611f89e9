"""A trial of one worker: a function that Ray Tune calls in an actor, which stays up for the next trial."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ray import tune

from nfnet_ray.cluster.exit_rules import is_fault, keep_trace
from nfnet_ray.cluster.mailbox import Register, remove_run
from nfnet_ray.cluster.messages import STOP, FinalReport, WorkerConfig, lanes_of, of_lane, said_result
from nfnet_ray.cluster.worker import Memory, train_alone, train_cohort_alone
from nfnet_ray.places import lost_place

_memory = Memory()
"""Of this process, over all the trials that it trains."""


def run_in_actor(space: dict[str, Any]) -> None:
    """Tune function of a trial with one worker, or of several as one program; ``space`` is a :func:`tune_space`."""
    started_at = time.perf_counter()
    configs = lanes_of(space)
    if _starts_too_late(configs):
        return
    if _memory.has_grown:
        os._exit(0)  # to Tune the trial has lost its worker, and it starts another one
    try:
        if len(configs) == 1:
            reports = [train_alone(configs[0], started_at)]
        else:
            reports = train_cohort_alone(configs, started_at)
    except Exception as error:
        import torch

        is_lost = lost_place(error) is not None
        reports = [
            FinalReport("failed", keep_trace(config["directory"], error), stops_study=is_lost)
            for config in configs
        ]
        if torch.cuda.is_initialized() and not is_fault(error):
            raise  # the process may be broken, and the next trial must not get it
    finally:
        with suppress(Exception):  # the cluster's head may be away, and nothing else depends on it
            for config in configs:
                remove_run(config["mailbox"])
    growth = _memory.growth("its process")
    if growth:
        tune.report(said_result(f"{growth}: a new one trains the next trial"))
    _report(configs, reports)


def _starts_too_late(configs: Sequence[WorkerConfig]) -> bool:
    """Whether the study is being stopped: Tune starts waiting trials in the places of those that have stopped."""
    if not Register(configs[0]["mailbox"]).get(STOP):
        return False
    _report(configs, [FinalReport("stopped")] * len(configs))
    return True


def _report(configs: Sequence[WorkerConfig], reports: Sequence[FinalReport]) -> None:
    for config, report in zip(configs, reports, strict=True):
        tune.report(of_lane(config["name"] if len(configs) > 1 else None, report.to_result()))
