"""Writes the settings of a study as a LaTeX table, with the rules of booktabs."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfnet_ray.analysis.answer import best_per_stratum
from nfnet_ray.analysis.setting import SettingResult, setting_results, trials_by_setting
from nfnet_ray.tracking.labels import ABSENT, value_label
from nfnet_ray.whole_file import whole_file
from nfnet_ray.wording import count

if TYPE_CHECKING:
    from nfnet_ray.analysis.record import StudyRecord

SETTINGS_FILE = "settings.tex"
_NOTHING = "--"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "–": _NOTHING,
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def settings_latex(record: StudyRecord, caption: str | None = None, label: str | None = None) -> str:
    r"""Returns a ``tabular`` with a row for each setting; with a caption or a label, it is within a ``table``.

    The columns are the swept fields, the mean accuracy over seeds after the last epoch in percent, its 95% interval,
    the number of seeds, and the mean training time of a trial in seconds. The best setting under each condition is
    bold. A setting that cannot be compared with the others, because one of its trials was stopped, diverged or failed,
    has no accuracy, and a last column states the reason. The document needs ``\usepackage{booktabs}``.
    """
    import pandas as pd

    results = {_key(record, result.point): result for result in setting_results(record)}
    best = {_key(record, answer.best.point) for answer in best_per_stratum(record)}
    rows = []
    for point, trials in trials_by_setting(record):
        key = _key(record, point)
        rows.append(
            {
                **{_heading(record, field): _escaped(value_label(point[field])) for field in record.fields},
                **_measured(results.get(key), trials, is_best=key in best),
                "": "" if key in results else _escaped(_fate(trials)),
            }
        )
    table = pd.DataFrame(rows)
    if not any(table[""]):
        table = table.drop(columns="")
    columns = ["l" if name == "" else _alignment(record, name) for name in table.columns]
    text: str = table.to_latex(
        index=False, escape=False, column_format="".join(columns), caption=caption, label=label
    )
    return text


def write_latex(record: StudyRecord, folder: Path) -> Path:
    """Writes ``settings.tex``, with the study's answer as a comment, and returns its path. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = [answer.sentence() for answer in best_per_stratum(record)]
    comments = [
        f"% {line}\n" for line in (rf"{record.study['name']}; needs \usepackage{{booktabs}}", *answers)
    ]
    path = folder / SETTINGS_FILE
    with whole_file(path, "w") as file:
        file.write("".join(comments) + settings_latex(record))
    return path


def _key(record: StudyRecord, point: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(point[field] for field in record.fields)


def _measured(
    result: SettingResult | None, trials: Sequence[Mapping[Hashable, Any]], *, is_best: bool
) -> dict[str, str]:
    seconds = [float(trial["train_seconds"]) for trial in trials if trial["state"] == "finished"]
    known = [value for value in seconds if not math.isnan(value)]
    top1 = interval = _NOTHING
    if result is not None:
        top1, interval = f"{100 * result.top1:.1f}", f"{100 * result.low:.1f}--{100 * result.high:.1f}"
    return {
        r"top-1 (\%)": rf"\textbf{{{top1}}}" if is_best else top1,
        r"95\% interval": interval,
        "seeds": str(len(seconds)),
        "train s": f"{sum(known) / len(known):,.1f}" if known and result is not None else _NOTHING,
    }


def _fate(trials: Sequence[Mapping[Hashable, Any]]) -> str:
    """Describes the end of the trial with the fewest epochs, such as ``stopped after epoch 2``, with all states."""
    ended = [trial for trial in trials if trial["state"] != "finished"] or list(trials)
    states = ", ".join(dict.fromkeys(str(trial["state"]) for trial in ended))
    epochs = min(int(trial["epochs"]) for trial in ended)
    return f"{states} after {count(epochs, 'epoch')}" if epochs else states


def _alignment(record: StudyRecord, name: str) -> str:
    """Aligns numbers right and words left; a field with numbers and ``none`` counts as numbers."""
    fields = {_heading(record, field): field for field in record.fields}
    if name not in fields:
        return "r"
    values = [value for value in record.trials[fields[name]] if value is not None and value is not ABSENT]
    return (
        "r"
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        else "l"
    )


def _heading(record: StudyRecord, field: str) -> str:
    return _escaped(record.names[field].replace("_", " "))


def _escaped(text: str) -> str:
    return re.sub("|".join(map(re.escape, _SPECIAL)), lambda found: _SPECIAL[found.group()], text)
