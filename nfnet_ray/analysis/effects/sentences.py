"""What the fields do, in the few sentences that follow an answer on the console."""

from __future__ import annotations

from collections.abc import Sequence

from nfnet_ray.analysis.effects.importance import importance, importance_sentence
from nfnet_ray.analysis.effects.response import responses
from nfnet_ray.analysis.tables import StudyTables

_RESPONSES_AT_MOST = 4
_FIELDS_TO_RANK = 3
"""Of two fields the table of all trials shows more than a share of each."""


def the_first(optima: Sequence[str], most: int) -> list[str]:
    """The sentences of the first conditions; if there are more, the last sentence says so."""
    if len(optima) <= most:
        return list(optima)
    more = f"These are the optima under the first {most} of {len(optima):,} conditions; response() in Python has all"
    return [*optima[:most], more]


def effect_sentences(tables: StudyTables) -> list[str]:
    """The optimum of the field in question under each condition, and which of three or more fields matter.

    Only what the study can support: no sentence where there are too few values, where noise can explain the differences
    or where no parabola describes them.
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
    return [sentence for sentence in told if sentence]
