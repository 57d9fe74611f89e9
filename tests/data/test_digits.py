"""The digits are a data set that anybody gets in a second, the same everywhere. About 3 s."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.digits import write_digits
from nfnet_ray.data.files.beton import Beton
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.errors import UserError

REPOSITORY = Path(__file__).parents[2]


def test_counts_classes_and_split(tmp_path: Path, decoded: Callable[[Beton, int], np.ndarray]) -> None:
    dataset = open_dataset(write_digits(tmp_path / "digits"))
    assert (len(dataset.train), len(dataset.validation)) == (1437, 360)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.uniform_size == (32, 32)
    both = np.bincount(dataset.train.beton.labels) + np.bincount(dataset.validation.beton.labels)
    share = np.bincount(dataset.validation.beton.labels) / both
    assert np.all(np.abs(share - 0.2) < 0.01)  # stratified
    assert not set(dataset.train.manifest.sources()) & set(dataset.validation.manifest.sources())
    # A zero's middle is empty and a one's is not: images and labels belong together.
    middles = np.array([decoded(dataset.train.beton, index)[12:20, 14:18].mean() for index in range(1437)])
    labels = dataset.train.beton.labels
    assert middles[labels == 0].mean() < 60 < 180 < middles[labels == 1].mean()


def test_the_same_bytes_again_and_nothing_done_twice(tmp_path: Path) -> None:
    first, second = write_digits(tmp_path / "first"), write_digits(tmp_path / "second")
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes()
    before = [path.stat().st_mtime_ns for path in sorted(first.iterdir())]
    write_digits(first)
    assert [path.stat().st_mtime_ns for path in sorted(first.iterdir())] == before


def test_processes_that_write_it_at_once_all_succeed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep", "digits", str(tmp_path / "digits")]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(outputs) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        write_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
