"""A study is run by one process at a time, and anybody can see whether one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfnet_ray.errors import UserError
from nfnet_ray.tracking.running_lock import LOCK_FILE, alone_with, is_running


def test_a_second_process_is_refused_until_the_first_has_left(tmp_path: Path) -> None:
    study = tmp_path / "twice"
    assert not is_running(study)
    assert not study.exists()
    with alone_with(study):
        assert is_running(study)
        assert is_running(study)
        with pytest.raises(UserError, match="another process is running twice"), alone_with(study):
            pass
        assert is_running(study)
    assert not is_running(study)
    assert (study / LOCK_FILE).exists()
    with alone_with(study):
        pass
