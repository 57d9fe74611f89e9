"""Many trials of a small network as one program, against single trials whose steps are captured as a CUDA graph.

A cohort's step is measured kernel by kernel and captured. ``captured trial : lane`` is the time of a single trial's
captured step / that of a lane, which is the cohort's step / lanes: how many times as many trials a GPU trains.
``correctness`` of a cohort is checked here, too: in float64 lanes are the trials alone, and a lane that becomes nan
leaves the bits of the others.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.gpu.captured import new_captured_step
from benchmarks.gpu.machine import Machine, Timing
from benchmarks.gpu.networks import new_step, random_batch, recipe_of, usual_precision
from benchmarks.gpu.rows import Recorder
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.agreement import EpochSums
from nfnet_ray.training.captured import CapturedStep, recorder_for
from nfnet_ray.training.captured import Recorder as GraphRecorder
from nfnet_ray.training.cohort.step import CohortStep, Lane, LaneResults
from nfnet_ray.training.cohort.sums import CohortSums
from nfnet_ray.training.context import PlainContext
from nfnet_ray.wording import count

NETWORK, CLASSES = "nfnet_pico", 10
LANES, SMALL_LANES = (1, 8, 32), (1, 2)
BATCH_SIZES, SMALL_BATCH_SIZES = (64, 512), (4,)
STEPS = 50
CHECKED_STEPS = 3
MOVING = {"schedule__warmup_epochs": 0.0, "schedule__base_learning_rate": 8.0}
"""Of what is checked: with a warm-up nothing would move in the first steps."""
TOLERANCE = 1e-9
"""Of weights in float64: that of the part ``correctness``."""


def measure(recorder: Recorder, machine: Machine, _options: argparse.Namespace) -> None:
    """Milliseconds of a step, and the ratio, for each batch size and number of lanes; then the two checks."""
    for batch_size in SMALL_BATCH_SIZES if machine.is_small else BATCH_SIZES:
        recipe = recipe_of(NETWORK, machine, batch_size=batch_size, precision=usual_precision(machine))
        case = f"{NETWORK}, {recipe.data.image_size} px, batch {batch_size}"
        alone: Timing | None = None
        with recorder.case(f"{case}, one trial"):
            _, step = new_captured_step(recipe, machine, recorder_for(machine.device))
            alone = _timing(recorder, machine, recipe, f"{case}, one trial", step, 1)
        for lanes in SMALL_LANES if machine.is_small else LANES:
            for form, graphs in (("eager", None), ("captured", recorder_for(machine.device))):
                if form == "captured" and graphs is None:
                    continue
                name = f"{case}, {count(lanes, 'lane')}, {form}"
                with recorder.case(name):
                    cohort, _ = new_cohort_step(trials(recipe, machine, lanes), machine, graphs)
                    timing = _timing(recorder, machine, recipe, name, cohort, lanes)
                    if alone:
                        recorder.add(name, "captured trial : lane", alone.seconds * lanes / timing.seconds)
    with recorder.case("lanes against trials alone, float64"):
        difference = difference_from_alone(machine)
        recorder.add("lanes against trials alone, float64", "largest difference of a weight", difference)
        recorder.add("lanes against trials alone, float64", "holds", _yes(difference < TOLERANCE))
    with recorder.case("a lane that becomes nan"):
        recorder.add("a lane that becomes nan", "holds", _yes(nan_stays_in_its_lane(machine)))


def trials(recipe: ResolvedRecipe, machine: Machine, lanes: int) -> list[Lane]:
    """Trials with different clip factors."""
    found = []
    for lane in range(lanes):
        own = recipe.with_values({"optimizer.agc.clip_factor": 0.01 * (1 + lane)})
        model, step = new_step(own, machine, num_classes=CLASSES, rates_on_device=True)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("skip_gain"):
                    parameter.fill_(0.5)  # a new network has no residual branches
        found.append(Lane(own, model, step))
    return found


def new_cohort_step(
    lanes: list[Lane], machine: Machine, graphs: GraphRecorder | None
) -> tuple[CapturedStep[LaneResults], CohortStep]:
    """The steps of a cohort: captured by ``graphs``, or kernel by kernel."""
    context = PlainContext(device=machine.device, threads=machine.threads)
    step, sums = CohortStep(lanes), CohortSums([EpochSums(context) for _ in lanes], machine.device)
    return CapturedStep(step, sums, lanes[0].recipe, context, graphs), step


def _timing(
    recorder: Recorder,
    machine: Machine,
    recipe: ResolvedRecipe,
    case: str,
    step: CapturedStep[Any],
    lanes: int,
) -> Timing:
    batch = random_batch(recipe, machine.device, num_classes=CLASSES)
    step.prepare(batch)
    if step.refusal:
        raise RuntimeError(step.refusal)
    timing = machine.time(lambda: step(batch), repeats=STEPS)
    recorder.add(case, "time of a step", timing.seconds * 1e3, "ms", timing, in_table=False)
    recorder.add(case, "time of a step of one trial", timing.seconds / lanes * 1e3, "ms", timing)
    return timing


def difference_from_alone(machine: Machine) -> float:
    """The largest difference of a weight between lanes and the trials alone, after some steps in float64."""
    recipe = recipe_of(NETWORK, machine, batch_size=8, precision="float64", **MOVING)
    alone, together = trials(recipe, machine, 3), trials(recipe, machine, 3)
    cohort = CohortStep(together)
    for number in range(CHECKED_STEPS):
        batch = random_batch(recipe, machine.device, seed=number, num_classes=CLASSES)
        cohort(batch)
        for trial in alone:
            trial.step(batch)
    return max(
        float((one - other).detach().abs().max())
        for lane, trial in zip(together, alone, strict=True)
        for one, other in zip(lane.model.parameters(), trial.model.parameters(), strict=True)
    )


def nan_stays_in_its_lane(machine: Machine) -> bool:
    """Whether the weights of two lanes are the same to the bit, be the weights of the lane between them nan or not."""
    recipe = recipe_of(NETWORK, machine, batch_size=8, precision=usual_precision(machine), **MOVING)
    batch = random_batch(recipe, machine.device, num_classes=CLASSES)
    found: list[list[torch.Tensor]] = []
    deterministic = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    for is_nan in (False, True):
        lanes = trials(recipe, machine, 3)
        # After the new networks, which set them: else two runs may differ by cuDNN's choices alone.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        cohort = CohortStep(lanes)
        if is_nan:
            for parameter in lanes[1].model.parameters():
                parameter.data.fill_(torch.nan)
        for _ in range(CHECKED_STEPS):
            cohort(batch)
        found.append([p.detach().clone() for lane in (0, 2) for p in lanes[lane].model.parameters()])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic
    return all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
