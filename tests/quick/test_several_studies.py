"""Several studies in one record, and the guard over them: planted differences are named, equal studies are not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nfnet_ray.analysis import best_per_stratum, best_setting, load_study, setting_results, time_sentences
from nfnet_ray.analysis.comparability import comparability
from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.errors import UserError
from nfnet_ray.tracking.events import Event
from tests.tracking.example_study import CLIP_FACTOR, agc_sweep, study_started, trial_events, write_journal

Change = Callable[[dict[str, Any]], None]


def study(folder: Path, name: str, change: Change = lambda _study: None, **sweep: Any) -> Path:
    """A study of two clip factors, whose description ``change`` changes."""
    events = copy.deepcopy(agc_sweep(clip_factors=(0.01, 0.02), batch_sizes=(64,), **sweep))
    assert events[0]["event"] == "study_started"
    described: Any = events[0]["study"]
    described["name"] = name
    described["recipe"] |= {"data.eval_size": 64, "data.image_size": 64}
    change(described)
    write_journal(folder / name, events)
    return folder / name


def recipe(**values: Any) -> Change:
    return lambda described: described["recipe"].update(
        {name.replace("__", "."): v for name, v in values.items()}
    )


def part(section: str, **values: Any) -> Change:
    return lambda described: described[section].update(values)


def top(**values: Any) -> Change:
    return lambda described: described.update(values)


PLANTED: dict[str, tuple[Change, str, set[str], str]] = {
    "data": (part("data", fingerprint="ffff"), "apart", {"accuracy", "time"}, "imagenet_samples ffff"),
    "validation_part": (top(holdout=0.5), "marked", {"accuracy"}, "chosen on 50%"),
    "train_share": (recipe(data__train_share=0.5), "marked", {"accuracy", "time"}, "0.5"),
    "eval_size": (recipe(data__eval_size=72), "marked", {"accuracy"}, "72"),
    "eval_crop": (recipe(data__eval_crop="central"), "marked", {"accuracy"}, "central"),
    "averaging": (recipe(optimizer__ema__decay=None), "marked", {"accuracy"}, "none"),
    "weights": (recipe(model__weights="w.npz@sha256:aa"), "marked", {"accuracy", "time"}, "sha256:aa"),
    "trained": (recipe(model__trained="classifier"), "marked", {"accuracy", "time"}, "classifier"),
    "hardware": (part("hardware", description="8 × H200"), "apart", {"time"}, "8 × H200"),
    "workers": (part("worker", workers=4), "apart", {"accuracy", "time"}, "4"),
    "threads": (part("worker", cpus=8), "apart", {"time"}, "8"),
    "gpu_share": (part("worker", gpus=1), "apart", {"time"}, "1"),
    "places": (top(places=1), "marked", {"time"}, "1"),
    "precision": (recipe(precision="bfloat16"), "marked", {"accuracy", "time"}, "bfloat16"),
    "grouped_convolutions": (recipe(grouped_convolutions="sliced"), "marked", {"time"}, "sliced"),
    "memory_format": (recipe(memory_format="channels_last"), "marked", {"time"}, "channels_last"),
    "compile": (recipe(compile=True), "marked", {"time"}, "true"),
    "micro_batches": (recipe(micro_batches=2), "marked", {"time"}, "2"),
    "torch": (part("versions", torch="2.16.0"), "marked", {"accuracy", "time"}, "2.16.0"),
    "nfnet_ray": (part("versions", nfnet_ray="0.2.0"), "marked", {"accuracy", "time"}, "0.2.0"),
    "commit": (part("versions", commit="feedbeef"), "marked", {"accuracy", "time"}, "feedbeef"),
    "ray": (part("versions", ray="2.61.0"), "quiet", {"time"}, "2.61.0"),
    "python": (part("versions", python="3.12.1"), "quiet", {"time"}, "3.12.1"),
    "image_size": (recipe(data__image_size=48), "quiet", {"accuracy", "time"}, "48"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_named(tmp_path: Path, name: str) -> None:
    change, weight, touches, value = PLANTED[name]
    both = lambda change: lambda described: (top(places=2)(described), change(described))  # noqa: E731
    record = load_study(study(tmp_path, "a", both(lambda _: None)), study(tmp_path, "b", both(change)))
    found = comparability(record)
    [difference] = [one for one in found.differences if one.is_known and one.weight != "quiet"] or [
        one for one in found.differences if one.is_known
    ]
    assert (difference.field.name, difference.weight, set(difference.field.touches)) == (
        name,
        weight,
        touches,
    )
    assert value in difference.groups[1].fact.text
    assert [group.where for group in difference.groups] == ["a", "b"]
    said = [*found.sentences(), *found.remark_sentences()]
    assert any(
        difference.field.label in sentence.lower() or difference.field.label in sentence for sentence in said
    )
    assert len(found.axes) == (2 if weight == "apart" else 1)
    assert record.conditions == (("study",) if weight == "apart" else ())
    assert bool(found.marks) == (weight == "marked")
    assert all(difference.field.label in mark for mark in found.marks.values())


def test_equal_studies_are_clean(tmp_path: Path) -> None:
    found = comparability(load_study(study(tmp_path, "a"), study(tmp_path, "b")))
    assert not found.weighty
    assert found.differences == ()
    assert found.sentences() == []


def test_a_field_that_a_study_sweeps_is_not_reported(tmp_path: Path) -> None:
    started = study_started({"data.eval_size": [64, 72]}, name="sizes")
    events: list[Event] = [started]
    for trial in started["trials"]:
        events += trial_events(trial["name"], started["time"], [0.5, 0.6])
    write_journal(tmp_path / "sizes", events)
    assert comparability(load_study(tmp_path / "sizes")).differences == ()
    both = comparability(load_study(tmp_path / "sizes", study(tmp_path, "b")))
    assert "eval_size" not in [one.field.name for one in both.weighty]


def test_published_sizes_of_two_networks_are_told_quietly(tmp_path: Path) -> None:
    """The Recipes leave them to the network, in a journal that does not say what it came to."""
    own: Any = {"data__eval_size": None, "data__image_size": None}
    a = study(tmp_path, "a", recipe(model__name="nfnet_f0", **own))
    b = study(tmp_path, "b", recipe(model__name="nfnet_f1", **own))
    found = comparability(load_study(a, b))
    assert not found.weighty
    assert found.remark_sentences()[0] == (
        "Evaluation size differs, each network at its own published size: 256 (a); 320 (b)."
    )
    c = study(tmp_path, "c", recipe(model__name="nfnet_f1", data__eval_size=256, data__image_size=None))
    assert [one.field.name for one in comparability(load_study(b, c)).weighty] == ["eval_size"]


def test_what_an_old_journal_does_not_record_is_said(tmp_path: Path) -> None:
    def older(described: dict[str, Any]) -> None:
        del described["recipe"]["data.train_share"], described["recipe"]["memory_format"]
        del described["recipe"]["grouped_convolutions"]  # there were no others than whole ones

    found = comparability(load_study(study(tmp_path, "a", older), study(tmp_path, "b")))
    assert not found.weighty
    assert found.remark_sentences() == [
        "Not recorded for a, and so perhaps different: training share, memory format."
    ]


def test_tables_have_the_study_and_keep_equal_points_apart(tmp_path: Path) -> None:
    paths = study(tmp_path, "a"), study(tmp_path, "b")
    record = load_study(list(paths))
    assert record.fields == (CLIP_FACTOR, "batch_size", "study")
    assert list(record.trials["study"]) == ["a", "a", "b", "b"]
    assert list(record.trials["trial"]) == [
        "a/agc_sweep-00",
        "a/agc_sweep-01",
        "b/agc_sweep-00",
        "b/agc_sweep-01",
    ]
    assert set(record.epochs["study"]) == {"a", "b"}
    assert len(record.epochs) == sum(len(load_study(path).epochs) for path in paths)
    points = [result.point for result in setting_results(record)]
    assert points[0] == {CLIP_FACTOR: 0.01, "batch_size": 64, "study": "a"}
    assert len(points) == 4
    assert isinstance(record.trials, pd.DataFrame)


def test_each_study_has_its_answer(tmp_path: Path) -> None:
    record = load_study(study(tmp_path, "a"), study(tmp_path, "b", recipe(data__eval_size=72)))
    answers = best_per_stratum(record)
    assert [answer.best.point["study"] for answer in answers] == ["a", "b"]
    assert "at batch_size 64, study b: top-1" in answers[1].sentence()
    with pytest.raises(UserError, match=r"a and b have no common best setting.*evaluation size"):
        best_setting(record)


def test_other_versions_still_have_a_best_setting(tmp_path: Path) -> None:
    record = load_study(study(tmp_path, "a"), study(tmp_path, "b", part("versions", commit="feed")))
    assert best_setting(record) is not None


def test_a_field_that_a_study_does_not_sweep_has_its_recipes_value(tmp_path: Path) -> None:
    record = load_study(
        study(tmp_path, "a", recipe(model__name="nfnet_f0")),
        study(tmp_path, "b", recipe(model__name="nf_resnet50")),
    )
    assert record.fields[0] == "model.name"
    assert list(record.trials["model.name"]) == ["nfnet_f0", "nfnet_f0", "nf_resnet50", "nf_resnet50"]


def test_studies_of_one_name_are_told_apart(tmp_path: Path) -> None:
    record = load_study(study(tmp_path / "here", "a"), study(tmp_path / "there", "a"))
    assert list(record.parts) == ["a", "a (2)"]
    assert set(record.trials["study"]) == {"a", "a (2)"}


def test_the_same_study_twice_is_refused(tmp_path: Path) -> None:
    path = study(tmp_path, "a")
    with pytest.raises(UserError, match="named twice"):
        load_study(path, str(path))
    with pytest.raises(UserError, match="no study is named"):
        load_study([])


def budgets(folder: Path, name: str, network: str, seconds: float, change: Change = lambda _s: None) -> Path:
    started = study_started({"schedule.epochs": [2, 4, 8]}, (0, 1), name=name)
    described: Any = started["study"]
    described["recipe"] |= {"model.name": network, "data.eval_size": 64, "data.image_size": 64}
    change(described)
    events: list[Event] = [started]
    for trial in started["trials"]:
        epochs = trial["point"]["schedule.epochs"]
        top1 = 0.8 + 0.02 * epochs + 0.002 * trial["recipe"]["seed"]
        events += trial_events(trial["name"], started["time"], [top1] * epochs, seconds_per_epoch=seconds)
    write_journal(folder / name, events)
    return folder / name


def test_times_are_compared_across_studies_that_may_share_axes(tmp_path: Path) -> None:
    free = budgets(tmp_path, "free", "nfnet_f0", 10.0)
    baseline = budgets(tmp_path, "baseline", "tf_efficientnet_b0", 20.0)
    [sentence] = time_sentences(load_study(free, baseline))
    assert "nfnet_f0 (free) takes 0.50 of tf_efficientnet_b0 (baseline)'s training time" in sentence


def test_times_on_other_hardware_are_not_compared(tmp_path: Path) -> None:
    free = budgets(tmp_path, "free", "nfnet_f0", 10.0)
    elsewhere = budgets(tmp_path, "slow", "tf_efficientnet_b0", 20.0, part("hardware", description="a phone"))
    record: StudyRecord = load_study(free, elsewhere)
    assert time_sentences(record) == []
