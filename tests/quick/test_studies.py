"""Each study builds its trials from a data set's summary alone, and its plan and its help can be read.

Takes about three seconds, most of it imports.
"""

from __future__ import annotations

import importlib
import math
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.digits import describe_digits, write_digits
from nfnet_ray.cluster.messages.configs import TrainingOptions
from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED
from nfnet_ray.data.files.dataset import DatasetSummary, check_dataset
from nfnet_ray.models import list_models
from nfnet_ray.models.published import published_recipe, with_published_values
from nfnet_ray.models.variants import get_variant
from nfnet_ray.recipe import Recipe, field_meanings
from nfnet_ray.study.cost.plan import check_trials
from nfnet_ray.study.cost.probe_process import Probe
from nfnet_ray.study.space import domain_text, unconditional
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.labels import value_label
from studies.base_recipe import batch_size_for, recipe_for
from studies.running.flags import main, study_parser
from studies.running.planning.image_remarks import image_remarks
from studies.running.program import StudyFactory, StudyProgram
from studies.running.resuming import with_data_here
from studies.running.runner import EXIT_FAILED_TRIALS, Ending
from studies.running.training import TrainRunner
from studies.running.trials import StudyRequest
from tests.tracking.example_study import agc_sweep, write_journal

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "studies"
STUDIES = [
    "ablation",
    "batch_norm",
    "efficientnet_baselines",
    *sorted(path.stem for path in FOLDER.glob("*_sweep.py")),
]
DIGITS = describe_digits(Path("data") / "digits")
IMAGENET = DatasetSummary(Path("imagenet"), 1_281_167, 50_000, ("tench", "goldfish"), "f", None)


def factory(study: str) -> StudyFactory:
    made: StudyFactory = getattr(importlib.import_module(f"studies.{study}"), study)
    return made


def plan(study: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    """``python studies/STUDY.py --plan``, without the measurement of this machine's speed."""
    measured = Probe(1.0, 1.0, (0.1, 0.1), images=64, image_size=32, eval_seconds=1.0, eval_images=360)
    monkeypatch.setattr("studies.running.planning.plan_text.probe_at_once", lambda *_: measured)
    return main(factory(study), FOLDER / f"{study}.py", ["--plan", *flags])


def test_all_studies_are_looked_at() -> None:
    assert {"agc_sweep", "sam_sweep", "dropout_sweep"} <= set(STUDIES)


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("data", [DIGITS, IMAGENET], ids=["digits", "imagenet"])
def test_trials_are_built_can_run_and_differ(study: str, data: DatasetSummary) -> None:
    # The shortest of three budgets is a quarter of it, and EfficientNetV2's images need a few epochs to grow.
    epochs = 24 if study == "efficientnet_baselines" else 3
    made = factory(study)(data, epochs)
    trials = made.trials()
    check_trials(trials, data, workers=1)
    if made.is_adaptive:
        count = 10  # the points before a model has learned anything; the others are proposed later
        assert not trials[0].point.items() - trials[0].recipe.to_values().items()
        assert with_published_values(made.recipe) == with_published_values(trials[0].recipe)
    elif made.points is not None:
        count = len(made.points)
    else:
        count = math.prod(len(unconditional(values)) for values in made.space.values())  # type: ignore[arg-type]
    if study == "sam_sweep":
        count -= 1  # without SAM there is no ascent
    count *= len(made.seeds)
    assert len({trial.name for trial in trials}) == len(trials) == count
    assert len({trial.recipe.fingerprint() for trial in trials}) == count
    assert max(trial.recipe.schedule.epochs for trial in trials) == epochs
    assert made.has_budgets or {trial.recipe.schedule.epochs for trial in trials} == {epochs}
    assert factory(study)(data, None).epochs > 3
    assert made.question.endswith("?")


def test_trials_are_built_without_ray_and_torch() -> None:
    """In one process: starting it takes much longer than the trials of all studies."""
    program = """
import importlib, sys
from pathlib import Path
from data_prep.digits import describe_digits
from nfnet_ray.study.cost.plan import check_trials
data = describe_digits(Path("digits"))
for study in sys.argv[1:]:
    made = getattr(importlib.import_module(f"studies.{study}"), study)(data, None)
    check_trials(made.trials(), data, workers=1)
    print(study, {"ray", "torch", "mlflow"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *STUDIES], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{study} set()" for study in STUDIES]


@pytest.mark.parametrize("study", STUDIES)
def test_the_plan_of_a_study(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan(study, monkeypatch, "--price-per-hour", "2") == 0
    said = capsys.readouterr().out
    made = factory(study)(DIGITS, None)
    networks = "3 networks" if "model.name" in made.fields else "nfnet_pico"
    assert f"{len(made.trials())} trials of {networks}" in said
    assert made.question in " ".join(said.split())
    for part in ("Time: ", "worker-hours", "Cost: ", "at 2 per worker-hour", "Disk: ", "published Recipe"):
        assert part in said
    assert ("Early stopping: " in said) == (made.halving is not None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "skip_gain"),
    [
        ({}, False),
        ({"model.name": "nfnet_pico"}, False),
        ({"model.name": "nfnet_f0"}, None),
        ({"model.name": "tf_efficientnet_b0"}, None),  # which takes no override
        ({"model.name": "nfnet_f0", "model.overrides.skip_gain": False}, False),
    ],
)
def test_a_study_changes_the_shape_of_its_own_network_alone(
    settings: dict[str, Any], skip_gain: bool | None
) -> None:
    request = StudyRequest(program=StudyProgram(factory("dropout_sweep")), settings=settings)
    study = request.new_study(IMAGENET, request.values(), is_built_in=False)
    assert {trial.recipe.model.overrides.skip_gain for trial in study.trials()} == {skip_gain}
    check_trials(study.trials(), IMAGENET, workers=1)


def test_networks_that_are_swept_have_their_own_shapes() -> None:
    names = ("nfnet_f0", "tf_efficientnet_b0")
    request = StudyRequest(program=StudyProgram(factory("dropout_sweep")), sweep={"model.name": names})
    study = request.new_study(IMAGENET, request.values(), is_built_in=False)
    assert {trial.recipe.model.name for trial in study.trials()} == set(names)
    assert {trial.recipe.model.overrides.skip_gain for trial in study.trials()} == {None}


@pytest.mark.parametrize("model", ["nfnet_pico", "nfnet_nano", "nfnet_f0"])
def test_the_ablation_leaves_out_the_stages_of_its_network(model: str) -> None:
    settings = {} if model == "nfnet_pico" else {"model.name": model}
    request = StudyRequest(program=StudyProgram(factory("ablation")), settings=settings)
    trials = request.new_study(DIGITS, request.values(), is_built_in=False).trials()
    excluded = [trial.recipe.optimizer.agc.exclude for trial in trials]
    stages = [list(layers[1:]) for layers in excluded if layers and layers[-1].startswith("blocks.")]
    blocks = iter(range(100))
    assert stages == [[f"blocks.{next(blocks)}.*" for _ in range(size)] for size in get_variant(model).depth]
    # The small network has no gains, and one trial adds them; the others have them, and one leaves them out.
    gains = [trial.recipe.model.overrides.skip_gain for trial in trials]
    usual, changed = (False, True) if model == "nfnet_pico" else (None, False)
    assert sorted(gains, key=str) == sorted([usual] * 12 + [changed], key=str)


def test_no_sam_is_one_trial_and_no_trial_is_stopped_early() -> None:
    study = factory("sam_sweep")(DIGITS, None)
    baselines = [trial.name for trial in study.trials() if trial.recipe.optimizer.sam.rho is None]
    assert baselines == ["rho=none"]
    assert study.halving is None  # SAM is compared at equal time, not by who is ahead at half of the epochs


def test_the_baseline_of_the_sam_study_can_be_given_more_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the study's docstring says that plain training is given the time that SAM had."""
    docstring = sys.modules[factory("sam_sweep").__module__].__doc__ or ""
    found = re.search(r"^ +python studies/sam_sweep\.py (--epochs .+)$", docstring, re.MULTILINE)
    assert found
    monkeypatch.chdir(tmp_path)
    assert plan("sam_sweep", monkeypatch, *found[1].split()) == 0
    said = capsys.readouterr().out
    assert "1 trial of nfnet_pico" in said
    assert "of at most 16 epochs" in said


def test_small_images_are_shifted_and_large_ones_cropped() -> None:
    small, large = recipe_for(DIGITS, 8), recipe_for(IMAGENET, 8)
    assert (small.data.crop, small.data.crop_padding, small.data.flip) == ("padded", 4, False)
    assert (large.data.crop, large.data.flip) == ("random_resized", True)
    assert (small.data.eval_crop, large.data.eval_crop) == ("whole", "squash")


def test_the_built_in_digits_are_trained_at_half_their_stored_size(tmp_path: Path) -> None:
    """Only they: of other images of that size the smaller ones may show less."""
    stored = check_dataset(write_digits(tmp_path / "digits"))
    for data, pixels, padding in (
        (DIGITS, 16, 2),
        (stored, 16, 2),
        (replace(stored, source="CIFAR-10"), None, 4),
    ):
        recipe = factory("agc_sweep")(data, None).recipe.data
        assert (recipe.image_size, recipe.eval_size, recipe.crop_padding) == (pixels, pixels, padding)


# Of the digits, which are stored with 32 pixels; sam_sweep trains them like that, and agc_sweep with 16.
HALF = ("data.image_size=16", "data.eval_size=16")
REMARKS = ("Evaluation sees", "RandAugment moves", "Images are trained at")


@pytest.mark.parametrize(
    ("study", "settings", "warning"),
    [
        ("sam_sweep", (), None),
        ("sam_sweep", HALF, None),
        (
            "sam_sweep",
            (*HALF, "data.eval_crop=squash"),
            "Evaluation sees 11% of each image: data.eval_crop=squash",
        ),
        ("sam_sweep", ("data.eval_crop=squash",), None),  # images of this size are taken whole
        ("sam_sweep", ("data.eval_crop=central", "data.image_size=128", "data.eval_size=128"), None),
        (
            "sam_sweep",
            ("data.randaugment.layers=2",),
            "RandAugment moves images of 32 pixels by up to 50 and fills",
        ),
        ("sam_sweep", ("data.randaugment.layers=2", "data.image_size=96", "data.eval_size=96"), None),
        (
            "agc_sweep",
            ("data.image_size=24",),
            "trained at 24 pixels and evaluated at 16. For the same size: --set",
        ),
        ("agc_sweep", ("data.image_size=24", "data.eval_size=24"), None),
        (
            "agc_sweep",
            ("data.image_size=24", "data.crop=random_resized"),
            None,
        ),  # which enlarges parts of images
    ],
)
def test_a_plan_warns_where_small_images_are_shown_otherwise_than_meant(
    study: str,
    settings: tuple[str, ...],
    warning: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--set", "data.randaugment.magnitude=5"]
    for setting in settings:
        flags += ["--set", setting]
    assert plan(study, monkeypatch, *flags) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert sum(said.count(remark) for remark in REMARKS) == (warning is not None)
    assert warning is None or warning in said


def test_a_plan_looks_at_what_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--set", "data.randaugment.magnitude=5", "--sweep", "data.randaugment.layers=0,2")
    assert plan("sam_sweep", monkeypatch, *flags) == 0
    assert "RandAugment moves" in capsys.readouterr().out


def test_of_published_recipes_a_plan_has_nothing_to_remark() -> None:
    for name in list_models():
        if not name.startswith("test_"):
            assert image_remarks([published_recipe(name)], None) == []


@pytest.mark.parametrize(
    ("train_images", "batch_size"), [(1_281_167, 256), (5120, 256), (5119, 64), (1437, 64), (100, 50), (1, 1)]
)
def test_an_epoch_has_many_steps_where_the_data_allow_it(train_images: int, batch_size: int) -> None:
    assert batch_size_for(replace(DIGITS, train_images=train_images)) == batch_size


def test_a_study_says_how_it_is_run_and_what_came_out() -> None:
    for study in STUDIES:
        docstring = sys.modules[factory(study).__module__].__doc__ or ""
        for part in ("Question.", f"Command. ``python studies/{study}.py``", "Cost.", "Result."):
            assert part in docstring


@pytest.mark.parametrize("study", STUDIES)
def test_help_lists_all_fields_with_their_values_in_this_study_and_their_meanings(
    study: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(factory(study), FOLDER / f"{study}.py", ["--help"])
    _, _, after = capsys.readouterr().out.partition(
        "fields for --set and --sweep, with their values on the default data:\n"
    )
    made, meanings = factory(study)(DIGITS, None), field_meanings()
    fields: dict[str, tuple[str, str]] = {}
    for line in after.splitlines():
        if line.startswith(" " * 6):
            name, (value, meaning) = list(fields.items())[-1]
            fields[name] = value, f"{meaning} {line.strip()}".strip()
            assert len(line) <= 80
        else:
            name, value = line.strip().split(" = ", 1)
            fields[name] = value, ""
    assert list(fields) == list(Recipe().to_values())
    assert {name: meaning for name, (_, meaning) in fields.items()} == meanings
    for name, domain in made.space.items():
        assert fields[name][0] == f"{domain_text(domain)} (swept)"
    for name, default in made.recipe.to_values().items():
        if isinstance(default, float | int | None) and name not in made.space:
            assert fields[name][0] == value_label(default)


@pytest.mark.parametrize("study", STUDIES)
def test_help_is_as_wide_as_the_terminal_and_tells_what_is_run_before_its_flags(
    study: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of results would be pages before the first flag; commands to copy are not cut."""
    for columns in (70, 80, 300):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit):
            main(factory(study), FOLDER / f"{study}.py", ["--help"])
        said = capsys.readouterr().out
        before, _, examples = said.partition("\nexamples:\n")
        commands = [line for line in before.splitlines() if line.startswith("    python studies/")]
        long = [
            line for line in before.splitlines() if len(line) > min(columns, 100) and line not in commands
        ]
        assert long == []
        assert "``" not in said
        assert "Question." in before
        assert "Result." not in said
        assert f"Results so far are described at the top of studies/{study}.py." in " ".join(before.split())
        assert f"  python studies/{study}.py --plan\n" in examples
        assert before.index("  --plan ") < before.index("  --data PATH")


@pytest.mark.parametrize("study", ["agc_sweep", "batch_norm", "efficientnet_baselines", "sweep", "transfer"])
def test_the_examples_of_a_help_are_commands(
    study: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"studies.{study}")
    program = getattr(module, "PROGRAM", None) or StudyProgram(factory(study))
    parser = study_parser(program, FOLDER / f"{study}.py")
    text = parser.format_help()
    examples = re.findall(rf"^  python studies/{study}\.py (.*)$", text, re.MULTILINE)
    parsed = [vars(parser.parse_args(shlex.split(example))) for example in examples]
    assert any(options["plan"] for options in parsed)
    assert {options["resume"] for options in parsed} >= {"first_try"}
    assert {options["extend"] for options in parsed} >= {"first_try"}
    run = next(example for example in examples if example.endswith(("--epochs 16", "0.04 --plan")))
    measured = Probe(1.0, 1.0, (0.1, 0.1), images=64, image_size=32, eval_seconds=1.0, eval_images=360)
    monkeypatch.setattr("studies.running.planning.plan_text.probe_at_once", lambda *_: measured)
    assert main(program, FOLDER / f"{study}.py", [*shlex.split(run), "--plan"]) == 0
    assert "Nothing was started" in capsys.readouterr().out


def test_a_checkout_that_was_copied_uses_its_own_data(tmp_path: Path, few_digits: Path) -> None:
    """And one that has none, or other data of this name, uses what was noted."""
    noted, here = tmp_path / "old" / "data" / "digits", tmp_path / "new" / "data" / "digits"
    shutil.copytree(few_digits, noted)
    data = check_dataset(noted)
    study = Study("s", "?", recipe_for(data, 1), {}, (0,))
    started: Any = {"study": {"data": {"fingerprint": data.fingerprint}}}
    new = tmp_path / "new"
    new.mkdir()
    assert with_data_here(study, started, new).recipe.data.path == str(noted)
    here.mkdir(parents=True)
    assert with_data_here(study, started, new).recipe.data.path == str(noted)
    here.rmdir()
    shutil.copytree(few_digits, here)
    assert with_data_here(study, started, new).recipe.data.path == str(here)
    assert with_data_here(study, started, tmp_path / "old").recipe.data.path == str(noted)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--search", "genetic"], "--search genetic is not known: use one of grid, sobol, random, tpe, gp"),
        (["--search", "gp"], "optimizer.agc.clip_factor is not a number everywhere: use --search tpe"),
        (["--from", "nothing"], "no study 'nothing': name a folder that holds a journal.jsonl"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(
    flags: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan("agc_sweep", monkeypatch, *flags) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_study_searches_and_begins_with_the_best_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_journal(tmp_path / "runs" / "before", agc_sweep())
    flags = ["--set", "batch_size=64", "--search", "tpe", "--trials", "6", "--from", "before"]
    assert plan("agc_sweep", monkeypatch, *flags) == 0
    said = capsys.readouterr().out
    assert [line.split()[:2] for line in said.splitlines() if "waiting" in line][:2] == [
        ["0.01", "64"],  # the Recipe's own
        ["0.02", "64"],  # the best of the earlier study
    ]
    assert "tpe then proposes 2 more settings" in said
    assert plan("agc_sweep", monkeypatch, "--from", "before") == 2
    assert "--from has no effect if every value is tried" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "exit_code", "sentence"),
    [
        (None, EXIT_INTERRUPTED, "Stopped before the training began. Resume with:"),
        ("running", EXIT_INTERRUPTED, "Stopped; a checkpoint is kept. Resume with:"),
        ("interrupted", EXIT_INTERRUPTED, "Stopped; a checkpoint is kept. Resume with:"),
        ("failed", EXIT_FAILED_TRIALS, "It failed. Resume with:"),
        ("finished", 0, ""),
    ],
)
def test_a_training_says_how_it_ended_and_promises_a_checkpoint_only_once_it_has_begun(
    state: str | None, exit_code: int, sentence: str
) -> None:
    study = Study("train", "?", recipe_for(DIGITS, 2), {})
    progress = study.waiting_state()
    (trial,) = progress.trials.values()
    trial.state = state
    assert TrainRunner(TrainingOptions()).ending(study, progress) == Ending(exit_code, sentence)
