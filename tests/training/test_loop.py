"""What train(recipe, context) promises: the same numbers wherever and however often it is run."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.errors import DataChangedError, UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.settings import LARGEST_WHOLE_NUMBER
from nfnet_ray.training import Outcome, PlainContext, loop, train
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.evaluation import evaluate_signal
from nfnet_ray.training.measurement import clock as clock_module
from nfnet_ray.training.measurement.clock import PHASES, Clock
from nfnet_ray.training.measurement.waits import waits_on
from nfnet_ray.training.run import Spent

NUMBERS = ("validation_top1", "validation_loss", "train_loss", "train_top1", "agc_clipped_fraction")


Ended = tuple[Outcome, list[dict[str, float]]]


def run(recipe: Recipe, **settings: Any) -> Ended:
    """The outcome, and the numbers of each epoch that do not depend on the clock."""
    epochs: list[dict[str, float]] = []
    context = PlainContext(
        device=torch.device("cpu"),
        threads=1,
        on_report=lambda metrics: epochs.append({name: metrics[name] for name in NUMBERS}),
        **settings,
    )
    return train(recipe, context), epochs


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in outcome.model.state_dict().items()}


@pytest.fixture(scope="module")
def undisturbed(quick: Recipe) -> Ended:
    """A run of the quick Recipe that nothing stops."""
    return run(quick)


def assert_equal_to_the_bit(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_a_used_process_gives_the_numbers_of_a_fresh_one(quick: Recipe, tmp_path: Path) -> None:
    recipe = quick.with_values({"schedule.epochs": 2})
    script = (
        "import json, sys, torch; from nfnet_ray.recipe import Recipe; from nfnet_ray.training import *\n"
        "epochs = []\n"
        "context = PlainContext(device=torch.device('cpu'), threads=1, on_report=lambda m: epochs.append(dict(m)))\n"
        "outcome = train(Recipe.from_values(json.loads(sys.argv[1])), context)\n"
        "torch.save(outcome.model.state_dict(), sys.argv[2]); print(json.dumps(epochs))\n"
        # A third of what starting one worker takes; only torch.compile and several workers need it.
        "assert 'torch._dynamo' not in sys.modules"
    )
    arguments = [json.dumps(recipe.to_values()), str(tmp_path / "fresh.pt")]
    fresh = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )

    # A process in which another network has been trained, and in which every switch was left turned.
    run(
        quick.with_values(
            {"model.overrides.activation": "silu", "seed": 3, "schedule.epochs": 1, "batch_size": 120}
        )
    )
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    torch.manual_seed(99)
    random.seed(99)
    outcome, epochs = run(recipe)

    assert epochs == [{name: epoch[name] for name in NUMBERS} for epoch in json.loads(fresh.stdout)]
    assert_equal_to_the_bit(weights(outcome), torch.load(tmp_path / "fresh.pt", weights_only=True))


@pytest.mark.parametrize(
    "turn",
    [
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "tf32"),
        lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
        lambda: setattr(torch.backends, "fp32_precision", "tf32"),
        lambda: setattr(torch.backends.cudnn, "allow_tf32", True),
    ],
    ids=["old function", "GPU's products", "GPU's convolutions", "CPU's products", "all", "old switch"],
)
def test_float32_has_all_its_bits_whatever_was_set_before(turn: Callable[[], object]) -> None:
    """By torch's old functions or its new ones, of which one raises an error after some of the others."""
    turn()
    reset_process(0, 1)
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    of_cpu = (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)
    assert {part.fp32_precision for part in (*parts, *of_cpu)} == {"ieee"}
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


class PulledPlug(Exception):
    """Stands for a process that dies."""


def run_until_epoch(recipe: Recipe, directory: Path, last: int) -> None:
    def report(metrics: Any) -> None:
        if metrics["epoch"] == last:
            raise PulledPlug

    with pytest.raises(PulledPlug):
        train(
            recipe,
            PlainContext(device=torch.device("cpu"), threads=1, checkpoints=directory, on_report=report),
        )


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(
    quick: Recipe, undisturbed: Ended, tmp_path: Path
) -> None:
    whole, whole_epochs = undisturbed
    run_until_epoch(quick, tmp_path, last=1)
    resumed, rest = run(quick, checkpoints=tmp_path)
    assert rest == whole_epochs  # the first was reported by who died, but perhaps not heard
    assert resumed.epochs == 3
    assert_equal_to_the_bit(weights(resumed), weights(whole))


def test_a_run_pauses_after_the_epoch_in_which_it_has_trained_for_a_time(
    quick: Recipe, undisturbed: Ended, tmp_path: Path
) -> None:
    """A resumed run that has trained for that time already trains nothing."""
    whole, whole_epochs = undisturbed
    epochs: list[dict[str, float]] = []
    context = PlainContext(
        device=torch.device("cpu"),
        threads=1,
        checkpoints=tmp_path,
        on_report=lambda m: epochs.append(dict(m)),
    )
    ended = [train(quick, context, until_seconds=seconds) for seconds in (1e-6, 1e-6, 1e9)]
    assert [(outcome.state, outcome.epochs) for outcome in ended] == [
        ("paused", 1),
        ("paused", 1),
        ("finished", 3),
    ]
    assert [epoch["epoch"] for epoch in epochs] == [
        1,
        1,
        1,
        2,
        3,
    ]  # each run reports its checkpoint's epoch again
    assert epochs[0]["train_seconds"] == epochs[1]["train_seconds"]
    assert [{name: epoch[name] for name in NUMBERS} for epoch in epochs[2:]] == whole_epochs
    assert_equal_to_the_bit(weights(ended[-1]), weights(whole))


def test_a_run_counts_its_time_on_from_earlier_ones(quick: Recipe, tmp_path: Path) -> None:
    """In its checkpoint too: a run that resumes does not count it twice."""
    clock = dict.fromkeys(PHASES, 100.0) | {"taken_at": time.time() - 50, "is_pause": 1.0}
    epochs: list[dict[str, float]] = []
    context = PlainContext(
        device=torch.device("cpu"),
        threads=1,
        checkpoints=tmp_path,
        on_report=lambda m: epochs.append(dict(m)),
    )
    for last in (1, 2):
        train(quick, context, until_epoch=last, spent=Spent(clock, joules=0.0))
    assert 100 < epochs[0]["train_seconds"] < epochs[-1]["train_seconds"] < 200
    assert 149 < epochs[0]["paused_seconds"] < 200
    assert epochs[-1]["epoch"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sam", "looksam", "esam"])
def test_with_every_technique_a_run_resumes_to_the_same_weights(
    quick: Recipe, tmp_path: Path, method: str
) -> None:
    everything = quick.with_values(
        {
            "data.mixing.mixup_alpha": 0.2,
            "data.mixing.cutmix_alpha": 1.0,
            "data.randaugment.layers": 2,
            "data.randaugment.magnitude": 5,
            "optimizer.sam.rho": 0.05,
            "optimizer.sam.method": method,
            "optimizer.sam.looksam_interval": 2,  # not a divisor of an epoch's three steps
            "micro_batches": 2,
            "schedule.epochs": 2,
            "signal_epochs": 1,
        }
    )
    whole, whole_epochs = run(everything)
    run_until_epoch(everything, tmp_path, last=1)
    resumed, rest = run(everything, checkpoints=tmp_path)
    assert rest == whole_epochs
    assert_equal_to_the_bit(weights(resumed), weights(whole))
    assert whole.average is not None
    assert resumed.average is not None
    assert_equal_to_the_bit(resumed.average.state_dict(), whole.average.state_dict())
    assert resumed.metrics["signal/00_stem/variance"] == whole.metrics["signal/00_stem/variance"]


def test_what_is_compared_is_the_average_where_there_is_one(quick: Recipe) -> None:
    reports: list[dict[str, float]] = []
    context = PlainContext(device=torch.device("cpu"), threads=1, on_report=lambda m: reports.append(dict(m)))
    recipe = quick.with_values({"schedule.epochs": 1})
    train(recipe.with_values({"optimizer.ema.decay": None}), context)
    train(recipe, context)
    train(recipe.with_values({"optimizer.ema.decay": 0.0}), context)  # the average is the last weights
    alone, with_average, with_copy = reports
    assert "raw_validation_loss" not in alone
    assert with_average["raw_validation_loss"] == with_copy["validation_loss"] == alone["validation_loss"]
    assert with_average["validation_loss"] != alone["validation_loss"]


def test_the_signal_is_measured_before_training_and_when_asked_for(quick: Recipe) -> None:
    reports: list[dict[str, float]] = []
    context = PlainContext(device=torch.device("cpu"), threads=1, on_report=lambda m: reports.append(dict(m)))
    train(quick.with_values({"signal_epochs": 2}), context)
    initial, *others = [{name for name in report if "signal/" in name} for report in reports]
    assert {name.partition("/")[0] for name in initial} == {"initial_signal"}
    assert [len(names) for names in others] == [len(initial), 0]
    assert {name.partition("/")[0] for name in others[0]} == {"signal"}
    without = run(quick.with_values({"schedule.epochs": 1}))[0]
    watched = run(quick.with_values({"schedule.epochs": 1, "signal_epochs": 1}))[0]
    assert_equal_to_the_bit(weights(watched), weights(without))


def test_a_worker_without_validation_images_measures_no_signal(quick: Recipe) -> None:
    """There are more workers than images; the first one, which reports, has one."""
    assert evaluate_signal(torch.nn.Identity(), iter(()), quick) == {}


def test_micro_batches_that_do_not_fit_are_refused(quick: Recipe) -> None:
    with pytest.raises(UserError, match="micro_batches 3 cannot share equally the 80 images of a worker"):
        run(quick.with_values({"micro_batches": 3}))


def test_a_damaged_last_checkpoint_costs_one_epoch(quick: Recipe, undisturbed: Ended, tmp_path: Path) -> None:
    whole, _ = undisturbed
    run_until_epoch(quick, tmp_path, last=2)
    last = max(tmp_path.glob("step-*.pt"))
    last.write_bytes(last.read_bytes()[:1000])
    resumed, epochs = run(quick, checkpoints=tmp_path)
    assert len(epochs) == 3  # the first again, the second anew, and the third
    assert_equal_to_the_bit(weights(resumed), weights(whole))


def test_a_checkpoint_of_another_recipe_is_refused(quick: Recipe, tmp_path: Path) -> None:
    run_until_epoch(quick, tmp_path, last=1)
    with pytest.raises(UserError, match=r"other settings \(optimizer\.agc\.clip_factor 0\.01, now 0\.5\)"):
        run(quick.with_values({"optimizer.agc.clip_factor": 0.5}), checkpoints=tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_with_that_reason(quick: Recipe) -> None:
    wild = {
        "optimizer.agc.clip_factor": None,
        "schedule.base_learning_rate": 50.0,
        "schedule.warmup_epochs": 0.0,
    }
    outcome, _ = run(quick.with_values(wild))
    assert outcome.state == "diverged"
    assert "loss became" in str(outcome.reason)
    assert "epoch" in str(outcome.reason)


def test_clipping_spares_the_classifier_weight_alone(quick: Recipe) -> None:
    settings = {"schedule.epochs": 1, "schedule.warmup_epochs": 0.0, "optimizer.weight_decay": 0.0}
    start = weights(run(quick.with_values(settings | {"schedule.base_learning_rate": 1e-12}))[0])
    outcome, epochs = run(quick.with_values(settings | {"optimizer.agc.clip_factor": 1e-9}))
    moved = {name for name, tensor in weights(outcome).items() if (tensor - start[name]).abs().max() > 1e-5}
    assert moved == {"classifier.weight"}
    assert (
        epochs[0]["agc_clipped_fraction"] > 0.3
    )  # the others have no gradient at all, behind skip gains of 0


def test_an_excluded_parameter_that_does_not_exist_is_named(quick: Recipe) -> None:
    with pytest.raises(UserError, match=r"head\.weight.*classifier\.weight"):
        run(quick.with_values({"optimizer.agc.exclude": ["head.weight"]}))
    with pytest.raises(
        UserError, match=r"optimizer.agc.exclude names heads.\*, which nf_resnet50 does not have"
    ):
        run(quick.with_values({"optimizer.agc.exclude": ["stem.*", "heads.*"]}))


def test_a_batch_larger_than_the_data_is_refused(quick: Recipe) -> None:
    with pytest.raises(UserError, match="batch_size 4096 is larger than the 240 training images"):
        run(quick.with_values({"batch_size": 4096}))


def test_the_phases_of_the_clock_add_up_to_the_time_that_passed(quick: Recipe) -> None:
    reports: list[dict[str, float]] = []
    start = time.perf_counter()
    context = PlainContext(device=torch.device("cpu"), threads=1, on_report=lambda m: reports.append(dict(m)))
    train(quick, context)
    passed = time.perf_counter() - start
    accounted = sum(reports[-1][f"{phase}_seconds"] for phase in PHASES)
    assert abs(passed - accounted) < 0.02 * passed
    assert reports[0]["startup_seconds"] == reports[-1]["startup_seconds"]


class QueuedDevice:
    """A device that works on while the host waits; a test says for how long it had nothing to do."""

    def __init__(self, *waited: float) -> None:
        self._waited, self.calls = list(waited), list[str]()

    def begin(self) -> None:
        self.calls.append("begin")

    def end(self) -> None:
        self.calls.append("end")

    def drain(self) -> None:
        self.calls.append("drain")

    def take(self) -> float:
        self.calls.append("take")
        return self._waited.pop(0) if self._waited else 0.0


def test_what_a_device_does_meanwhile_is_no_waiting_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits 4 s for each batch and is done with a step at once; the device is at work for most of the time."""
    now = [0.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    clock = Clock()
    clock.waits = QueuedDevice(0.5, 100.0)

    def batches() -> Iterator[int]:
        for number in range(5):
            now[0] += 4.0
            yield number

    counted = []
    for number in clock.waiting_for(batches()):
        if number in (2, 4):
            now[0] += 2.0  # until the device has done all steps
            clock.recount()
            counted.append({name: clock.seconds(name) for name in ("startup", "train", "data_wait")})
    # Of 8 s of waiting and 2 s of emptying the queue the device had nothing to do for half a second; then always.
    assert counted == [
        {"startup": 4.0, "train": 9.5, "data_wait": 0.5},
        {"startup": 4.0, "train": 9.5, "data_wait": 10.5},
    ]
    assert sum(clock.seconds(phase) for phase in PHASES) == now[0]


def test_the_waits_of_a_gpu_lie_between_events_in_its_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, _stream: object) -> None:
            self.milliseconds = 1000 * now[0]

        def elapsed_time(self, later: Event) -> float:
            return later.milliseconds - self.milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: None)
    device = waits_on(torch.device("cuda"))
    assert device is not None
    device.end()  # the first batch of an attempt: nobody has waited
    for seconds in (1.0, 2.5):
        device.begin()
        now[0] += seconds
        device.end()
        now[0] += 10.0  # a step
    device.begin()  # the end of an epoch: no batch comes
    now[0] += 50.0
    assert device.take() == 3.5
    device.begin()
    now[0] += 0.25
    device.end()
    assert (device.take(), device.take()) == (0.25, 0.0)
    assert waits_on(torch.device("cpu")) is None


def test_a_run_asks_its_device_how_long_it_waited(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    device = QueuedDevice()
    monkeypatch.setattr(loop, "waits_on", lambda _device: device)
    outcome, epochs = run(quick.with_values({"schedule.epochs": 2}))
    steps = 2 * (240 // quick.batch_size)
    # A CPU agrees after each step. The first batch is start-up, and an epoch ends with a wait for what does not come.
    assert [device.calls.count(name) for name in ("begin", "end", "take")] == [steps + 1, steps, steps]
    assert outcome.metrics["train_seconds"] > 0
    assert len(epochs) == 2


def test_bfloat16_trains(quick: Recipe) -> None:
    settings = {"schedule.epochs": 1, "batch_size": 120}  # two steps: a CPU has to emulate it
    outcome, epochs = run(quick.with_values(settings | {"precision": "bfloat16"}))
    _, in_float32 = run(quick.with_values(settings))
    assert outcome.state == "finished"
    assert epochs[0]["train_loss"] == pytest.approx(in_float32[0]["train_loss"], rel=0.02)
    assert epochs[0]["train_loss"] != in_float32[0]["train_loss"]
    assert {tensor.dtype for tensor in weights(outcome).values()} == {torch.float32}


def test_another_data_set_in_its_place_is_not_trained_on(
    quick: Recipe, few_digits: Path, tmp_path: Path
) -> None:
    fingerprint = open_dataset(few_digits).fingerprint
    context = PlainContext(device=torch.device("cpu"), threads=1, checkpoints=tmp_path / "checkpoints")
    began_with = "0" * 32
    with pytest.raises(DataChangedError, match=f"began with .fingerprint {began_with}, now {fingerprint}"):
        train(quick, context, data_fingerprint=began_with)
    gone = quick.with_values({"data.path": str(tmp_path / "gone")})
    with pytest.raises(DataChangedError, match="the data set that this began with is gone"):
        train(gone, context, data_fingerprint=fingerprint)
    assert train(quick, context, data_fingerprint=fingerprint).state == "finished"


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("within_memory", ["auto", "never"])
def test_data_that_is_written_to_during_a_run_ends_it_and_nothing_of_it_is_kept(
    quick: Recipe, few_digits: Path, tmp_path: Path, split: str, within_memory: str
) -> None:
    data = shutil.copytree(few_digits, tmp_path / "data")
    recipe = quick.with_values({"data.path": str(data), "data.resident": within_memory})
    reported: list[float] = []

    class Overwriting(PlainContext):
        def progress(self, epochs: float) -> None:
            if 1.3 < epochs < 1.5:
                path = data / f"{split}.beton"
                with path.open("r+b") as file:
                    file.seek(-2000, os.SEEK_END)
                    file.write(bytes(100))

    context = Overwriting(
        device=torch.device("cpu"),
        threads=1,
        checkpoints=tmp_path / "checkpoints",
        seconds_between_checkpoints=0.0,
        on_report=lambda metrics: reported.append(metrics["epoch"]),
    )
    with pytest.raises(DataChangedError, match=rf"{split}\.beton was written to, at .*verify"):
        train(recipe, context)
    assert reported == [1]
    assert context.store is not None
    entry = context.store.latest_sound()
    assert entry is not None
    assert (
        entry.step <= 4
    )  # the first step of the second epoch; it was written to before the end of the second one


def test_a_copy_elsewhere_and_another_owner_or_name_are_no_change(
    quick: Recipe, few_digits: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(few_digits, tmp_path / "data")

    class Moving(PlainContext):
        def progress(self, epochs: float) -> None:
            path = data / "train.beton"
            if 1.3 < epochs < 1.5 and not (tmp_path / "copy").exists():
                shutil.copy2(path, tmp_path / "copy")
                path.chmod(0o640)
                os.replace(tmp_path / "copy", path)
                (tmp_path / "copy").touch()

    context = Moving(device=torch.device("cpu"), threads=1)
    assert train(quick.with_values({"data.path": str(data)}), context).state == "finished"


@pytest.mark.parametrize(
    "extreme",
    [
        {"data.randaugment.layers": 2, "data.randaugment.magnitude": 100},
        {"data.mixing.mixup_alpha": 1e6, "data.mixing.cutmix_alpha": 1e-300, "seed": LARGEST_WHOLE_NUMBER},
        {"data.crop_padding": 31, "optimizer.agc.eps": 1e-320, "optimizer.agc.clip_factor": 1e6},
        {"schedule.base_learning_rate": 1e6, "optimizer.weight_decay": 1e6},
        {"optimizer.sam.rho": 1e6, "optimizer.sam.method": "esam", "seed": LARGEST_WHOLE_NUMBER},
        {"data.mixing.mixup_alpha": 1e-300, "optimizer.name": "rmsprop", "optimizer.rmsprop_eps": 1e6},
    ],
    ids=lambda extreme: ",".join(extreme),
)
def test_the_largest_and_smallest_values_of_a_recipe_are_trained_with(
    quick: Recipe, extreme: dict[str, Any]
) -> None:
    """To the end, or until the loss is no number any more; what a Recipe takes is no stack trace later."""
    recipe = quick.with_values({"schedule.epochs": 1, "data.image_size": 32, **extreme})
    outcome = train(recipe, PlainContext(device=torch.device("cpu"), threads=1))
    assert outcome.state in ("finished", "diverged")
