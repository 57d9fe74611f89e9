"""Determines the conditions of a trial from its journal, with pure functions of a StudyState.

The most reliable source is what a worker has reported about itself, then the driver that trained the trial, then the
Recipe. Journals of earlier versions lack some conditions, which are then
:data:`~nfnet_ray.tracking.conditions.fields.UNKNOWN`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from nfnet_ray.recipe import WEIGHTS_DIGEST_MARK, decisive_values, is_import_path
from nfnet_ray.tracking.conditions.fields import CONDITION_FIELDS, UNKNOWN, Conditions, Fact
from nfnet_ray.tracking.descriptions import TrialPlan, Versions
from nfnet_ray.tracking.journal import read_events
from nfnet_ray.tracking.labels import value_label
from nfnet_ray.tracking.state import Session, StudyState
from nfnet_ray.tracking.trial_progress import TrialProgress
from nfnet_ray.wording import count, plural

_FINGERPRINT_DIGITS = 12
COMMIT_DIGITS = 10
# Conditions whose values a network may determine: published sizes, the faster memory format, another library.
_OF_A_NETWORK = frozenset(
    {"eval_size", "eval_crop", "averaging", "memory_format", "compile", "grouped_convolutions", "timm"}
)


def conditions_of(state: StudyState, trial: str) -> Conditions:
    """Returns a trial's conditions: {name: value} of ``CONDITION_FIELDS``, and the ``network`` and ``lanes``.

    Conditions that do not apply to a trial are left out: CUDA and MPS without GPUs, timm for networks that do not use
    it, and the code of a network unless it is the user's own. A trial that moved to other hardware, or was resumed by
    another version, has both values: ``A, then B``. A trial that has not begun has the conditions of the study. The
    journal must contain its first event.
    """
    assert state.started is not None
    study = cast(Mapping[str, Any], state.started["study"])
    progress, plan = state.trials[trial], _plan(state, trial)
    recipe = decisive_values({**study["recipe"], **state.changed, **plan["recipe"], **plan["point"]})
    told = _told(progress)
    sessions = [state.sessions[number] for number in progress.sessions] or state.sessions[:1]
    worker = study.get("worker", {})
    data = study["data"]
    gpus = worker.get("gpus", 0)
    conditions = {
        "network": _fact(recipe.get("model.name")),
        "data": Fact(data["fingerprint"], f"{data['name']} {data['fingerprint'][:_FINGERPRINT_DIGITS]}"),
        "metric": _fact(study["metric"]),
        "validation_part": _validation_part(data["validation_images"], study.get("holdout")),
        "train_share": _of_recipe(recipe, "data.train_share"),
        "damaged_images": _damaged(progress),
        "eval_size": _told_or_recipe(told, "eval_size", recipe, "data.eval_size"),
        "eval_crop": _told_or_recipe(told, "eval_crop", recipe, "data.eval_crop"),
        "averaging": _averaging(told, recipe),
        # No version has had test-time augmentation.
        "test_time_augmentation": _several(
            part.get("test_time_augmentation", "none") for part in told or [{}]
        ),
        "weights": _weights(recipe),
        "trained": _of_recipe(recipe, "model.trained"),
        "hardware": _several(_description(session) for session in sessions),
        "device": _several(part.get("device") for part in told),
        "workers": _several([part.get("workers", worker.get("workers")) for part in told or [{}]]),
        "training": _several("in a cohort" if part.get("lanes") else "alone" for part in told or [{}]),
        "threads": _several([part.get("threads", worker.get("cpus")) for part in told or [{}]]),
        "gpu_share": _fact(worker.get("gpus")),
        "precision": _told_or_recipe(told, "precision", recipe, "precision"),
        "memory_format": _chosen(told, recipe, "memory_format"),
        "compile": _chosen(told, recipe, "compile"),
        # Earlier versions had no choice.
        "grouped_convolutions": _chosen(
            told, {"grouped_convolutions": "whole", **recipe}, "grouped_convolutions"
        ),
        "activation_memory_budget": _fact(recipe.get("activation_memory_budget", 1.0)),
        "micro_batches": _of_recipe(recipe, "micro_batches"),
        "torch": _torch(told, sessions),
        "nfnet_ray": _version(sessions, "nfnet_ray"),
        "commit": _several(_commit(session.versions) for session in sessions),
        "ray": _version(sessions, "ray"),
        "python": _version(sessions, "python"),
        "image_size": _told_or_recipe(told, "image_size", recipe, "data.image_size"),
    }
    lanes = [part["lanes"] for part in told if part.get("lanes")]
    if lanes:  # the lanes of the cohorts that trained the trial, leg by leg
        conditions["lanes"] = _several(lanes)
    if gpus < 1:  # whole GPUs are not shared
        conditions["places"] = _several(session.places for session in sessions)
    if 0 < gpus < 1:
        conditions["mps"] = _several(_mps(session) for session in sessions)
    if gpus:
        conditions["cuda"] = _several(part.get("cuda") for part in told)
        conditions["step"] = _several(part.get("step") for part in told)
    network, _, digest = str(recipe.get("model.name", "")).partition(WEIGHTS_DIGEST_MARK)
    if digest:
        conditions["network_code"] = Fact(digest, digest)
    if is_import_path(network) or not network.startswith("nf"):  # the network's modules are timm's, or may be
        timm = [part.get("timm") for part in told]
        conditions["timm"] = _several(timm) if told else _version(sessions, "timm")
    return conditions


class ConditionsOfTrials(Mapping[str, Conditions]):
    """{trial: its :func:`conditions_of`}, computed on access, because most uses of a record need none of them."""

    def __init__(self, state: StudyState, trials: Iterable[str]) -> None:
        self._state = state
        self._known: dict[str, Conditions | None] = dict.fromkeys(trials)

    def __getitem__(self, trial: str) -> Conditions:
        conditions = self._known[trial]
        if conditions is None:
            conditions = self._known[trial] = conditions_of(self._state, trial)
        return conditions

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def condition_text(conditions: Conditions) -> str:
    """Describes the distinguishing conditions of some trials on one line, as a tag by which runs can be grouped.

    Versions of this library and usual values are left out. Equal texts mean equal conditions, as far as the journal
    contains them.

    >>> condition_text(conditions_of(state, "agc_sweep-00"))                       # doctest: +SKIP
    'digits aa8b529b1f19, evaluated at 32 pixels (squash), moving average, float32, 1 worker with 2 cores of …'
    """
    text = {name: fact.text for name, fact in conditions.items()}
    size = f"{text['eval_size']} pixels" if conditions["eval_size"].is_known else "the network's own size"
    device = "device" if conditions["device"].is_known else "hardware"
    parts = [
        text["data"],
        f"evaluated at {size} ({text['eval_crop']})",
        "last weights" if text["averaging"] == "none" else text["averaging"],
        text["precision"],
        f"{_counted(conditions['workers'], 'worker')} with {_counted(conditions['threads'], 'core')} on {text[device]}",
        f"torch {text['torch']}",
    ]
    usual = {
        "train_share": (1.0, "training share {}"),
        "damaged_images": ("none", "skipped: {}"),
        "test_time_augmentation": ("none", "test-time augmentation {}"),
        "weights": ("random", "from {}"),
        "trained": ("all", "trained: {}"),
        "compile": (False, "torch.compile"),
        "grouped_convolutions": ("whole", "grouped convolutions {}"),
        "activation_memory_budget": (1.0, "{} of the activations kept"),
        "micro_batches": (1, "{} micro-batches"),
        "memory_format": ("contiguous", "{}"),
        "training": ("alone", "trained {}"),
    }
    parts += [
        phrase.format(text[name])
        for name, (value, phrase) in usual.items()
        if conditions[name].is_known and conditions[name].value != value
    ]
    if conditions["gpu_share"].is_known and 0 < conditions["gpu_share"].value < 1:
        parts.append(f"{text['gpu_share']} of a GPU")
    return ", ".join(parts)


def first_measured(journal_path: Path) -> tuple[str, Conditions] | None:
    """Returns the trial of a journal's first epoch with its conditions at that time; None before the first epoch."""
    state = StudyState()
    for event, _ in read_events(journal_path):
        state.apply(event)
        if event["event"] == "epoch":
            return event["trial"], conditions_of(state, event["trial"])
    return None


def unlike_the_first(state: StudyState, trial: str, first: str, before: Conditions) -> dict[str, str]:
    """Returns {condition: the trial's value and that of the ``first`` one, in words} where the two are not comparable.

    ``before`` are the conditions of the first trial. Intended differences in the study's plan are left out, and so are
    those that a network implies, and conditions that are not known for both trials.
    """
    now, planned = conditions_of(state, trial), _plan(state, trial)
    by_plan = {*planned["point"], *planned["recipe"], *_plan(state, first)["point"]}
    own = _OF_A_NETWORK if now["network"] != before["network"] else frozenset()
    has_devices = now["device"].is_known and before["device"].is_known
    left_out = own | {"hardware" if has_devices else "device"}
    found = {}
    for field in CONDITION_FIELDS:
        if field.weight == "quiet" or field.name in left_out or field.recipe in by_plan:
            continue
        mine, other = now.get(field.name, UNKNOWN), before.get(field.name, UNKNOWN)
        if mine != other and mine.is_known and other.is_known:
            found[field.label] = f"{mine.text} ({other.text} in {first})"
    return found


def _counted(fact: Fact, noun: str) -> str:
    return count(fact.value, noun) if isinstance(fact.value, int | float) else f"{fact.text} {plural(noun)}"


def _plan(state: StudyState, trial: str) -> TrialPlan:
    for plans in (state.plans, state.further, state.reruns):
        if trial in plans:
            return plans[trial]
    return {"name": trial, "point": {}, "recipe": {}}


def _told(progress: TrialProgress) -> list[Mapping[str, Any]]:
    """Returns what the trial's workers have reported about themselves, in order; unreadable reports are skipped."""
    found: list[Mapping[str, Any]] = []
    for _, text in sorted(progress.conditions.items()):
        try:
            told = json.loads(text)
        except ValueError:
            continue
        if isinstance(told, dict):
            found.append(told)
    return found


def _fact(value: Any) -> Fact:
    if value is None:
        return UNKNOWN
    return Fact(tuple(value) if isinstance(value, list) else value, value_label(value))


def _several(values: Iterable[Any]) -> Fact:
    """Returns the value, or all distinct values in order; unknown if one of them is."""
    distinct = list(dict.fromkeys(values))
    if not distinct or None in distinct:
        return UNKNOWN if len(distinct) < 2 else Fact(None, _then(distinct))
    return _fact(distinct[0]) if len(distinct) == 1 else Fact(tuple(distinct), _then(distinct))


def _then(values: Sequence[Any]) -> str:
    return ", then ".join("unknown" if value is None else value_label(value) for value in values)


def _of_recipe(recipe: Mapping[str, Any], name: str) -> Fact:
    return _fact(recipe.get(name))


def _told_or_recipe(
    told: Sequence[Mapping[str, Any]], key: str, recipe: Mapping[str, Any], name: str
) -> Fact:
    """Returns the value that workers reported, else the Recipe's, where None means the network's own value."""
    values = [part[key] for part in told if key in part]
    return _several(values) if values else _of_recipe(recipe, name)


def _validation_part(images: int, holdout: float | None) -> Fact:
    text = f"{images:,} images"
    if holdout:
        text += f", the best chosen on {1 - holdout:.0%} of them and quoted on the others"
    return Fact((images, holdout or 0.0), text)


def _averaging(told: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]) -> Fact:
    if values := [part["averaging"] for part in told if "averaging" in part]:
        return _several(values)
    if "optimizer.ema.decay" not in recipe:
        return UNKNOWN
    return _fact("none" if recipe["optimizer.ema.decay"] is None else "moving average")


def _weights(recipe: Mapping[str, Any]) -> Fact:
    if "model.weights" not in recipe:
        return UNKNOWN
    return _fact(recipe["model.weights"] or "random")


def _chosen(told: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any], name: str) -> Fact:
    """Returns the value of a field that a worker chooses if the Recipe says auto."""
    fact = _told_or_recipe(told, name, recipe, name)
    return UNKNOWN if fact.value == "auto" else fact


def _damaged(progress: TrialProgress) -> Fact:
    parts = []
    for split in ("training", "validation"):
        name = f"damaged_{'train' if split == 'training' else split}_images"
        number = int(progress.last(name) or 0)
        if number:
            parts.append(f"{number:,} {split}")
    return _fact(" and ".join(parts) or "none")


def _description(session: Session) -> str | None:
    return session.hardware["description"] if session.hardware else None


def _mps(session: Session) -> str | None:
    return None if session.hardware is None else value_label(session.hardware.get("mps", "not used"))


def _version(sessions: Sequence[Session], name: str) -> Fact:
    return _several(cast(Mapping[str, Any], session.versions or {}).get(name) for session in sessions)


def _torch(told: Sequence[Mapping[str, Any]], sessions: Sequence[Session]) -> Fact:
    """Returns the version of torch without the suffix for its CUDA version."""
    versions = [part["torch"] for part in told if "torch" in part] or [
        session.versions["torch"] if session.versions else None for session in sessions
    ]
    return _several(None if version is None else str(version).partition("+")[0] for version in versions)


def _commit(versions: Versions | None) -> str | None:
    if versions is None:
        return None
    commit = str(versions.get("commit") or "")[:COMMIT_DIGITS] or "none"
    return f"{commit} with uncommitted changes" if versions.get("dirty") else commit
