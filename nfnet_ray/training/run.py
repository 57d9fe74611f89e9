"""The parts of a run on one worker, and the state that a checkpoint saves and restores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.data.draws import network_seed
from nfnet_ray.data.files.dataset import Dataset
from nfnet_ray.data.loading.loader import EvalLoader, TrainLoader
from nfnet_ray.data.loading.sharing import Sharing
from nfnet_ray.metric import METRIC
from nfnet_ray.models import import_code_of, model_of
from nfnet_ray.models.published import resolve
from nfnet_ray.models.weights.pretrained import start_from
from nfnet_ray.recipe import Recipe, ResolvedRecipe
from nfnet_ray.training.agreement import Agreement, EpochSums
from nfnet_ray.training.captured import CapturedStep, recorder_for
from nfnet_ray.training.checkpoints.saving import Saver, check_same
from nfnet_ray.training.collectives import together
from nfnet_ray.training.context import Context
from nfnet_ray.training.damage import damaged_so_far, remember_damaged
from nfnet_ray.training.determinism import generators, reset_process, seed_generators, set_generators
from nfnet_ray.training.evaluation import EVAL_BATCH_SIZE
from nfnet_ray.training.form.artifacts import file_name
from nfnet_ray.training.form.choice import chosen_form
from nfnet_ray.training.form.forms import Choice
from nfnet_ray.training.form.placing import check_device, place
from nfnet_ray.training.measurement.clock import Clock
from nfnet_ray.training.measurement.conditions import conditions_text, device_name
from nfnet_ray.training.measurement.meter import Meter
from nfnet_ray.training.measurement.system import SystemMeter
from nfnet_ray.training.step import TrainStep


@dataclass(frozen=True)
class Position:
    """How far a run has got: it has finished ``epoch`` epochs, and ``batches`` batches of the next one."""

    epoch: int = 0
    batches: int = 0
    train_seconds_before: float = 0.0
    """The run's ``train_seconds`` when this epoch began."""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The metrics of the last finished epoch."""
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The texts that are reported with these metrics (:meth:`nfnet_ray.training.context.Context.report`)."""
    initial: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Metrics that were measured before the first step, and are reported with the first epoch."""

    def after(self, batches: int) -> Position:
        """The position in the same epoch after ``batches`` of its batches."""
        return dataclasses.replace(self, batches=batches)


@dataclass(frozen=True)
class Spent:
    """The time and energy of earlier runs, to which a new run adds its own.

    Attributes:
        clock: the :meth:`Clock.state` of the earlier run.
        joules: the energy that its GPUs have used, in joules.
    """

    clock: Mapping[str, float]
    joules: float


@dataclass
class Run:
    """The parts of a run on one worker."""

    recipe: ResolvedRecipe
    """The Recipe with every value filled in and the form of a step chosen."""
    settings: Mapping[str, Any]
    """The Recipe's values before the form was chosen, which a checkpoint saves and is compared with."""
    choice: Choice
    """The form of a step, and the measurements by which it was chosen."""
    context: Context
    saver: Saver
    dataset: Dataset
    train_loader: TrainLoader
    eval_loader: EvalLoader
    model: nn.Module
    step: TrainStep
    captured_step: CapturedStep[Any]
    """The object that does the steps. In a cohort it does those of all lanes."""
    clock: Clock
    meter: Meter
    system: SystemMeter
    # Loop state, which changes from step to step.
    sums: EpochSums
    agreement: Agreement
    lanes: int | None = None
    """The number of lanes of the cohort that trains this run; None if it is trained alone."""
    has_told_conditions: bool = False
    """Whether this process has reported its conditions, which it does once."""

    def conditions(self) -> dict[str, str]:
        """{"conditions": their text} for the first report of this process, and an empty dictionary for later ones."""
        if self.has_told_conditions:
            return {}
        self.has_told_conditions = True
        return {"conditions": conditions_text(self.recipe, self.context, self.lanes, self.captured_step.form)}

    def warm_up(self, batch: TrainBatch) -> None:
        """Compiles the step, chooses its algorithms and captures it, by passes whose results are discarded.

        Loads the code that another run has compiled, if there is any. Otherwise the first worker saves its own for
        others.
        """
        files = self.context.compiled_files if self.recipe.compile else None
        name = file_name(
            self.recipe, batch.images.shape, self.context.world_size, device_name(self.context.device)
        )
        if files:
            files.load(name)
        self.captured_step.prepare(batch)
        if files and self.context.rank == 0:
            files.save(name)

    # ---- Graphs that the next run of this process may replay --------------------------------------------------------

    def memory(self) -> Iterator[Tensor]:
        """The tensors of this run that a captured step reads or writes."""
        yield from (*self.step.tensors(), *self.step.numbers(), *self.sums.tensors())

    def take_graphs(self) -> None:
        """Takes over the graphs of the previous run, if its steps differ from this run's only in their numbers."""
        kept = self.context.kept_graphs
        captured = kept and kept.take(self.recipe, self.memory(), reads_drop_rates=self.step.reads_drop_rates)
        if captured:
            self.captured_step.replay_from(captured)

    def leave_graphs(self) -> None:
        """Leaves the graphs to the next run. This run does no more steps."""
        kept = self.context.kept_graphs
        if kept and self.lanes is None:
            kept.keep(
                self.recipe,
                self.memory(),
                self.captured_step.captured(),
                reads_drop_rates=self.step.reads_drop_rates,
            )

    # ---- The state in a checkpoint, and how it is restored ----------------------------------------------------------

    def save(self, at: Position, *, paused: bool = False) -> None:
        """Saves a checkpoint of this moment. Collective: every worker calls it."""
        together(self.dataset.check_unchanged, self.context)
        metric = at.metrics[METRIC] if at.batches == 0 else None
        self.saver.save(
            self.state_dict(at, paused=paused),
            self.own_state_dict(),
            step=self.step.number,
            epoch=at.epoch,
            metric=metric,
        )

    def state_dict(self, at: Position, *, paused: bool) -> dict[str, Any]:
        """The state that all workers share. ``paused`` says that the run pauses or stops here."""
        return {
            "recipe": dict(self.settings),
            "data": self.dataset.fingerprint,
            "form": self.choice.to_values(),
            "position": vars(at),
            "model": self.model.state_dict(),
            "step": self.step.state_dict(),
            "clock": self.clock.state(paused=paused),
            "meter": self.meter.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Position:
        """Restores a :meth:`state_dict`, and returns its position."""
        self.model.load_state_dict(state["model"])
        self.step.load_state_dict(state["step"])
        self.clock.resume(state["clock"])
        self.meter.resume(state["meter"])
        damaged = [worker["damaged"] for worker in state["workers"]]
        remember_damaged(self.train_loader, self.eval_loader, damaged)
        return Position(**state["position"])

    def own_state_dict(self) -> dict[str, Any]:
        """The state of this worker alone, which within an epoch differs between workers."""
        return {
            "generators": generators(self.context.device),
            "sums": self.sums.state_dict(),
            "statistics": self.step.own_statistics(),
            "damaged": damaged_so_far(self.train_loader, self.eval_loader),
        }

    def load_own_state_dicts(self, states: Sequence[Mapping[str, Any]], at: Position) -> None:
        """Restores the :meth:`own_state_dict` of all workers, within an epoch.

        If the number of workers has changed, each worker seeds its generators as at the start of the epoch.
        """
        context = self.context
        torch.manual_seed(network_seed(self.recipe.seed, at.epoch, context.rank))
        sums = [state["sums"] for state in states]
        self.sums.load_state_dicts(sums, context.rank, self.recipe.batch_size)
        if len(states) == context.world_size:
            set_generators(states[context.rank]["generators"], context.device)
            self.step.load_own_statistics(states[context.rank]["statistics"])


def open_run(
    recipe: Recipe,
    dataset: Dataset,
    context: Context,
    clock: Clock,
    saver: Saver,
    sharing: Sharing | None = None,
    *,
    spent: Spent | None = None,
    force_resume: bool,
    beside: Run | None = None,
    lanes: int = 1,
) -> tuple[Run, Position]:
    """Makes the parts of a run, new or restored from the latest checkpoint. Returns the run and its position.

    Sets all switches of this process that can change a result. Reports the metrics of the checkpoint's epoch again,
    because the first report may have been lost with the worker.

    Args:
        recipe: the Recipe, with the published values of its model filled in and its weights pinned.
        dataset: the images.
        context: where the run takes place.
        clock: the clock of the run.
        saver: saves its checkpoints and finds the latest one.
        sharing: shares batches with other processes of the node; None: the run loads its own.
        spent: the time and energy of earlier runs, to which a new run adds its own. A checkpoint includes them already.
        force_resume: warns of a checkpoint of another Recipe or of other data, and restores it.
        beside: a run of this process on the same batches, whose loaders and form the new run uses too.
        lanes: the number of lanes of the cohort to which both belong.

    Raises:
        UserError: the checkpoint is of another Recipe or of other data, or a worker's GPU cannot train the Recipe.
    """
    together(lambda: check_device(recipe, context.device), context)
    _keep_to_its_part_of_a_gpu(context)
    if context.kept_graphs:
        context.kept_graphs.drop_unless_for(recipe)
    before = saver.latest()
    if before:
        check_same(before, recipe, dataset.fingerprint, force=force_resume)
    # Importing a network's code may set switches, in the first run of a process alone. They are overridden below.
    together(lambda: import_code_of(recipe.model), context)
    choice = beside.choice if beside else chosen_form(recipe, dataset, context, clock, before, lanes)
    if beside:
        seed_generators(
            recipe.seed
        )  # the other run has set all else, and a clean-up for each lane would take seconds
    else:
        reset_process(recipe.seed, context.threads)
    resolved = resolve(recipe).with_values(vars(choice.form))
    run = _built(resolved, recipe.to_values(), choice, dataset, context, clock, saver, sharing, beside)
    run.take_graphs()
    if before is None:
        if spent:
            run.clock.resume(spent.clock)
            run.meter.resume({"joules": spent.joules})
        return run, Position()
    at = run.load_state_dict(before)
    if at.epoch:
        context.report(at.metrics, at.texts)
    if at.batches:
        run.load_own_state_dicts(before["workers"], at)
    return run, at


def _keep_to_its_part_of_a_gpu(context: Context) -> None:
    """Limits this process to its share of a GPU's memory: a request beyond that fails as "out of memory".

    To choose an algorithm, cuDNN tries workspaces of up to all free memory (torch's Conv_v8.cpp), and smaller ones if
    it gets less. Without the limit, another worker of the GPU that needs its memory meanwhile would fail.
    """
    # With a whole GPU a limit in the environment stays in force.
    if context.device.type == "cuda" and context.gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(context.gpu_share, context.device.index)


def _built(
    recipe: ResolvedRecipe,
    settings: Mapping[str, Any],
    choice: Choice,
    dataset: Dataset,
    context: Context,
    clock: Clock,
    saver: Saver,
    sharing: Sharing | None,
    beside: Run | None,
) -> Run:
    if beside:
        train_loader, eval_loader = beside.train_loader, beside.eval_loader
    else:
        # If images stay in memory they are decoded here, and a worker may find that its copy of the data is damaged.
        train_loader, eval_loader = together(lambda: _loaders(recipe, dataset, context, sharing), context)
    model = together(lambda: _model(recipe, len(dataset.class_names)), context)
    place(model, recipe, context.device)
    step = TrainStep(model, recipe, context, train_loader.batches_per_epoch)
    sums = EpochSums(context)
    return Run(
        recipe=recipe,
        settings=settings,
        choice=choice,
        context=context,
        saver=saver,
        dataset=dataset,
        train_loader=train_loader,
        eval_loader=eval_loader,
        model=model,
        step=step,
        captured_step=CapturedStep(
            step, sums, recipe, context, recorder_for(context.device, context.gpu_share)
        ),
        clock=clock,
        meter=Meter(recipe, len(dataset.class_names), context),
        system=SystemMeter(context),
        sums=sums,
        agreement=Agreement(context, saver),
    )


def _model(recipe: ResolvedRecipe, classes: int) -> nn.Module:
    """The network with its initial or pretrained weights."""
    model = model_of(recipe.model, classes)
    start_from(model, recipe.model)
    return model


def _loaders(
    recipe: ResolvedRecipe, dataset: Dataset, context: Context, sharing: Sharing | None
) -> tuple[TrainLoader, EvalLoader]:
    train_loader = TrainLoader(
        dataset.train,
        recipe.data,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        epochs=recipe.schedule.epochs,
        rank=context.rank,
        world_size=context.world_size,
        replicas=context.replicas,
        device=context.device,
        threads=context.threads,
        sharing=sharing,
    )
    eval_loader = EvalLoader(
        dataset.validation,
        recipe.data,
        batch_size=EVAL_BATCH_SIZE,
        rank=context.rank,
        world_size=context.world_size,
        device=context.device,
        threads=context.threads,
    )
    return train_loader, eval_loader
