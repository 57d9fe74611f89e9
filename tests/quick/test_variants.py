"""The variant table and every cost agree with the official implementation, and mistakes are named."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.costs import count_multiply_adds, count_parameters, part_costs
from nfnet_ray.models.variants import block_plan, get_variant, list_models
from tests.parity.official import FIXTURES, described

OFFICIAL = json.loads((FIXTURES / "nfnet_structure.json").read_text())["variants"]


def our_name(official_name: str) -> str:
    return "nfnet_" + official_name.lower().replace("+", "_plus")


@pytest.mark.parametrize("official_name", OFFICIAL)
def test_variant_is_the_official_one_block_by_block(official_name: str) -> None:
    official = OFFICIAL[official_name]
    variant = get_variant(our_name(official_name))
    assert list(variant.width) == official["width"]
    assert list(variant.depth) == official["depth"]
    assert variant.dropout == official["drop_rate"]
    assert (variant.train_size, variant.test_size) == (official["train_imsize"], official["test_imsize"])
    assert variant.pooled_channels == official["final_conv_ch"]

    plan = block_plan(variant)
    assert len(plan) == len(official["blocks"])
    for ours, theirs in zip(plan, official["blocks"], strict=True):
        assert described(ours, variant) == theirs


@pytest.mark.parametrize("official_name", OFFICIAL)
def test_costs_are_the_official_ones_to_the_unit(official_name: str) -> None:
    official = OFFICIAL[official_name]
    variant = get_variant(our_name(official_name))
    assert count_parameters(variant, 1000) == official["num_params"]
    assert count_multiply_adds(variant, variant.train_size, 1000) == official["macs_train"]
    assert count_multiply_adds(variant, variant.test_size, 1000) == official["macs_test"]


def test_all_families_are_listed() -> None:
    published = [f"nfnet_f{index}{suffix}" for suffix in ("", "_plus") for index in range(8)]
    resnets = [f"nf_resnet{layers}" for layers in (50, 101, 152, 200, 288, 600)]
    regnets = [f"nf_regnet_b{level}" for level in range(6)]
    assert list_models() == ["nfnet_pico", "nfnet_nano", *published, *resnets, *regnets]


def test_costs_add_up_part_by_part() -> None:
    variant = get_variant("nfnet_nano")
    parts = part_costs(variant, 32, 10)
    assert [part.name for part in parts] == [
        "stem",
        *(f"block_{index:02d}" for index in range(12)),
        "final_conv",
        "classifier",
    ]
    assert [part.output_size for part in parts] == [8, 8, 4, 4, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1]
    assert sum(part.parameters for part in parts) == count_parameters(variant, 10)
    assert sum(part.multiply_adds for part in parts) == count_multiply_adds(variant, 32, 10)


def test_small_members_are_small() -> None:
    assert count_parameters(get_variant("nfnet_pico"), 10) == 192_703
    assert count_parameters(get_variant("nfnet_pico", {"skip_gain": False}), 10) == 192_698
    assert 1e6 < count_parameters(get_variant("nfnet_nano"), 10) < 2e6


def test_overrides_take_the_lists_of_a_file() -> None:
    variant = get_variant("nfnet_f0", {"width": [32, 48, 64, 64], "group_width": [8, 8, 8, 8], "alpha": 0.25})
    assert variant.width == (32, 48, 64, 64)
    assert variant.alpha == 0.25
    assert variant.depth == get_variant("nfnet_f0").depth
    assert hash(variant) == hash(variant)  # lists would not be


def test_width_multiplier_leaves_the_stem_alone() -> None:
    half = get_variant("nfnet_f0", {"width_multiplier": 0.5, "group_width": [64, 64, 64, 64]})
    assert [conv.out_channels for conv in half.stem] == [16, 32, 64, 128]
    assert [block.out_channels for block in block_plan(half)][::3] == [128, 768, 768, 768]
    assert half.pooled_channels == 1536


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("nfnet-f0", None, ["'nfnet-f0'", "did you mean nfnet_f0"]),
        ("alexnet", None, ["'alexnet'", "use one of", "nfnet_pico"]),
        ("nfnet_f0", {"widht": [1, 2, 3, 4]}, ["'widht'", "did you mean width"]),
        ("nfnet_f0", {"dropout": 0.1}, ["'dropout'", "use one of", "activation"]),
        ("nfnet_f0", {"width": [256, 512, 1536]}, ["width=(256, 512, 1536)", "four whole numbers"]),
        ("nfnet_f0", {"width": 256}, ["width=256", "four whole numbers"]),
        ("nfnet_f0", {"width": "2561"}, ["width='2561'", "four whole numbers"]),
        ("nfnet_f0", {"depth": [1, 2, 0, 1]}, ["depth=(1, 2, 0, 1)", "at least 1"]),
        ("nfnet_f0", {"depth": [1, 2, 2.5, 1]}, ["depth=(1, 2, 2.5, 1)", "whole numbers"]),
        ("nfnet_f0", {"expansion": [0.5, 0.5, 0.5, -1]}, ["expansion=", "above 0"]),
        ("nfnet_f0", {"group_width": [256, 8, 8, 8]}, ["group_width=", "at most 128 in stage 1"]),
        ("nfnet_f0", {"width_multiplier": 0.5}, ["group_width=", "at most 64 in stage 1"]),
        ("nfnet_f0", {"alpha": 0}, ["alpha=0", "above 0"]),
        ("nfnet_f0", {"se_ratio": float("nan")}, ["se_ratio=nan", "above 0"]),
        ("nfnet_f0", {"skip_gain": None}, ["skip_gain=None", "true or false"]),
        ("nfnet_f0", {"activation": "swish"}, ["activation='swish'", "silu", "gelu"]),
        ("nfnet_f0", {"activation": ["gelu"]}, ["activation=", "gelu"]),
        ("nfnet_f0", {"final_conv_mult": None}, ["final_conv_ch=None", "whole number"]),
        ("nfnet_f0", {"final_conv_ch": 96}, ["final_conv_ch=96", "final_conv_mult is None"]),
        ("nfnet_f0", {"final_conv_mult": 1e-9}, ["final_conv_mult=1e-09", "one channel"]),
    ],
)
def test_a_wrong_architecture_is_named(name: str, overrides: dict[str, Any] | None, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        get_variant(name, overrides)
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": 1.0},
        {"dropout": "0.2"},
        {"stochastic_depth": -0.1},
        {"num_classes": 0},
        {"num_classes": 2.0},
        {"num_classes": True},
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any]) -> None:
    ((field, value),) = settings.items()
    with pytest.raises(UserError, match=f"nfnet_pico: {field}={value!r} is not allowed"):
        create_model("nfnet_pico", **settings)


def test_classes_may_be_counted_by_numpy() -> None:
    classes = np.array([0, 2, 1]).max() + 1
    assert create_model("nfnet_pico", classes).classifier.out_features == 3


def test_overrides_that_are_no_dict_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"overrides = \['depth'\] is not allowed; it takes a dict"):
        create_model("nfnet_pico", overrides=["depth"])  # type: ignore[arg-type]


def test_names_and_costs_need_no_torch() -> None:
    program = (
        "import sys; import nfnet_ray.models; from nfnet_ray.models.costs import *; "
        "from nfnet_ray.models.variants import *; "
        "count_parameters(get_variant(list_models()[0]), 10); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=FIXTURES.parents[1])
