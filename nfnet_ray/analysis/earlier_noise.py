"""Measures the noise of the trials of earlier studies, from which the power of a new study is predicted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from nfnet_ray.analysis.confirmation import confirmation_of
from nfnet_ray.analysis.files.exported import STUDY_FILE, read_exported
from nfnet_ray.analysis.inference.assumed_noise import assumed_disagreement, assumed_spread
from nfnet_ray.analysis.inference.intervals import Z_95
from nfnet_ray.analysis.inference.paired import Moments, interaction
from nfnet_ray.analysis.inference.power import PairNoise
from nfnet_ray.analysis.record import StudyRecord, study_record
from nfnet_ray.analysis.setting import SettingResult, setting_results, trials_by_setting
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events
from nfnet_ray.tracking.state import StudyState

# Only the newest studies are read: older ones ran older code, and each journal takes time to read.
MOST_STUDIES = 10
MOST_PAIRS = 200  # the most pairs of settings under the same conditions
EPOCHS_ALIKE = 2
"""The largest ratio between the numbers of epochs of an earlier and a planned trial that are compared."""
LEAST_FREEDOM = 2
"""The least degrees of freedom for using an estimated spread. With one, the true spread may be 30 times as large."""
KNOWN_FREEDOM = 10
"""The least degrees of freedom for using a spread below the assumed one as a fixed number. Its 95% interval then
reaches from 0.7 to 1.8 times the estimate."""


@dataclass(frozen=True)
class EarlierNoise:
    """The noise of the settings in earlier studies that have to be told apart: the better half under each condition.

    Attributes:
        disagreement: the share of the images on which trials of two settings differ in being correct; None if unknown.
        trial_variance: the variance of a trial's accuracy between seeds, on the validation images; pooled over
            settings.
        freedom: degrees of freedom of ``trial_variance``; 0 if no setting has two seeds.
        luck: the part of ``trial_variance`` that is due to chance on these particular images; 0 if journals do not
            contain which images were correct.
        trials: the number of trials from which the noise was estimated.
        studies: the names of their studies, the newest first.
    """

    disagreement: float | None = None
    trial_variance: float = 0.0
    freedom: int = 0
    luck: float = 0.0
    trials: int = 0
    studies: tuple[str, ...] = ()

    @property
    def seed_spread(self) -> float | None:
        """Standard deviation between seeds on infinitely many images, a fraction; None if there are too few seeds."""
        if self.freedom < LEAST_FREEDOM:
            return None
        return float(max(self.trial_variance - self.luck, 0.0)) ** 0.5

    def pair_noise(self, train_images: int) -> PairNoise:
        """Returns the expected noise of two settings. Unknown parts are assumed from the number of training images."""
        disagreement = self.disagreement
        if disagreement is None:
            disagreement = assumed_disagreement(train_images)
        if self.seed_spread is None:
            return PairNoise.assumed(disagreement, assumed_spread(train_images))
        return PairNoise.measured(disagreement, self.trial_variance, self.freedom, self.luck)

    def apart_by_seeds(self, train_images: int) -> float:
        """Returns how far one seed each of two equal settings differ in 95% of cases, on infinitely many images."""
        from scipy.special import stdtrit

        if self.seed_spread is None:
            return Z_95 * 2**0.5 * assumed_spread(train_images)
        return float(stdtrit(self.freedom, 0.975)) * 2**0.5 * self.seed_spread

    def spread_to_journal(self, train_images: int) -> float | None:
        """Returns the spread by which a study drops contenders, if earlier studies know it better than the default."""
        spread = self.seed_spread
        if spread is None:
            return None
        return spread if self.freedom >= KNOWN_FREEDOM or spread > assumed_spread(train_images) else None


@dataclass
class _Measured:
    """Sums over the studies.

    Attributes:
        shares: the shares of the images on which two trials differ in being correct.
        squares: for each setting, (variance of a trial's accuracy, the part that is luck, degrees of freedom).
        counted: the Recipes whose seeds are in ``squares``. The same Recipe in another study has the same seeds, so it
            is not counted again.
        trials: the number of trials.
        studies: the names of their studies.
    """

    shares: list[float] = field(default_factory=list)
    squares: list[tuple[float, float, int]] = field(default_factory=list)
    counted: set[Any] = field(default_factory=set)
    trials: int = 0
    studies: list[str] = field(default_factory=list)


def earlier_noise(storage: Path, data: DatasetSummary, recipes: Iterable[Recipe]) -> EarlierNoise:
    """Measures the noise in the newest studies in ``storage``, including exported ones; unreadable ones are skipped.

    Only trials that were trained on these images are used, with the network and the share of the training images of one
    of ``recipes`` and a similar number of epochs.
    """
    sought: dict[tuple[Any, Any], set[int]] = {}
    for recipe in recipes:
        values = recipe.to_values()
        sought.setdefault(_kind(values), set()).add(values["schedule.epochs"])
    found = _Measured()
    for record in _records(storage, data, {name for name, _ in sought}):
        _add(found, record, sought)
    squares = np.array(found.squares).reshape(-1, 3)
    freedom = squares[:, 2].sum()
    pooled = squares[:, 2] @ squares[:, :2] / freedom if freedom else np.zeros(2)
    return EarlierNoise(
        disagreement=fmean(found.shares) if found.shares else None,
        trial_variance=float(pooled[0]),
        freedom=int(freedom),
        luck=float(pooled[1]),
        trials=found.trials,
        studies=tuple(found.studies),
    )


def _kind(values: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the values that must be equal: the network, and the share of the training images."""
    return values.get("model.name"), values.get("data.train_share", 1.0)


def _is_sought(values: Mapping[str, Any], sought: Mapping[tuple[Any, Any], set[int]]) -> bool:
    epochs = values["schedule.epochs"]
    return any(
        max(epochs, planned) <= EPOCHS_ALIKE * min(epochs, planned)
        for planned in sought.get(_kind(values), ())
    )


def _add(found: _Measured, record: StudyRecord, sought: Mapping[tuple[Any, Any], set[int]]) -> None:
    """Adds the noise of the better settings of a study, under each of its conditions."""
    named = {_key(point): trials for point, trials in trials_by_setting(record)}
    strata: dict[tuple[Any, ...], list[SettingResult]] = {}
    recipes = {}
    for result in setting_results(record):
        key = _key(result.point)
        values = {**record.study["recipe"], **record.own_values[str(named[key][0]["trial"])]}
        if _is_sought(values, sought):
            strata.setdefault(tuple(result.point[name] for name in record.conditions), []).append(result)
            recipes[key] = frozenset((name, repr(value)) for name, value in values.items() if name != "seed")
    chance = 1 / max(record.study["data"].get("classes", 0), 1)
    trials: set[tuple[Any, ...]] = set()
    for results in strata.values():
        better = _better(results, chance)
        if shares := _disagreements(better):
            found.shares += shares
            trials |= {(_key(result.point), "setting", 0) for result in better if result.images is not None}
        for result in better:
            # The seeds of the sweep are luckier than the reruns of a winner, so the reruns form their own group.
            confirmation = confirmation_of(record, result, None)
            reruns = confirmation.result if confirmation else None
            for part, measured in (("setting", result), ("rerun", reruns)):
                key = recipes[_key(result.point)], part
                if measured is None or len(measured.seed_top1) < 2 or key in found.counted:
                    continue
                found.counted.add(key)
                found.squares.append((*_variance(measured), len(measured.seed_top1) - 1))
                trials |= {(_key(result.point), part, seed) for seed in range(len(measured.seed_top1))}
    if trials:
        found.trials += len(trials)
        found.studies.append(record.study["name"])


def _better(results: Sequence[SettingResult], chance: float) -> list[SettingResult]:
    """Returns the better half, or the best two, of the settings that are nearer to the best one than to chance."""
    ordered = sorted(results, key=lambda result: -result.top1)
    return [
        result
        for result in ordered[: max(2, (len(ordered) + 1) // 2)]
        if result.top1 >= (ordered[0].top1 + chance) / 2
    ]


def _disagreements(better: Sequence[SettingResult]) -> list[float]:
    """Returns the share of the images on which the trials differ in being correct, for each pair of settings."""
    if len(better) == 1:  # two seeds of one setting differ as much as two settings that are hardly different
        [alone] = better
        shares = [_disagreement(alone, alone, seed=1)] if len(alone.seed_top1) > 1 else []
    else:
        pairs = itertools.islice(itertools.combinations(better, 2), MOST_PAIRS)
        shares = [_disagreement(*pair) for pair in pairs]
    return [share for share in shares if share is not None]


def _key(point: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(point.values())


def _records(storage: Path, data: DatasetSummary, models: set[Any]) -> Iterator[StudyRecord]:
    files = [
        path for name in (JOURNAL_FILE, STUDY_FILE) for path in storage.glob(f"*/{name}") if path.is_file()
    ]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    found = 0
    for file in files:
        is_journal = file.name == JOURNAL_FILE
        try:
            first: Any = next(read_events(file))[0] if is_journal else json.loads(file.read_text())["started"]
            told, plans = first["study"], first["trials"]
            trained = {{**told["recipe"], **plan["recipe"], **plan["point"]}["model.name"] for plan in plans}
            if not _is_of(told["data"], data) or (trained and not trained & models):
                continue  # decided by the first line, as the rest may be long
            state, started = StudyState.read(file.parent) if is_journal else read_exported(file.parent)
            yield study_record(state, started, with_epochs=False)
        except (OSError, UserError, StopIteration, KeyError, TypeError, ValueError):
            continue
        found += 1
        if found == MOST_STUDIES:
            return


def _is_of(told: Mapping[str, Any], data: DatasetSummary) -> bool:
    """Whether a study was on these images. Built-in digits that are not written yet have no fingerprint."""
    if data.fingerprint:
        return bool(told["fingerprint"] == data.fingerprint)
    sizes = data.path.name, data.train_images, data.validation_images, len(data.class_names)
    return (told["name"], told["train_images"], told["validation_images"], told["classes"]) == sizes


def _disagreement(a: SettingResult, b: SettingResult, seed: int = 0) -> float | None:
    """Returns the disagreement between the first seed of one setting and a seed of another one."""
    if a.images is None or b.images is None or len(a.images.measured) != len(b.images.measured):
        return None
    both = a.images.measured & b.images.measured
    differ = a.images.correct[0, both] != b.images.correct[seed, both]
    return float(differ.mean()) if both.any() else None


def _variance(result: SettingResult) -> tuple[float, float]:
    """Returns the variance of a trial's accuracy between seeds, and the part of it that is luck on these images."""
    if result.images is None:
        return float(np.var(result.seed_top1, ddof=1)), 0.0
    moments = Moments.of(result.images.correct[:, result.images.measured])
    luck = float(interaction(moments)) * len(result.seed_top1)
    return float(np.var(moments.mean, ddof=1)), max(luck, 0.0)
