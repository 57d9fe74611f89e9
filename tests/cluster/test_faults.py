"""Which errors end a training at once, and which are tried again because a machine may have been the cause.

And how a trial of one worker leaves a machine that is taken back, or a process whose memory has grown.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from nfnet_ray.cluster import contexts, worker
from nfnet_ray.cluster import trial as trial_module
from nfnet_ray.cluster.connection import ray_internals
from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.cluster.contexts import GroupContext, TuneContext
from nfnet_ray.cluster.exit_rules import will_recur
from nfnet_ray.cluster.mailbox import Register
from nfnet_ray.cluster.messages.configs import tune_space, worker_config
from nfnet_ray.cluster.messages.notes import FinalReport
from nfnet_ray.cluster.messages.register_values import ATTEMPTS, STOP, Name
from nfnet_ray.cluster.messages.tune_reports import SAID
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import Study
from nfnet_ray.training import cohort
from nfnet_ray.training.form.kept import KeptGraphs
from tests.cluster.test_messages import head as head
from tests.cluster.training import quick_recipe
from tests.deadlines import HANG_SECONDS, wait_until


class Values(dict[Name[Any], Any]):
    """A register without Ray."""

    def set(self, name: Name[Any], value: Any) -> None:
        self[name] = value


def context(step: int = 3) -> GroupContext:
    register = Values({ATTEMPTS: {"attempt": 1, "step": step, "count": 1}})
    return cast(GroupContext, SimpleNamespace(rank=0, register=register))


def raised_by_batch_normalisation() -> Exception:
    with pytest.raises(ValueError, match="more than 1 value per channel") as caught:
        torch.nn.BatchNorm2d(2)(torch.zeros(1, 2, 1, 1))
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        raised_by_batch_normalisation(),
        TypeError("f() takes 1 argument"),
        KeyError("stem"),
        ZeroDivisionError("division by zero"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("a step of nfnet_f0 fails in every form"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ],
    ids=str,
)
def test_an_error_of_the_program_ends_it_the_first_time(error: Exception) -> None:
    assert will_recur(error, context())


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        socket.gaierror("name resolution"),
        dist.DistBackendError("NCCL error"),
        RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:4711"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    ],
    ids=repr,
)
def test_an_error_of_a_machine_is_tried_again_each_time(error: Exception) -> None:
    place = context()
    assert [will_recur(error, place) for _ in range(3)] == [False, False, False]


def test_what_could_be_either_ends_it_when_it_comes_a_second_time_at_the_same_checkpoint() -> None:
    error, place = RuntimeError("mat1 and mat2 shapes cannot be multiplied"), context()
    assert not will_recur(error, place)
    assert will_recur(error, place)
    place.register.set(ATTEMPTS, {"attempt": 3, "step": 8, "count": 1})
    assert not will_recur(error, place)


WORKER = """\
import json, sys
import torch, torch.distributed as dist
from nfnet_ray.cluster.exit_rules import will_recur
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext, train
rank, store, recipe = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
context = PlainContext(device=torch.device("cpu"), threads=1)
context.rank, context.world_size, context.replicas = rank, 2, 2
try:
    train(Recipe.from_values(recipe), context)
except UserError as error:
    print(f"others wait: {error.others_wait}, {error}")
except Exception as error:
    print(f"will recur: {will_recur(error, None)}, {error}")
"""


def test_a_sample_that_only_one_worker_finds_damaged_ends_a_training_at_once(
    few_digits: Path, tmp_path: Path
) -> None:
    """The other one is in the middle of a step by then, and fails as if a machine had been lost."""
    data = shutil.copytree(few_digits, tmp_path / "damaged")
    beton = open_dataset(data).train.beton
    with beton.path.open("r+b") as file:
        file.seek(int(beton.offsets[3]))
        file.write(bytes(int(beton.sizes[3])))
    alone = {"data.resident": "never", "data.mixing.mixup_alpha": None, "data.mixing.cutmix_alpha": None}
    recipe = json.dumps(quick_recipe(data).with_values(alone).to_values())
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), recipe], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = sorted(worker.communicate(timeout=HANG_SECONDS)[0] for worker in workers)
    assert said[0].startswith("others wait: True, ")
    assert "sample 3 is damaged" in said[0]
    assert said[1].startswith("will recur: False, ")


class LeftError(Exception):
    """The process has ended."""


@pytest.mark.parametrize("asked", [False, True])
def test_a_trial_of_one_worker_keeps_a_checkpoint_and_leaves_a_machine_that_is_taken_back(
    asked: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (trial,) = Study("s", "?", Recipe(), {}).trials()
    config = worker_config(trial, "0", tmp_path, WorkerResources(1, 1, 0.0))
    if asked:
        Register(config["mailbox"]).set(STOP, True)

    def train(_config: Any, context: TuneContext, _clock: Any) -> FinalReport:
        wait_until(context.should_stop, "the thread that reads the register")
        return FinalReport("stopped", None, 0)

    def leave(code: int) -> None:
        raise LeftError(code)

    monkeypatch.setattr(contexts, "SECONDS_BETWEEN_READS", 0.01)
    monkeypatch.setattr(ray_internals, "is_being_drained", lambda: True)
    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(os, "_exit", leave)
    if asked:  # then the driver does not wait for another start
        assert worker.train_alone(config, 0.0) == FinalReport("stopped", None, 0)
    else:
        with pytest.raises(LeftError, match="0"):
            worker.train_alone(config, 0.0)


def test_memory_that_is_free_is_given_back_before_a_process_is_replaced() -> None:
    """The allocator keeps it as long as something lies above it."""
    memory = worker.Memory()
    assert memory.growth("it") is None
    before = worker.held_bytes()
    pieces = [b"1" * 100_000 for _ in range(15_000)]  # each of them too small to be given back by itself
    held, last = worker.held_bytes() - before, pieces[-1]
    del pieces
    assert held > worker.LEAST_GROWTH_BYTES
    assert memory.growth("it") is None
    assert worker.held_bytes() - before < held / 2
    assert last


def test_what_is_held_for_the_next_leg_is_let_go_before_a_process_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = [1.0, 1.0, 5.0, 1.5]
    monkeypatch.setattr(worker, "held_bytes", lambda: held[0] * 2**30)
    memory = worker.Memory(let_go=lambda: held.pop(0) and None)
    assert memory.growth("it") is None
    assert len(held) == 4
    del held[:2]
    assert memory.growth("it") is None
    assert held == [1.5]
    assert not memory.has_grown


def test_trials_of_a_process_leave_their_graphs_to_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """But not to a cohort, which needs the memory and has graphs of its own."""
    (trial,) = Study("s", "?", Recipe(), {}).trials()
    config = worker_config(trial, "0", tmp_path, WorkerResources(1, 1, 0.0))
    kept: list[KeptGraphs | None] = []

    def train(_config: Any, context: TuneContext, _clock: Any) -> FinalReport:
        kept.append(context.kept_graphs)
        return FinalReport("finished", None, 1)

    def train_cohort(_recipes: Any, contexts: list[TuneContext], *_: Any, **__: Any) -> list[Any]:
        kept.extend(context.kept_graphs for context in contexts)
        return []

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(cohort, "train_cohort", train_cohort)
    worker.train_alone(config, 0.0)
    worker.train_alone(config, 0.0)
    assert kept[0] is kept[1]
    assert kept[0] is not None
    kept[0].keep(Recipe(), [], "graphs", reads_drop_rates=True)
    worker.train_cohort_alone([config], 0.0)
    assert kept[2:] == [None]
    assert kept[0].take(Recipe(), [], reads_drop_rates=True) is None


def test_all_trials_of_a_process_are_trained_by_one_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In which Tune ends one by an exception, and an error is that of its trial alone."""
    config = worker_config(
        Study("s", "?", Recipe(), {}).trials()[0], "0", tmp_path, WorkerResources(1, 1, 0.0)
    )
    threads, reports = list[int](), list[dict[str, Any]]()
    ends: list[BaseException | None] = [None, SystemExit(0), ValueError("no such thing"), None]

    def train(*_: object) -> FinalReport:
        threads.append(threading.get_ident())
        end = ends[len(threads) - 1]
        if end is not None:
            raise end
        return FinalReport("finished", None, 1)

    monkeypatch.setattr(trial_module, "train_alone", train)
    monkeypatch.setattr(trial_module.tune, "report", reports.append)
    for end in ends:
        with pytest.raises(SystemExit) if isinstance(end, SystemExit) else contextlib.nullcontext():
            trial_module.run_in_actor(tune_space([config]))
    assert len(threads) == 4
    assert len({*threads, threading.get_ident()}) == 2
    found = [FinalReport.from_result(report) for report in reports]
    assert [report and report.outcome for report in found] == ["finished", "failed", "finished"]


def test_a_process_whose_memory_has_grown_trains_no_further_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To Tune the trial has then lost its worker, and it starts another one."""
    config = worker_config(
        Study("s", "?", Recipe(), {}).trials()[0], "0", tmp_path, WorkerResources(1, 1, 0.0)
    )
    gib, reports, left = 2**30, list[dict[str, Any]](), list[int]()
    memory = iter(held * gib for held in (1.0, 1.0, 1.9, 2.1, 1.9, 2.1, 2.1))

    def leave(code: int) -> None:
        left.append(code)
        raise LeftError

    monkeypatch.setattr(worker, "held_bytes", lambda: next(memory))
    monkeypatch.setattr(trial_module, "train_alone", lambda *_: FinalReport("finished", None, 1))
    monkeypatch.setattr(trial_module, "_memory", worker.Memory())
    monkeypatch.setattr(trial_module.tune, "report", reports.append)
    monkeypatch.setattr(os, "_exit", leave)
    for _ in range(4):  # after the third one it has grown, until unused objects are collected
        trial_module.run_in_actor(tune_space([config]))
    assert [FinalReport.from_result(report) is None for report in reports] == [False] * 3 + [True, False]
    assert "of its process has grown from 1.0 to 2.1 GiB: a new one trains" in reports[3][SAID]
    with pytest.raises(LeftError):
        trial_module.run_in_actor(tune_space([config]))
    assert left == [0]
