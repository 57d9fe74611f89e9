"""Writes a study's tables of trials and epochs to files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nfnet_ray.analysis.tables import StudyTables
from nfnet_ray.tracking.labels import ABSENT
from nfnet_ray.whole_file import whole_file

if TYPE_CHECKING:
    import pandas as pd

TRIALS_FILE, EPOCHS_FILE = "trials.csv", "epochs.csv"


def trials_for_files(tables: StudyTables) -> pd.DataFrame:
    """Returns the table of trials, with ``none`` for swept fields that are None, and a dash for fields not swept."""
    table = tables.trials.copy()
    for name in tables.fields:
        table[name] = [
            "none" if value is None else value.value if value is ABSENT else value for value in table[name]
        ]
    return table


def epochs_for_files(tables: StudyTables) -> pd.DataFrame:
    """Returns trials, epochs and the measured metrics; the swept fields are in the table of trials."""
    return tables.epochs.drop(columns=[*tables.fields, "seed"]).dropna(axis="columns", how="all")


def write_csv(tables: StudyTables, folder: Path) -> list[Path]:
    """Writes ``trials.csv`` and ``epochs.csv``, numbers with 6 significant digits. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table, name in ((trials_for_files(tables), TRIALS_FILE), (epochs_for_files(tables), EPOCHS_FILE)):
        with whole_file(folder / name) as file:
            file.write(_csv(table))
        written.append(folder / name)
    return written


def trials_csv(tables: StudyTables) -> bytes:
    """Returns the table of trials as CSV."""
    return _csv(trials_for_files(tables))


def write_parquet(tables: StudyTables, folder: Path) -> list[Path]:
    """Writes ``trials.parquet`` and ``epochs.parquet``, numbers with all digits. Raises OSError.

    The column of a field that has both numbers and words, such as ``none``, is text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table, name in ((trials_for_files(tables), TRIALS_FILE), (epochs_for_files(tables), EPOCHS_FILE)):
        for field in tables.fields:
            if field in table and table[field].dtype.kind == "O":
                table[field] = table[field].map(str)
        path = (folder / name).with_suffix(".parquet")
        with whole_file(path) as file:
            table.to_parquet(file, index=False)
        written.append(path)
    return written


def write_tables(tables: StudyTables, folder: Path) -> list[Path]:
    """Writes both tables as CSV and as Parquet, and returns the paths. Raises OSError."""
    return [*write_csv(tables, folder), *write_parquet(tables, folder)]


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, float_format="%.6g", na_rep="").encode()
