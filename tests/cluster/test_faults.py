"""Which errors end a training at once, and which are tried again because a machine may have been the cause."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from nfnet_ray.cluster.contexts import GroupContext
from nfnet_ray.cluster.exit_rules import will_recur
from nfnet_ray.cluster.messages import ATTEMPTS, Name


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
    ],
    ids=lambda error: type(error).__name__,
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
