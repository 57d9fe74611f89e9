"""`nfnet_ray.run` asks for the same study as the command line, and answers with an exception or a record.

What would then be run is looked at instead of being run; tests/e2e/test_from_python.py runs a study. About 3 s.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nfnet_ray
from nfnet_ray.cluster.connection.resources import Resources, WorkerResources
from nfnet_ray.cluster.connection.session import ray_session
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.study.cost.probe_process import Probe
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal
from studies import transfer
from studies.agc_sweep import agc_sweep
from studies.managing.commands import main as managing
from studies.running.execution.recording import study_started_event
from studies.running.execution.study_run import StudyRun
from studies.running.flags import main
from studies.running.planning import plan_text
from studies.running.runner import Places, WorkerDemand

STUDY_FILE = Path("studies") / "agc_sweep.py"
TWO_RATES = {"schedule.base_learning_rate": (0.1, 0.4)}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[StudyRun, WorkerDemand]]:
    """The studies that were run; of each its journal has the first event."""
    runs: list[tuple[StudyRun, WorkerDemand]] = []

    def execute(run: StudyRun, _address: str | None, demand: WorkerDemand, _console: Any) -> int:
        if run.progress.started is None:
            with Journal(run.directory / JOURNAL_FILE) as journal:
                worker = WorkerResources(demand.workers, 2, 0.0, demand.min_workers)
                places = Places(Resources(1, 2, 0, 8, "two cores"), worker, 1)
                journal.append(study_started_event(run, run.study, places))
        runs.append((run, demand))
        return 0

    monkeypatch.setattr("studies.running.run.execute", execute)
    monkeypatch.chdir(tmp_path)
    for name in ("NFNET_RAY_HOME", "RAY_JOB_CONFIG_JSON_ENV_VAR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return runs


def lr_study(**fields: Any) -> nfnet_ray.Study:
    """A study that somebody has written in a notebook."""
    recipe = nfnet_ray.Recipe().with_values({"model.name": "nfnet_pico", "batch_size": 48})
    return nfnet_ray.Study("lr", "Which learning rate is best?", recipe, TWO_RATES, **fields)


def test_the_arguments_mean_what_the_flags_mean(started: Any, few_digits: Path) -> None:
    record = nfnet_ray.run(
        agc_sweep, data=few_digits, name="a", epochs=2, trials=3, seeds="2,all", settings={"batch_size": 48},
        cpus_per_worker=2, gpus_per_worker=0, trials_at_once=1, tracking_uri="sqlite:///m.db",
        early_stopping="asynchronous:eta=2", schedule="stretched", equal_within=0.5, holdout=0.25, confirm=2,
    )  # fmt: skip
    flags = ["--data", few_digits, "--name", "b", "--epochs", 2, "--trials", 3, "--seeds", "2,all"]
    flags += ["--set", "batch_size=48", "--cpus-per-worker", 2, "--gpus-per-worker", 0, "--trials-at-once", 1]
    flags += ["--early-stopping", "asynchronous:eta=2", "--schedule", "stretched"]
    flags += ["--equal-within", 0.5, "--holdout", 0.25, "--confirm", 2]
    flags += ["--tracking-uri", "sqlite:///m.db"]
    assert main(agc_sweep, STUDY_FILE, [*map(str, flags)]) == 0
    (here, demand), (there, demand_there) = started
    assert (here.study.trials(), demand, here.data, here.tracking_uri) == (
        there.study.trials(), demand_there, there.data, there.tracking_uri,
    )  # fmt: skip
    halving = nfnet_ray.Halving(eta=2, rule="asynchronous", schedule="stretched")
    assert (here.study.halving, there.study.halving) == (halving, halving)
    assert (there.study.equal_within, there.study.holdout, there.study.confirm) == (0.005, 0.25, 2)
    assert (record.study["equal_within"], record.study["holdout"]) == (0.005, 0.25)
    assert (record.study["name"], record.state, len(record.trials)) == ("a", "unfinished", 6)
    assert here.command == "nfnet_ray.run(resume='a', tracking_uri='sqlite:///m.db', trials_at_once=1)"


def test_early_stopping_may_be_an_object(started: Any, few_digits: Path) -> None:
    halving = nfnet_ray.Halving(first_rung=1, eta=2, finalists=1)
    epochs = {"schedule.epochs": 4}
    for given in (halving, "synchronous:first_rung=1,eta=2,finalists=1", None):
        nfnet_ray.run(lr_study(), data=few_digits, settings=epochs, early_stopping=given, name=str(given)[:3])
    nfnet_ray.run(lr_study(), data=few_digits, settings=epochs, early_stopping=halving, schedule="stretched")
    assert [run.study.halving for run, _ in started] == [
        halving, halving, lr_study().halving, replace(halving, schedule="stretched"),
    ]  # fmt: skip
    with pytest.raises(nfnet_ray.UserError, match="--early-stopping cannot be changed"):
        nfnet_ray.run(resume="syn", early_stopping=halving)


def test_a_plan_is_printed_and_returned_and_starts_nothing(
    started: Any,
    few_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = Probe(
        process_seconds=3.0,
        startup_seconds=1.0,
        step_seconds=(0.5,) * 12,
        images=48,
        image_size=32,
        eval_seconds=0.1,
        eval_images=60,
        checkpoint_seconds=0.1,
        checkpoint_bytes=1000,
        memory_bytes=1e8,
    )
    monkeypatch.setattr(plan_text, "probe_at_once", lambda *_: measured)
    study = replace(lr_study(), halving=None)
    one_by_one = {"trials_at_once": 1, "cpus_per_worker": 1, "gpus_per_worker": 0}
    plan = nfnet_ray.run(study, data=few_digits, epochs=4, **one_by_one, price_per_hour=2.0, plan=True)
    assert capsys.readouterr().out == plan.text == str(plan)
    assert "Nothing was started." in plan.text
    assert not started
    assert not (tmp_path / "runs").exists()
    assert (plan.trials, plan.images, plan.trials_at_once) == (2, 2 * 4 * 240, 1)
    assert [trial.recipe.schedule.epochs for trial in plan.study.trials()] == [4, 4]
    assert plan.hours is not None
    assert plan.hours.low * 3600 == pytest.approx(2 * 4 * 5 * 0.5, rel=0.5)
    assert plan.cost == plan.accelerator_hours.times(2.0)  # type: ignore[union-attr]
    assert plan.disk_bytes == 2 * 3 * 1000
    assert plan.memory_bytes == 1e8
    assert repr(plan).startswith("<StudyPlan 'lr-")
    assert repr(plan).count("2 trials to train, 1 at once; time: 0:") == 1
    monkeypatch.setattr(plan_text, "probe_at_once", lambda *_: Probe(trouble="it was killed"))
    plan = nfnet_ray.run(study, data=few_digits, plan=True)
    assert plan.hours is None
    assert repr(plan).endswith("time: unknown>")
    assert plan.measured == "a probe of its first trial ended before a step (it was killed)"
    with pytest.raises(nfnet_ray.UserError, match="plan = 1 is not allowed"):
        nfnet_ray.run(study, data=few_digits, plan=1)  # type: ignore[call-overload]


def test_a_study_of_ones_own_keeps_its_seeds_and_is_given_data_and_epochs(
    started: Any, few_digits: Path
) -> None:
    nfnet_ray.run(lr_study(seeds=(3, 4)), data=str(few_digits), epochs=2, storage="elsewhere")
    [(run, _)] = started
    assert run.study.name.startswith("lr-2")
    assert (run.study.seeds, run.study.epochs, run.study.space) == ((3, 4), 2, TWO_RATES)
    assert run.study.recipe.data.path == str(few_digits)
    assert run.directory.parent == Path("elsewhere").resolve()
    assert "storage='elsewhere'" in run.command


def test_the_default_epochs_of_a_studys_function_are_its_own(started: Any, few_digits: Path) -> None:
    def with_a_default(_data: DatasetSummary, epochs: int = 6) -> nfnet_ray.Study:
        return epochs_of(epochs)

    def without(_data: DatasetSummary, epochs: int | None) -> nfnet_ray.Study:
        return epochs_of(epochs or 5)

    def epochs_of(number: int) -> nfnet_ray.Study:
        return replace(lr_study(), recipe=lr_study().recipe.with_values({"schedule.epochs": number}))

    for function in (with_a_default, without):
        nfnet_ray.run(function, data=few_digits, name=function.__name__)
        nfnet_ray.run(function, data=few_digits, name=f"{function.__name__}-3", epochs=3)
    assert [run.study.epochs for run, _ in started] == [6, 3, 5, 3]


def test_data_may_be_named_by_the_recipe(started: Any, few_digits: Path) -> None:
    study = lr_study()
    recipe = study.recipe.with_values({"data.path": str(few_digits), "seed": 7})
    nfnet_ray.run(nfnet_ray.Study("lr", "?", recipe, TWO_RATES))
    [(run, _)] = started
    assert run.data.path == few_digits
    assert run.study.seeds == (7,)


def test_trials_of_several_workers_may_be_elastic_and_stay_so(started: Any, few_digits: Path) -> None:
    nfnet_ray.run(lr_study(), data=few_digits, name="x", workers_per_trial=(1, 2))
    nfnet_ray.run(resume="x")
    nfnet_ray.run(lr_study(), data=few_digits, workers_per_trial=2)
    nfnet_ray.run(lr_study(), data=few_digits, name="y", workers_per_trial=[1, 2])
    demands = [(demand.workers, demand.min_workers) for _, demand in started]
    assert demands == [(2, 1), (2, 1), (2, None), (2, 1)]
    for wrong in (0, (2, 1), [2, 1], (1, 2, 3), "2"):
        with pytest.raises(nfnet_ray.UserError, match=r"workers_per_trial = .* is not allowed"):
            nfnet_ray.run(lr_study(), data=few_digits, workers_per_trial=wrong)  # type: ignore[arg-type]
    with pytest.raises(nfnet_ray.UserError, match="least workers per trial is 2, was 1"):
        nfnet_ray.run(lr_study(), data=few_digits, name="x", may_continue=True, workers_per_trial=(2, 3))


def test_a_name_is_continued_only_on_request_and_resumed_without_the_study(
    started: Any, few_digits: Path
) -> None:
    for may_continue in (False, True):
        nfnet_ray.run(lr_study(), data=few_digits, name="x", may_continue=may_continue)
    with pytest.raises(nfnet_ray.UserError, match="already holds a study"):
        nfnet_ray.run(lr_study(), data=few_digits, name="x")
    record = nfnet_ray.run(resume="x")
    assert record.study["name"] == "x"
    assert [run.study.trials() for run, _ in started] == [started[0][0].study.trials()] * 3
    with pytest.raises(nfnet_ray.UserError, match="leave the study out"):
        nfnet_ray.run(lr_study(), resume="x")
    with pytest.raises(
        nfnet_ray.UserError, match=r"--epochs cannot be changed .* with --extend x in place of --resume x"
    ):
        nfnet_ray.run(resume="x", epochs=3)
    with pytest.raises(
        nfnet_ray.UserError, match="--search cannot be changed with --resume x: leave it out, or"
    ):
        nfnet_ray.run(resume="x", search="random")


def test_a_network_of_ones_own_is_in_the_journal_with_its_code(
    started: Any, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = tmp_path / "net_of_a_notebook.py"
    network.write_text(
        "from torch import nn\n\n"
        "def build(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))\n"
    )
    own = {
        "model.name": "net_of_a_notebook:build",
        "data.image_size": 32,
        "optimizer.agc.exclude": ("1.weight",),
    }
    recipe = nfnet_ray.Recipe().with_values({"batch_size": 48} | own)
    study = nfnet_ray.Study("own", "Which learning rate is best?", recipe, TWO_RATES)
    with pytest.raises(nfnet_ray.UserError, match=r"exclude names 9, which net_of_a_notebook:build does not"):
        nfnet_ray.run(study, data=few_digits, name="x", settings={"optimizer.agc.exclude": ("9",)})
    assert not (tmp_path / "runs" / "x").exists()
    told = nfnet_ray.run(study, data=few_digits, name="x").study
    pinned = told["recipe"]["model.name"]
    assert told["networks"] == {
        pinned: {
            "sha256": pinned.removeprefix("net_of_a_notebook:build@sha256:"),
            "files": ["net_of_a_notebook.py"],
            "folder": ".",
        }
    }
    assert managing(["show", "x"]) == 0
    assert (
        f"net_of_a_notebook:build from net_of_a_notebook.py (sha256 {pinned[-12:]})"
        in capsys.readouterr().out
    )
    nfnet_ray.run(study, data=few_digits, name="x", may_continue=True)
    network.write_text(network.read_text() + "# changed")
    with pytest.raises(nfnet_ray.UserError, match=r"another study \(.*net_of_a_notebook:build@sha256"):
        nfnet_ray.run(study, data=few_digits, name="x", may_continue=True)
    sweep = {"model.name": ("net_of_a_notebook:build", "nfnet_pico")}
    nfnet_ray.run(study, data=few_digits, name="y", sweep=sweep, settings={"optimizer.agc.exclude": ()})
    names = [trial.name for trial in started[-1][0].study.trials()]
    assert names[::2] == [
        "base_learning_rate=0.1,name=net-of-a-notebook-build",
        "base_learning_rate=0.1,name=nfnet-pico",
    ]


def test_caps_are_in_the_journal_and_can_be_changed_when_it_is_resumed(
    started: Any, few_digits: Path
) -> None:
    nfnet_ray.run(lr_study(), data=few_digits, name="x", max_hours=2, max_cost=30, price_per_hour=2.5)
    nfnet_ray.run(resume="x", max_cost=40)
    nfnet_ray.run(resume="x", max_hours=float("inf"))
    assert [(run.caps.max_hours, run.caps.max_cost) for run, _ in started] == [(2, 30), (2, 40), (None, 30)]
    assert {run.caps.price_per_hour for run, _ in started} == {2.5}
    assert {run.command for run, _ in started} == {"nfnet_ray.run(resume='x')"}
    assert started[0][0].command_with({"max_cost": 60.0}) == "nfnet_ray.run(resume='x', max_cost=60.0)"
    with pytest.raises(nfnet_ray.UserError, match="max_gpu_hours = 0 is not allowed"):
        nfnet_ray.run(resume="x", max_gpu_hours=0)


def test_a_study_that_began_without_mlflow_stays_without_it_until_an_address_is_given(
    started: Any, few_digits: Path, tmp_path: Path
) -> None:
    nfnet_ray.run(lr_study(), data=few_digits, name="x", tracking_uri="none")
    nfnet_ray.run(resume="x")
    nfnet_ray.run(lr_study(), data=few_digits, name="x", may_continue=True)
    nfnet_ray.run(extend="x", seeds=2)
    nfnet_ray.run(resume="x", tracking_uri="sqlite:///m.db")
    nfnet_ray.run(lr_study(), data=few_digits, name="y")
    here = f"sqlite:///{tmp_path}"
    assert [run.tracking_uri for run, _ in started] == [
        *["none"] * 4, f"{here}/m.db", f"{here}/runs/mlflow.db",
    ]  # fmt: skip


def test_arguments_of_a_studys_own_are_handed_to_it(started: Any, few_digits: Path) -> None:
    del started
    with pytest.raises(nfnet_ray.UserError, match=r"cannot read nowhere\.npz"):
        nfnet_ray.run(transfer.PROGRAM, data=few_digits, weights="nowhere.npz")
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        nfnet_ray.run(agc_sweep, epoch=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'weights'"):
        nfnet_ray.run(lr_study(), weights="w.npz")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "give a study, resume=NAME or extend=NAME"),
        ({"study": agc_sweep, "data": "nowhere"}, "no such data set"),
        ({"study": agc_sweep, "trials": 0}, "trials = 0 is not allowed"),
        ({"study": agc_sweep, "seeds": 1.5}, "seeds = 1.5 is not allowed"),
        ({"study": agc_sweep, "gpus_per_worker": -1}, "gpus_per_worker = -1 is not allowed"),
        ({"study": agc_sweep, "verify": "no"}, "verify = 'no' is not allowed"),
        ({"study": agc_sweep, "name": "../up"}, "'../up' is not a name"),
        ({"study": agc_sweep, "settings": {"batchsize": 1}}, "did you mean batch_size"),
        ({"study": agc_sweep, "name": "été"}, "'été' is not a name: use up to 100 letters"),
        ({"resume": "nothing"}, "no study is here"),
        ({"resume": "runs/first"}, "'runs/first' is not a name: it is a path; give first alone"),
    ],
)
def test_what_a_person_gets_wrong_is_a_user_error_and_leaves_nothing(
    started: Any, arguments: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(nfnet_ray.UserError, match=complaint):
        nfnet_ray.run(**arguments)
    assert started == []
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_makes_no_folder_is_said_as_one(started: Any, few_digits: Path) -> None:
    study = nfnet_ray.Study("my study", "?", lr_study().recipe, TWO_RATES)
    with pytest.raises(nfnet_ray.UserError, match="'my study' and the time make no valid name"):
        nfnet_ray.run(study, data=few_digits)
    assert started == []


def test_signals_and_the_environment_are_as_they_were(
    started: Any, few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a study that was stopped is a KeyboardInterrupt, which ends a loop over studies, too."""
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    during: list[object] = []

    def stopped(*_: object) -> int:
        os.environ.pop("RAY_ADDRESS")
        os.environ["RAY_OF_A_RUN"] = "1"
        during.append(signal.getsignal(signal.SIGTERM))
        return 130

    monkeypatch.setattr("studies.running.run.execute", stopped)
    with pytest.raises(KeyboardInterrupt):
        nfnet_ray.run(lr_study(), data=few_digits)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert during != [handlers[1]]
    assert os.environ["RAY_ADDRESS"] == "elsewhere:6379"
    assert "RAY_OF_A_RUN" not in os.environ
    assert started == []


def test_a_process_that_is_connected_to_ray_is_told_to_disconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook may have called ray.init; its Ray is left alone."""
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.shutdown", lambda: pytest.fail("it is not ours"))
    for address in (None, "local"):
        with (
            pytest.raises(nfnet_ray.UserError, match=r"call ray\.shutdown\(\) first"),
            ray_session(address),
        ):
            pass


def test_a_study_runs_in_any_thread_and_leaves_signals_alone(started: Any, few_digits: Path) -> None:
    records: list[nfnet_ray.StudyRecord] = []
    thread = threading.Thread(target=lambda: records.append(nfnet_ray.run(lr_study(), data=few_digits)))
    thread.start()
    thread.join()
    assert len(started) == len(records) == 1


def test_notes_and_tags_are_in_the_journal_and_the_webhook_is_not(
    started: Any, few_digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "https://me:secret@hooks.example.org/services/key"
    flags = [
        "--data",
        str(few_digits),
        "--note",
        "a first try",
        "--tag",
        "team=vision",
        "--tag",
        "team=audio",
    ]
    monkeypatch.setattr("sys.orig_argv", ["python", "agc_sweep.py", *flags, "--notify", url])
    assert main(agc_sweep, STUDY_FILE, [*flags, "--name", "a", "--notify", url]) == 0
    nfnet_ray.run(
        agc_sweep, data=few_digits, name="b", notes=["a first try"], tags={"team": "audio"}, notify=url
    )
    for name in ("a", "b"):
        record = nfnet_ray.load_study(f"runs/{name}")
        assert (record.notes, record.tags) == (("a first try",), {"team": "audio"})
    assert [run.notify_url for run, _ in started] == [url, url]
    monkeypatch.setenv("NFNET_RAY_NOTIFY", url)
    nfnet_ray.run(agc_sweep, data=few_digits, name="c")
    assert started.pop()[0].notify_url == url
    monkeypatch.setenv("NFNET_RAY_NOTIFY", "")
    nfnet_ray.run(agc_sweep, data=few_digits, name="d")
    assert started.pop()[0].notify_url is None
    journal = (Path("runs") / "a" / JOURNAL_FILE).read_text()
    assert "https://hooks.example.org/…" in record_command(journal)
    assert "services" not in record_command(journal)
    assert "secret" not in journal
    said = capsys.readouterr()
    for flag, value in (("--notify", "secret"), ("--tag", "team"), ("--tag", "state=x"), ("--note", "")):
        monkeypatch.setattr("sys.argv", ["agc_sweep.py"])
        try:
            code: object = main(agc_sweep, STUDY_FILE, [flag, value])
        except SystemExit as end:
            code = end.code
        assert code == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1
        assert "secret" not in said.err
    assert len(started) == 2


def record_command(journal: str) -> str:
    """The command that a journal's first line has."""
    command: str = json.loads(journal.partition("\n")[0])["study"]["command"]
    return command
