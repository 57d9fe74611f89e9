"""`verify` finds every changed byte of a data set and says whose it is. About 5 s."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from nfnet_ray.data.files.beton import (
    ALLOCATION,
    FIELD_DESCRIPTOR,
    HEADER,
    JPEG,
    METADATA,
    RAW,
    Beton,
    BetonWriter,
)
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.files.manifest import hash_stored, read_manifest, write_manifest
from nfnet_ray.data.files.verification import Damage, check_all, verify
from nfnet_ray.errors import UserError

CLASS_NAMES = ("aster", "daisy", "rose")
METADATA_OFFSET = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize
FIELD_NAME = 17  # bytes of type and name at the start of a field's descriptor; its arguments are unused
COUNTS = {"train": 24, "validation": 6}


def write_split(folder: Path, split: str, encode: Callable[..., bytes], first: int) -> None:
    """Every third image is raw pixels, the others are JPEGs."""
    beton_path = folder / f"{split}.beton"
    sources, hashes = [], []
    with BetonWriter(beton_path, capacity=COUNTS[split]) as writer:
        for number in range(first, first + COUNTS[split]):
            mode = RAW if number % 3 == 0 else JPEG
            stored = bytes([number]) * (3 * 10 * 12) if mode == RAW else encode(number, size=(12, 10))
            writer.append(stored, label=number % 3, height=10, width=12, mode=mode)
            sources.append(f"{CLASS_NAMES[number % 3]}/{number:03}.jpg")
            hashes.append(hash_stored(stored))
    write_manifest(
        folder / f"{split}.parquet",
        beton=Beton.open(beton_path),
        class_names=CLASS_NAMES,
        sources=sources,
        hashes=hashes,
        settings={"source": "test", "jpeg_quality": 90},
    )


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, encode: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "flowers"
    folder.mkdir()
    write_split(folder, "train", encode, 0)
    write_split(folder, "validation", encode, 100)
    return folder


@pytest.fixture
def flowers(pristine: Path, tmp_path: Path) -> Path:
    """A data set of one's own to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "flowers"))


def flip(path: Path, offset: int, mask: int = 0xFF) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        (before,) = file.read(1)
        file.seek(offset)
        file.write(bytes([before ^ mask]))


def found(folder: Path) -> list[Damage]:
    return verify(folder, workers=2).damages


def source_of(folder: Path, split: str, index: int) -> str:
    return read_manifest(folder / f"{split}.parquet").sources()[index]


def test_a_data_set_as_it_was_written_passes(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--decode"], ["--workers", "1"]):
        assert main(["verify", str(flowers), *flags]) == 0
        out, _ = capsys.readouterr()
        assert "checked 30 images" in out
        assert out.endswith("every byte is as it was written\n")
    assert verify(flowers, workers=2).damages == []
    check_all(flowers, workers=2)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_one_bit_in_any_image_is_found_and_named(flowers: Path, split: str) -> None:
    """A random bit of every image, one after the other; then of all of them at once."""
    beton = open_dataset(flowers).train.beton if split == "train" else open_dataset(flowers).validation.beton
    generator = np.random.default_rng(0)
    offsets = beton.offsets + generator.integers(0, beton.sizes)
    for index, offset in enumerate(offsets):
        mask = 1 << int(generator.integers(8))
        flip(beton.path, int(offset), mask)
        damages = found(flowers)
        assert [(damage.split, damage.index) for damage in damages] == [(split, index)]
        assert damages[0].source == source_of(flowers, split, index)
        flip(beton.path, int(offset), mask)
    assert found(flowers) == []
    for offset in offsets:
        flip(beton.path, int(offset))
    assert [damage.index for damage in found(flowers)] == list(range(len(beton)))


def test_every_byte_of_the_metadata_is_found_and_named(flowers: Path) -> None:
    """Label, mode, width, height and place of a sample; only the bytes that align the records mean nothing."""
    path = flowers / "train.beton"
    meaningful = sum(METADATA["image"][name].itemsize for name in ("mode", "width", "height", "data_ptr"))
    label_offset = METADATA.fields["label"][1] if METADATA.fields else 0
    for index in (0, 1, 23):  # raw, JPEG, the last
        for byte in range(METADATA.itemsize):
            offset = METADATA_OFFSET + index * METADATA.itemsize + byte
            flip(path, offset, 0x01)
            damages = found(flowers)
            if meaningful <= byte < label_offset:
                assert damages == []
            else:
                assert {damage.index for damage in damages} == {index}, byte
                assert {damage.source for damage in damages} == {source_of(flowers, "train", index)}
            flip(path, offset, 0x01)
    assert found(flowers) == []


def test_every_byte_of_the_allocation_table_is_found(flowers: Path) -> None:
    path = flowers / "train.beton"
    table_offset = path.stat().st_size - COUNTS["train"] * ALLOCATION.itemsize
    for index in (0, 13):
        for byte in range(ALLOCATION.itemsize):
            offset = table_offset + index * ALLOCATION.itemsize + byte
            flip(path, offset)
            damages = found(flowers)
            assert index in {damage.index for damage in damages}, byte
            assert source_of(flowers, "train", index) in {damage.source for damage in damages}
            flip(path, offset)
    assert found(flowers) == []


def test_every_byte_of_header_and_field_names_is_found(flowers: Path) -> None:
    path = flowers / "train.beton"
    places = list(range(HEADER.itemsize))
    for number in range(2):
        start = HEADER.itemsize + number * FIELD_DESCRIPTOR.itemsize
        places += range(start, start + 1 + len("image\0"))
    for offset in places:
        flip(path, offset)
        assert [(damage.split, damage.index) for damage in found(flowers)] == [("train", None)], offset
        flip(path, offset)
    assert found(flowers) == []


def everything_in(path: Path) -> tuple[object, ...]:
    manifest = read_manifest(path)
    return (
        manifest.class_names, dict(manifest.settings), manifest.beton_bytes, manifest.fingerprint, manifest.sources(),
        manifest.labels.tolist(), manifest.heights.tolist(), manifest.widths.tolist(), manifest.sizes.tolist(),
        manifest.hashes.to_pylist(),
    )  # fmt: skip


def test_a_changed_byte_of_a_manifest_is_found_or_changes_nothing_that_is_read(flowers: Path) -> None:
    """Parquet has statistics, paddings and an author's name that nothing here reads."""
    path = flowers / "train.parquet"
    before = everything_in(path)
    harmless = 0
    places = np.random.default_rng(1).choice(path.stat().st_size, 400, replace=False)
    for offset in map(int, places):
        flip(path, offset)
        damages = found(flowers)
        if not damages:
            assert everything_in(path) == before, offset
            harmless += 1
        assert {damage.split for damage in damages} <= {"train"}
        flip(path, offset)
    assert harmless < len(places) / 2
    assert found(flowers) == []


def test_a_changed_name_is_found(flowers: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = flowers / "train.parquet"
    table = pq.read_table(path)
    names = table.column("source").to_pylist()
    names[7] = "elsewhere.jpg"
    pq.write_table(table.set_column(table.schema.get_field_index("source"), "source", pa.array(names)), path)
    open_dataset(flowers)  # training rests on no name
    assert ["the images' names" in damage.reason for damage in found(flowers)] == [True]


def test_changed_settings_are_found(flowers: Path) -> None:
    path = flowers / "train.parquet"
    content = path.read_bytes()
    assert content.count(b'"jpeg_quality": 90') == 1
    path.write_bytes(content.replace(b'"jpeg_quality": 90', b'"jpeg_quality": 80'))
    assert "settings" in found(flowers)[0].reason


def test_truncation_is_found(flowers: Path) -> None:
    for name, share in (("train.beton", 0.5), ("validation.beton", 0.999), ("validation.parquet", 0.7)):
        path = flowers / name
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        damages = found(flowers)
        assert [(damage.path, damage.index) for damage in damages] == [(path, None)]
        path.write_bytes(content)
    assert found(flowers) == []


def test_swapped_headers_manifests_and_betons_are_found(flowers: Path) -> None:
    train, validation = flowers / "train.beton", flowers / "validation.beton"
    contents = train.read_bytes(), validation.read_bytes()
    train.write_bytes(contents[1][: HEADER.itemsize] + contents[0][HEADER.itemsize :])
    assert [(damage.split, damage.index) for damage in found(flowers)] == [("train", None)]
    train.write_bytes(contents[1])
    validation.write_bytes(contents[0])
    assert {(damage.split, damage.index) for damage in found(flowers)} == {
        ("train", None),
        ("validation", None),
    }
    shutil.copy(flowers / "train.parquet", flowers / "validation.parquet")
    assert {damage.split for damage in found(flowers)} == {"train"}


def test_a_manifest_of_other_images_of_the_same_sizes_is_found(flowers: Path) -> None:
    """Same labels, same sizes: only the hashes tell, and training would never know."""
    beton = open_dataset(flowers).train.beton
    stored = [beton.image_bytes(index).tobytes() for index in range(len(beton))]
    stored[0], stored[3] = stored[3], stored[0]  # raw, of one class
    with BetonWriter(flowers / "train.beton", capacity=len(beton)) as writer:
        for index, image in enumerate(stored):
            writer.append(image, label=index % 3, height=10, width=12, mode=int(beton.modes[index]))
    open_dataset(flowers)
    assert [damage.index for damage in found(flowers)] == [0, 3]


def test_raw_pixels_said_to_be_a_jpeg_are_found(flowers: Path) -> None:
    """No hash and no size tells: the manifest does not list the mode."""
    flip(flowers / "train.beton", METADATA_OFFSET + 6 * METADATA.itemsize, RAW ^ JPEG)
    open_dataset(flowers)
    assert [(damage.index, "raw pixels" in damage.reason) for damage in found(flowers)] == [(6, True)]


def test_what_was_written_but_never_decoded_is_found_by_decoding(
    flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file whose manifest was made of bytes that are no picture: the hashes agree."""
    beton = open_dataset(flowers).train.beton
    manifest = read_manifest(flowers / "train.parquet")
    flip(beton.path, int(beton.offsets[4] + beton.sizes[4] - 30))  # in the compressed data
    flip(beton.path, int(beton.offsets[4] + beton.sizes[4] - 20))
    hashes = [hash_stored(beton.image_bytes(index)) for index in range(len(beton))]
    write_manifest(
        flowers / "train.parquet", beton=Beton.open(beton.path), class_names=CLASS_NAMES,
        sources=manifest.sources(), hashes=hashes, settings={},
    )  # fmt: skip
    beton_bytes = bytearray(beton.path.read_bytes())
    end = int(beton.offsets[4] + beton.sizes[4])
    beton_bytes[end - 2 : end] = b"\0\0"  # no end of image
    beton.path.write_bytes(beton_bytes)
    hashes[4] = hash_stored(Beton.open(beton.path).image_bytes(4))
    write_manifest(
        flowers / "train.parquet", beton=Beton.open(beton.path), class_names=CLASS_NAMES,
        sources=manifest.sources(), hashes=hashes, settings={},
    )  # fmt: skip
    assert found(flowers) == []
    assert main(["verify", str(flowers), "--decode"]) == 2
    out, error = capsys.readouterr()
    assert "sample 4 (daisy/004.jpg): its bytes are those that were written, but do not decode" in out
    assert error.count("\n") == 1


def test_the_command_names_up_to_a_limit_counts_all_and_exits_with_2(
    flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beton = open_dataset(flowers).train.beton
    for index in (2, 5, 11):
        flip(beton.path, int(beton.offsets[index]) + 200)
    assert main(["verify", str(flowers), "--limit", "2"]) == 2
    out, error = capsys.readouterr()
    assert "train: train.beton: sample 2 (rose/002.jpg)" in out
    assert "sample 5 (rose/005.jpg)" in out
    assert "sample 11" not in out
    assert "and 1 more" in out
    assert error == f"python -m data_prep: {flowers}: 3 damaged samples; copy or convert the data set again\n"


def test_a_data_set_that_is_none_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert main(["verify", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_check_all_refuses_before_anything_rests_on_it(flowers: Path) -> None:
    beton = open_dataset(flowers).validation.beton
    flip(beton.path, int(beton.offsets[5]))
    with pytest.raises(
        UserError, match=r"1 damaged sample, first validation: .* sample 5 \(.*105\.jpg\)"
    ) as caught:
        check_all(flowers, workers=2)
    assert "\n" not in str(caught.value)
    assert [(damage.split, damage.index) for damage in verify(flowers, 1).damages] == [("validation", 5)]


def test_a_study_with_verify_full_starts_nothing_on_damaged_data(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from studies.agc_sweep import agc_sweep
    from studies.running.flags import main as study

    beton = open_dataset(flowers).train.beton
    flip(beton.path, int(beton.offsets[8]) + 100)
    flags = ["--data", str(flowers), "--storage", str(tmp_path / "runs"), "--verify", "full"]
    assert study(agc_sweep, Path("studies") / "agc_sweep.py", flags) == 2
    error = capsys.readouterr().err
    assert "sample 8 (rose/008.jpg)" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_manifests_from_before_the_names_were_hashed_are_read(flowers: Path) -> None:
    import json

    import pyarrow.parquet as pq

    path = flowers / "train.parquet"
    table = pq.read_table(path)
    document = json.loads(table.schema.metadata[b"nfnet_ray.manifest"])
    del document["names_hash"], document["document_hash"]
    pq.write_table(table.replace_schema_metadata({"nfnet_ray.manifest": json.dumps(document)}), path)
    assert found(flowers) == []
