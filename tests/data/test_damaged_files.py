"""Whatever happened to a data set's files: a one-line error, no crash and no wrong data. About 6 s."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.digits import write_digits
from nfnet_ray.data.files.beton import (
    ALLOCATION,
    FIELD_DESCRIPTOR,
    HEADER,
    METADATA,
    PAGE_BYTES,
    Beton,
    BetonWriter,
)
from nfnet_ray.data.files.dataset import check_dataset, open_dataset
from nfnet_ray.data.files.verification import verify
from nfnet_ray.errors import UserError

Decoded = Callable[[Beton, int], np.ndarray]
METADATA_OFFSET = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("pristine") / "digits")


@pytest.fixture
def digits(pristine: Path, tmp_path: Path) -> Path:
    """A data set of one's own to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "digits"))


def refused(path: Path | str, match: str) -> str:
    with pytest.raises(UserError, match=match) as caught:
        open_dataset(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_truncation_anywhere_says_so(digits: Path) -> None:
    path = digits / "train.beton"
    size = path.stat().st_size
    lengths = {size - 1, size - ALLOCATION.itemsize, PAGE_BYTES + 1, PAGE_BYTES, METADATA_OFFSET + 5, 0}
    lengths |= {METADATA_OFFSET, METADATA_OFFSET - 1, HEADER.itemsize, HEADER.itemsize - 1, 1}
    lengths |= set(range(0, size, size // 23))
    for length in sorted(lengths, reverse=True):  # ever shorter
        os.truncate(path, length)
        assert str(path) in refused(digits, f"truncated: .*the file has {length}")


def test_every_flipped_byte_of_header_and_fields_is_found_or_harmless(digits: Path) -> None:
    """Padding and the unused field arguments may change; anything else must be refused by name."""
    path = digits / "train.beton"
    size = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize
    content = path.read_bytes()[:size]
    for offset in range(size):
        in_header, in_field = offset < HEADER.itemsize, (offset - HEADER.itemsize) % FIELD_DESCRIPTOR.itemsize
        overwrite(path, offset, bytes([content[offset] ^ 0xFF]))
        if in_header or in_field < 1 + len("image\0"):
            with pytest.raises(UserError, match=r"train\.beton"):
                Beton.open(path)
        elif in_field >= 17:
            Beton.open(path)
        overwrite(path, offset, content[offset : offset + 1])
    open_dataset(digits)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", 1),
        ("mode", 2),
        ("width", 0),
        ("width", 31),
        ("height", 65535),
        ("data_ptr", 0),
        ("data_ptr", 1 << 63),
    ],
)
def test_damaged_metadata_is_refused(digits: Path, field: str, value: int) -> None:
    path = digits / "train.beton"
    metadata = np.fromfile(path, METADATA, count=5, offset=METADATA_OFFSET)
    metadata["image"][field][4] = value
    overwrite(path, METADATA_OFFSET, metadata.tobytes())
    refused(digits, "sample 4 ")


@pytest.mark.parametrize(
    ("field", "value"), [("sample_id", 0), ("sample_id", 1 << 60), ("ptr", 0), ("size", 0), ("size", 1 << 63)]
)
def test_damaged_allocations_are_refused(digits: Path, field: str, value: int) -> None:
    path = digits / "train.beton"
    offset = int(np.fromfile(path, HEADER, count=1)["alloc_table_ptr"][0])
    table = np.fromfile(path, ALLOCATION, offset=offset)
    table[field][4] = value
    overwrite(path, offset, table.tobytes())
    refused(digits, "sample")


def test_a_changed_label_or_stored_size_does_not_pass_the_manifest(digits: Path) -> None:
    path = digits / "train.beton"
    metadata = np.fromfile(path, METADATA, count=7, offset=METADATA_OFFSET)
    metadata["label"][6] = (metadata["label"][6] + 1) % 10
    overwrite(path, METADATA_OFFSET, metadata.tobytes())
    refused(digits, r"does not belong .* sample 6 has label")


def test_rotten_image_bytes_are_an_error_that_names_the_sample(digits: Path, decoded: Decoded) -> None:
    beton = open_dataset(digits).train.beton
    middle = int(beton.offsets[3] + beton.sizes[3] // 2)
    overwrite(beton.path, middle, b"\xff\xd9" * 20)
    decoded(beton, 2)
    with pytest.raises(UserError, match="sample 3 is damaged"):
        decoded(beton, 3)


def test_a_file_cut_short_while_open_is_an_error_not_a_signal(digits: Path, decoded: Decoded) -> None:
    beton = Beton.open(digits / "train.beton")
    os.truncate(beton.path, PAGE_BYTES + 10)
    with pytest.raises(UserError, match="cut short"):
        decoded(beton, 1000)


def test_an_open_beton_travels_to_another_process_as_its_path(digits: Path, decoded: Decoded) -> None:
    beton = Beton.open(digits / "train.beton")
    copy = pickle.loads(pickle.dumps(beton))
    assert copy._descriptor != beton._descriptor
    np.testing.assert_array_equal(decoded(copy, 5), decoded(beton, 5))


def test_a_part_of_a_data_set_is_told_from_the_whole(digits: Path, tmp_path: Path) -> None:
    """``--data data/mine/train.beton`` missed a ``train.validation.beton``, which no conversion writes."""
    whole = re.escape(str(digits))
    refused(digits / "train.beton", f"a part of the data set {whole}; give that")
    with pytest.raises(UserError, match=f"a part of the data set {whole}; give that"):
        verify(digits / "train.beton", workers=1)
    refused(digits / "validation.beton", f"a part of the data set {whole}; give that")
    for split, name in (("train", "train"), ("validation", "train.validation")):
        for ending in ("beton", "parquet"):
            shutil.copy(digits / f"{split}.{ending}", tmp_path / f"{name}.{ending}")
    assert open_dataset(tmp_path / "train.beton").train.beton.path == tmp_path / "train.beton"
    refused(
        tmp_path / "train.validation.beton", f"a part of the data set {re.escape(str(tmp_path))}/train.beton"
    )


def test_missing_pieces_have_messages_of_their_own(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no images here")
    messages = [
        refused("", "names no data set: set data.path"),
        refused(tmp_path / "nowhere", "no such data set"),
        refused(tmp_path / "nowhere.beton", "no such data set"),
        refused(tmp_path / "empty", "holds neither"),
        refused(tmp_path / "notes.txt", "neither a folder nor"),
    ]
    (digits / "validation.parquet").rename(digits / "elsewhere")
    messages.append(refused(digits, r"its manifest validation\.parquet is missing"))
    (digits / "elsewhere").rename(digits / "validation.parquet")
    (digits / "validation.beton").unlink()
    messages.append(refused(digits, r"validation\.beton: missing"))
    assert len(set(messages)) == len(messages)


def test_swapped_manifests_are_refused(digits: Path) -> None:
    (digits / "train.parquet").rename(digits / "other")
    (digits / "validation.parquet").rename(digits / "train.parquet")
    (digits / "other").rename(digits / "validation.parquet")
    refused(digits, "does not belong to .* 360 samples, the beton has 1437")


def test_a_manifest_of_the_same_shape_but_another_file_is_refused(digits: Path) -> None:
    """Same number of samples and nearly the same file: one image's stored size differs."""
    beton = Beton.open(digits / "train.beton")
    with BetonWriter(digits / "train.beton", capacity=len(beton)) as writer:
        for index in range(len(beton)):
            stored = beton.image_bytes(index).tobytes() + (b"!" if index == 9 else b"")
            size = {"height": int(beton.heights[index]), "width": int(beton.widths[index])}
            writer.append(stored, label=int(beton.labels[index]), **size)
    refused(digits, "sample 9 has stored size")


def test_an_edited_manifest_is_refused(digits: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = digits / "train.parquet"
    table = pq.read_table(path)
    hashes = table.column("hash").to_pylist()
    hashes[0], hashes[1] = hashes[1], hashes[0]
    position = table.schema.get_field_index("hash")
    pq.write_table(table.set_column(position, "hash", pa.array(hashes)), path)
    refused(digits, "its fingerprint was taken of")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"hello" * 50])
def test_a_manifest_that_is_none_is_refused(digits: Path, content: bytes) -> None:
    (digits / "train.parquet").write_bytes(content)
    refused(digits, r"train\.parquet: cannot be read as a manifest")


def test_any_other_parquet_file_is_not_a_manifest(digits: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"label": [1, 2]}), digits / "train.parquet")
    refused(digits, r"train\.parquet: not a manifest")


def test_different_classes_in_the_two_splits_are_refused(digits: Path, image_folder: Path) -> None:
    other = digits.parent / "flowers_out"
    assert main(["convert", str(image_folder), str(other)]) == 0
    for suffix in (".beton", ".parquet"):
        shutil.copy(other / f"validation{suffix}", digits / f"validation{suffix}")
    refused(digits, "different classes")


def test_a_moved_data_set_is_the_same_data_set(pristine: Path, digits: Path) -> None:
    here, there = check_dataset(pristine), check_dataset(digits)
    assert here.path != there.path
    assert here.fingerprint == there.fingerprint
    assert here.uniform_size == (32, 32)


def test_a_writer_that_fails_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    def write_two_where_there_is_room_for_one() -> None:
        with BetonWriter(tmp_path / "half.beton", capacity=1) as writer:
            for _ in range(2):
                writer.append(b"x" * 100, label=0, height=8, width=8)

    with pytest.raises(ValueError, match="made for 1"):
        write_two_where_there_is_room_for_one()
    assert [path.name for path in tmp_path.iterdir()] == ["half.beton.partial"]


def test_a_writer_that_is_killed_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    path = tmp_path / "killed.beton"
    writer = BetonWriter(path, capacity=3)
    writer.append(b"x" * 100, label=0, height=8, width=8)
    writer._file.flush()
    assert not path.exists()
    with pytest.raises(UserError, match="version 0"):
        Beton.open(tmp_path / "killed.beton.partial")
    writer._file.close()
