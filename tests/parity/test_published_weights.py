"""Published weights: the official files and timm's ports are loaded and written to the bit.

The files themselves are not here. They are replaced by files of the same form: the one that gives NFNet-F0 exactly
its published size, and those that `tests/fixtures/README.md` names.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import ScaledStdConv2dSame
from timm.models.nfnet import GammaAct, NfCfg, NormFreeNet
from timm.models.nfnet import model_cfgs as timm_configurations
from torch import Tensor, nn
from torch.nn import functional as F

from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.models.weights import deepmind
from nfnet_ray.models.weights.deepmind import (
    load_deepmind_weights,
    load_published,
    published_file_name,
    recognise_variant,
    to_deepmind_arrays,
)
from nfnet_ray.models.weights.pickled_arrays import read_pickled_arrays
from nfnet_ray.models.weights.timm_weights import load_timm_state, to_timm_state
from tests.parity.official import (
    FIXTURES,
    Arrays,
    Shapes,
    draw,
    drawn,
    official_shapes,
)

PICKLED = json.loads((FIXTURES / "pickled_weights.json").read_text())
VARIANTS = json.loads((FIXTURES / "nfnet_structure.json").read_text())["variants"]

# Bytes of the published F0_haiku.npz.
F0_FILE_SIZE = 285_976_842


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# --- Weights ---------------------------------------------------------------------------------------------------


def without_memory(shapes: Shapes) -> Arrays:
    """Arrays of these shapes that are one zero each."""
    return {
        module: {name: np.broadcast_to(np.float32(0), shape) for name, shape in parameters.items()}
        for module, parameters in shapes.items()
    }


def shapes_of(arrays: Arrays) -> Shapes:
    return {m: {name: array.shape for name, array in parameters.items()} for m, parameters in arrays.items()}


def assert_same(arrays: Mapping[str, Mapping[str, np.ndarray]], expected: Arrays) -> None:
    assert arrays.keys() == expected.keys()
    for module, parameters in expected.items():
        assert arrays[module].keys() == parameters.keys()
        for name, array in parameters.items():
            np.testing.assert_array_equal(
                arrays[module][name], array, err_msg=f"{module}/{name}", strict=True
            )


def drawn_network(name: str = "nfnet_nano", num_classes: int = 10) -> NFNet:
    """A network with weights that leave nothing out: every gain, bias and skip gain counts."""
    with torch.random.fork_rng(devices=[]):
        model = create_model(name, num_classes)
    assert isinstance(model, NFNet)
    load_deepmind_weights(model, drawn(shapes_of(to_deepmind_arrays(model))))
    return model


# --- Files of the published form -------------------------------------------------------------------------------


class PublishedPickler(pickle.Pickler):
    """Writes what dill 0.3.3 wrote of haiku's mappings and an older NumPy's arrays, without any of the three."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=3)
        self.modules = {
            name: types.ModuleType(name)
            for name in ("dill", "dill._dill", "haiku", "haiku._src", "haiku._src.data_structures")
        }
        self.get_attr = self.function("dill._dill", "_get_attr")
        self.import_module = self.function("dill._dill", "_import_module")
        self.flat_mapping = self.function("haiku._src.data_structures", "FlatMapping")
        self.compiled_module = types.ModuleType("numpy.core._multiarray_umath")
        self.reconstruct = np.zeros(0).__reduce__()[0]

    def function(self, module: str, name: str) -> Callable[[], None]:
        def stand_in() -> None:
            raise AssertionError(f"{name} was called")

        stand_in.__module__, stand_in.__qualname__ = module, name
        setattr(self.modules[module], name, stand_in)
        return stand_in

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, FlatMapping):
            return self.flat_mapping, (value.mapping,)
        if value is self.reconstruct:
            return self.get_attr, (self.compiled_module, "_reconstruct")
        if value is self.compiled_module:
            return self.import_module, (value.__name__,)
        if isinstance(value, np.dtype):  # flags were numbers
            return np.dtype, ("f4", 0, 1), (3, "<", None, None, None, -1, -1, 0)
        return NotImplemented


class FlatMapping:
    def __init__(self, mapping: Mapping[str, Any]) -> None:
        self.mapping = mapping


def write_published(arrays: Arrays, path: Path) -> Path:
    in_order = {
        module: FlatMapping({sys.intern(name): parameters[name] for name in sorted(parameters)})
        for module, parameters in sorted(arrays.items())
    }
    with path.open("wb") as file, pytest.MonkeyPatch.context() as patch:
        pickler = PublishedPickler(file)
        for name, module in pickler.modules.items():
            patch.setitem(sys.modules, name, module)
        pickler.dump(FlatMapping(in_order))
    return path


@pytest.mark.parametrize("form", PICKLED)
def test_reads_what_pickle_and_dill_write(form: str, tmp_path: Path) -> None:
    path = tmp_path / "F0_haiku.npz"
    path.write_bytes(base64.b64decode(PICKLED[form]))
    arrays = read_pickled_arrays(path)
    expected = {
        "NFNet/~/linear": {
            "w": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
            "b": np.array([1.5, -2, 3e-3], np.float32),
        },
        "NFNet/~/nf_block": {"skip_gain": np.array(0.25, np.float32)},
        "NFNet/~/stem_conv0": {
            "w": np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2),  # in Fortran's order in the file
            "gain": np.array(7, np.float32),  # a NumPy scalar in the file
            "bias": np.array([1e300, -0.0]),
        },
    }
    assert_same(arrays, expected)
    assert not any(array.flags.writeable for module in arrays.values() for array in module.values())


def test_types_and_byte_orders(tmp_path: Path) -> None:
    types_ = ("<f2", ">f4", ">f8", "|b1", "<i8", ">u2", "|i1")
    arrays = {"module": {code: np.array([[0, 1], [1, 0]], code) for code in types_}}
    path = tmp_path / "weights"
    path.write_bytes(pickle.dumps(arrays))
    assert_same(read_pickled_arrays(path), arrays)


def test_a_file_of_the_published_form(tmp_path: Path) -> None:
    """With official weights and their official logits."""
    with np.load(FIXTURES / "nfnet_tiny.npz") as npz:
        reference = dict(npz)
    weights: Arrays = {}
    for key, array in reference.items():
        if key.startswith("params/"):
            module, name = key.removeprefix("params/").rsplit("/", 1)
            weights.setdefault(module, {})[name] = array
    path = write_published(weights, tmp_path / "F0_haiku.npz")
    assert_same(read_pickled_arrays(path), weights)

    meta = json.loads(str(reference["meta"]))
    entry = meta["variant_entry"]
    shape = {key: entry[key] for key in ("width", "depth", "group_width", "expansion") if key in entry}
    for given in (path, str(path)):
        model = create_model("nfnet_f0", meta["num_classes"], overrides=shape | meta["kwargs"]).eval()
        load_deepmind_weights(model, given)
        logits = model(torch.from_numpy(reference["input_64"]).permute(0, 3, 1, 2).contiguous())
        assert np.abs(logits.detach().numpy() - reference["logits_64"]).max() < 1e-5


@pytest.mark.parametrize("name", ["nfnet_nano", "nf_regnet_b0"])
def test_files_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    model = drawn_network(name)
    arrays = to_deepmind_arrays(model)
    path = write_published(arrays, tmp_path / "weights.pickle")
    random_state = torch.random.get_rng_state()
    again = load_published(path)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert_same(to_deepmind_arrays(again), arrays)
    assert again.variant == model.variant
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(images), model.eval()(images))


def test_squeeze_excite_and_no_final_convolution() -> None:
    overrides = {"width": [16, 32, 48, 64], "depth": [1, 1, 2, 1], "se_ratio": 0.25}
    model, again = (create_model("nf_resnet50", 10, overrides=overrides) for _ in range(2))
    weights = drawn(shapes_of(to_deepmind_arrays(model)))
    assert weights["NF_ResNet/~/nf_res_block_4/~/squeeze_excite/~/linear"]["w"].shape == (64, 16)
    load_deepmind_weights(model, weights)
    assert_same(to_deepmind_arrays(model), weights)
    load_deepmind_weights(again, to_deepmind_arrays(model))
    assert_same(to_deepmind_arrays(copy.deepcopy(again)), weights)


@pytest.mark.parametrize("name", ["nf_resnet50", "nf_regnet_b0"])
def test_names_and_shapes_of_the_other_families(name: str) -> None:
    official = json.loads((FIXTURES / "nf_resnet_regnet_structure.json").read_text())["variants"][name][
        "shapes"
    ]
    with torch.device("meta"):
        ours = {entry.name: list(entry.shape) for entry in deepmind.official_entries(create_model(name))}
    assert ours == official
    arrays: Arrays = {}
    for label, shape in official.items():
        module, _, parameter = label.rpartition("/")
        arrays.setdefault(module, {})[parameter] = np.broadcast_to(np.float32(0), shape)
    assert recognise_variant(arrays) == name


# --- Which network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_recognised(variant: str) -> None:
    shapes = official_shapes(VARIANTS[variant], num_classes=21)
    assert len(shapes) == VARIANTS[variant]["num_modules"]
    assert sum(map(len, shapes.values())) == VARIANTS[variant]["num_tensors"]
    name = f"nfnet_{variant.lower().replace('+', '_plus')}"
    assert recognise_variant(without_memory(shapes)) == name


def test_weights_of_another_network_are_called_so() -> None:
    with torch.device("meta"):
        f0, f0_of_10 = create_model("nfnet_f0"), create_model("nfnet_f0", 10)
    arrays = without_memory(official_shapes(VARIANTS["F1"]))
    with pytest.raises(UserError) as error:
        load_deepmind_weights(f0, arrays)
    message = str(error.value)
    assert (
        "are those of nfnet_f1 with 1,000 classes and do not fit this nfnet_f0 with 1,000 classes" in message
    )
    for words in (
        "NFNet/~/nf_block_12/skip_gain is not part of the model",
        "NFNet/~/nf_block_9/~/conv_shortcut/w is missing",
        "NFNet/~/nf_block_1/~/conv0/w is (1, 1, 256, 128), not (1, 1, 256, 256)",
    ):
        assert words in message
    assert "\n" not in message

    with pytest.raises(UserError) as error:
        load_deepmind_weights(f0_of_10, without_memory(official_shapes(VARIANTS["F0"])))
    message = str(error.value)
    assert "are those of nfnet_f0 with 1,000 classes and do not fit this nfnet_f0 with 10 classes" in message
    assert message.count("NFNet/~/") == 2


def test_weights_of_no_known_network() -> None:
    shapes = official_shapes(VARIANTS["F2"])
    del shapes["NFNet/~/nf_block_7/~/conv1b"]
    shapes["NFNet/~/stem_conv0"]["gain"] = (17,)
    shapes["NFNet/~/linear"]["b"] = (10, 100)
    shapes["extra"] = {"w\n\x1b[31m": (3,)}
    with pytest.raises(UserError) as error:
        recognise_variant(without_memory(shapes))
    message = str(error.value)
    assert "the nearest is nfnet_f2, but" in message
    for words in (
        "NFNet/~/nf_block_7/~/conv1b/w is missing",
        "NFNet/~/stem_conv0/gain is (17,), not (16,)",
        "'extra/w\\n\\x1b[31m' is not part of it",
        "NFNet/~/linear/b is (10, 100), not (1,)",
    ):
        assert words in message
    assert message.isprintable()
    del shapes["NFNet/~/nf_block"]
    with pytest.raises(UserError, match="no known network: none has 35 residual blocks"):
        recognise_variant(without_memory(shapes))


def test_a_published_file_is_told_by_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "renamed"
    path.write_bytes(b"not what was published")
    assert published_file_name(path) is None
    checksum = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(deepmind, "PUBLISHED_MD5", deepmind.PUBLISHED_MD5 | {"F3_haiku.npz": checksum})
    assert published_file_name(path) == "F3_haiku.npz"
    with pytest.raises(UserError, match="nowhere: No such file or directory; check the path"):
        published_file_name(tmp_path / "nowhere")


def test_a_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    arrays = to_deepmind_arrays(drawn_network())
    path = write_published(arrays, tmp_path / "weights")
    with pytest.raises(
        UserError, match=rf"these weights from {path} are those of nfnet_nano with 10 classes"
    ):
        load_deepmind_weights(create_model("nfnet_pico", 10), path)
    del arrays["NFNet/~/final_conv"]
    write_published(arrays, path)
    with pytest.raises(
        UserError, match=rf"{path}: .* the nearest is nfnet_nano, but NFNet/~/final_conv/w is"
    ):
        load_published(path)


# --- What does not fit -----------------------------------------------------------------------------------------


def test_numbers_that_a_network_cannot_hold_are_named() -> None:
    model = create_model("nfnet_pico", 10).half()
    arrays = to_deepmind_arrays(model)
    arrays["NFNet/~/linear"]["b"][3] = np.nan
    arrays["NFNet/~/final_conv"]["w"][0, 0, 5, 7] = -np.inf
    arrays["NFNet/~/stem_conv1"]["gain"][2] = 70_000  # float16 ends at 65,504
    arrays["NFNet/~/stem_conv2"]["gain"] = arrays["NFNet/~/stem_conv2"]["gain"].astype(np.longdouble)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_deepmind_weights(model, arrays)
    message = str(error.value)
    assert message.count("NaN, infinity or numbers too large for torch.float16") == 3
    for name in ("linear/b", "final_conv/w", "stem_conv1/gain"):
        assert f"NFNet/~/{name} holds NaN" in message
    assert "NFNet/~/stem_conv2/gain holds float128" in message
    assert message.count("NFNet/~/") == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("code", [">f4", ">f8", "<f8"])
def test_other_types_and_byte_orders_are_taken(code: str) -> None:
    model = drawn_network()
    arrays = to_deepmind_arrays(model)
    converted = {m: {k: v.astype(code) for k, v in parameters.items()} for m, parameters in arrays.items()}
    again = create_model("nfnet_nano", 10)
    load_deepmind_weights(again, converted)
    assert_same(to_deepmind_arrays(again), arrays)


def test_anything_but_a_mapping_of_arrays_is_named() -> None:
    model = create_model("nfnet_pico", 10)
    with pytest.raises(
        UserError, match=r"\{module: \{parameter: array\}\}, but NFNet/~/linear has a ndarray"
    ):
        load_deepmind_weights(model, {"NFNet/~/linear": np.zeros(3)})
    with pytest.raises(UserError, match="linear/w is not an array"):
        load_deepmind_weights(model, {"NFNet/~/linear": {"w": [[1.0], [1.0, 2.0]]}})
    with pytest.raises(UserError, match="normaliser-free networks, not of Linear"):
        load_deepmind_weights(nn.Linear(1, 1), {})


# --- timm ------------------------------------------------------------------------------------------------------

# F0's first stage keeps its width: timm's stem follows from it, ours is fixed up to its last convolution.
SMALL = {"width": [256, 64, 96, 96], "depth": [1, 2, 2, 1], "group_width": [16] * 4}


def small_configuration() -> NfCfg:
    published = timm_configurations["dm_nfnet_f0"]
    channels = tuple(SMALL["width"])
    return replace(
        published,
        channels=channels,
        depths=tuple(SMALL["depth"]),
        group_size=16,
        num_features=2 * channels[-1],
    )


def timm_network(configuration: NfCfg | None = None, num_classes: int = 10) -> NormFreeNet:
    model = NormFreeNet(configuration or small_configuration(), num_classes).eval()
    model.load_state_dict({name: drawn_tensor(name, value) for name, value in model.state_dict().items()})
    return model


def drawn_tensor(name: str, like: Tensor) -> Tensor:
    z = torch.from_numpy(draw(0, name, tuple(like.shape))).reshape(like.shape)
    if name.endswith("skipinit_gain"):
        return 0.6 + 0.2 * z
    if name.endswith("gain"):
        return 1 + 0.1 * z
    if name.endswith("bias"):
        return 0.1 * z
    return (z + (0.3 if like.ndim == 4 and "attn" not in name else 0)) / like[0].numel() ** 0.5


def make_exact(model: nn.Module) -> nn.Module:
    """timm's network with the official GELU, and without the epsilon that it adds to the variance of weights."""
    for module in model.modules():
        if isinstance(module, ScaledStdConv2dSame):
            module.eps = 1e-12
        elif isinstance(module, GammaAct):
            module.act_fn = lambda x, inplace: F.gelu(x, approximate="tanh")  # noqa: ARG005
    return model


def largest_difference(a: nn.Module, b: nn.Module, size: int, dtype: torch.dtype) -> float:
    images = torch.from_numpy(draw(0, f"input/{size}", (2, size, size, 3))).permute(0, 3, 1, 2).to(dtype)
    with torch.no_grad():
        logits = a.to(dtype).eval()(images)
        assert logits.abs().max() > 0.1
        return float((logits - b.to(dtype).eval()(images)).abs().max())


@pytest.mark.parametrize("size", [64, 75])
def test_timms_weights_give_timms_logits(size: int) -> None:
    theirs = timm_network()
    ours = create_model("nfnet_f0", 10, overrides=SMALL)
    load_timm_state(ours, theirs.state_dict())
    assert largest_difference(ours, theirs, size, torch.float32) > 1e-4  # as it is shipped
    make_exact(theirs)
    assert largest_difference(ours, theirs, size, torch.float32) < 1e-5
    assert largest_difference(ours, theirs, size, torch.float64) < 2e-9


def test_our_weights_give_our_logits_in_timm() -> None:
    ours = create_model("nfnet_f0", 10, overrides=SMALL)
    load_deepmind_weights(ours, drawn(shapes_of(to_deepmind_arrays(ours))))
    theirs = make_exact(NormFreeNet(small_configuration(), 10))
    theirs.load_state_dict(to_timm_state(ours))
    assert largest_difference(ours, theirs, 64, torch.float32) < 1e-5
    assert largest_difference(ours, theirs, 64, torch.float64) < 2e-9


@pytest.mark.parametrize("level", range(7))
def test_timms_names_and_shapes(level: int) -> None:
    with torch.device("meta"):
        ours = to_timm_state(create_model(f"nfnet_f{level}", 1000))
        theirs = timm.create_model(f"dm_nfnet_f{level}").state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }


def test_timm_states_survive_a_round_trip() -> None:
    model = drawn_network()
    state = to_timm_state(model)
    again = create_model("nfnet_nano", 10)
    load_timm_state(again, state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    state["head.fc.bias"].fill_(7)
    assert not (model.classifier.bias == 7).any()
    rounded = {name: tensor.bfloat16() for name, tensor in to_timm_state(model).items()}
    load_timm_state(again, rounded)
    assert torch.equal(again.classifier.weight, model.classifier.weight.bfloat16().float())


def test_unfit_timm_states_are_named_and_nothing_is_loaded() -> None:
    model = create_model("nfnet_f0", 10, overrides=SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = timm_network().state_dict()
    del state["stages.1.0.skipinit_gain"]
    state["head.fc.weight"] = torch.zeros(1000, 192)
    state["stem.conv1.gain"] = state["stem.conv1.gain"].flatten()
    state["final_conv.bias"][3] = torch.nan
    state["stages.0.0.conv1.bias"] = torch.zeros(128, dtype=torch.int64)
    state["stages.0.9.conv1.bias"] = torch.zeros(1)
    with pytest.raises(UserError) as error:
        load_timm_state(model, state)
    message = str(error.value)
    for words in (
        "stages.1.0.skipinit_gain is missing",
        "head.fc.weight is (1000, 192), not (10, 192)",
        "stem.conv1.gain is (16,), not (16, 1, 1, 1)",
        "final_conv.bias holds NaN",
        "stages.0.0.conv1.bias holds int64",
        "stages.0.9.conv1.bias is not part of the model",
    ):
        assert words in message
    assert message.count(";") == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    with pytest.raises(UserError, match="but epoch is a int; give the part of the checkpoint"):
        load_timm_state(model, {"epoch": 3, "state_dict": state})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="not nf_resnet50"), torch.device("meta"):
        to_timm_state(create_model("nf_resnet50"))


# --- NFNet-F0 in full ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_f0_in_full(tmp_path: Path) -> None:
    weights = drawn(official_shapes(VARIANTS["F0"]))
    path = write_published(weights, tmp_path / "F0_haiku.npz")
    assert path.stat().st_size == F0_FILE_SIZE
    from_file = load_published(path)
    assert from_file.variant.name == "nfnet_f0"
    assert from_file.classifier.out_features == 1000

    with torch.device("meta"):  # initial weights take seconds to draw
        from_arrays, theirs = create_model("nfnet_f0"), timm.create_model("dm_nfnet_f0")
    from_arrays.to_empty(device="cpu")
    load_deepmind_weights(from_arrays, weights)
    assert largest_difference(from_file, from_arrays, 64, torch.float32) == 0
    del from_arrays

    theirs.load_state_dict(to_timm_state(from_file), assign=True)
    make_exact(theirs)
    assert largest_difference(from_file, theirs, 64, torch.float32) < 1e-5
