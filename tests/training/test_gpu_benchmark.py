"""`python -m benchmarks.gpu`, which is made for a few minutes on a lent GPU, works: tried here on a CPU.

On that machine there is torch and little else, so what it lacks cannot be imported here either.
"""

from __future__ import annotations

import csv
import doctest
import importlib
import io
import itertools
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import observed
from benchmarks.gpu import step as step_part
from benchmarks.gpu.children import Children, wait_until_ready
from benchmarks.gpu.convolution_shapes import PASSES, Convolution, convolutions_of
from benchmarks.gpu.convolutions import FORMS, tensors_of
from benchmarks.gpu.correctness import CAPTURED_CHECKS, captured_difference, difference_of_kept_graphs
from benchmarks.gpu.machine import Machine, Sensors
from benchmarks.gpu.networks import new_step
from benchmarks.gpu.rows import COLUMNS, Recorder, Row, read_rows, table, tidy, write_csv
from benchmarks.gpu.step import add_captured, eager_forms
from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.catalogue import get_model
from nfnet_ray.models.costs import count_multiply_adds
from nfnet_ray.models.variants import block_plan, get_variant
from nfnet_ray.recipe import Recipe
from tests.deadlines import HANG_SECONDS, wait_until
from tests.training import pretended_gpu as pretended
from tests.training.pretended_gpu import pretended_gpu
from tests.training.tape import TapeRecorder

FORKED = "tests.training.forked_gpu_benchmark"
NOT_ON_THE_DEVICE = ("ray", "mlflow", "ffcv", "orjson", "optuna", "plotly", "moto")
ROW = '{"part": "p", "case": "c", "quantity": "time", "value": 1, "unit": "s", "device": "D"}'


# ---- The whole command -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_part_gives_its_rows_with_torch_alone(tmp_path: Path) -> None:
    blocker = f"import sys\nfor name in {NOT_ON_THE_DEVICE}: sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(blocker)
    results = tmp_path / "results" / "gpu.csv"
    limits = ["--seconds", "100000"]  # pytest's own is sooner
    arguments = ["--results", results, *limits, "--commit", "abc1234", "--log", tmp_path / "log"]
    process = subprocess.run(
        [sys.executable, "-m", FORKED, *arguments, "--cifar", few_images(tmp_path / "cifar")],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        cwd=command.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr + (tmp_path / "log").read_text()
    assert process.stdout.startswith("No GPU: ")
    rows = list(csv.DictReader(results.open()))
    assert list(rows[0]) == list(COLUMNS)
    assert {row["commit"] for row in rows} == {"abc1234"}
    assert {row["torch"] for row in rows} == {torch.__version__}

    by_part = {part: [row for row in rows if row["part"] == part] for part in command.PARTS}
    quantities = {part: {row["quantity"] for row in found} for part, found in by_part.items()}
    assert quantities["roof"] == {"rate", "bytes read and written"}
    assert sum(row["quantity"] == "holds" for row in by_part["correctness"]) == 8
    steps = {row["case"] for row in by_part["step"] if row["quantity"] == "images per second"}
    assert {case.rpartition(", ")[2] for case in steps} == {"eager", "compiled"}
    assert any("timm" in case for case in steps)
    assert "time of a step" in quantities["captured"]
    assert "captured trial : lane" in quantities["cohort"]
    assert sum(row["quantity"] == "holds" for row in by_part["cohort"]) == 2
    expected = {"share of the time in which the device is idle", "device's time of a batch"}
    assert expected <= quantities["observed"]
    assert "all convolutions, best form of each" in quantities["convolutions"]
    assert "images per second" in quantities["ratio"]
    assert "top-1" in quantities["cifar"]
    assert "step: nfnet_pico, ours, 32 px, batch 4, NCHW, eager: images per second" in process.stdout


def test_the_check_of_captured_steps_compares_two_trainings() -> None:
    """By tapes in place of graphs; a tape that replays nothing is noticed."""
    machine = Machine()
    for values in (CAPTURED_CHECKS["AGC"], CAPTURED_CHECKS["RMSProp, draws of torch's generator"]):
        recorder = TapeRecorder()
        assert captured_difference(machine, values, recorder) == 0
        assert len(recorder.tapes) == 1

    class Idle(TapeRecorder):
        def record(self, act: Callable[[], None]) -> Callable[[], None]:
            super().record(act)
            return lambda: None

    assert captured_difference(machine, {}, Idle()) > 0


def saved_bytes(name: str) -> float:
    """What a network keeps for the backward pass of an image in bfloat16; no memory is taken."""
    with torch.device("meta"):
        model = create_model(name).bfloat16().train()
        sizes: list[dict[int, int]] = []
        for images in (1, 2):
            kept: list[torch.Tensor] = []
            pixels = torch.empty(images, 3, *[get_model(name).train_size] * 2, dtype=torch.bfloat16)
            with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor, kept=kept: kept.append(tensor) or tensor, lambda tensor: tensor
            ):
                model(pixels)
            sizes.append({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept})
    one, two = (sum(of_all.values()) for of_all in sizes)
    return two - one  # without weights


def test_the_largest_batch_fits_an_h100() -> None:
    """Of 80 GB some are left for gradients and workspaces. A batch that does not fit costs its time, and is halved."""
    (batch,) = {f.batch_size for f in eager_forms(is_small=False) if f.network == "tf_efficientnet_b7"}
    assert 50e9 < batch * saved_bytes("tf_efficientnet_b7") < 65e9


def test_the_memory_of_a_step_is_that_after_the_warm_ups() -> None:
    """In which cuDNN tries algorithms with whatever workspace they ask for."""
    most, calls = [0.0], itertools.count()

    def work() -> None:
        most[0] = max(most[0], 1e9 if next(calls) else 9e9)

    def forget(_device: object) -> None:
        most[0] = 0.0

    with pretended_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "max_memory_allocated", lambda _device: most[0])
        patch.setattr(torch.cuda, "reset_peak_memory_stats", forget)
        machine = Machine(is_small=True)
        machine.time(work, repeats=3)
        assert machine.peak_bytes() == 1e9


def test_clock_and_power_are_read_in_the_middle_of_the_work() -> None:
    """Whatever is captured is in the device's queue long before the device is warm."""
    happened: list[str] = []

    class Event(pretended.Event):
        def record(self, _stream: Any = None) -> None:
            super().record()
            self.number = happened.count("recorded")
            happened.append("recorded")

        def synchronize(self) -> None:
            happened.append(f"{self.number} is done")

    def sensors() -> Sensors:
        happened.append("read")
        return Sensors(1980.0, 700.0)

    with pretended_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Event", Event)
        machine = Machine()
        patch.setattr(machine, "sensors", sensors)
        timing = machine.time(lambda: None, repeats=8)
    assert happened == [*(9 * ["recorded"]), "4 is done", "read"]
    assert timing.sensors.power_watts == 700


def test_the_check_of_kept_graphs_replays_them(quick: Recipe) -> None:
    recipe = quick.with_values({"schedule.epochs": 1, "batch_size": 120})
    with pretended_gpu() as gpu:
        machine = Machine(is_small=True)
        assert difference_of_kept_graphs(machine, recipe) == 0
        assert (gpu.captures, gpu.replays) == (2, 6)
        with pytest.raises(RuntimeError, match="no step was captured"):
            difference_of_kept_graphs(machine, recipe.with_values({"capture": "never"}))


def test_a_captured_step_has_the_rows_of_the_others(tmp_path: Path) -> None:
    machine = Machine()
    form = eager_forms(is_small=True)[0]
    recipe = form.recipe(machine)

    class Failing(TapeRecorder):
        def record(self, act: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError(f"no graph of {act.__name__}")

    recorder = Recorder(tmp_path / "rows", "step", machine)
    for case, graphs in (("captured", TapeRecorder()), ("failing", Failing()), ("none", None)):
        step = new_step(recipe, machine, rates_on_device=True)[1]
        add_captured(recorder, machine, case, recipe, step, graphs)
    rows, _ = read_rows(tmp_path / "rows")
    of_captured = {row["quantity"]: row["value"] for row in rows if row["case"] == "captured"}
    assert next(iter(of_captured)) == "images per second"
    assert of_captured["peak memory"] == 2e-6  # of the capture: no counter sees a replay's
    assert [row["value"] for row in rows if row["case"] == "failing"] == ["RuntimeError: no graph of act"]
    assert [row["value"] for row in rows if row["case"] == "none"] == ["needs a GPU"]


def test_where_no_profiler_is_let_in_the_meter_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def profiled(*_: object) -> observed.Profile:
        raise RuntimeError("the profiler saw nothing on the device")

    def nothing(_self: object, _batch: object) -> None:
        """In place of a step: what it does is not measured here."""

    machine = Machine()
    recipe = eager_forms(is_small=True)[0].recipe(machine)
    step = type("Step", (), {"refusal": None, "peak_bytes": 0.0, "__call__": nothing, "prepare": nothing})()
    monkeypatch.setattr(observed, "profiled", profiled)
    monkeypatch.setattr(observed, "new_step", lambda *_: (None, None))
    monkeypatch.setattr(observed, "captured_step", lambda *_: step)
    recorder = Recorder(tmp_path / "rows", "observed", machine)
    observed.add_observations(recorder, "c", machine, recipe, None)
    rows, _ = read_rows(tmp_path / "rows")
    quantities = [row["quantity"] for row in rows]
    assert quantities[:2] == ["waits for the device", "error"]
    assert "meter: model_tflops_per_second" in quantities


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "FIND was unable to find an engine to execute this computation",
    ],
)
def test_a_first_step_that_finds_no_memory_is_tried_again(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others compile beside it, and give theirs back."""
    errors = [RuntimeError(text), RuntimeError(text)]
    waited: list[float] = []

    def step(_batch: object) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr(step_part.time, "sleep", waited.append)
    batch: Any = None
    assert step_part.first_step_seconds(step, batch, Machine()) >= 0
    assert waited == [step_part.SECONDS_BETWEEN_TRIES] * 2
    errors = [RuntimeError("a bug")]
    with pytest.raises(RuntimeError, match="a bug"):
        step_part.first_step_seconds(step, batch, Machine())


def few_images(folder: Path) -> Path:
    """48 images of two classes, as Hugging Face's Parquet files hold CIFAR-10."""
    images, labels = [], []
    for number in range(48):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (5 * number, 255 * (number % 2), 0)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
        labels.append(number % 2)
    folder.mkdir()
    pq.write_table(pa.table({"img": images, "label": labels}), folder / "train-00000-of-00001.parquet")
    return folder


def test_parts_are_chosen_by_name_and_run_in_their_order() -> None:
    assert command.parts("cifar,roof") == ("roof", "cifar")
    with pytest.raises(command.argparse.ArgumentTypeError, match="rooof is no part; there are roof, "):
        command.parts("roof,rooof")


def test_the_exit_code_tells_of_errors_and_of_checks_that_do_not_hold() -> None:
    row: Row = {"part": "p", "case": "c", "quantity": "time", "value": 1, "unit": "s"}
    assert not command.is_bad(row)
    assert not command.is_bad(row | {"quantity": "holds", "value": "yes"})
    assert command.is_bad(row | {"quantity": "holds", "value": "no"})
    assert command.is_bad(row | {"quantity": "error"})
    assert command.is_bad(row | {"quantity": "over its limit"})


@pytest.mark.parametrize(
    ("is_gpu", "parts", "seconds", "limits"),
    [
        (True, ["step"], 360.0, [100.0, 20.0]),
        (True, ["step"], 780.0, [200.0, 40.0]),
        (True, command.PARTS[:-2], 600.0, [100.0, 20.0]),  # with what is left the later ones get their turn
        (True, ["step", "cifar"], 780.0, [100.0, 20.0]),
        (True, ["step"], 90.0, [90.0, 20.0]),
        (False, ["step"], 360.0, [360.0, 360.0]),
    ],
)
def test_with_more_time_than_all_limits_these_are_longer(
    is_gpu: bool, parts: list[str], seconds: float, limits: list[float], tmp_path: Path
) -> None:
    """They were estimated, so whoever finds that one is too short needs no change of the code."""
    given: list[float] = []

    class Done:
        name, is_ready = "step", True

        def release(self) -> None:
            pass

        def finish(self, limit_seconds: float) -> list[Row]:
            given.append(limit_seconds)
            return []

    children: Any = SimpleNamespace(start=lambda *_: Done())
    options = Namespace(
        part=parts, seconds=seconds, commit="c", results=tmp_path / "csv", small=False, cifar=None, log=None
    )
    session = command.Session(options, children, is_gpu=is_gpu)
    session.run("step")
    done: Any = Done()
    assert session.run_compiled([done], 0.0) == []
    assert given == pytest.approx(limits, abs=1.0)


@pytest.mark.parametrize("module", ["rows", "machine", "observed", "cifar", "step", "__main__"])
def test_examples_are_true(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"benchmarks.gpu.{module}")).failed == 0


# ---- Its processes ---------------------------------------------------------------------------------------------------


def child_of(code: str) -> list[str]:
    """A child that writes a row, names the next case, and then does as the code says."""
    begin = (
        "import json, pathlib, sys, time; rows = pathlib.Path(sys.argv[2]); "
        f"rows.write_text('{ROW}\\n' + json.dumps(dict(begun='next case')) + '\\n'); "
    )
    return [sys.executable, "-c", begin + code]


def test_a_part_that_hangs_and_one_that_crashes_cost_themselves_alone(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        hanging = children.start(
            "p", "hanging", child_of("print('waiting'); sys.stdout.flush(); time.sleep(1e6)")
        )
        wait_until(lambda: "waiting" in hanging.errors(), "the child that hangs")
        rows = hanging.finish(0.1)
        crashing = children.start("p", "crashing", child_of("raise ValueError('no such kernel')"))
        rows += crashing.finish(HANG_SECONDS)
        rows += children.start("p", "good", child_of("")).finish(HANG_SECONDS)
    assert [(row["case"], row["quantity"], row["value"]) for row in rows] == [
        ("c", "time", 1),
        ("next case", "over its limit", "0 s; its last line: waiting"),
        ("c", "time", 1),
        ("next case", "error", "exit code 1: ValueError: no such kernel"),
        ("c", "time", 1),
    ]
    assert hanging.is_over


def test_a_held_child_waits_until_it_is_released(tmp_path: Path) -> None:
    code = "rows.with_suffix('.ready').touch(); sys.stdin.readline()"
    with Children(tmp_path, {}) as children:
        child = children.start("p", "held", child_of(code))
        wait_until_ready([child], HANG_SECONDS)
        assert child.is_ready
        assert not child.is_over
        child.release()
        assert len(child.finish(HANG_SECONDS)) == 1


def test_a_paused_child_continues_where_it_was(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        child = children.start("p", "held", child_of("rows.with_suffix('.ready').touch(); time.sleep(0.01)"))
        child.pause()
        child.release()
        child.resume()
        assert len(child.finish(HANG_SECONDS)) == 1


def test_no_child_outlives_the_run(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        child = children.start("p", "hanging", child_of("time.sleep(1e6)"))
    assert child.is_over


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"begun": "first"}}\n{ROW}\n{{"begun": "second"}}\n{ROW[:20]}')
    rows, begun = read_rows(path)
    assert (len(rows), begun) == (1, "second")
    assert read_rows(tmp_path / "none") == ([], "")


# ---- Its csv ---------------------------------------------------------------------------------------------------------


def test_rows_of_all_parts_become_one_tidy_csv(tmp_path: Path) -> None:
    measured = {
        "part": "a",
        "case": "c",
        "quantity": "time",
        "value": 1.5,
        "unit": "s",
        "n": 3,
        "device": "GPU",
    }
    failed = {"part": "b", "case": "d", "quantity": "error", "value": "exit code 1: no, never", "unit": ""}
    rows = tidy([failed, measured | {"in_table": False}], "abc")
    path = tmp_path / "gpu.csv"
    write_csv(path, command.earlier_csv(path), rows)
    write_csv(path, command.earlier_csv(path), rows[1:])
    found = list(csv.DictReader(path.open()))
    assert [row["part"] for row in found] == ["b", "a", "a"]
    assert {(row["device"], row["commit"]) for row in found} == {("GPU", "abc")}
    assert found[0]["value"] == "exit code 1: no, never"
    assert found[1]["n"] == "3"
    assert table([failed, measured | {"in_table": False}]) == "b: d: error exit code 1: no, never"


def test_a_csv_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """Whoever ends the command early has the rows of the part before."""
    path = tmp_path / "gpu.csv"
    write_csv(path, "", tidy([{"part": "a"}], "abc"))
    before = path.read_text()
    with pytest.raises(ValueError, match="not in fieldnames"):
        write_csv(path, "", [*tidy([{"part": "a"}], "abc"), {"no column": 1}])
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_csv_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "gpu.csv").write_text("model,value\n")
    with pytest.raises(UserError, match="has other columns than these rows"):
        command.earlier_csv(tmp_path / "gpu.csv")


# ---- Its arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [("nfnet_f0", 192), ("nfnet_pico", 32), ("nf_resnet50", 224), ("nf_regnet_b0", 192), ("nfnet_f1", 225)],
)
def test_the_convolutions_are_all_of_the_networks_multiply_adds(name: str, size: int) -> None:
    variant = get_variant(name)
    gates = sum(2 * plan.se_channels * plan.se_gated_channels for plan in block_plan(variant))
    linear = gates + 1000 * variant.pooled_channels
    counts = convolutions_of(variant, size)
    convolutions = sum(count * convolution.multiply_adds for convolution, count in counts.items())
    assert convolutions + linear == count_multiply_adds(variant, size, 1000)


def test_f0_has_57_convolutions_of_24_shapes() -> None:
    counts = convolutions_of(get_variant("nfnet_f0"), 192)
    assert (len(counts), sum(counts.values())) == (24, 57)
    image_reader = next(iter(counts))
    assert image_reader.passes == ("forward", "weight gradient")
    assert str(image_reader) == "3x3 3->16, stride 2, 192 px"


def test_the_roof_is_the_longer_of_arithmetic_and_traffic() -> None:
    convolution = Convolution(64, 64, 1, 1, 1, 10)
    flops, moved = 2 * 64 * 64 * 100 * 2, 2 * (2 * 2 * 64 * 100 + 64 * 64)
    assert convolution.roof_seconds(2, flops / 3.0, 1e30) == pytest.approx(3.0)
    assert convolution.roof_seconds(2, 1e30, moved / 3.0) == pytest.approx(3.0)


@pytest.mark.parametrize(
    "convolution", [Convolution(8, 12, 3, 1, 4, 6), Convolution(8, 8, 3, 2, 2, 6)], ids=str
)
def test_all_forms_compute_the_same(convolution: Convolution) -> None:
    results = {
        form: [tensors_of(convolution, form, 2, torch.device("cpu")).work(which) for which in PASSES]
        for form in FORMS
    }
    for form in FORMS:
        torch.testing.assert_close(results[form], results["NCHW"])
    tensors = tensors_of(convolution, "NCHW", 2, torch.device("cpu"))
    x, weight = tensors.x.requires_grad_(), tensors.weight.requires_grad_()
    stride, padding = convolution.stride, tensors.padding
    y = torch.nn.functional.conv2d(x, weight, None, stride, padding, groups=convolution.groups)
    gradients = torch.autograd.grad(y, (x, weight), tensors.grad)
    torch.testing.assert_close(results["NCHW"], [y.detach(), *gradients])
