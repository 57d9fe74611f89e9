"""The text of ``--plan``: the trials that would run, what they cost, and what differs from the published Recipe."""

from __future__ import annotations

import json
import math
import shlex
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.digits import write_digits
from nfnet_ray.cluster.connection.gpu_driver import gpu_problem
from nfnet_ray.cluster.connection.resources import Resources, WorkerResources, workers_on_a_gpu
from nfnet_ray.cluster.connection.session import local_resources, memory_bytes_here, ray_session
from nfnet_ray.command_line.terminal import say, say_whole, waiting
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import published_differences
from nfnet_ray.study.confirmation import reruns_to_run
from nfnet_ray.study.contenders import further_to_run
from nfnet_ray.study.cost.earlier_runs import MeasuredTrial, earlier_trials, kind_of, like
from nfnet_ray.study.cost.forecast import (
    Forecast,
    Pace,
    Span,
    checkpoint_bytes,
    complete_schedules,
    forecast,
    pace_of_earlier,
    pace_of_probe,
    rung_table,
)
from nfnet_ray.study.cost.memory import known_memory, memory_shortage
from nfnet_ray.study.cost.plan import StudyCost, behind_it, estimate_cost
from nfnet_ray.study.cost.probe_process import MOST_SECONDS, Probe, probe_at_once
from nfnet_ray.study.cost.spending import SECONDS_PER_HOUR, Caps, PaidTime, accelerator_word, money
from nfnet_ray.study.decisions import most_epochs
from nfnet_ray.study.live.display import plan_table
from nfnet_ray.study.space import domain_text
from nfnet_ray.study.study import Study, Trial
from nfnet_ray.tracking.descriptions import Hardware
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.wording import JOULES_PER_KWH, agree, clock_time, count, storage_size
from studies.running.planning.power_text import power_sentences
from studies.running.planning.study_plan import StudyPlan
from studies.running.request import Request
from studies.running.runner import Places, Runner, WorkerDemand

MOST_PROBES_AT_ONCE = 8


@dataclass(frozen=True)
class Estimate:
    """The pace of each trial, and in words where it is from."""

    paces: Mapping[str, Pace]
    source: str
    probe: Probe | None = None


def print_plan(
    request: Request,
    study: Study,
    data: DatasetSummary,
    storage: Path,
    demand: WorkerDemand,
    runner: Runner,
    caps: Caps,
    console: Console,
    progress: StudyState | None,
) -> StudyPlan:
    """Prints what would run and what it would cost: by earlier runs like it on this hardware, or by a short probe.

    Of a study that has begun, what is left of it. Returns the same in numbers.
    """
    # Imported here, as they import torch.
    from studies.running.planning.image_remarks import image_remarks
    from studies.running.planning.training_remarks import training_remarks

    say(console, study.question, title=study.name)
    for name, domain in study.space.items():
        if not isinstance(domain, tuple):
            say(console, f"{name} is swept over {domain_text(domain)}.")
    console.print(plan_table(study, progress, console))
    console.print()
    cost = estimate_cost(study, study.trials(), data, progress)
    left = _left(study, progress)
    plan = StudyPlan(study, left.trials, cost.images, cost.multiply_adds, cost.parameters)
    _say_what_is_left(study, left, cost, console)
    if not left.most:
        return plan
    resources = _resources(request.address, console)
    worker = runner.worker(resources, demand)
    study = priced(study, caps, worker)
    if study.halving:
        say(console, _rungs(study))
    try:
        number = runner.trials_at_once(left.most, resources, demand, worker)
    except UserError as error:
        say(console, f"It cannot run here: {error}. What follows is for one trial after the other.")
        number = 1
    places = Places(resources, worker, number)
    estimate = _estimate(request, study, data, storage, places, console)
    seed_hours = None
    if estimate.paces:
        told = forecast(study, data, estimate.paces, number, progress)
        _say_forecast(told, places, estimate, caps, request, console)
        plan = _with_forecast(plan, told, worker, caps)
        seed_hours = _seed_hours(study, data, estimate, places)
    else:
        say(console, f"How long it takes is unknown: {estimate.source}.")
    disk_bytes = _say_disk(study, cost, estimate, console)
    word = accelerator_word(worker.gpus)
    if said := caps.sentence(word):
        say(console, said)
    for sentence in power_sentences(study, data, storage, seed_hours, word):
        say(console, sentence)
    for sentence in image_remarks(
        [study.recipe, *(trial.recipe for trial in study.trials())], data.uniform_size
    ):
        say(console, sentence)
    for sentence in training_remarks(study, data):
        say(console, sentence)
    _say_differences(study, console)
    say(console, "Nothing was started.")
    return replace(plan, study=study, trials_at_once=number, measured=estimate.source, disk_bytes=disk_bytes)


@dataclass(frozen=True)
class _Left:
    """How much there is to train: planned trials, and those that the study will add.

    Attributes:
        settings: that a search proposes.
        further: (least, most) trials of contenders.
        reruns: of winners.
    """

    trials: int
    settings: int
    further: tuple[int, int]
    reruns: int

    @property
    def most(self) -> int:
        """All of it."""
        return self.trials + self.settings + self.further[1] + self.reruns


def _left(study: Study, progress: StudyState | None) -> _Left:
    state = progress or study.waiting_state()
    return _Left(
        trials=sum(not behind_it(trial.name, progress)[1] for trial in study.trials()),
        settings=study.settings - len(study.trials_by_setting()) if study.is_adaptive else 0,
        further=further_to_run(study, state),
        reruns=reruns_to_run(study, state),
    )


def _say_what_is_left(study: Study, left: _Left, cost: StudyCost, console: Console) -> None:
    trials = len(study.trials())
    if not left.trials:
        all_of_them = f"All {count(trials, 'trial')} have" if trials > 1 else "Its only trial has"
        say(console, f"{all_of_them} ended{'.' if left.most else ': there is nothing to train.'}")
    elif left.trials < trials:
        say(console, f"{trials - left.trials:,} of {count(trials, 'trial')} have ended. What is left:")
    if left.trials:
        epochs, images = count(most_epochs(study), "epoch"), count(cost.images, "image")
        say(
            console,
            f"{count(left.trials, 'trial')} of {_networks(study, cost.parameters)}, each of at most {epochs}: {images} "
            f"and {cost.multiply_adds:.3g} multiply-adds in all.",
        )
    if left.settings:
        also = "each is counted at the mean cost of these"
        say(console, f"{study.search_name} then proposes {count(left.settings, 'more setting')}: {also}.")
    if left.further[1]:
        say(console, _further(study, *left.further))
    if left.reruns:
        say(console, _reruns(study, left.reruns))


def _seed_hours(study: Study, data: DatasetSummary, estimate: Estimate, places: Places) -> float:
    """The accelerator-hours of one seed of all settings, also of those that an extended study has trained."""
    settings = replace(study, confirm=0, more_seeds=())
    seconds = forecast(settings, data, estimate.paces, places.number).trial_seconds.high
    return seconds * places.worker.accelerators / SECONDS_PER_HOUR / len(study.seeds)


def _say_disk(study: Study, cost: StudyCost, estimate: Estimate, console: Console) -> int:
    """Says what the checkpoints take; returns their bytes."""
    from nfnet_ray.training.checkpoints.checkpoint import DEFAULT_KEPT  # imports torch

    measured = estimate.probe.checkpoint_bytes if estimate.probe else None
    one = measured or checkpoint_bytes(study.recipe, cost.parameters)
    kept = DEFAULT_KEPT.last + DEFAULT_KEPT.best
    disk_bytes = one * kept * complete_schedules(study)
    disk = storage_size(disk_bytes)
    each = "schedule" if study.halving and study.halving.is_stretched else "trial"
    say(console, f"Disk: {disk} for checkpoints, at most {kept} of {storage_size(one)} for each {each}.")
    return disk_bytes


def _with_forecast(plan: StudyPlan, told: Forecast, worker: WorkerResources, caps: Caps) -> StudyPlan:
    """The plan with the numbers of :func:`_say_forecast`."""
    hours, most = _accelerator_hours(told, worker)
    return replace(
        plan,
        hours=told.wall_seconds.times(1 / SECONDS_PER_HOUR),
        most_hours=told.most_wall_seconds / SECONDS_PER_HOUR,
        accelerator_hours=hours,
        most_accelerator_hours=most,
        cost=None if caps.price_per_hour is None else hours.times(caps.price_per_hour),
        kwh=None if told.joules is None else told.joules.times(1 / JOULES_PER_KWH),
        memory_bytes=told.memory_bytes,
    )


def _accelerator_hours(told: Forecast, worker: WorkerResources) -> tuple[Span, float]:
    """Of all trials, and the most, if none is stopped early."""
    hours_per_second = worker.accelerators / SECONDS_PER_HOUR
    return told.trial_seconds.times(hours_per_second), told.most_trial_seconds * hours_per_second


def expected_cost(study: Study, data: DatasetSummary, storage: Path, places: Places, caps: Caps) -> str:
    """The cost of a study that begins now, in a sentence, by similar earlier runs on this hardware if there are any."""
    worker = places.worker
    earlier = _earlier_here(storage, places.resources)
    paces, used = _paces_of_earlier(study.trials(), earlier, worker)
    if not paces or caps.price_per_hour is None:
        return "What it will cost is unknown: no earlier run here is like it. --plan measures it."
    told, word = forecast(study, data, paces, places.number), accelerator_word(worker.gpus)
    hours, _ = _accelerator_hours(told, worker)
    return (
        f"It will cost about {_span(hours.times(caps.price_per_hour), money)} ({_span(hours, '{:.3g}'.format)} "
        f"{word}-hours), by {count(used, 'earlier trial')} like it on this hardware."
    )


def refuse_too_little_memory(
    study: Study, storage: Path, resources: Resources, worker: WorkerResources
) -> None:
    """Raises UserError if workers that share a GPU of this machine are known not to fit into its memory together."""
    sharing = workers_on_a_gpu(worker.gpus)
    there = memory_bytes_here(gpu=True) if sharing > 1 and resources.nodes == 1 else None
    if there is None:
        return
    earlier = _earlier_here(storage, resources)
    each = known_memory((trial.recipe for trial in study.trials()), earlier)
    if each is not None and (shortage := memory_shortage(sharing, each, there, gpu=True)):
        raise UserError(shortage)


def priced(study: Study, caps: Caps, worker: WorkerResources) -> Study:
    """The study with the seconds that money pays for, if its rungs are in money. Raises UserError without a price."""
    if study.halving is None:
        return study
    return replace(study, halving=study.halving.priced(caps.price_per_hour, worker.accelerators))


def _networks(study: Study, parameters: int) -> str:
    """``nfnet_pico (192,703 parameters)``, or the number of networks where these are swept."""
    if "model.name" not in study.fields:
        return f"{study.recipe.model.label} ({parameters:,} parameters)"
    return count(len({trial.recipe.model.name for trial in study.trials()}), "network")


def _further(study: Study, least: int, most: int) -> str:
    """``Then the settings that may be the best get 2 more seeds: 4 to 10 more trials of 8 epochs, …``."""
    number = count(least, "more trial") if least == most else f"{least:,} to {count(most, 'more trial')}"
    return (
        f"Then the settings that may be the best get {count(len(study.more_seeds), 'more seed')}: {number} of "
        f"{count(study.epochs, 'epoch')}, each counted at the cost of the most expensive setting."
    )


def _reruns(study: Study, reruns: int) -> str:
    """``Then the winner is rerun with 3 fresh seeds: 3 more trials of 8 epochs, …``."""
    conditions = f" under each of {study.winners:,} conditions" if study.winners > 1 else ""
    return (
        f"Then the winner{conditions} is rerun with {count(study.confirm, 'fresh seed')}: "
        f"{count(reruns, 'more trial')} of {count(study.epochs, 'epoch')}, each counted at the cost of the most "
        "expensive setting."
    )


def _rungs(study: Study) -> str:
    """``Early stopping: 12 trials train to epoch 2, and 6 of them to epoch 8 (…)``."""
    halving = study.halving
    assert halving is not None

    def where(rung: float) -> str:
        if halving.is_stretched:
            return f"with a schedule of {count(int(rung), 'epoch')}"
        if halving.in_seconds:
            return "to the end" if rung == math.inf else f"to {rung:.4g} s of training"
        return f"to epoch {rung}"

    first, *later = rung_table(study)
    parts = [f"{count(first[1], 'trial')} {agree(first[1], 'trains', 'train')} {where(first[0])}"]
    if not later:
        return f"Early stopping: no trial is stopped, since none is compared before the end; {parts[0]}."
    parts += [f"{number:,} of them {where(rung)}" for rung, number in later]
    about = "ties continue together" if halving.is_certain else "about, since it depends on which are first"
    return f"Early stopping: {', '.join(parts[:-1])} and {parts[-1]} ({about})."


def _resources(address: str | None, console: Console) -> Resources:
    """The cluster's, or what a local Ray would have. Raises UserError if the cluster refuses the connection."""
    if address is None:
        return local_resources()
    with (
        waiting(console, f"Connecting to Ray at {address} …"),
        ray_session(address) as resources,
    ):
        return resources


def _earlier_here(storage: Path, resources: Resources) -> list[MeasuredTrial]:
    """The trials of earlier studies that ran on these machines, as far as their journals tell."""
    here = resources.cpus, resources.gpus, resources.description.split(", ")[0]

    def is_same(hardware: Hardware) -> bool:
        return (hardware["cpus"], hardware["gpus"], hardware["description"].split(", ")[0]) == here

    return earlier_trials(storage, is_same)


def _paces_of_earlier(
    trials: Sequence[Trial], earlier: Sequence[MeasuredTrial], worker: WorkerResources
) -> tuple[dict[str, Pace], int]:
    """{trial: its pace} by earlier trials of its kind, and their number; empty unless there are some for each."""
    shape = {"workers": worker.workers, "cpus": worker.cpus, "gpus": worker.gpus}
    found: dict[str, list[MeasuredTrial]] = {
        trial.name: like(earlier, kind_of(trial.recipe, shape)) for trial in trials
    }
    if not all(found.values()):
        return {}, 0
    used = {id(measured) for those in found.values() for measured in those}
    return {name: pace_of_earlier(those) for name, those in found.items()}, len(used)


def _estimate(
    request: Request,
    study: Study,
    data: DatasetSummary,
    storage: Path,
    places: Places,
    console: Console,
) -> Estimate:
    trials, worker = study.trials(), places.worker
    earlier = _earlier_here(storage, places.resources)
    paces, used = _paces_of_earlier(trials, earlier, worker)
    if paces:
        where = f"in {storage}, with this network, image size, batch and precision on this hardware"
        return Estimate(paces, f"measured by {count(used, 'earlier trial')} {where}")
    if worker.gpus and not local_resources().gpus:
        # A GPU's hours by the pace of this machine's cores would be wrong by orders of magnitude.
        return Estimate(
            {}, f"no earlier run in {storage} is like it, and this machine has no GPU to measure a trial on"
        )
    if worker.gpus and (problem := gpu_problem(of_all=False)):
        said = f"no earlier run in {storage} is like it, and torch cannot use this machine's GPUs: {problem}"
        return Estimate({}, said)
    # Trials that share the memory of one machine slow each other down; those on GPUs of their own hardly do.
    shared = request.address is None and not worker.gpus and worker.workers == 1
    copies = min(places.number, MOST_PROBES_AT_ONCE) if shared else 1
    with (
        _with_data(request, study, data) as recipe,
        waiting(console, f"No earlier run is like it: measuring a trial for at most {MOST_SECONDS:.0f} s …"),
    ):
        measured = probe_at_once(recipe, worker.cpus, worker.workers, worker.gpus > 0, copies)
    pace = pace_of_probe(measured, recipe, len(data.class_names), worker.workers)
    if pace is None:
        return Estimate({}, f"a probe of its first trial ended before a step ({measured.trouble})", measured)
    where = "this machine" if request.address is None else "this machine, which may not be like the cluster's"
    steps = count(len(measured.step_seconds), "step")
    early = f"; {measured.trouble}" if measured.trouble else ""
    alone = "; what workers exchange is not in it" if worker.workers > 1 else ""
    together = f" in {copies} processes at once" if copies > 1 else ""
    # A compilation may take longer than the probe.
    eager = "; without compiling, where trials may be faster" if recipe.compile == "auto" else ""
    source = f"measured just now on {where}, by {steps} of its first trial on its data{together}{early}{alone}{eager}"
    return Estimate({trial.name: pace for trial in trials}, source, measured)


@contextmanager
def _with_data(request: Request, study: Study, data: DatasetSummary) -> Generator[Any]:
    """The Recipe of the first trial on its data; the built-in digits are written into a temporary folder."""
    # Weights to start from may have to be made yet, and make no difference to the time.
    recipe = study.trials()[0].recipe.with_values({"model.weights": None})
    if data.path.exists():
        yield recipe
        return
    with tempfile.TemporaryDirectory(prefix="nfnet_ray-plan-") as folder:
        yield recipe.with_values({"data.path": str(write_digits(Path(folder) / "digits", request.digits))})


def _say_forecast(
    told: Forecast, places: Places, estimate: Estimate, caps: Caps, request: Request, console: Console
) -> None:
    worker, word = places.worker, accelerator_word(places.worker.gpus)
    hours, most = _accelerator_hours(told, worker)
    ends, is_halved = _span(told.wall_seconds, clock_time), most > hours.high * 1.01
    unless = (
        f"; if no trial is stopped early, at most {clock_time(told.most_wall_seconds)} ({most:.3g} {word}-hours)"
        if is_halved
        else ""
    )
    say(
        console,
        f"Time: {ends} with {count(places.number, 'trial')} at once ({_span(hours, '{:.3g}'.format)} {word}-hours)"
        f"{unless}. This was {estimate.source}.",
    )
    if caps.price_per_hour is not None:
        at_most = f", at most {money(most * caps.price_per_hour)}" if is_halved else ""
        cost = _span(hours.times(caps.price_per_hour), money)
        say(console, f"Cost: {cost} at {caps.price_per_hour:,.4g} per {word}-hour{at_most}.")
    least = PaidTime(told.wall_seconds.low / SECONDS_PER_HOUR, hours.low)
    if cap := caps.reached(least, word):
        say(console, f"That is more than its cap of {cap.amount}: it would end early.")
    if told.joules is not None:
        kwh = told.joules.times(1 / JOULES_PER_KWH)
        price = request.price_per_kwh
        paid = f", {_span(kwh.times(price), money)} at {price:,.4g} per kWh" if price else ""
        say(console, f"Energy of the GPUs: {_span(kwh, '{:.3g}'.format)} kWh{paid}.")
    elif request.price_per_kwh is not None:
        say(console, "Energy: unknown, as no earlier run here has measured the power of its GPUs.")
    if told.memory_bytes is not None:
        of_what = " of GPU memory" if worker.gpus else ""
        say(
            console,
            f"Memory: {storage_size(round(told.memory_bytes))}{of_what} for each worker, at its peak.",
        )
        sharing = workers_on_a_gpu(worker.gpus) if worker.gpus else places.number * worker.workers
        there = memory_bytes_here(gpu=worker.gpus > 0) if request.address is None and sharing > 1 else None
        if there and (shortage := memory_shortage(sharing, told.memory_bytes, there, gpu=worker.gpus > 0)):
            say(console, f"{shortage}.")


def _span(span: Span, shown: Any) -> str:
    """``1:10 to 2:25``, or one of them if they read the same."""
    low, high = shown(span.low), shown(span.high)
    return low if low == high else f"{low} to {high}"


def _say_differences(study: Study, console: Console) -> None:
    """The differences from the model's published Recipe, as the flags that restore its values."""
    different = published_differences(study.recipe)
    name = study.recipe.model.label
    if different is None:
        say(console, f"There is no published Recipe of {name}.")
        return
    different = {field: value for field, value in different.items() if field not in study.fields}
    if not different:
        say(console, f"Apart from what is swept, its Recipe is the published one of {name}.")
        return
    verb = agree(len(different), "field differs", "fields differ")
    say(console, f"{len(different)} {verb} from the published Recipe of {name}. To restore them:")
    for field, value in different.items():
        say_whole(console, f"  --set {_setting(field, value)}")


def _setting(field: str, value: Any) -> str:
    """A field as a shell takes it for ``--set``."""
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return shlex.quote(f"{field}={text}")
