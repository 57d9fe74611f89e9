"""``python -m studies list``: a row for each study of a storage, newest first."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nfnet_ray.command_line.terminal import say
from nfnet_ray.printable import display_path, printable
from nfnet_ray.wording import count, storage_size
from studies.managing.documents import print_document
from studies.managing.folders import StudyFolder, read_storage
from studies.managing.summary import age_text, hours_text, interval_text, summary_document

STYLES = {
    "running": "bold cyan",
    "finished": "green",
    "interrupted": "yellow",
    "unfinished": "yellow",
    "damaged": "bold red",
    "not begun": "dim",
    "no study": "dim",
}
_LEAST_QUESTION_WIDTH = 20
_LONGEST_LINE_OF_A_NAME = 30
"""Characters; a longer name has several lines. It would take the room of all other columns, in all rows."""
_TITLES = ("study", "state", "trials", "best top-1 (95%)", "hours", "size", "age")
# The columns that a terminal which is too narrow for all does without, the first ones first.
_DISPENSABLE = ("size", "age", "hours", "trials")


def list_studies(storage: Path, tags: Mapping[str, str], console: Console, *, as_json: bool) -> None:
    """Prints the studies of a storage that have all of these tags."""
    folders = [folder for folder in read_storage(storage) if _has_tags(folder, tags)]
    documents = [summary_document(folder) for folder in folders]
    if as_json:
        print_document({"storage": str(storage), "studies": documents})
        return
    if not documents:
        which = f" with {' and '.join(f'{key}={value}' for key, value in tags.items())}" if tags else ""
        say(console, f"No study{which} in {display_path(storage)}.")
        return
    now = time.time()
    console.print(_table(documents, [now - folder.began for folder in folders], console))
    console.print()
    for document in documents:
        if document["problem"]:
            say(console, f"{document['name']}: {document['problem']}.")
    studies = [document for document in documents if document["started"] is not None]
    hours = sum(document["paid_hours"] for document in studies)
    unread = len(documents) - len(studies)
    others = f" and {count(unread, 'other folder')}" if unread else ""
    size = storage_size(sum(document["bytes"] for document in documents))
    say(
        console,
        f"{count(len(studies), 'study')}{others} in {display_path(storage)}: "
        f"{hours_text(hours)} hours of running time, {size}.",
    )
    exports = sum(document["is_export"] for document in documents)
    if exports:
        which = "It is an export" if exports == 1 else f"{exports} of them are exports"
        say(console, f"{which}: to read, not to resume.")


def _has_tags(folder: StudyFolder, tags: Mapping[str, str]) -> bool:
    own = folder.state.tags if folder.state else {}
    return all(own.get(key) == value for key, value in tags.items())


def _table(documents: list[dict[str, Any]], ages: list[float], console: Console) -> Table:
    """The questions take what the other columns leave; on a narrow terminal names and accuracies matter most."""
    rows = [
        (
            printable(document["name"]),
            document["state"],
            _trials(document),
            interval_text(document["best"]),
            hours_text(document["paid_hours"]),
            storage_size(document["bytes"]),
            age_text(age),
        )
        for document, age in zip(documents, ages, strict=True)
    ]
    widths = {
        title: max(map(len, column)) + 2
        for title, column in zip(_TITLES, zip(_TITLES, *rows, strict=True), strict=True)
    }
    widths["study"] = min(widths["study"], _LONGEST_LINE_OF_A_NAME + 2)
    for title in _DISPENSABLE:
        if console.is_terminal and sum(widths.values()) > console.width:
            del widths[title]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in widths:
        justify: Literal["left", "right"] = "left" if title in ("study", "state") else "right"
        is_name = title == "study"
        most = _LONGEST_LINE_OF_A_NAME if is_name else None
        table.add_column(title, justify=justify, no_wrap=not is_name, overflow="fold", max_width=most)
    room = console.width - sum(widths.values())
    if room >= _LEAST_QUESTION_WIDTH:  # on a narrow terminal the numbers matter more
        table.add_column("question", no_wrap=True)
    for document, row in zip(documents, rows, strict=True):
        cells = [Text(cell) for title, cell in zip(_TITLES, row, strict=True) if title in widths]
        cells[1].stylize(STYLES[document["state"]])
        if room >= _LEAST_QUESTION_WIDTH:
            question = printable(document["question"] or "")
            cells.append(Text(question if len(question) <= room else f"{question[: room - 1]}…"))
        table.add_row(*cells)
    return table


def _trials(document: Mapping[str, Any]) -> str:
    """``5/12``, and how many have failed."""
    total = document["trials_planned"]
    if not total:
        return ""
    failed = document["trials"].get("failed", 0)
    return f"{document['trials_ended']}/{total}" + (f", {failed} failed" if failed else "")
