"""NFNet-F0 and F1 in full size have the logits of the official code.

The reference numbers are `nfnet_full_size.npz` of `tests/fixtures/README.md`; weights and images are drawn by its
recipe. Takes about 15 s of one core and 2 GB of memory.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from nfnet_ray.models import create_model
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.models.weights.deepmind import load_deepmind_weights
from tests.parity.official import FIXTURES, draw, drawn, max_difference, official_shapes, reference

OFFICIAL = reference("nfnet_full_size")
STRUCTURE = json.loads((FIXTURES / "nfnet_structure.json").read_text())["variants"]
META = json.loads(str(OFFICIAL["meta"]))


@pytest.fixture(scope="module", params=META["variants"])
def network(request: pytest.FixtureRequest) -> tuple[str, NFNet]:
    """The name of the official variant, and ours with the drawn weights in float32."""
    torch.set_num_threads(1)
    with torch.device("meta"):  # initial weights take longer to draw than the logits to compute
        model = create_model(f"nfnet_{request.param.lower()}", META["num_classes"])
    model.to_empty(device="cpu")
    assert isinstance(model, NFNet)
    shapes = official_shapes(STRUCTURE[request.param], META["num_classes"])
    load_deepmind_weights(model, drawn(shapes, META["seed"]))
    return request.param, model.eval()


def images(size: int) -> Tensor:
    x_NHWC = draw(META["seed"], f"input/{size}", (META["batch"], size, size, 3)).astype(np.float32)
    return torch.from_numpy(x_NHWC).permute(0, 3, 1, 2).contiguous()


@pytest.mark.slow
def test_logits(network: tuple[str, NFNet]) -> None:
    variant, model = network
    with torch.no_grad():
        for size in META["sizes"]:
            error = max_difference(model(images(size)), OFFICIAL[f"{variant}/logits_{size}"])
            assert error < 1e-5, size
        model.double()
        for size in META["sizes"]:
            error = max_difference(model(images(size).double()), OFFICIAL[f"{variant}/logits_f64_{size}"])
            assert error < 1e-10, size
