"""``python -m studies replay NAME``: what each rule of early stopping would have cost and missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nfnet_ray.analysis.record import load_study
from nfnet_ray.analysis.replay import replay_caution, replay_sentence
from nfnet_ray.analysis.verdict import EQUAL_WITHIN
from nfnet_ray.command_line.terminal import say
from nfnet_ray.errors import UserError
from nfnet_ray.wording import as_points, duration
from studies.managing.documents import print_document


def replay_study(directory: Path, console: Console, *, as_json: bool) -> None:
    """Prints what rules would have cost, also of a study that was exported.

    Raises UserError if the study's curves do not say so.
    """
    record = load_study(directory)
    try:
        table, caution = record.replay(), replay_caution(record)
    except UserError as error:
        raise UserError(f"{directory.name} cannot be replayed: {error}") from error
    rows = table.to_dict("records")
    equal_within = record.study.get("equal_within", EQUAL_WITHIN)
    sentence = replay_sentence(table, equal_within)
    if as_json:
        document = {"study": directory.name, "rules": rows, "equal_within": equal_within}
        print_document(document | {"sentence": sentence, "left_out": caution})
        return
    say(console, record.study["question"], title=directory.name)
    console.print()
    console.print(_table(rows))
    console.print()
    say(console, sentence)
    if caution:
        say(console, caution)
    say(
        console,
        "Regret: by how much the setting that the rule chooses is less accurate than the study's best, with all seeds "
        "and epochs, the mean over strata; of rules that depend on the order of trials, over random orders with their "
        f"central 95%. Missed: how often it is more than the {as_points(f'{100 * equal_within:g}')} of --equal-within.",
    )


def _table(rows: list[dict[Any, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("rule", no_wrap=True)
    for title in ("epochs", "of all", "training", "same choice", "missed", "regret, points"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        regret = f"{100 * row['regret']:.2f}"
        if row["orders"] > 1:
            regret += f" ({100 * row['regret_low']:.2f} to {100 * row['regret_high']:.2f})"
        table.add_row(
            str(row["rule"]),
            f"{row['epochs']:,.0f}",
            f"{row['share']:.0%}",
            duration(row["train_seconds"]),
            f"{row['same']:.0%}",
            f"{row['missed']:.0%}",
            regret,
        )
    return table
