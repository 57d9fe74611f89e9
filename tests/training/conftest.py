"""A network so small that an epoch takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nfnet_ray.recipe import Recipe


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was() -> Iterator[None]:
    """A training sets torch's number of threads and its default dtype."""
    threads = torch.get_num_threads()
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def quick(few_digits: Path) -> Recipe:
    """Three epochs of three steps, with dropout, stochastic depth and a moving average; images are only shifted.

    They are half as large as those on the disk. Most of a training of an NFNet would be its stem's convolutions: it
    takes twice as long as one of an NF-ResNet, which has all that a training treats in its own way but a final
    convolution and squeeze-excite.
    """
    return Recipe().with_values(
        {
            "model.name": "nf_resnet50",
            "model.dropout": 0.1,
            "model.stochastic_depth": 0.1,
            "model.overrides.width": [16, 16, 32, 32],
            "model.overrides.depth": [1, 1, 1, 1],
            "model.overrides.group_width": [4, 4, 4, 4],
            "data.path": str(few_digits),
            "data.image_size": 16,
            "data.eval_size": 16,
            "data.crop": "padded",
            "data.flip": False,
            "data.mixing.mixup_alpha": None,
            "data.mixing.cutmix_alpha": None,
            "data.randaugment.layers": 0,
            "schedule.epochs": 3,
            "schedule.warmup_epochs": 0.5,
            "schedule.base_learning_rate": 0.4,
            "batch_size": 80,
        }
    )
