"""Writes a study's report: one HTML file with the question, the answer, and how certain the answer is.

    python -m dashboards.report STUDY [STUDY …] [--output FILE] [--figures DIR] [--data DIR]
    python -m dashboards.report STUDY --watch [--port 5050]

STUDY is a study's folder, its name under runs, or a folder that ``python -m studies export`` wrote; the report is put
there as ``report.html``. The file is self-contained: it can be mailed, archived, and read without a network. Studies
that are still running, were interrupted, or in which no trial finished have a report, too.

``--figures`` also writes each of the charts as SVG and PDF, as wide as the column of a paper; ``--data`` the tables of
trials and epochs as CSV and Parquet, and a table of the settings for LaTeX. ``--watch`` serves the report on this
machine instead of writing it, and updates it while the study runs, here or on other machines that share the storage.

For several studies one page is written, ``comparison.html``: their curves on common axes if they can be compared, with
the differences between them (:mod:`nfnet_ray.analysis.comparability`).
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first, as the following imports take seconds

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from dashboards.page import render_page
from dashboards.report_facts import report_facts
from dashboards.several.facts import several_facts
from dashboards.study_results import StudyResults
from dashboards.watch import FIRST_PORT, WatchedPage, watch
from nfnet_ray.analysis import StudyRecord, load_study
from nfnet_ray.analysis.files.latex import write_latex
from nfnet_ray.analysis.files.tables import write_tables
from nfnet_ray.analysis.record import study_folder
from nfnet_ray.command_line.arguments import given_path, whole_number
from nfnet_ray.command_line.exit_code import exit_code_of
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.errors import UserError
from nfnet_ray.places import in_words, lost_place, remedy_for
from nfnet_ray.printable import display_path, interpreter, shell_command
from nfnet_ray.tracking.journal import newer_version, not_understood
from nfnet_ray.tracking.study_directory import find_study
from nfnet_ray.whole_file import whole_file
from nfnet_ray.wording import count

REPORT_FILE = "report.html"
COMPARISON_FILE = "comparison.html"

PROGRAM = "python -m dashboards.report"


def write_report(study_directory: Path, destination: Path | None = None) -> Path:
    """Writes the report of the study in ``study_directory`` and returns its path.

    The journal may grow meanwhile, and several processes or threads may write the same report: the destination is
    replaced atomically, so a reader never sees half a page. The page of a study that has not ended reloads itself.

    Args:
        destination: the file to write; by default ``report.html`` in the study's folder.

    Raises:
        UserError: the folder has no readable study, or ``destination`` cannot be written.
    """
    study_directory = study_folder(study_directory)
    record = load_study(study_directory)
    try:
        with _one_thread():
            page = _page(record, time.time())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        versions = [record.study.get("versions", {}).get("nfnet_ray", "")]
        if newer_version(versions) is None:
            raise
        raise not_understood(f"the journal of {record.study['name']}", versions, repr(error)) from error
    return _write(page, destination or study_directory / REPORT_FILE)


def renewed_report(study_directory: Path) -> str:
    """Writes the report of a study whose journal is complete; returns "", or why it failed and how to write it later.

    A missing report loses no results, so the caller continues in any case.
    """
    try:
        write_report(study_directory)
    except UserError as error:
        command = [interpreter(), *PROGRAM.split()[1:], display_path(study_directory)]
        return f"{error}; then write it with:  {shell_command(command)}"
    return ""


def write_comparison(studies: Sequence[str | Path], destination: Path | None = None) -> Path:
    """Writes the page of several studies, given by name or folder, and returns its path.

    Args:
        destination: the file to write; by default ``comparison.html`` in the current folder.

    Raises:
        UserError: a study cannot be read or is given twice, or ``destination`` cannot be written.
    """
    with _one_thread():
        page = several_facts(load_study(studies))
    return _write(
        render_page("several.html.jinja", page.charts, looks=page.looks, page=page),
        destination or Path(COMPARISON_FILE),
    )


def _one_thread() -> AbstractContextManager[object]:
    """Limits NumPy's linear algebra to one thread: matrices are small, and a study may need the other cores."""
    from threadpoolctl import ThreadpoolController

    limit: AbstractContextManager[object] = (
        ThreadpoolController().select(internal_api="openblas").limit(limits=1)
    )
    return limit


def _write(page: str, destination: Path) -> Path:
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        # The driver of a running study and a person may write at the same time.
        with whole_file(destination, "w", sync=False, several_writers=True) as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"{destination} {_not_written(error)}") from error
    return destination


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog=PROGRAM,
        description="Write the report of a study as one HTML file, or one page that compares several studies.",
        epilog="""\
examples:
  python -m dashboards.report first_try
  python -m dashboards.report first_try --watch
  python -m dashboards.report first_try second_try --output comparison.html
  python -m dashboards.report first_try --figures figures --data tables""",
    )
    parser.add_argument(
        "study",
        nargs="+",
        metavar="STUDY",
        help="a study's folder, its name under runs (in $NFNET_RAY_HOME, if that is set), or an exported study; several"
        " are compared on one page",
    )
    parser.add_argument(
        "--output",
        type=given_path,
        metavar="FILE",
        help=f"the file to write (default: {REPORT_FILE} in the study's folder; of several studies "
        f"{COMPARISON_FILE} in the current folder)",
    )
    parser.add_argument(
        "--figures",
        type=given_path,
        metavar="DIR",
        help="also write each chart as SVG and PDF, as wide as a paper's column",
    )
    parser.add_argument(
        "--data",
        type=given_path,
        metavar="DIR",
        help="also write the tables of trials and epochs as CSV and Parquet, and that of settings for LaTeX",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="write no file, but serve the report on this machine until Ctrl-C, and renew it while the study runs",
    )
    parser.add_argument(
        "--port",
        type=whole_number(1, 65535),
        default=FIRST_PORT,
        metavar="PORT",
        help="with --watch: the first port to try (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    return exit_code_of(PROGRAM, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if len(options.study) > 1:
        if options.watch:
            raise UserError("--watch serves the report of one study: name one, or leave out --watch")
        print(write_comparison(options.study, options.output))
        _write_files(load_study(options.study), options)
        return
    if options.watch:
        if options.output or options.figures or options.data:
            raise UserError("--watch writes nothing: leave out --output, --figures and --data")
        with suppress(KeyboardInterrupt):
            watch(watched_page(find_study(options.study[0])), options.port)
        return
    directory = study_folder(options.study[0])
    print(write_report(directory, options.output))
    if options.figures or options.data:
        _write_files(load_study(directory), options)


def _write_files(record: StudyRecord, options: argparse.Namespace) -> None:
    if options.figures:
        _write_beside(options.figures, lambda: StudyResults.of(record).save_figures(options.figures))
    if options.data:
        _write_beside(
            options.data, lambda: [*write_tables(record, options.data), write_latex(record, options.data)]
        )


def watched_page(directory: Path) -> WatchedPage:
    """Returns the report of the study in ``directory``, which is rebuilt whenever its journal has grown."""
    return WatchedPage(lambda: _page(load_study(directory), time.time()), [directory])


def _write_beside(folder: Path, write: Callable[[], list[Path]]) -> None:
    """Writes files to a folder and prints their number. Raises UserError if they cannot be written."""
    try:
        written = write()
    except OSError as error:
        raise UserError(f"{folder} {_not_written(error)}") from error
    print(f"{folder}: {count(len(written), 'file')}")


def _not_written(error: OSError) -> str:
    remedy = f"{remedy_for(error)}, or " if lost_place(error) else ""
    return f"cannot be written: {in_words(error)}; {remedy}choose another place"


def _page(record: StudyRecord, now: float) -> str:
    report = report_facts(record, now)
    return render_page(
        "report.html.jinja",
        report.charts,
        looks=report.looks,
        shades=report.shades,
        written=now if record.state == "unfinished" else None,
        report=report,
    )


if __name__ == "__main__":
    sys.exit(main())
