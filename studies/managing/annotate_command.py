"""``python -m studies note`` and ``tag``: notes and tags for a study that is not running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from dashboards.report import REPORT_FILE, renewed_report
from nfnet_ray.command_line.terminal import say, waiting
from nfnet_ray.study.annotations import Annotations
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool
from nfnet_ray.tracking.destination.uri import without_password
from nfnet_ray.tracking.events import study_annotated
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal
from nfnet_ray.tracking.running_lock import alone_with
from studies.managing.folders import read_folder

EXIT_NOT_RECORDED = 3  # as that of a study
_DELIVERY_SECONDS, _UNANSWERED_SECONDS = 60.0, 10.0


def annotate(directory: Path, notes: Sequence[str], tags: Mapping[str, str], console: Console) -> int:
    """Adds notes and tags to the journal, the report and MLflow; those that are there already are not repeated.

    Returns:
        The exit code: 0, or 3 if MLflow could not be told or the report could not be written.

    Raises:
        UserError: the study is running, or its journal cannot be read.
    """
    read_folder(directory).known()  # a folder without a sound journal is not to be given a lock
    with alone_with(directory):
        state, _ = read_folder(directory, is_ours=True).known()
        new = Annotations(notes, tags).beyond(state)
        if not new:
            say(console, f"{directory.name} has that already.")
            return 0
        with Journal(directory / JOURNAL_FILE) as journal:
            journal.append(study_annotated(new.notes, new.tags))
        places = ["its journal"]
        trouble = ""
        if (directory / REPORT_FILE).exists():
            trouble = renewed_report(directory)
            places += [] if trouble else ["its report"]
        spool = Spool(directory / JOURNAL_FILE, directory / SPOOL_FILE)
        if not spool.tracked.study_run_id:
            missing = 0
        elif not (missing := _deliver(spool, console)):
            places.append("MLflow")
        where = f"{', '.join(places[:-1])} and {places[-1]}" if len(places) > 1 else places[0]
        said = ["the note"] if new.notes else []
        said += [f"{key}={value}" for key, value in new.tags.items()]
        say(console, f"{directory.name} now has {', '.join(said)} in {where}.")
        if trouble:
            say(console, f"Its report has not: {trouble}")
        return EXIT_NOT_RECORDED if missing or trouble else 0


def _deliver(spool: Spool, console: Console) -> int:
    """Tells MLflow; how many events it has not taken, which is said."""
    uri = spool.tracked.tracking_uri
    with waiting(console, "Telling MLflow …"):
        sink = MLflowSink(uri, spool)
        sink.start()
        missing = sink.close(_DELIVERY_SECONDS, _UNANSWERED_SECONDS)
    if missing:
        say(
            console,
            f"MLflow at {without_password(uri)} could not be told ({sink.status.removeprefix('MLflow: ')}); the next"
            " note or tag, or resuming the study, delivers it.",
        )
    return missing
