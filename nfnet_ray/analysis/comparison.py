"""Compares two studies: the differences between them, and the results of the settings that both have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nfnet_ray.analysis.answer import spread_of_single_seeds
from nfnet_ray.analysis.comparability import comparability
from nfnet_ray.analysis.files.together import together
from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.analysis.setting import SettingResult, setting_results
from nfnet_ray.analysis.verdict import contrast, with_seed_spread
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import with_published_values
from nfnet_ray.recipe import Recipe, decisive_values
from nfnet_ray.tracking.labels import ABSENT, short_names
from nfnet_ray.wording import count

Area = Literal["data", "recipe", "space", "search", "seeds", "halving", "versions", "hardware"]


@dataclass(frozen=True)
class Difference:
    """A property that differs between two studies. If ``in_a`` or ``in_b`` is False, that study lacks the property."""

    area: Area
    name: str
    a: Any
    b: Any
    in_a: bool
    in_b: bool


@dataclass(frozen=True)
class SharedSetting:
    """A setting that both studies have finished.

    Attributes:
        point: {dotted name: value} of all fields that at least one of the studies sweeps.
        difference: the mean accuracy in b minus that in a, a fraction; None if the accuracies cannot be compared.
        interval: 95% interval of the difference over images and seeds, paired image by image if the correctness of each
            image is known (:func:`nfnet_ray.analysis.verdict.contrast`). Single seeds show no spread, so the
            comparison's ``assumed_spread`` is used for them.
    """

    point: dict[str, Any]
    a: SettingResult
    b: SettingResult
    difference: float | None
    interval: tuple[float, float] | None

    @property
    def is_within_noise(self) -> bool | None:
        """Whether the interval includes 0."""
        return None if self.interval is None else self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class Comparison:
    """The differences between two studies, and their common settings.

    Attributes:
        why_not: the reasons why accuracies cannot be compared; empty if they can.
        cautions: further differences between settings that do not rule out a comparison of accuracies.
        fields: dotted names of all fields that at least one of the studies sweeps.
        assumed_spread: the standard deviation between seeds, a fraction, for settings with a single seed in either
            study: of earlier studies, or assumed; None if no interval depends on it.
        only_a, only_b: points of the settings that only one study has, finished or not.
        unfinished: points that both studies have and at least one of them has not finished.
    """

    differences: tuple[Difference, ...]
    why_not: tuple[str, ...]
    cautions: tuple[str, ...]
    fields: tuple[str, ...]
    names: Mapping[str, str]
    shared: tuple[SharedSetting, ...]
    assumed_spread: float | None
    unfinished: tuple[dict[str, Any], ...]
    only_a: tuple[dict[str, Any], ...]
    only_b: tuple[dict[str, Any], ...]


def compare_studies(a: StudyRecord, b: StudyRecord) -> Comparison:
    """Compares two studies. A field that only one of them sweeps has the Recipe's value in the other."""
    fields = tuple(dict.fromkeys([*a.fields, *b.fields]))
    why_not = tuple(_why_not_comparable(a, b))
    points_a, points_b = _points(a, fields), _points(b, fields)
    results_a = {_key(_whole(a, result.point, fields)): result for result in setting_results(a)}
    results_b = {_key(_whole(b, result.point, fields)): result for result in setting_results(b)}
    shared, unfinished = [], []
    spread, depends = max(map(spread_of_single_seeds, (a, b))), False
    for key, point in points_a.items():
        if key not in points_b:
            continue
        if key not in results_a or key not in results_b:
            unfinished.append(point)
            continue
        one, other = results_a[key], results_b[key]
        if why_not:
            shared.append(SharedSetting(point, one, other, None, None))
            continue
        found = contrast(other, one)
        interval = found.low, found.high
        if not found.covers_seeds:
            interval = with_seed_spread(found, spread, (len(other.seed_top1), len(one.seed_top1)))
            depends = True
        shared.append(SharedSetting(point, one, other, found.difference, interval))
    return Comparison(
        differences=tuple(_differences(a, b)),
        why_not=why_not,
        cautions=tuple(_cautions(a, b)),
        fields=fields,
        names=short_names(fields),
        shared=tuple(shared),
        assumed_spread=spread if depends else None,
        unfinished=tuple(unfinished),
        only_a=tuple(point for key, point in points_a.items() if key not in points_b),
        only_b=tuple(point for key, point in points_b.items() if key not in points_a),
    )


def _why_not_comparable(a: StudyRecord, b: StudyRecord) -> list[str]:
    why = []
    data_a, data_b = a.study["data"], b.study["data"]
    if data_a["fingerprint"] != data_b["fingerprint"]:
        why.append(
            f"they were measured on different images: {data_a['name']} ({data_a['validation_images']:,} validation "
            f"images) and {data_b['name']} ({data_b['validation_images']:,})"
        )
    if a.study["metric"] != b.study["metric"]:
        why.append(f"one measures {a.study['metric']}, the other one {b.study['metric']}")
    return why


def _cautions(a: StudyRecord, b: StudyRecord) -> Iterator[str]:
    for difference in comparability(together([a, b])).weighty:
        if difference.field.name != "data":  # already the reason why accuracies cannot be compared
            yield difference.sentence()
    if a.study["epochs"] != b.study["epochs"]:
        yield f"trials of A have {count(a.study['epochs'], 'epoch')}, those of B {b.study['epochs']:,}"


def _differences(a: StudyRecord, b: StudyRecord) -> list[Difference]:
    swept = {*a.fields, *b.fields}
    recipes = [
        {
            name: value
            for name, value in decisive_values(record.study["recipe"]).items()
            if name not in swept and name != "seed"
        }
        for record in (a, b)
    ]
    spaces = [
        {name: values for name, values in record.study["space"].items() if name in swept} for record in (a, b)
    ]
    # Fields that one study sweeps and the other one fixes.
    for space, record in zip(spaces, (a, b), strict=True):
        for name in swept - space.keys():
            space[name] = [record.study["recipe"].get(name)]
    data = [{k: v for k, v in record.study["data"].items() if k != "path"} for record in (a, b)]
    versions = [dict(record.study["versions"]) for record in (a, b)]
    # The memory is left out, because the free part of it differs each time.
    hardware = [{k: v for k, v in record.study["hardware"].items() if k != "memory_gib"} for record in (a, b)]
    found: list[Difference] = []
    pairs: list[tuple[Area, Mapping[str, Any], Mapping[str, Any]]] = [
        ("data", data[0], data[1]),
        ("space", spaces[0], spaces[1]),
        ("search", _search(a), _search(b)),
        ("recipe", recipes[0], recipes[1]),
        ("seeds", _seeds(a), _seeds(b)),
        ("halving", {"halving": a.study["halving"]}, {"halving": b.study["halving"]}),
        ("versions", versions[0], versions[1]),
        ("hardware", hardware[0], hardware[1]),
    ]
    for area, one, other in pairs:
        found += [
            Difference(area, name, one.get(name), other.get(name), name in one, name in other)
            for name in dict.fromkeys([*one, *other])
            if _key(one.get(name)) != _key(other.get(name)) or (name in one) != (name in other)
        ]
    return found


def _seeds(record: StudyRecord) -> dict[str, Any]:
    """Returns the seeds of all settings, those of contenders, and the number of reruns of winners."""
    study = record.study
    own = {"more seeds": study.get("more_seeds"), "confirm": study.get("confirm")}
    return {"seeds": study["seeds"], **{name: value for name, value in own.items() if value}}


def _search(record: StudyRecord) -> dict[str, Any]:
    """Describes how the points of a study are found, if it does not try all values of its space."""
    found: dict[str, Any] = {}
    if "points" in record.study:
        found["points"] = f"a list of {count(len(record.study['points']), 'point')}"
    if "search" in record.study:
        found["search"] = record.study["search"]["name"]
        found["settings"] = record.study["search"]["settings"]
    return found


def _points(record: StudyRecord, fields: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns {key: point} of all settings, in the order of the plan; a point has all of ``fields``."""
    points = {}
    for trial in record.trials.to_dict("records"):
        point = _whole(record, {name: trial[name] for name in record.fields}, fields)
        points[_key(point)] = point
    return points


def _whole(record: StudyRecord, point: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Returns the point with all fields. Absent fields have the Recipe's value, or the network's published one."""
    values = {name: point.get(name, ABSENT) for name in fields}
    recipe = record.study["recipe"]
    whole = {name: recipe.get(name) if value is ABSENT else value for name, value in values.items()}
    if None in whole.values():
        published = _published_values(record, whole)
        whole = {name: published.get(name) if value is None else value for name, value in whole.items()}
    return whole


def _published_values(record: StudyRecord, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the Recipe with ``values`` and the network's published values for open ones; empty if these are unknown.

    For example, a network whose dropout is none has its published dropout, which another study may have swept as a
    number.
    """
    try:
        return with_published_values(
            Recipe.from_any_version({**record.study["recipe"], **values})
        ).to_values()
    except UserError:  # a Recipe of a version that has other networks or values
        return {}


def _key(value: Any) -> str:
    """Returns a text that is equal for a journal's lists and Python's tuples, and for 1 and 1.0."""

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {name: plain(part) for name, part in item.items()}
        if isinstance(item, list | tuple):
            return [plain(part) for part in item]
        return float(item) if isinstance(item, int) and not isinstance(item, bool) else item

    return json.dumps(plain(value), sort_keys=True, default=str)
