"""``python -m studies compare A B``: what differs between two studies, and how the settings of both came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nfnet_ray.analysis.comparison import Comparison, Difference, SharedSetting, compare_studies
from nfnet_ray.analysis.record import study_record
from nfnet_ray.command_line.terminal import say
from nfnet_ray.errors import UserError
from nfnet_ray.printable import printable
from nfnet_ray.tracking.conditions.of_trial import COMMIT_DIGITS
from nfnet_ray.tracking.labels import point_label, value_label
from nfnet_ray.wording import count, decimal, in_points, percent
from studies.managing.documents import print_document
from studies.managing.facts import domain_words
from studies.managing.folders import read_folder_or_export
from studies.managing.summary import setting_document

_AREAS = {
    "data": "Data",
    "recipe": "Recipe",
    "space": "Space",
    "search": "Search",
    "seeds": "Seeds",
    "halving": "Halving",
    "versions": "Versions",
    "hardware": "Hardware",
}
_MOST_SETTINGS_NAMED = 3


def compare(directory_a: Path, directory_b: Path, console: Console, *, as_json: bool) -> None:
    """Prints two studies side by side. Raises UserError if they are one, or if a journal cannot be read."""
    if directory_a == directory_b:
        raise UserError(f"{directory_a.name} is compared with itself: name two studies")
    folders = read_folder_or_export(directory_a), read_folder_or_export(directory_b)
    records = [study_record(*folder.known(), with_epochs=False) for folder in folders]
    found = compare_studies(*records)
    names = folders[0].name, folders[1].name
    if as_json:
        print_document(_document(found, names))
        return
    for letter, folder, record in zip("AB", folders, records, strict=True):
        say(console, f"{record.study['question']} ({folder.condition})", title=f"{letter}  {folder.name}")
    console.print()
    if found.differences:
        console.print(_differences_table(found.differences))
    else:
        say(console, "They do not differ: data, Recipe, space, seeds, versions and hardware are the same.")
    console.print()
    if found.shared:
        console.print(_settings_table(found))
        console.print()
    for sentence in _sentences(found, names):
        say(console, sentence)


def _differences_table(differences: Sequence[Difference]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("differs", style="bold", no_wrap=True)
    table.add_column("", overflow="fold")
    table.add_column("A", overflow="fold")
    table.add_column("B", overflow="fold")
    previous = ""
    for difference in differences:
        area = _AREAS[difference.area]
        table.add_row(
            "" if area == previous else area,
            Text(printable(difference.name)),
            Text(_value(difference, difference.a, difference.in_a)),
            Text(_value(difference, difference.b, difference.in_b)),
        )
        previous = area
    return table


def _value(difference: Difference, value: Any, is_there: bool) -> str:
    if not is_there:
        return "–"
    if difference.area == "space":
        return domain_words(value)
    if difference.name == "commit":
        return str(value)[:COMMIT_DIGITS] or "–"
    if isinstance(value, Mapping):
        return printable(", ".join(f"{name} {value_label(part)}" for name, part in value.items()))
    if isinstance(value, list | tuple):
        return printable(", ".join(map(value_label, value)))
    return printable(value_label(value)) or "–"


def _settings_table(found: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in found.fields:
        table.add_column(found.names[name].replace("_", " "), justify="right")
    if not found.fields:
        table.add_column("setting")
    for title in ("A", "B"):
        table.add_column(title, justify="right", no_wrap=True)
    if not found.why_not:
        table.add_column("B − A, points (95%)", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
    for setting in found.shared:
        cells = [Text(printable(value_label(setting.point[name]))) for name in found.fields] or [
            Text("its only one")
        ]
        cells += [Text(percent(setting.a.top1)), Text(percent(setting.b.top1))]
        if not found.why_not:
            cells += [Text(_difference(setting)), _verdict(setting)]
        table.add_row(*cells)
    return table


def _difference(setting: SharedSetting) -> str:
    if setting.difference is None or setting.interval is None:
        return ""
    low, high = setting.interval
    return f"{_points(setting.difference)} ({_points(low)} to {_points(high)})"


def _points(fraction: float) -> str:
    """A difference of accuracies in percentage points, with its sign: ``+1.2``, ``−0.3``."""
    return decimal(100 * fraction, sign=True)


def _verdict(setting: SharedSetting) -> Text:
    if setting.is_within_noise:
        return Text("within noise", "dim")
    return Text("B is better", "green") if (setting.difference or 0) > 0 else Text("A is better", "red")


def _sentences(found: Comparison, names: tuple[str, str]) -> list[str]:
    """The comparison in words."""
    said = []
    if found.why_not:
        said.append(f"Accuracies cannot be compared: {'; '.join(found.why_not)}.")
    elif found.shared:
        said.append(_verdict_sentence(found, names))
        if found.assumed_spread is not None:
            said.append(
                f"Single seeds show no spread between seeds: {in_points(found.assumed_spread)} are assumed for them. "
                "Run with --seeds 3 to measure it."
            )
    if found.cautions:
        said += [f"Note that {caution}." for caution in found.cautions]
    if not found.shared:
        said.append("They have no finished setting in common.")
    for letter, name, points in (("A", names[0], found.only_a), ("B", names[1], found.only_b)):
        if points:
            said.append(f"Only {letter} ({name}) has {_named(points, found)}.")
    if found.unfinished:
        said.append(f"Not finished by both: {_named(found.unfinished, found)}.")
    return said


def _verdict_sentence(found: Comparison, names: tuple[str, str]) -> str:
    better = [setting for setting in found.shared if setting.is_within_noise is False]
    of_b = sum((setting.difference or 0) > 0 for setting in better)
    wins = [(name, number) for name, number in zip(names, (len(better) - of_b, of_b), strict=True) if number]
    if len(found.shared) == 1:
        verdict = f"{wins[0][0]} is better" if wins else "they do not differ by more than the noise"
        return f"In the one setting that both have finished, {verdict}."
    in_all = f"Of the {len(found.shared):,} settings that both have finished"
    if not wins:
        return f"{in_all}, none differs by more than the noise."
    parts = [
        f"{name} is better in {'all' if number == len(found.shared) else f'{number:,}'}"
        for name, number in wins
    ]
    rest = len(found.shared) - len(better)
    noise = f"; {rest:,} {'is' if rest == 1 else 'are'} within noise" if rest else ""
    return f"{in_all}, {' and '.join(parts)}{noise}."


def _named(points: Sequence[Mapping[str, Any]], found: Comparison) -> str:
    shown = "; ".join(
        point_label(point, found.names) or "its only setting" for point in points[:_MOST_SETTINGS_NAMED]
    )
    more = f" and {len(points) - _MOST_SETTINGS_NAMED} more" if len(points) > _MOST_SETTINGS_NAMED else ""
    return f"{count(len(points), 'setting')}: {shown}{more}"


def _document(found: Comparison, names: tuple[str, str]) -> dict[str, Any]:
    return {
        "a": names[0],
        "b": names[1],
        "comparable": not found.why_not,
        "why_not": list(found.why_not),
        "cautions": list(found.cautions),
        "differences": [
            {"area": one.area, "name": one.name, "a": one.a, "b": one.b, "in_a": one.in_a, "in_b": one.in_b}
            for one in found.differences
        ],
        "settings": [
            {
                "setting": setting.point,
                "a": setting_document(setting.a),
                "b": setting_document(setting.b),
                "difference": setting.difference,
                "low": setting.interval and setting.interval[0],
                "high": setting.interval and setting.interval[1],
                "within_noise": setting.is_within_noise,
            }
            for setting in found.shared
        ],
        "unfinished": list(found.unfinished),
        "only_a": list(found.only_a),
        "only_b": list(found.only_b),
        "sentences": _sentences(found, names),
    }
