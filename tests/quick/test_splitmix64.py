"""SplitMix64 is the published generator, and the same for whole numbers, arrays and tensors."""

from __future__ import annotations

import numpy as np
import torch

from nfnet_ray.splitmix64 import GOLDEN, mix_tensor_, mixed, mixed_array, shifted_right, signed

# The outputs of Vigna's splitmix64.c, which has the same mixing, for seed 1234567.
SEED = 1234567
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]
STATES = [(SEED + n * GOLDEN) % 2**64 for n in range(1, 6)]


def test_whole_numbers_are_mixed_as_published() -> None:
    assert [mixed(state) for state in STATES] == PUBLISHED


def test_arrays_are_mixed_as_published() -> None:
    with np.errstate(over="ignore"):
        assert mixed_array(np.array(STATES, np.uint64)).tolist() == PUBLISHED


def test_tensors_are_mixed_as_published_and_in_place() -> None:
    state = torch.tensor([signed(state) for state in STATES])
    assert mix_tensor_(state) is state
    assert state.tolist() == [signed(number) for number in PUBLISHED]


def test_a_shift_to_the_right_fills_up_with_zeros() -> None:
    assert shifted_right(torch.tensor([-1, -(2**63), 8]), 1).tolist() == [2**63 - 1, 2**62, 4]
