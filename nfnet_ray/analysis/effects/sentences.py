"""Describes the effects of the fields in the few sentences that follow an answer on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nfnet_ray.analysis.effects.importance import importance, importance_sentence
from nfnet_ray.analysis.effects.marginal import pairwise_effects
from nfnet_ray.analysis.effects.response_fit import responses
from nfnet_ray.analysis.tables import StudyTables

if TYPE_CHECKING:
    import pandas as pd

_RESPONSES_AT_MOST = 4
_FIELDS_TO_RANK = 3
"""The least number of fields to rank. For two fields, the table of all trials is more informative than shares."""
_INTERACTION = 0.01
"""The probability that some pair of fields is reported to interact if none does; as for products in a response."""


def the_first(optima: Sequence[str], most: int) -> list[str]:
    """Returns the sentences of the first conditions; if there are more, the last sentence says so."""
    if len(optima) <= most:
        return list(optima)
    more = f"These are the optima under the first {most} of {len(optima):,} conditions; response() in Python has all"
    return [*optima[:most], more]


def effect_sentences(tables: StudyTables) -> list[str]:
    """Describes the optimum of the field in question per condition, which fields matter, and which two interact.

    Fields are ranked if there are at least three. Only supported statements are made: there is no sentence if there are
    too few values, if noise can explain the differences, or if no parabola describes them.
    """
    if not tables.fields:
        return []
    told = [
        one.sentence()
        for one in responses(tables, tables.fields[0])
        if one.is_end and one.kind in ("inside", "edge")
    ]
    told = the_first(told, _RESPONSES_AT_MOST)
    if len(tables.fields) >= _FIELDS_TO_RANK:
        told.append(importance_sentence(importance(tables), tables.names))
        told.append(interaction_sentence(pairwise_effects(tables), tables.names))
    return [sentence for sentence in told if sentence]


def interaction_sentence(table: pd.DataFrame, names: Mapping[str, str]) -> str:
    """Names the two fields with the clearest interaction according to :func:`pairwise_effects`.

    Empty if noise can explain all interactions.
    """
    columns = ["field_a", "field_b", "p_value"]
    pairs = table[columns].drop_duplicates().dropna().sort_values("p_value", kind="stable")
    clear = int((pairs["p_value"] < _INTERACTION / max(1, len(pairs))).sum())  # Bonferroni
    if not clear:
        return ""
    first = pairs.iloc[0]
    of = f", the clearest of {len(pairs)} pairs of fields" if len(pairs) > 1 else ""
    return f"What {names[first['field_a']]} does depends on {names[first['field_b']]} (p = {first['p_value']:.1g}{of})"
