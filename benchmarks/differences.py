"""How far timm's NFNets are from the official ones: ``python -m benchmarks.differences [--threads N]``.

Both get the same weights and images, drawn by the recipe of ``tests/fixtures/README.md``, so that nothing is
at a value where a difference would not show. Ours represents the official implementation, with which it agrees to
1e-6 in the logits (``tests/parity``). Prints a table and writes ``results/differences.csv``: what timm has, what
is official, and their difference; of logits the largest magnitudes, of gradients the norms. Takes a minute and
3.2 GB of memory (F1 in float64).
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import create_transform, resolve_data_config
from timm.layers import DropPath, ScaledStdConv2dSame
from timm.models import model_parameters
from timm.models.nfnet import GammaAct, NormFreeBlock
from timm.optim import param_groups_weight_decay
from timm.utils import adaptive_clip_grad
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.record import Row, circumstances, parser_with_threads
from nfnet_ray.models import create_model
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.models.variants import block_plan, get_variant
from nfnet_ray.models.weights.deepmind import load_deepmind_weights, to_deepmind_arrays
from nfnet_ray.models.weights.timm_weights import to_timm_state
from nfnet_ray.optim import clip_gradients_adaptively

RESULTS = Path(__file__).with_name("results") / "differences.csv"
IMAGES, IMAGE_PX = 2, 64
CLIP_FACTOR, EPS = 0.01, 1e-3  # the official recipe
WEIGHT_DECAY = 2e-5


def row(
    subject: str,
    model: str,
    case: str,
    quantity: str,
    *,
    timms: float,
    official: float,
    difference: float | None = None,
    precision: str = "",
) -> Row:
    """One line of the table, its numbers to six digits. Without `difference`, that of the two numbers."""
    numbers = {
        "timm": timms,
        "official": official,
        "difference": timms - official if difference is None else difference,
    }
    return {
        "subject": subject,
        "model": model,
        "case": case,
        "precision": precision,
        "quantity": quantity,
    } | {name: float(f"{number:.6g}") for name, number in numbers.items()}


def draw(label: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers that depend on their label alone."""
    return np.random.RandomState(zlib.crc32(f"0:{label}".encode())).standard_normal(size=shape)


def drawn_value(module: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor in the official layout, float32."""
    z = draw(f"{module}/{name}", shape)
    if name == "w":
        z = (z + 0.3) / np.sqrt(np.prod(shape[:-1])) if len(shape) == 4 else z / np.sqrt(shape[0])
    elif name == "gain":
        z = 1 + 0.1 * z
    elif name == "skip_gain":
        z = 0.6 + 0.2 * z
    else:
        z = 0.1 * z
    return np.asarray(z, np.float32)


def networks(name: str) -> tuple[NFNet, nn.Module]:
    """Ours and timm's network with the same drawn weights, in evaluation."""
    ours = create_model(name)
    assert isinstance(ours, NFNet)
    weights = to_deepmind_arrays(ours)
    for module, parameters in weights.items():
        for parameter, array in parameters.items():
            parameters[parameter] = drawn_value(module, parameter, array.shape)
    load_deepmind_weights(ours, weights)
    theirs = timm.create_model(f"dm_{name}")
    theirs.load_state_dict(to_timm_state(ours))
    return ours.eval(), theirs.eval()


def images(dtype: torch.dtype) -> Tensor:
    """(N, 3, H, W), normally distributed as normalised images are."""
    images_NHWC = torch.from_numpy(draw(f"input/{IMAGE_PX}", (IMAGES, IMAGE_PX, IMAGE_PX, 3)))
    return images_NHWC.permute(0, 3, 1, 2).to(dtype)


def with_epsilon(model: nn.Module, epsilon: float) -> None:
    """Sets what timm adds to the variance of weights when it standardises them."""
    for module in model.modules():
        if isinstance(module, ScaledStdConv2dSame):
            module.eps = epsilon


def with_gelu(model: nn.Module, approximate: str) -> None:
    """Sets the form of GELU: ``none`` is by the error function, ``tanh`` the official one."""
    for module in model.modules():
        if isinstance(module, GammaAct):
            module.act_fn = lambda x, inplace=False: F.gelu(x, approximate=approximate)  # noqa: ARG005


def logits(name: str) -> Iterable[Row]:
    """The largest difference of the logits, with timm's two deviations and without."""
    ours, theirs = networks(name)
    cases = {  # epsilon, GELU
        "as shipped": (1e-5, "none"),
        "tanh GELU only": (1e-5, "tanh"),
        "epsilon 1e-12 only": (1e-12, "none"),
        "both": (1e-12, "tanh"),
        "both, epsilon 1e-30": (1e-30, "tanh"),
    }
    for dtype in (torch.float32, torch.float64):
        images_NCHW = images(dtype)
        with torch.no_grad():
            official = ours.to(dtype)(images_NCHW)
            for case, (epsilon, approximate) in cases.items():
                with_epsilon(theirs, epsilon)
                with_gelu(theirs, approximate)
                timms = theirs.to(dtype)(images_NCHW)
                yield row(
                    "logits",
                    name,
                    case,
                    "largest",
                    timms=timms.abs().max().item(),
                    official=official.abs().max().item(),
                    difference=(timms - official).abs().max().item(),
                    precision=str(dtype).removeprefix("torch."),
                )


def kind_of(name: str) -> str:
    """What a parameter of timm's network is."""
    parameter = name.rpartition(".")[2]
    if name.startswith("head.fc"):
        return f"classifier {parameter}"
    layer = "squeeze-excite" if ".attn_last." in name else "convolution"
    kinds = {"weight": f"{layer} weights", "bias": f"{layer} biases", "gain": "gains"}
    return kinds.get(parameter, "skip gains")


def by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """{kind: its parameters}."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(kind_of(name), []).append(name)
    return kinds


def norm(tensors: Iterable[Tensor]) -> float:
    """The norm of all together."""
    return torch.stack([tensor.double().norm() for tensor in tensors]).norm().item()


def clipping(name: str) -> Iterable[Row]:
    """Gradients of a loss, clipped in both ways: how they differ, and how much longer timm's are."""
    ours, theirs = networks(name)
    labels = torch.arange(IMAGES)
    F.cross_entropy(ours(images(torch.float32)), labels).backward()

    def gradients() -> dict[str, Tensor]:
        """Those of our network under timm's names and in its shapes."""
        weights = [parameter.data for parameter in ours.parameters()]
        for parameter in ours.parameters():
            assert parameter.grad is not None
            parameter.data = parameter.grad
        state = to_timm_state(ours)
        for parameter, weight in zip(ours.parameters(), weights, strict=True):
            parameter.data = weight
        return state

    unclipped = gradients()
    for parameter_name, parameter in theirs.named_parameters():
        parameter.grad = unclipped[parameter_name].clone()
    # As timm's train.py does it in its mode 'agc'.
    adaptive_clip_grad(model_parameters(theirs, exclude_head=True), CLIP_FACTOR, EPS)
    clipped = {
        parameter_name: parameter.grad
        for parameter_name, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    clip_gradients_adaptively(
        [parameter for name_, parameter in ours.named_parameters() if name_ != "classifier.weight"],
        CLIP_FACTOR,
        EPS,
    )
    official = gradients()
    for kind, names in by_kind(clipped).items():
        yield row(
            "clipped gradient",
            name,
            kind,
            "norm",
            timms=norm(clipped[name_] for name_ in names),
            official=norm(official[name_] for name_ in names),
            difference=norm(clipped[name_] - official[name_] for name_ in names),
            precision="float32",
        )


def weight_decay(name: str) -> Iterable[Row]:
    """How many tensors of each kind decay."""
    with torch.device("meta"):
        model = timm.create_model(f"dm_{name}")
    groups: list[dict[str, Any]] = param_groups_weight_decay(model, WEIGHT_DECAY)
    decaying = {
        id(parameter) for group in groups if group["weight_decay"] > 0 for parameter in group["params"]
    }
    parameters = dict(model.named_parameters())
    for kind, names in by_kind(parameters).items():
        timms = sum(id(parameters[name_]) in decaying for name_ in names)
        # experiment_nfnets.py: all but what is called gain, skip_gain, bias or b.
        official = len(names) if kind.endswith(("weight", "weights")) else 0
        quantity = f"tensors that decay, of {len(names)}"
        yield row("weight decay", name, kind, quantity, timms=timms, official=official)


def drop_rates(model: nn.Module) -> list[float]:
    """Rates of stochastic depth of timm's blocks, in order; a block without it is never dropped."""
    return [
        module.drop_path.drop_prob if isinstance(module.drop_path, DropPath) else 0.0
        for module in model.modules()
        if isinstance(module, NormFreeBlock)
    ]


def regularisation(name: str) -> Iterable[Row]:
    """Drop rates, and what happens to a branch that is kept."""
    variant = get_variant(name)
    official = [block.stochastic_depth for block in block_plan(variant)]
    with torch.device("meta"):
        model = timm.create_model(f"dm_{name}", drop_path_rate=variant.stochastic_depth)
        default = timm.create_model(f"dm_{name}")
    rates = drop_rates(model)
    for index in (1, len(rates) // 2, len(rates) - 1):
        case = f"rate {variant.stochastic_depth}, block {index} of 0 to {len(rates) - 1}"
        yield row("stochastic depth", name, case, "drop rate", timms=rates[index], official=official[index])
    kept = DropPath(0.5).train()(torch.ones(1000)).max().item()
    quantity = "factor of a branch that is kept"
    yield row("stochastic depth", name, "rate 0.5", quantity, timms=kept, official=1.0)
    rate, case = max(drop_rates(default)), "unless asked for"
    yield row("stochastic depth", name, case, "largest drop rate", timms=rate, official=official[-1])
    rate = max((module.p for module in default.modules() if isinstance(module, nn.Dropout)), default=0.0)
    yield row("dropout", name, case, "drop rate", timms=rate, official=variant.dropout)


def evaluation_resize(name: str) -> Iterable[Row]:
    """Pixels that both sides of an image are resized to, before the test size is cut from the centre."""
    with torch.device("meta"):
        model = timm.create_model(f"dm_{name}")
    config: dict[str, Any] = resolve_data_config({}, model=model, use_test_size=True)
    transform: Any = create_transform(**config, is_training=False)
    (resize,) = (step for step in transform.transforms if type(step).__name__ == "Resize")
    official = get_variant(name).test_size + 32  # dataset.py
    quantity = "pixels resized to"
    yield row("evaluation", name, "test size", quantity, timms=resize.size[0], official=official)


def measure() -> Iterable[Row]:
    """All rows."""
    parts: list[tuple[Callable[[str], Iterable[Row]], list[str]]] = [
        (logits, ["nfnet_f0", "nfnet_f1"]),
        (clipping, ["nfnet_f0"]),
        (weight_decay, ["nfnet_f0"]),
        (regularisation, ["nfnet_f0"]),
        (evaluation_resize, [f"nfnet_f{level}" for level in range(7)]),
    ]
    for part, names in parts:
        for name in names:
            yield from part(name)


def main() -> None:
    """Measures, prints, and writes the results."""
    parser = parser_with_threads(__doc__)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    about: Row = {
        "images": IMAGES,
        "image_px": IMAGE_PX,
        **circumstances(torch.device("cpu"), options.threads),
        "timm_version": timm.__version__,
    }
    rows = []
    print(f"{'':96}{'timm':>13}{'official':>13}{'difference':>13}")
    for line in measure():
        rows.append(line | about)
        keys = ("subject", "model", "case", "precision", "quantity")
        what = ", ".join(str(line[key]) for key in keys if line[key])
        numbers = "".join(f"{line[key]:13.6g}" for key in ("timm", "official", "difference"))
        print(f"{what:96}{numbers}", flush=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
