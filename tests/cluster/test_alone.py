"""A study is run by one process at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import Study
from studies.running.study_run import StudyRun


def test_a_second_process_is_refused_until_the_first_has_left(tmp_path: Path) -> None:
    study = Study("twice", "?", Recipe(), {"batch_size": (64,)})
    data = DatasetSummary(tmp_path, 128, 32, ("a", "b"), "", None)
    first, second = (
        StudyRun(study, data, tmp_path / "twice", "", "", study.waiting_state()) for _ in range(2)
    )
    with first._alone(), pytest.raises(UserError, match="another process is running twice"), second._alone():
        pass
    with second._alone():
        pass
