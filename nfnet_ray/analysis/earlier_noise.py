"""How noisy the trials of earlier studies were: from which the power of a new study is predicted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from nfnet_ray.analysis.inference.paired import Moments, interaction
from nfnet_ray.analysis.record import StudyRecord, study_record
from nfnet_ray.analysis.setting import SettingResult, setting_results
from nfnet_ray.errors import UserError
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events
from nfnet_ray.tracking.state import StudyState

# Older ones ran with older code, and each journal takes time to read.
MOST_STUDIES = 10
MOST_PAIRS = 200  # of settings of a study


@dataclass(frozen=True)
class EarlierNoise:
    """Of the better half of the settings of earlier studies, which are the ones to be told apart.

    Attributes:
        disagreement: share of the images that trials of two settings judge differently; None if no study says.
        seed_spread: standard deviation between seeds on images without end, a fraction; None if no setting has two.
        studies: how many studies it is from.
    """

    disagreement: float | None
    seed_spread: float | None
    studies: int


def earlier_noise(storage: Path, fingerprint: str, model: str) -> EarlierNoise:
    """By the newest studies in ``storage`` of this network on these images; unreadable journals are left out."""
    shares: list[float] = []
    variances: list[float] = []
    studies = 0
    for record in _records(storage, fingerprint, model):
        results = sorted(setting_results(record), key=lambda result: -result.top1)
        better = [result for result in results[: max(2, (len(results) + 1) // 2)] if result.images]
        before = len(shares) + len(variances)
        pairs = itertools.islice(itertools.combinations(better, 2), MOST_PAIRS)
        shares += [share for pair in pairs if (share := _disagreement(*pair)) is not None]
        variances += [_variance(result) for result in better if len(result.seed_top1) > 1]
        studies += len(shares) + len(variances) > before
    return EarlierNoise(
        fmean(shares) if shares else None,
        max(fmean(variances), 0.0) ** 0.5 if variances else None,
        studies,
    )


def _records(storage: Path, fingerprint: str, model: str) -> Iterator[StudyRecord]:
    journals = [path for path in storage.glob(f"*/{JOURNAL_FILE}") if path.is_file()]
    journals.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    found = 0
    for journal in journals:
        try:
            first = next(read_events(journal))[0]
            if first["event"] != "study_started":
                continue
            told = first["study"]
            if (told["data"]["fingerprint"], told["recipe"].get("model.name")) != (fingerprint, model):
                continue  # after one line: the rest may be long
            yield study_record(*StudyState.read(journal.parent), with_epochs=False)
        except (OSError, UserError, StopIteration, KeyError, TypeError, ValueError):
            continue
        found += 1
        if found == MOST_STUDIES:
            return


def _disagreement(a: SettingResult, b: SettingResult) -> float | None:
    """Between the first seeds of two settings."""
    assert a.images is not None
    assert b.images is not None
    if len(a.images.measured) != len(b.images.measured):
        return None
    both = a.images.measured & b.images.measured
    return float((a.images.correct[0, both] != b.images.correct[0, both]).mean()) if both.any() else None


def _variance(result: SettingResult) -> float:
    """Between seeds, without what each seed gets right by luck."""
    assert result.images is not None
    moments = Moments.of(result.images.correct[:, result.images.measured])
    seeds = len(result.seed_top1)
    return float(np.var(moments.mean, ddof=1) - interaction(moments) * seeds)
