"""Analyses the results of a study, finished or not: tables, the best setting, and the uncertainty of the answer.

>>> from nfnet_ray.analysis import best_setting, load_study                        # doctest: +SKIP
>>> print(best_setting(load_study("agc_sweep")).sentence())                        # doctest: +SKIP
"""

from nfnet_ray.analysis.answer import (
    BestSetting,
    best_per_stratum,
    best_setting,
    time_to_accuracy,
)
from nfnet_ray.analysis.clip_factor import ClipFactorSuggestion, suggest_clip_factors
from nfnet_ray.analysis.clipping import clipping_by_layer, clipping_by_part, clipping_of
from nfnet_ray.analysis.effects.response import Response
from nfnet_ray.analysis.effects.sentences import effect_sentences
from nfnet_ray.analysis.frontier import frontier, time_sentences, time_to_target
from nfnet_ray.analysis.inference.intervals import accuracy_interval, difference_interval, wilson_interval
from nfnet_ray.analysis.record import StudyRecord, load_study
from nfnet_ray.analysis.rungs import (
    BudgetPoint,
    RungSummary,
    budget_points,
    budget_sentences,
    rung_sentences,
    rung_summaries,
)
from nfnet_ray.analysis.setting import SettingResult, setting_results
from nfnet_ray.analysis.signal_propagation import signal_by_depth
from nfnet_ray.analysis.verdict import Contrast

__all__ = [
    "BestSetting",
    "BudgetPoint",
    "ClipFactorSuggestion",
    "Contrast",
    "Response",
    "RungSummary",
    "SettingResult",
    "StudyRecord",
    "accuracy_interval",
    "best_per_stratum",
    "best_setting",
    "budget_points",
    "budget_sentences",
    "clipping_by_layer",
    "clipping_by_part",
    "clipping_of",
    "difference_interval",
    "effect_sentences",
    "frontier",
    "load_study",
    "rung_sentences",
    "rung_summaries",
    "setting_results",
    "signal_by_depth",
    "suggest_clip_factors",
    "time_sentences",
    "time_to_accuracy",
    "time_to_target",
    "wilson_interval",
]
