"""Forms of a training step: the layout of its activations, its grouped convolutions, and how it is compiled.

A form changes only the time of a step and the rounding. A Recipe names a form, or leaves it open with ``auto``. This
module says which forms are candidates, and defines a choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nfnet_ray.models.grouped_convolution import SLICED_PASSES
from nfnet_ray.models.variants import block_plan, get_variant, list_models
from nfnet_ray.recipe import Recipe, ResolvedRecipe
from nfnet_ray.wording import count

AUTO = "auto"
LAYOUTS = ("contiguous", "channels_last")
# The time until the first step of a compiled network is done. On two shared cores of an AMD EPYC nfnet_pico (batch 64,
# 32 px, float32) took 176 and 247 s. It has not been measured on a GPU; benchmarks/gpu does that.
SECONDS_TO_COMPILE = {"cpu": 180.0, "cuda": 60.0}
# Compiled forms are tried if the eager steps of a run take at least this many times as long as one compilation. The two
# to four compilations then cost at most a fifth of that time, which is what compiling saved on a CPU (as above).
LEAST_RUN_PER_COMPILATION = 20.0
MOST_SLICED_GROUPS = 16
"""The largest number of groups for which slices are tried, since each slice is a kernel. NFNets have up to 8 groups.
NF-RegNets have up to 148, whose 8 channels are too few for a kernel."""


@dataclass(frozen=True)
class Form:
    """A form, as the values of the Recipe's fields of the same names."""

    memory_format: str
    compile: bool | str = False
    grouped_convolutions: str = "whole"

    @property
    def is_plain(self) -> bool:
        """Whether the form is neither compiled nor sliced."""
        return not self.compile and self.grouped_convolutions == "whole"

    def __str__(self) -> str:
        parts = [self.memory_format]
        if self.grouped_convolutions != "whole":
            parts.append(self.grouped_convolutions.replace("_", " "))
        if self.compile:
            parts.append(f"compiled with {self.compile}" if isinstance(self.compile, str) else "compiled")
        return ", ".join(parts)


@dataclass(frozen=True)
class Choice:
    """The form of a run, and the measurements by which it was chosen, which may be empty.

    Attributes:
        step_seconds: {form in words: seconds of a step on the worker's share of the batch}.
        compile_seconds: {form in words: seconds by which its first step took longer}.
        remark: a remark, for example about a form that failed.
    """

    form: Form
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    compile_seconds: Mapping[str, float] = field(default_factory=dict)
    remark: str = ""

    def to_values(self) -> dict[str, Any]:
        """The choice as JSON values, with its sentence."""
        return {**asdict(self), "sentence": self.sentence()}

    @staticmethod
    def from_values(values: Mapping[str, Any]) -> Choice:
        """The choice with these values of :meth:`to_values`."""
        measured: dict[str, Any] = {name: value for name, value in values.items() if name != "sentence"}
        return Choice(**measured | {"form": Form(**measured["form"])})

    def sentence(self) -> str:
        """The choice and its reason in one line.

        >>> seconds = {"contiguous": 0.09154, "channels_last": 0.07624}
        >>> Choice(Form("channels_last"), seconds).sentence()
        'channels_last; a step takes 91.5 ms contiguous, 76.2 ms channels_last'
        """
        times = [
            f"{1e3 * seconds:.3g} ms {name}"
            + (f" (after {self.compile_seconds[name]:.0f} s)" if name in self.compile_seconds else "")
            for name, seconds in self.step_seconds.items()
        ]
        parts = [str(self.form), f"a step takes {', '.join(times)}" if times else "", self.remark]
        return "; ".join(part for part in parts if part)


def is_open(recipe: Recipe) -> bool:
    """Whether a Recipe leaves its form open."""
    return AUTO in (recipe.memory_format, recipe.compile, recipe.grouped_convolutions)


def form_without_timing(recipe: Recipe, device_type: str, lanes: int = 1) -> Choice | None:
    """The form of a Recipe if it can be chosen without timing; None if forms have to be timed.

    A cohort is neither compiled nor sliced, and is contiguous. Each of 4 ``lanes`` of nfnet_pico took 0.64 of a single
    trial's step at batch 8 and 1.04 at batch 64; in channels_last it took 0.99 and 1.66 (32 px, one core;
    ``benchmarks/results/cohort.csv``).

    On a CPU the layout follows a rule, so that a study gives the same bits on every machine and in every run. It is
    channels_last in float32 and float64: this took 0.61 to 0.96 of the time of a step in float32 for each of the 22
    networks and shapes of ``benchmarks/results/layout.csv`` (nfnet_pico at 8 px to NFNet-F0 at 96 px). It is contiguous
    in bfloat16 (NFNet-F0 0.98, EfficientNet-B0 1.11 at 192 px). Grouped convolutions are not sliced on a CPU.
    """
    if not is_open(recipe):
        return Choice(Form(recipe.memory_format, recipe.compile, recipe.grouped_convolutions))
    if lanes > 1:
        layout = "contiguous" if recipe.memory_format == AUTO else recipe.memory_format
        return Choice(Form(layout), remark="by rule in a cohort")
    layouts = layouts_to_try(recipe, device_type)
    if len(layouts) > 1 or recipe.compile == AUTO:
        return None
    slicings = slicings_to_try(recipe, layouts[0], device_type)
    if len(slicings) > 1:
        return None
    remark = "by rule on a CPU" if device_type == "cpu" else ""
    return Choice(Form(layouts[0], recipe.compile, slicings[0]), remark=remark)


def layouts_to_try(recipe: Recipe, device_type: str) -> tuple[str, ...]:
    """The candidate layouts for a Recipe.

    On a CPU a compiled network is tried only in channels_last, which is inductor's own choice and the faster one:
    nfnet_pico (as above) took 0.82 of its contiguous step, the median of 10.
    """
    if recipe.memory_format != AUTO:
        return (recipe.memory_format,)
    if device_type == "cpu":
        return ("contiguous",) if recipe.precision == "bfloat16" else ("channels_last",)
    return LAYOUTS


def slicings_to_try(recipe: Recipe, layout: str, device_type: str) -> tuple[str, ...]:
    """The candidate values of ``grouped_convolutions`` for a Recipe in a layout, beginning with no slices.

    Slices are tried on a GPU in channels_last, a layout in which dense convolutions are faster there and grouped ones
    slower (``models/grouped_convolution.py``).
    """
    if recipe.grouped_convolutions != AUTO:
        return (recipe.grouped_convolutions,)
    may_pay = device_type != "cpu" and layout == "channels_last"
    return tuple(SLICED_PASSES) if may_pay and _has_few_groups(recipe) else ("whole",)


def ways_to_compile(recipe: Recipe, device_type: str) -> tuple[bool | str, ...]:
    """The candidate values of ``compile``, beginning with the one that is the cheapest to try."""
    if recipe.compile != AUTO:
        return (recipe.compile,)
    return (False, True) if device_type == "cpu" else (False, True, "max-autotune-no-cudagraphs")


def pays_to_compile(run_seconds: float, device_type: str) -> bool:
    """Whether it pays to try compiled forms for a run whose eager steps take this time."""
    return run_seconds >= LEAST_RUN_PER_COMPILATION * SECONDS_TO_COMPILE[device_type]


def shape_of(recipe: ResolvedRecipe, classes: int, replicas: int, threads: int, device_name: str) -> str:
    """A text with everything on which the time of a step depends. Runs with the same text train in the same form.

    Rates, clip factors and seeds are not in the text, nor whether there is a clip factor, a moving average or SAM.
    Trials that differ in these are compared, so they must not differ in their form as well.
    """
    share, overrides = recipe.batch_size // replicas, recipe.model.overrides.chosen()
    parts = [
        recipe.model.name + (f" with {overrides}" if overrides else ""),
        f"{classes:,} classes",
        f"{recipe.data.image_size} px",
        f"{share:,} images" + (f" in {recipe.micro_batches} parts" if recipe.micro_batches > 1 else ""),
        recipe.precision,
        f"memory_format={recipe.memory_format}",
        f"compile={str(recipe.compile).lower()}",
    ]
    if recipe.grouped_convolutions != "whole":
        parts.append(f"grouped_convolutions={recipe.grouped_convolutions}")
    if recipe.activation_memory_budget < 1:
        parts.append(f"activation_memory_budget={recipe.activation_memory_budget:g}")
    if recipe.model.trained != "all":
        parts.append(f"trained: {recipe.model.trained}")
    return f"{', '.join(parts)}, on {device_name}" + (f" with {count(threads, 'thread')}" if threads else "")


def _has_few_groups(recipe: Recipe) -> bool:
    if recipe.model.name not in list_models():
        return False
    most = max(
        block.groups for block in block_plan(get_variant(recipe.model.name, recipe.model.overrides.chosen()))
    )
    return 1 < most <= MOST_SLICED_GROUPS
