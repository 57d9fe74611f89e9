"""A checkpoint is complete and checked, or not there; damage and full disks cost a checkpoint, not the run."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import torch

from nfnet_ray.clipping import Clipping
from nfnet_ray.correct_images import CorrectImages
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import Outcome, PlainContext, train
from nfnet_ray.training.checkpoints import checkpoint, saving
from nfnet_ray.training.checkpoints import storage as storage_module
from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore, Kept
from nfnet_ray.training.checkpoints.saving import Saver
from nfnet_ray.training.checkpoints.storage import storage_at
from nfnet_ray.training.measurement.clock import PHASES
from tests.deadlines import HANG_SECONDS
from tests.resume.campaign import EPOCHS, STEPS, Attempt, recipe_of, timeless

CPU = torch.device("cpu")


@pytest.fixture
def recipe(tiny_digits: Path) -> Recipe:
    """Two epochs of five steps, with a moving average."""
    return recipe_of(("sgd", "agc", "ema", "stochastic_depth"), tiny_digits)


@pytest.fixture(autouse=True)
def _leave_the_threads_as_they_were() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class StoppedContext(PlainContext):
    """Wants to stop after a number of epochs, which may be a fraction."""

    def __init__(self, after: float, **settings: Any) -> None:
        super().__init__(device=CPU, threads=1, **settings)
        self._after = after

    def progress(self, epochs: float) -> None:
        if epochs >= self._after - 1e-6:
            self.stop()


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in outcome.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def filled(place: Path, count: int, kept: Kept | None = None) -> CheckpointStore:
    """A store with checkpoints of the steps 1 to ``count``; the metric falls with each."""
    store = CheckpointStore(place, kept or Kept(last=count))
    for step in range(1, count + 1):
        state = {"step": step, "weights": torch.arange(1000.0) + step}
        store.save(state, step=step, epoch=step, time=time.time(), metric=1 / step)
    return store


def steps(store: CheckpointStore) -> list[int]:
    return [entry.step for entry in store.entries()]


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {
        "weights": {"a": torch.randn(3, 4), "b": torch.arange(5)},
        "nothing": None,
        "numbers": [1, 2.5, "three", True],
    }
    store = CheckpointStore(tmp_path)
    store.save(state, step=7, epoch=1, time=12.5, metric=0.25)
    entry = store.latest_sound()
    assert entry is not None
    assert (entry.step, entry.epoch, entry.written_at, entry.metric) == (7, 1, 12.5, 0.25)
    loaded = store.load(entry)
    assert loaded["numbers"] == state["numbers"]
    assert loaded["nothing"] is None
    assert all(torch.equal(loaded["weights"][name], state["weights"][name]) for name in ("a", "b"))
    # What lies there is an ordinary file of torch.save, for whoever wants the weights.
    (path,) = tmp_path.glob("*.pt")
    assert torch.load(path, weights_only=True)["numbers"] == state["numbers"]


def test_the_last_ones_and_the_best_stay(tmp_path: Path) -> None:
    store = filled(tmp_path, 6, Kept(last=2, best=1))
    assert steps(store) == [6, 5, 1]
    best = store.best()
    assert best is not None
    assert best.step == 1
    assert len(list(tmp_path.iterdir())) == 6  # three checkpoints, two files each


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, ("echo hostile",)

    store = CheckpointStore(tmp_path)
    store.save({"weights": Hostile()}, step=1, epoch=1, time=0.0, metric=None)
    entry = store.latest_sound()
    assert entry is not None
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        store.load(entry)


DAMAGES = {
    "a bit is flipped": lambda path: path.write_bytes(
        path.read_bytes()[:2000] + bytes([path.read_bytes()[2000] ^ 1]) + path.read_bytes()[2001:]
    ),
    "it is cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "it is empty": lambda path: path.write_bytes(b""),
    "it is gone": lambda path: path.unlink(),
    "its entry is cut short": lambda path: path.with_suffix(".json").write_text('{"name": "step'),
    "its entry was never written": lambda path: path.with_suffix(".json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_is_passed_over(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path, 3)
    DAMAGES[damage](max(tmp_path.glob("*.pt")))
    with caplog.at_level(logging.WARNING):
        entry = store.latest_sound()
    assert entry is not None
    assert entry.step == 2
    assert store.load(entry)["step"] == 2
    if damage != "its entry was never written":  # then nothing says that it was ever finished
        assert "step-00000003" in caplog.text


def test_what_a_killed_writer_leaves_is_cleared_away(tmp_path: Path) -> None:
    store = filled(tmp_path, 2)
    before = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "step-00000003-00000000.pt").write_bytes(b"no entry")
    (tmp_path / "step-00000003-00000001.pt.partial").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("somebody's own")
    assert steps(store) == [2, 1]
    store.remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", *before]


def test_a_run_is_stopped_within_an_epoch_and_resumes_from_that_step(recipe: Recipe, tmp_path: Path) -> None:
    whole = train(recipe, PlainContext(device=CPU, threads=1))
    stopped = train(recipe, StoppedContext(after=0.6, checkpoints=tmp_path))
    assert (stopped.state, stopped.epochs) == ("stopped", 0)
    assert steps(CheckpointStore(tmp_path)) == [3]  # of an epoch's five
    at_the_end = train(recipe, StoppedContext(after=1.0, checkpoints=tmp_path))
    assert at_the_end.state == "stopped"
    assert steps(CheckpointStore(tmp_path))[0] == STEPS  # trained, but not evaluated yet
    resumed = train(recipe, PlainContext(device=CPU, threads=1, checkpoints=tmp_path))
    assert resumed.state == "finished"
    assert same(weights(resumed), weights(whole))
    assert timeless(resumed.metrics) == timeless(whole.metrics)


def test_sigterm_keeps_the_step_and_ends(recipe: Recipe, tmp_path: Path) -> None:
    long = recipe.with_values({"schedule.epochs": 5000})
    script = f"""
        import json, signal, torch
        from nfnet_ray.recipe import Recipe
        from nfnet_ray.training import PlainContext, train
        context = PlainContext(device=torch.device("cpu"), threads=1, checkpoints={str(tmp_path)!r},
                               on_report=lambda metrics: print(metrics["epoch"], flush=True))
        with context.stopped_by(signal.SIGTERM):
            outcome = train(Recipe.from_values(json.loads({json.dumps(json.dumps(long.to_values()))})), context)
        print(outcome.state, outcome.epochs)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert float(process.stdout.readline()) == 1  # it is training
    process.send_signal(signal.SIGTERM)
    lines = process.communicate(timeout=HANG_SECONDS)[0].splitlines()
    state, epochs = lines[-1].split()
    assert (state, process.returncode) == ("stopped", 0)
    newest = CheckpointStore(tmp_path).entries()[0]
    assert newest.epoch == int(epochs)
    assert newest.metric is None  # not one of those at the end of an epoch


def test_other_settings_are_refused_with_what_differs_or_forced(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(recipe, StoppedContext(after=0.4, checkpoints=tmp_path))
    other = recipe.with_values({"optimizer.momentum": 0.8, "schedule.base_learning_rate": 0.2})
    context = PlainContext(device=CPU, threads=1, checkpoints=tmp_path)
    with pytest.raises(UserError) as error:
        train(other, context)
    assert "optimizer.momentum 0.9, now 0.8; schedule.base_learning_rate 0.1, now 0.2" in str(error.value)
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING):
        outcome = train(other, context, force_resume=True)
    assert outcome.state == "finished"
    assert "optimizer.momentum 0.9, now 0.8" in caplog.text
    # Where the data lies is not what is trained.
    moved = recipe.with_values({"data.path": recipe.data.path + "/"})
    assert train(moved, context, force_resume=True).state == "finished"


def test_other_data_are_refused(recipe: Recipe, few_digits: Path, tmp_path: Path) -> None:
    train(recipe, StoppedContext(after=0.4, checkpoints=tmp_path))
    with pytest.raises(UserError, match=r"other settings \(data [0-9a-f]{32}, now [0-9a-f]{32}\)"):
        train(
            recipe.with_values({"data.path": str(few_digits)}),
            PlainContext(device=CPU, threads=1, checkpoints=tmp_path),
        )


def full_disk(limit: int) -> None:
    """In a child process: no file may grow beyond ``limit`` bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def in_child(work: Any) -> str:
    """What a function that is run in a process of its own says; the rest of this process is left as it is."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the threads of OpenMP that a test before used stayed in the parent
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    store = filled(tmp_path, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def write() -> str:
        full_disk(2000)
        try:
            store.save({"weights": torch.zeros(10**5)}, step=3, epoch=3, time=0.0, metric=None)
        except OSError as error:
            return f"errno {error.errno}"
        return "written"

    assert in_child(write) == "errno 27"  # EFBIG; a full disk is 28, which takes a file system to fill
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_training_continues_with_a_full_disk_and_says_so_at_the_end(recipe: Recipe, tmp_path: Path) -> None:
    """And a run that never gets a checkpoint onto the disk ends, before it has cost much."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def trained(place: str, epochs: int, full: set[int]) -> str:
        def report(metrics: dict[str, float]) -> None:
            while any(thread.name == "checkpoint" for thread in threading.enumerate()):
                time.sleep(0.01)  # this epoch's is on its way
            is_full = int(metrics["epoch"]) + 1 in full
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000 if is_full else hard, hard))

        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        context = PlainContext(device=CPU, threads=1, checkpoints=tmp_path / place, on_report=report)
        try:
            return train(recipe.with_values({"schedule.epochs": epochs}), context).state
        except UserError as error:
            return f"UserError: {error}"

    def work() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        said = io.StringIO()
        logging.getLogger("nfnet_ray").addHandler(logging.StreamHandler(said))
        for place, epochs, full in (
            ("passing", 4, {2, 3}),
            ("lasting", 6, {2, 3, 4, 5, 6}),
            ("last", 2, {2}),
        ):
            print(trained(place, epochs, full), "--", sep="\n", file=said)
        return said.getvalue()

    passing, lasting, last, _ = in_child(work).split("--\n")
    assert passing.count("training continues, the one before is kept") == 2
    assert passing.splitlines()[-1] == "finished"
    assert steps(CheckpointStore(tmp_path / "passing"))[0] == 4 * STEPS
    assert "UserError" in lasting.splitlines()[-1]
    assert "3 checkpoints in a row could not be written" in lasting
    assert steps(CheckpointStore(tmp_path / "lasting")) == [STEPS]
    assert "the last checkpoint could not be written" in last.splitlines()[-1]


def test_training_does_not_wait_for_a_slow_disk(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one checkpoint is on its way, training continues, and no other is requested within the epoch."""
    released = threading.Event()
    begun: list[int] = []
    save = CheckpointStore.save

    def slow(self: CheckpointStore, state: Any, *, step: int, **facts: Any) -> Any:
        begun.append(step)
        assert released.wait(HANG_SECONDS)
        return save(self, state, step=step, **facts)

    monkeypatch.setattr(CheckpointStore, "save", slow)
    done: list[float] = []

    class Watched(PlainContext):
        def progress(self, epochs: float) -> None:
            done.append(epochs)
            if round(epochs * STEPS) == 4:
                released.set()

    context = Watched(device=CPU, threads=1, checkpoints=tmp_path, seconds_between_checkpoints=0.0)
    outcome = train(recipe, context)
    assert begun[0] == 1  # three more steps were made while it was being written
    assert begun[1] >= 4
    assert outcome.state == "finished"
    # What was written is what was at that step, although the weights went on changing.
    monkeypatch.undo()
    resumed = train(recipe, PlainContext(device=CPU, threads=1, checkpoints=tmp_path))
    assert same(weights(resumed), weights(outcome))


def test_a_slow_write_that_is_waited_for_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it gets further; storage that hangs is left to the watchdog."""
    monkeypatch.setattr(saving, "SECONDS_BETWEEN_SIGNS", 0.01)
    signs: list[int] = []

    def slow(_store: CheckpointStore, _state: Any, *, step: int, wrote: Any, **_facts: Any) -> None:
        if step == 1:
            while len(signs) < 5:
                wrote()
                time.sleep(0.001)
        else:
            time.sleep(0.5)

    context = PlainContext(device=CPU, threads=1, checkpoints=tmp_path)
    with Saver(context, lambda: signs.append(1)) as saver:
        monkeypatch.setattr(CheckpointStore, "save", slow)
        saver.save({}, {}, step=1, epoch=0, metric=None)
        saver.save({}, {}, step=2, epoch=0, metric=None)  # waits for the first one
        assert (had := len(signs)) >= 5
        saver.finish()
        assert len(signs) == had + 1
    monkeypatch.undo()
    pieces: list[int] = []
    large = {"tensor": torch.zeros(9 << 18)}  # 9 MiB
    CheckpointStore(tmp_path).save(
        large, step=3, epoch=0, time=0.0, metric=None, wrote=lambda: pieces.append(1)
    )
    assert len(pieces) >= 3


def test_a_large_checkpoint_is_on_the_disk_before_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a slow disk seems quick until the last sync, which then takes long without a sign of life."""
    monkeypatch.setattr(storage_module, "SYNCED_BYTES", 1000)
    synced: list[int] = []

    def sync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", sync)

    def content(file: IO[bytes]) -> None:
        for _ in range(10):
            file.write(bytes(300))

    storage_at(tmp_path).write("file", content)
    assert synced[:3] == [1200, 2400, 3000]


class Upload:
    """A stream of pyarrow's that keeps all parts back until it is flushed or closed, as that of S3 does."""

    def __init__(self) -> None:
        self.written, self.sent = 0, list[int]()

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def write(self, data: Any) -> None:
        self.written += len(data)

    def flush(self) -> None:
        self.sent.append(self.written)


def test_most_of_an_upload_has_arrived_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it seems quick until its end, which then takes as long as all of it without a sign of life."""
    monkeypatch.setattr(storage_module, "BUFFERED_BYTES", 300)
    monkeypatch.setattr(storage_module, "SYNCED_BYTES", 1000)
    upload = Upload()
    filesystem = SimpleNamespace(create_dir=lambda *_, **__: None, open_output_stream=lambda _: upload)

    def content(file: IO[bytes]) -> None:
        for _ in range(10):
            file.write(bytes(300))

    storage_module._ArrowFolder("s3://bucket/x", filesystem, "bucket/x").write("file", content)
    assert upload.sent == [1200, 2400, 3000]


def test_a_slow_read_of_a_checkpoint_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is checked, and when it is loaded."""
    monkeypatch.setattr(saving, "SECONDS_BETWEEN_SIGNS", 0.0)
    monkeypatch.setattr(checkpoint, "_LOADED_BYTES", 1 << 22)
    store = CheckpointStore(tmp_path)
    tensor = torch.arange(9 << 18)  # 18 MiB
    entry = store.save({"tensor": tensor}, step=3, epoch=0, time=0.0, metric=None)
    checked, loaded, all_of_it = list[int](), list[int](), list[int]()
    assert store.latest_sound(lambda: checked.append(1)) == entry
    assert len(checked) >= 5
    assert torch.equal(store.load(entry, lambda: loaded.append(1))["tensor"], tensor)
    assert len(loaded) >= 5
    with Saver(
        PlainContext(device=CPU, threads=1, checkpoints=tmp_path), lambda: all_of_it.append(1)
    ) as saver:
        assert saver.latest() is not None
    assert len(all_of_it) == len(checked) + len(loaded)


def test_a_state_is_copied_before_training_continues(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(recipe, PlainContext(device=CPU, threads=1))
    save, released = CheckpointStore.save, threading.Event()

    def late(self: CheckpointStore, state: Any, *, step: int, **facts: Any) -> Any:
        if step == 1:
            assert released.wait(HANG_SECONDS)
        return save(self, state, step=step, **facts)

    class Killed(Exception):
        pass

    class Context(PlainContext):
        def progress(self, epochs: float) -> None:
            if round(epochs * STEPS) == 4:
                released.set()
                raise Killed

    monkeypatch.setattr(CheckpointStore, "save", late)
    with pytest.raises(Killed):
        train(recipe, Context(device=CPU, threads=1, checkpoints=tmp_path, seconds_between_checkpoints=0.0))
    assert steps(CheckpointStore(tmp_path)) == [1]
    resumed = train(recipe, PlainContext(device=CPU, threads=1, checkpoints=tmp_path))
    assert same(weights(resumed), weights(whole))


def test_the_clock_adds_up_over_attempts_to_the_time_that_passed(recipe: Recipe, tmp_path: Path) -> None:
    long = recipe.with_values({"schedule.epochs": 12})
    began = time.time()
    reports: list[dict[str, float]] = []

    class Killed(Exception):
        pass

    class Dies(PlainContext):
        def progress(self, epochs: float) -> None:
            if epochs > 3.5:
                raise Killed

    def settings() -> dict[str, Any]:
        return {
            "device": CPU,
            "threads": 1,
            "checkpoints": tmp_path,
            "on_report": lambda m: reports.append(dict(m)),
        }

    with pytest.raises(Killed):
        train(long, Dies(**settings()))
    died = time.time()
    time.sleep(1.0)  # until somebody notices
    restarted = time.time()
    stopped = StoppedContext(after=7.4, checkpoints=tmp_path, on_report=lambda m: reports.append(dict(m)))
    assert train(long, stopped).state == "stopped"
    paused = time.time()
    time.sleep(0.5)  # over the weekend
    train(long, PlainContext(**settings()))
    passed = time.time() - began
    last = reports[-1]
    accounted = sum(last[f"{phase}_seconds"] for phase in PHASES)
    assert accounted == pytest.approx(passed, rel=0.05, abs=1)  # the last report's own time is not in it
    assert last["lost_seconds"] >= restarted - died
    assert last["lost_seconds"] < restarted - died + 0.5 * (died - began)  # what was done again
    assert 0.5 <= last["paused_seconds"] < time.time() - paused
    assert last["train_seconds"] < passed - last["lost_seconds"] - last["paused_seconds"]


def test_a_run_that_pauses_at_rungs_is_the_same_to_the_bit(recipe: Recipe, tmp_path: Path) -> None:
    """It pauses after two of its epochs, as a trial of a study does that is promoted twice."""
    long = recipe.with_values({"schedule.epochs": 4})
    whole_reports: list[dict[str, float]] = []
    undisturbed = PlainContext(device=CPU, threads=1, on_report=lambda m: whole_reports.append(dict(m)))
    whole = train(long, undisturbed)
    reports: dict[float, dict[str, float]] = {}
    correct: dict[int, CorrectImages | None] = {}

    def leg(until: int | None) -> Outcome:
        context = PlainContext(
            device=CPU,
            threads=1,
            checkpoints=tmp_path,
            on_report=lambda m: reports.update({m["epoch"]: dict(m)}),
        )
        outcome = train(long, context, until_epoch=until)
        correct[outcome.epochs] = context.correct_images
        return outcome

    assert [leg(until).state for until in (1, 3)] == ["paused", "paused"]
    paused = leg(3)  # its driver was killed before it could say so: there is nothing to train
    assert (paused.state, paused.epochs) == ("paused", 3)
    time.sleep(0.3)
    last = leg(None)
    assert (last.state, last.epochs) == ("finished", 4)
    assert same(weights(last), weights(whole))
    assert [timeless(reports[epoch]) for epoch in (1, 2, 3, 4)] == [timeless(m) for m in whole_reports]
    for epoch in (1, 3, 4):
        images = correct[epoch]
        assert images is not None
        assert images.measured.all()
        assert images.correct.mean() == pytest.approx(reports[epoch]["validation_top1"], abs=1e-12)
    assert undisturbed.correct_images is not None
    assert images.to_text() == undisturbed.correct_images.to_text()
    assert reports[4]["paused_seconds"] >= 0.3
    assert reports[4]["lost_seconds"] == 0


def test_training_seconds_count_no_work_twice(recipe: Recipe, tmp_path: Path) -> None:
    """Steps that are thrown away by a failure are lost, and not in the training time of the run."""
    slept = 0.2

    class Slow(PlainContext):
        def __init__(self, dies_at: float, **settings: Any) -> None:
            super().__init__(device=CPU, threads=1, **settings)
            self._dies_at, self.metrics = dies_at, {"train_seconds": 0.0}

        def progress(self, epochs: float) -> None:
            time.sleep(slept)
            if epochs >= self._dies_at - 1e-6:
                raise ZeroDivisionError

        def report(self, metrics: Any, texts: Any) -> None:
            super().report(metrics, texts)
            self.metrics = dict(metrics)

    with pytest.raises(ZeroDivisionError):
        train(recipe, Slow(1.8, checkpoints=tmp_path))  # four steps beyond the checkpoint
    last = Slow(9, checkpoints=tmp_path)
    train(recipe, last)
    assert last.metrics["train_seconds"] > EPOCHS * STEPS * slept
    assert last.metrics["lost_seconds"] > 4 * slept
    undisturbed = Slow(9)
    train(recipe, undisturbed)
    assert abs(last.metrics["train_seconds"] - undisturbed.metrics["train_seconds"]) < 3 * slept


@pytest.fixture(scope="module")
def resized(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training by two workers, ``whole``, and of two that are resumed with another number of them.

    ``killed-1`` had one worker, and ``resumed-1`` has two; with ``killed-2`` it is the other way round.
    """
    place = tmp_path_factory.mktemp("resized")
    recipe = recipe_of(("sam", "agc", "ema", "augmentation"), tiny_digits).with_values({"micro_batches": 1})

    def work() -> None:
        assert Attempt(recipe, 2, place / "whole", None, None).wait()
        for first in (1, 2):
            killed, resumed, kept = (
                place / f"{what}-{first}" for what in ("killed", "resumed", "checkpoints")
            )
            Attempt(recipe, first, killed, kept, (0, 0.8), replicas=2, waits=True).wait(first_ends_all=True)
            attempt = Attempt(recipe, 3 - first, resumed, kept, None, replicas=2)
            assert attempt.wait(), attempt.complaints()

    assert in_child(work) == "None"
    return place


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_a_run_resumes_with_another_number_of_workers(resized: Path, first: int) -> None:
    """Within an epoch: with the same samples in the same batches, and numbers that differ by rounding alone."""
    from tests.resume.campaign import epochs_of, steps_of

    def notes(name: str, rank: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (resized / name / f"log-{rank}").read_text().splitlines()]

    def samples(name: str, workers: int) -> dict[int, dict[int, int]]:
        """{step: {place: sample}} over all workers."""
        found: dict[int, dict[int, int]] = {}
        for rank in range(workers):
            for step, (indices, positions) in steps_of(notes(name, rank)).items():
                found.setdefault(step, {}).update(zip(positions, indices, strict=True))
        return found

    expected, got = samples("whole", 2), samples(f"resumed-{first}", 3 - first)
    assert min(got) == 3  # of the first epoch's five; it was killed at the end of its fourth step
    assert got == {step: expected[step] for step in got}
    expected_metrics, metrics = epochs_of(notes("whole", 0)), epochs_of(notes(f"resumed-{first}", 0))
    for epoch, numbers in metrics.items():
        of_whole = expected_metrics[epoch]
        assert numbers.pop("correct_images", None) == of_whole.pop("correct_images", None)
        clipping, expected_clipping = (
            Clipping.from_text(texts.pop("clipping")) for texts in (numbers, of_whole)
        )
        assert clipping.steps == expected_clipping.steps
        for part, shares in expected_clipping.shares_above.items():
            assert clipping.shares_above[part] == pytest.approx(shares, abs=0.02), part
        for name, number in numbers.items():
            assert number == pytest.approx(of_whole[name], rel=1e-5, abs=1e-5), name


def test_places_that_no_file_system_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a place for checkpoints"):
        storage_at("nowhere://bucket/runs")
    for place in (f"file://{tmp_path}/runs?x=1", f"file://{tmp_path}/runs#1", "gs://bucket/runs#1"):
        with pytest.raises(UserError, match="%23"):
            storage_at(place)
    local = CheckpointStore(f"file://{tmp_path}/runs")
    local.save({"step": 1}, step=1, epoch=1, time=0.0, metric=None)
    assert steps(CheckpointStore(tmp_path / "runs")) == [1]
