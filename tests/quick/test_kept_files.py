"""What a study keeps next to its journal is a copy: a study ends well without it."""

from __future__ import annotations

from pathlib import Path

from nfnet_ray.tracking.runs.files import TRIALS_FILE
from studies.running.kept_files import keep_trials
from tests.tracking.example_study import agc_sweep, write_journal


def test_the_table_of_trials_is_kept_or_left_out(tmp_path: Path) -> None:
    write_journal(tmp_path, agc_sweep())
    keep_trials(tmp_path)
    assert (tmp_path / TRIALS_FILE).read_text().startswith("trial,")
    (tmp_path / TRIALS_FILE).unlink()
    (tmp_path / TRIALS_FILE).mkdir()  # nothing can be written there
    keep_trials(tmp_path)
