"""The form of a step is chosen once, from what was timed, and a run keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext, collectives, train
from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore
from nfnet_ray.training.context import FormNotes, NotesForNobody
from nfnet_ray.training.form import choice as choosing
from nfnet_ray.training.form import probe
from nfnet_ray.training.form.forms import (
    Choice,
    Form,
    form_without_timing,
    layouts_to_try,
    shape_of,
    slicings_to_try,
    ways_to_compile,
)
from nfnet_ray.training.form.probe import Timing, fastest_form, time_step
from nfnet_ray.training.measurement.clock import Clock
from tests.training.two_workers import two_workers

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CHANNELS_LAST, COMPILED = Form("channels_last"), Form("channels_last", True)
OPEN = Recipe(memory_format="auto", compile="auto")


class Surroundings(PlainContext):
    """A context whose device is not looked at."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.threads = device, 1


def choose(
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[Form, tuple[float, float] | Exception],
    steps: int,
    device: torch.device = GPU,
    recipe: Recipe = OPEN,
    notes: FormNotes | None = None,
) -> tuple[Choice, list[Form]]:
    """The choice among forms that take (compilation, step) seconds or fail, and what was tried, in that order."""
    tried: list[Form] = []

    def timed(recipe: Recipe, _classes: int, _context: PlainContext) -> Timing:
        tried.append(Form(recipe.memory_format, recipe.compile, recipe.grouped_convolutions))
        found = seconds[tried[-1]]
        if isinstance(found, Exception):
            raise found
        return Timing(sum(found), found[1], 1.0)

    monkeypatch.setattr(probe, "time_step", timed)
    return fastest_form(resolve(recipe), 10, steps, Surroundings(device), notes), tried


def on_a_gpu(**others: tuple[float, float] | Exception) -> dict[Form, tuple[float, float] | Exception]:
    """All forms, of which the eager contiguous one is the fastest but for ``others``."""
    names = {
        "last": Form("channels_last"),
        "compiled": Form("contiguous", True),
        "compiled_last": COMPILED,
        "tuned": Form("contiguous", "max-autotune-no-cudagraphs"),
        "tuned_last": Form("channels_last", "max-autotune-no-cudagraphs"),
    }
    found: dict[Form, tuple[float, float] | Exception] = {Form("contiguous"): (0.0, 0.10)}
    return found | {form: others.get(name, (40.0, 0.2)) for name, form in names.items()}


def test_on_a_gpu_all_forms_are_timed_and_the_shortest_run_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = on_a_gpu(compiled_last=(60.0, 0.08), tuned_last=(3000.0, 0.06))
    choice, tried = choose(monkeypatch, seconds, steps=100_000)
    assert [form.compile for form in tried] == [False] * 2 + [True] * 2 + ["max-autotune-no-cudagraphs"] * 2
    assert len(set(tried)) == 6
    # 6,000 s of steps and 3,000 of compilation are more than 8,000 and 60; of a longer run they would be less.
    assert choice.form == COMPILED
    assert choose(monkeypatch, seconds, steps=1_000_000)[0].form == tried[-1]
    assert "80 ms channels_last, compiled (after 60 s)" in choice.sentence()


def test_compiled_forms_are_not_tried_for_a_short_run(monkeypatch: pytest.MonkeyPatch) -> None:
    choice, tried = choose(monkeypatch, on_a_gpu(compiled=(1.0, 0.01)), steps=1000)
    assert tried == [Form("contiguous"), CHANNELS_LAST]
    assert choice.form == Form("contiguous")
    assert "compiled forms were not tried, as all steps take 100 s without" in choice.sentence()


def test_images_that_grow_are_compiled_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of them, from 32 to 192 px: what pays for one compilation need not pay for six."""
    growing = OPEN.with_values({"data.progressive.start_size": 32})
    seconds = on_a_gpu(compiled=(60.0, 0.09))
    for steps, of_one_size, of_six in ((15_000, True, False), (200_000, True, True)):
        for recipe, is_compiled in ((OPEN, of_one_size), (growing, of_six)):
            choice, tried = choose(monkeypatch, seconds, steps, recipe=recipe)
            assert choice.form == Form("contiguous", is_compiled)
            assert (len(tried) > 2) == is_compiled
    # Compiled forms are tried, and save 750 s, but six compilations of 130 s take more.
    choice, tried = choose(monkeypatch, on_a_gpu(compiled=(130.0, 0.09)), 75_000, recipe=growing)
    assert len(tried) == 6
    assert choice.form == Form("contiguous")


def test_the_start_of_cuda_is_not_held_against_the_form_that_is_timed_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = on_a_gpu(last=(0.0, 0.11))
    seconds[Form("contiguous")] = (30.0, 0.10)
    assert choose(monkeypatch, seconds, steps=100)[0].form == Form("contiguous")


def test_a_recipe_that_asks_for_a_compiled_network_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Recipe(memory_format="auto", compile=True)
    choice, tried = choose(monkeypatch, on_a_gpu(), steps=1, recipe=asked)
    assert tried == [Form("contiguous", True), COMPILED]
    assert choice.form.compile is True


def test_a_form_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = on_a_gpu(last=MemoryError("of the GPU"), compiled=ValueError("a bug of the compiler"))
    choice, _ = choose(monkeypatch, seconds, steps=100_000)
    assert choice.form == Form("contiguous")
    assert "channels_last failed (out of memory)" in choice.sentence()
    assert "contiguous, compiled failed (ValueError)" in choice.sentence()
    with pytest.raises(ValueError, match="a bug"):  # without a compiler nobody but we can have a fault
        choose(monkeypatch, on_a_gpu(last=ValueError("a bug")), steps=1)


SLICED, GRADIENTS = Form("channels_last", False, "sliced"), Form("channels_last", False, "sliced_gradients")


def with_slices(
    seconds: dict[Form, tuple[float, float] | Exception],
    **others: tuple[float, float] | Exception,
) -> dict[Form, tuple[float, float] | Exception]:
    """Slices of eager forms in channels_last as well, as slow as it but for ``others``."""
    slow = {
        Form("channels_last", False, how): others.get(how, (0.0, 0.2))
        for how in ("sliced_weight_gradient", "sliced_gradients", "sliced")
    }
    return seconds | slow


def test_grouped_convolutions_are_timed_in_slices_where_these_may_pay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU and in channels_last; what is compiled has the kernels that were the fastest without."""
    asked = OPEN.with_values({"grouped_convolutions": "auto", "model.name": "nfnet_f0"})
    seconds = with_slices(on_a_gpu(), sliced_gradients=(0.0, 0.09), sliced=(0.0, 0.095))
    compiled = {
        Form("channels_last", way, "sliced_gradients") for way in (True, "max-autotune-no-cudagraphs")
    }
    seconds |= dict.fromkeys(compiled, (60.0, 0.08))
    choice, tried = choose(monkeypatch, seconds, steps=10, recipe=asked)
    assert choice.form == GRADIENTS
    assert len(tried) == 5
    assert "90 ms channels_last, sliced gradients" in choice.sentence()
    choice, tried = choose(monkeypatch, seconds, steps=100_000, recipe=asked)
    assert set(tried[5:]) == compiled | {
        Form("contiguous", way) for way in (True, "max-autotune-no-cudagraphs")
    }
    assert choice.form == Form("channels_last", True, "sliced_gradients")
    assert Choice.from_values(json.loads(json.dumps(choice.to_values()))) == choice
    # Of an earlier version.
    assert (
        Choice.from_values({"form": {"memory_format": "channels_last", "compile": False}}).form
        == CHANNELS_LAST
    )


def test_slices_that_fail_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Recipe(memory_format="channels_last", grouped_convolutions="auto").with_values(
        {"model.name": "nfnet_f0"}
    )
    failing = {"sliced": RuntimeError("a kernel"), "sliced_gradients": MemoryError("of the GPU")}
    choice, _ = choose(monkeypatch, with_slices(on_a_gpu(), **failing), steps=10, recipe=asked)
    assert choice.form == CHANNELS_LAST
    assert "channels_last, sliced failed (RuntimeError)" in choice.sentence()
    assert "channels_last, sliced gradients failed (out of memory)" in choice.sentence()


def test_eager_steps_say_how_a_network_that_has_to_be_compiled_is_sliced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Recipe(memory_format="channels_last", grouped_convolutions="auto", compile=True).with_values(
        {"model.name": "nfnet_f0", "activation_memory_budget": 0.5}
    )
    compiled = Form("channels_last", True, "sliced")
    seconds = with_slices(on_a_gpu(), sliced=(0.0, 0.01)) | {compiled: (60.0, 0.3)}
    choice, tried = choose(monkeypatch, seconds, steps=10, recipe=asked)
    assert tried == [
        CHANNELS_LAST,
        Form("channels_last", False, "sliced_weight_gradient"),
        GRADIENTS,
        SLICED,
        compiled,
    ]
    assert choice.form == compiled
    assert "10 ms" not in choice.sentence()  # it is no form that was asked for


def test_slices_are_tried_only_where_they_may_pay() -> None:
    def tried(name: str, layout: str = "channels_last", device: str = "cuda", **values: Any) -> int:
        recipe = Recipe(grouped_convolutions="auto").with_values({"model.name": name, **values})
        return len(slicings_to_try(recipe, layout, device))

    assert [tried(name) for name in ("nfnet_f0", "nfnet_f6_plus", "nfnet_pico")] == [4, 4, 4]
    assert tried("nfnet_f0", "contiguous") == tried("nfnet_f0", device="cpu") == 1
    # No groups, too many, groups of timm's, and of a network of one's own.
    for name in ("nf_resnet50", "nf_regnet_b0", "tf_efficientnet_b0", "my_net:build"):
        assert tried(name) == 1
    assert slicings_to_try(Recipe(grouped_convolutions="sliced"), "contiguous", "cpu") == ("sliced",)


def test_nothing_is_timed_where_only_one_form_comes_into_question() -> None:
    asked = Recipe(memory_format="channels_last", grouped_convolutions="auto")
    for name, has_choice in (("nfnet_f0", True), ("nf_resnet50", False)):
        choice = form_without_timing(asked.with_values({"model.name": name}), "cuda")
        assert choice == (None if has_choice else Choice(CHANNELS_LAST))
    assert form_without_timing(asked, "cpu") == Choice(CHANNELS_LAST, remark="by rule on a CPU")
    lane = form_without_timing(asked, "cuda", lanes=4)
    assert lane == Choice(CHANNELS_LAST, remark="by rule in a cohort")
    fixed = form_without_timing(asked.with_values({"grouped_convolutions": "sliced"}), "cpu")
    assert fixed == Choice(SLICED)


def test_a_form_that_ended_the_process_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    class Notes(NotesForNobody):
        def begin_compiling(self, form: str) -> bool:
            begun.append(form)
            return "autotune" not in form

    tuned_is_fast = on_a_gpu(compiled=(40.0, 0.08), tuned_last=(40.0, 0.01))
    choice, tried = choose(monkeypatch, tuned_is_fast, steps=100_000, notes=Notes())
    assert choice.form == Form("contiguous", True)
    assert len(begun) == len(tried) - 1 == 3
    assert "from contiguous, compiled with max-autotune-no-cudagraphs on none was tried" in choice.sentence()
    # Where the Recipe asks for a compiled network, there is no other.
    asked = Recipe(memory_format="auto", compile="max-autotune-no-cudagraphs")
    assert choose(monkeypatch, tuned_is_fast, 1, recipe=asked, notes=Notes())[0].form.compile == asked.compile


def test_several_workers_time_steps_that_are_not_captured(
    monkeypatch: pytest.MonkeyPatch, quick: Recipe
) -> None:
    """As they train them. A captured step of a small network is the quicker one, which says nothing of theirs.

    Nor is what was compiled for the timing of use to the workers of other trials.
    """
    timed, saved = list[tuple[str, int]](), list[str]()

    def fastest(recipe: Recipe, _classes: int, steps: int, *_: Any) -> Choice:
        timed.append((recipe.capture, steps))
        return Choice(COMPILED)

    monkeypatch.setattr(choosing, "fastest_form", fastest)
    values = {"memory_format": "auto", "compile": "auto", "data.train_share": 0.5, "schedule.epochs": 2}
    recipe = quick.with_values({**values, "batch_size": 48})
    for workers in (1, 2):
        context = PlainContext(device=CPU, threads=1)
        context.world_size = context.replicas = workers  # type: ignore[misc]
        context.compiled_files = SimpleNamespace(save=saved.append)  # type: ignore[assignment]
        monkeypatch.setattr(collectives, "first_workers", lambda value, _context: value)
        found = choosing.chosen_form(recipe, open_dataset(recipe.data.path), context, Clock(), None)
        assert found == Choice(COMPILED)
        assert len(saved) == 1  # by the one that trains alone
    assert timed == [("auto", 4), ("never", 4)]  # 120 images in each of two epochs


IMPORTS = """\
from datetime import timedelta
from types import SimpleNamespace
import torch.distributed as dist
from nfnet_ray.errors import UserError
from nfnet_ray.training.collectives import all_of, made_by_first
"""
WORK = """\
limit = timedelta(seconds=20)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
context = SimpleNamespace(rank=rank, world_size=2)
for error in (None, UserError("no data"), ValueError("?")):
    signs = []
    def make(still_at_work):
        for _ in range(3):
            still_at_work()
        if error:
            raise error
        return {"form": len(signs)}
    try:
        made = made_by_first(make, context, lambda: signs.append(1))
    except Exception as raised:
        made = f"{type(raised).__name__}: {raised}"
    all_of(None, context)  # they are in step
    print(made, len(signs))
dist.destroy_process_group()
"""


def test_all_workers_hear_of_the_first_one_while_it_times(tmp_path: Path) -> None:
    """Without signs of life their watchdogs would end them, and the time limit of an exchange the whole run.

    Of an error they hear too: it may be on that worker alone.
    """
    first, other = (said.splitlines() for said in two_workers(IMPORTS, WORK, tmp_path))
    assert first == ["{'form': 3} 3", "UserError: no data 3", "ValueError: ? 3"]
    assert other == [*first[:2], "DistError: the first worker failed (ValueError: ?) 3"]


def test_on_a_cpu_the_layout_is_a_rule() -> None:
    asked = Recipe(memory_format="auto")
    assert form_without_timing(asked, "cuda") is None
    for precision, layout in (
        ("float32", "channels_last"),
        ("float64", "channels_last"),
        ("bfloat16", "contiguous"),
    ):
        choice = form_without_timing(asked.with_values({"precision": precision}), "cpu")
        assert choice is not None
        assert choice.form == Form(layout)
    assert (layouts_to_try(OPEN, "cpu"), ways_to_compile(OPEN, "cpu")) == (("channels_last",), (False, True))
    for device in ("cpu", "cuda"):
        lane = form_without_timing(asked, device, lanes=4)
        assert lane is not None
        assert lane.form == Form("contiguous")
    fixed = form_without_timing(Recipe(compile=True), "cpu")
    assert fixed == Choice(Form("contiguous", True))


def test_trials_that_are_compared_have_the_same_shape() -> None:
    def shape(**values: Any) -> str:
        named = {name.replace("__", "."): value for name, value in values.items()}
        return shape_of(resolve(OPEN.with_values(named)), 10, 1, 2, "a processor")

    same: list[dict[str, Any]] = [
        {"optimizer__agc__clip_factor": None},
        {"optimizer__sam__rho": 0.1},
        {"optimizer__ema__decay": None},
        {"schedule__epochs": 7, "seed": 3, "data__path": "elsewhere"},
    ]
    assert {shape(**values) for values in same} == {shape()}
    other: list[dict[str, Any]] = [
        {"batch_size": 64},
        {"micro_batches": 2},
        {"precision": "bfloat16"},
        {"data__image_size": 64},
        {"model__name": "nfnet_f1"},
        {"model__overrides__alpha": 0.3},
        {"model__trained": "classifier"},
        {"compile": False},
        {"compile": True},
        {"compile": True, "activation_memory_budget": 0.5},
        {"memory_format": "contiguous"},
        {"grouped_convolutions": "auto"},
        {"grouped_convolutions": "sliced"},
    ]
    assert len({shape(**values) for values in [{}, *other]}) == 1 + len(other)


def test_a_step_of_a_large_batch_is_timed_with_a_part_of_it(
    monkeypatch: pytest.MonkeyPatch, quick: Recipe
) -> None:
    monkeypatch.setattr(probe, "LARGEST_FORWARD_MULTIPLY_ADDS", 1.0)
    recipe = resolve(quick.with_values({"data.image_size": 8, "batch_size": 48}))
    steps: list[tuple[int, int]] = []

    class Step(probe.TrainStep):
        def __call__(self, batch: Any) -> Any:
            steps.append((len(batch.labels), self._recipe.micro_batches))
            return super().__call__(batch)

    monkeypatch.setattr(probe, "TrainStep", Step)
    timing = time_step(recipe, 10, PlainContext(device=CPU, threads=1))
    assert set(steps) == {(1, 1)}
    assert timing.step_seconds > 0


def test_a_compiled_step_is_timed_as_it_is_trained(monkeypatch: pytest.MonkeyPatch, quick: Recipe) -> None:
    """Without the compiler, which takes seconds: what it was asked for is looked at."""
    asked: list[tuple[str, bool | str]] = []

    def compiled(network: Any, recipe: Recipe) -> Any:
        asked.append((recipe.memory_format, recipe.compile))
        return network

    monkeypatch.setattr("nfnet_ray.training.gradient.compiled", compiled)
    recipe = resolve(quick.with_values({"memory_format": "auto", "compile": "auto", "batch_size": 4}))
    choice = fastest_form(recipe, 10, 10**9, PlainContext(device=CPU, threads=1))
    assert asked == [("channels_last", True)]
    assert [*choice.step_seconds] == ["channels_last", "channels_last, compiled"]
    assert [*choice.compile_seconds] == ["channels_last, compiled"]
    assert all(seconds > 0 for seconds in choice.step_seconds.values())


def test_a_run_keeps_its_form_and_says_it(
    monkeypatch: pytest.MonkeyPatch, quick: Recipe, tmp_path: Path
) -> None:
    told: list[str] = []

    class Telling(PlainContext):
        def report(self, _metrics: Any, texts: Any) -> None:
            told.append(texts.get("conditions", ""))

    def first(*_: Any) -> Choice:
        return Choice(Form("contiguous"), {"contiguous": 0.1, "channels_last": 0.2})

    recipe = quick.with_values({"memory_format": "auto", "compile": "auto", "schedule.epochs": 2})
    context = Telling(device=CPU, threads=1, checkpoints=tmp_path)
    monkeypatch.setattr(choosing, "fastest_form", first)
    assert train(recipe, context, until_epoch=1).state == "paused"
    store = CheckpointStore(tmp_path)
    (entry,) = store.entries()
    assert Choice.from_values(store.load(entry)["form"]) == first()

    def again(*_: Any) -> Choice:
        raise AssertionError("a run that resumes has its form")

    monkeypatch.setattr(choosing, "fastest_form", again)
    assert train(recipe, context).state == "finished"
    conditions = [json.loads(text) for text in told if text]
    assert [(found["memory_format"], found["compile"]) for found in conditions] == [
        ("contiguous", False)
    ] * len(told)


def test_a_checkpoint_of_an_earlier_version_has_its_layout(quick: Recipe) -> None:
    unused: Any = None
    before = {"memory_format": "channels_last"}
    recipe = quick.with_values({"memory_format": "auto"})
    assert choosing.chosen_form(recipe, unused, unused, unused, before) == Choice(CHANNELS_LAST)


def test_a_cohort_does_not_take_over_the_form_of_a_trial_alone(quick: Recipe) -> None:
    unused: Any = None
    before = {"form": Choice(CHANNELS_LAST, remark="by rule on a CPU").to_values()}
    for asked, form in (("auto", "contiguous"), ("channels_last", "channels_last")):
        recipe = quick.with_values({"memory_format": asked})
        found = choosing.chosen_form(recipe, unused, Surroundings(CPU), unused, before, lanes=2)
        assert found.form == Form(form)
