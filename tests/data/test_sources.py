"""Which kind of source files and folders are taken for."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources.choose import open_source
from nfnet_ray.errors import UserError

from .conftest import refusal, tar_of


def test_a_table_or_archive_beside_class_folders_is_not_the_source(image_folder: Path) -> None:
    pq.write_table(pa.table({"path": ["rose/0.jpg"], "label": [1]}), image_folder / "index.parquet")
    (image_folder / "photos.tar").write_bytes(tar_of({"a.txt": b"hello"}))
    assert open_source([image_folder], "label").class_names == ("aster", "daisy", "rose")


@pytest.mark.parametrize("name", ["pipe", "list.csv", "a.parquet", "ILSVRC2012_img_train.tar"])
def test_a_source_that_is_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a named pipe; give a file or a folder"):
        open_source([tmp_path / name], "label")
    with pytest.raises(UserError, match=r"no class folders|none of its tar files"):
        open_source([tmp_path], "label")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt"], "neither .parquet, .csv nor .tar"),
        (["a.txt", "b.txt"], "several SOURCEs are understood only if"),
        (["a.tar"], "not a tar file, or an empty one"),
    ],
)
def test_other_files_get_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], message: str
) -> None:
    for name in names:
        (tmp_path / name).write_text("hello")
    error = refusal(tmp_path, capsys, *(tmp_path / name for name in names))
    assert message in error
