"""A Recipe takes only what makes sense, and says so; its dotted names are the same everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
import typing
from typing import Any
from unittest import mock

import pytest

from nfnet_ray.models.published import resolve, with_published_values
from nfnet_ray.recipe import (
    AGCRecipe,
    OptimizerRecipe,
    Overrides,
    Recipe,
    RecipeError,
    Section,
    field_meanings,
    parse_setting,
)


def test_values_survive_json() -> None:
    recipe = Recipe().with_values(
        {
            "model.overrides.width": [32, 64, 96, 96],
            "optimizer.agc.clip_factor": None,
            "precision": "bfloat16",
        }
    )
    assert Recipe.from_values(json.loads(json.dumps(recipe.to_values()))) == recipe
    assert recipe.model.overrides.chosen() == {"width": (32, 64, 96, 96)}


def test_every_field_has_a_meaning_under_its_dotted_name() -> None:
    assert list(field_meanings()) == list(Recipe().to_values())


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        (
            "optimizer.agc.clip_factor=-1",
            "optimizer.agc.clip_factor = -1 is not allowed: it takes a number above 0, or none",
        ),
        ("optimizer.agc.clip_factor=1e999", "above 0"),
        ("batch_size=1.5", "a whole number of at least 1"),
        ("batch_size=true", "a whole number of at least 1"),
        ("optimizer.momentum=1", "at least 0 and below 1"),
        ("data.crop=sideways", "one of random_resized, padded, whole"),
        ("data.on_damaged=ignore", "one of stop, skip"),
        ("data.progressive.start_size=7", "a whole number from 8 to 2,048, or none"),
        ("data.progressive.stages=1", "a whole number of at least 2, or none"),
        ("data.progressive.step=0", "a whole number of at least 1"),
        ("model.overrides.width=[64, 0]", "a list of whole numbers from 1 to 65,536"),
        ("clip_factor=0.01", "did you mean optimizer.agc.clip_factor?"),
        (
            "agc=0.01",
            "it is a part of it, with the fields optimizer.agc.clip_factor, optimizer.agc.eps, optimizer",
        ),
        ("optimizer.agc.clip_facto=0.01", "did you mean optimizer.agc.clip_factor"),
        ("batch_size", "write it as field=value"),
        ("data.path=", "--set data.path=: there is no value; is a shell variable not set?"),
        ("model.weights= ", "there is no value"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(setting: str, complaint: str) -> None:
    def apply() -> Recipe:
        name, value = parse_setting(setting)
        return Recipe().with_values({name: value})

    with pytest.raises(RecipeError) as error:
        apply()
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: AGCRecipe(clip_factor=-1), "optimizer.agc.clip_factor = -1"),
        (lambda: Overrides(depth=()), "model.overrides.depth = ()"),
        (lambda: Recipe(batch_size=0), "batch_size = 0"),
        (lambda: Recipe(model="nfnet_f0"), "model = 'nfnet_f0'"),  # type: ignore[arg-type]
        (lambda: OptimizerRecipe(agc={"clip_factor": 0.1}), "optimizer.agc = {'clip_factor': 0.1}"),  # type: ignore[arg-type]
    ],
)
def test_a_section_built_by_itself_names_the_field_with_its_place_in_the_recipe(
    build: typing.Callable[[], Section], name: str
) -> None:
    with pytest.raises(RecipeError) as error:
        build()
    assert str(error.value).startswith(f"{name} is not allowed")


def test_annotations_are_compiled_once_for_each_class_not_for_each_recipe() -> None:
    recipe = Recipe()
    with mock.patch.object(typing, "get_type_hints") as compiling:
        recipe.with_values({"optimizer.agc.clip_factor": 0.02, "seed": 1})
    compiling.assert_not_called()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("optimizer.agc.clip_factor=none", None),
        ("optimizer.weight_decay=0", 0.0),
        ("data.flip=False", False),
        ("memory_format=channels_last", "channels_last"),
        ("model.overrides.depth=[1, 2, 6, 3]", (1, 2, 6, 3)),
        ("optimizer.agc.exclude=[classifier.weight]", ("classifier.weight",)),  # as --help shows it
        ("optimizer.agc.exclude=[classifier.weight, stem.*]", ("classifier.weight", "stem.*")),
        ("optimizer.agc.exclude=['stem.*']", ("stem.*",)),
        ("optimizer.agc.exclude=[]", ()),
    ],
)
def test_settings_are_read_as_python_reads_them(setting: str, value: Any) -> None:
    name, parsed = parse_setting(setting)
    assert Recipe().with_values({name: parsed}).to_values()[name] == value


def test_the_fingerprint_tells_what_trains_apart_but_not_where_data_lies() -> None:
    here, there = (Recipe().with_values({"data.path": path}) for path in ("/a", "/b"))
    assert here.fingerprint() == there.fingerprint()
    assert here.fingerprint() != here.with_values({"seed": 1}).fingerprint()


def test_a_recipe_needs_nothing_but_the_standard_library() -> None:
    code = "import sys, nfnet_ray.recipe; print([m for m in ('torch', 'numpy', 'ray', 'mlflow') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"image_size": 128}, "data.progressive.start_size = 160 is not allowed: images grow to data.image_size = 128"),
        ({"start_epoch": 5, "end_epoch": 5}, "data.progressive.end_epoch = 5 is not allowed: images grow from"),
        ({"end_epoch": 20}, "images that grow from epoch 0 to 20 do not reach data.image_size within schedule.epochs"),
        ({"start_epoch": 19}, "images that grow from epoch 19 to 19 do not reach"),
        ({"start_epoch": 19, "stages": 4}, "images that grow from epoch 19 to 19 do not reach"),
    ],
)  # fmt: skip
def test_images_that_could_not_grow_are_refused_in_one_line(values: dict[str, int], complaint: str) -> None:
    growing = Recipe().with_values({"data.progressive.start_size": 160, "schedule.epochs": 20})
    fields = {f"data.{'' if name == 'image_size' else 'progressive.'}{name}": n for name, n in values.items()}
    with pytest.raises(RecipeError) as error:
        growing.with_values(fields)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_start_size_above_the_models_own_size_is_refused_when_that_is_known() -> None:
    recipe = Recipe().with_values({"data.progressive.start_size": 200})
    with pytest.raises(RecipeError, match=r"start_size = 200 is not allowed: .* data.image_size = 192"):
        with_published_values(recipe)


def test_a_resolved_recipe_has_the_values_of_the_asked_one_and_its_fingerprint() -> None:
    asked = Recipe().with_values({"model.dropout": 0.5, "data.image_size": 96, "seed": 3})
    resolved = resolve(asked)
    assert resolved.to_values() == with_published_values(asked).to_values()
    assert list(resolved.to_values()) == list(asked.to_values())
    assert resolved.fingerprint() == with_published_values(asked).fingerprint()
    assert (resolved.model.dropout, resolved.data.image_size) == (0.5, 96)


def test_a_resolved_recipe_stays_resolved() -> None:
    resolved = resolve(Recipe()).with_values({"seed": 1})
    assert type(resolved) is type(resolve(Recipe()))
    with pytest.raises(RecipeError, match=r"data.image_size = None is not allowed: it takes a whole number"):
        resolved.with_values({"data.image_size": None})
