"""Thousands of damaged data sets: no crash, no hang, no stray exception, no silently changed image. About 20 s.

The damage is drawn from (seed, number) alone, so one that fails can be had again:
``python tests/data/test_fuzz.py FOLDER FIRST COUNT``. Many more are run in the same way.
"""

from __future__ import annotations

import collections
import faulthandler
import io
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nfnet_ray.data.decoding.decode import decode_jpeg_box, decode_jpeg_top
from nfnet_ray.data.decoding.jpeg import DecodeError
from nfnet_ray.data.files.beton import (
    ALLOCATION,
    FIELD_DESCRIPTOR,
    HEADER,
    JPEG,
    METADATA,
    RAW,
    VERSION,
    Beton,
)
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.files.manifest import hash_stored, write_manifest
from nfnet_ray.data.files.verification import verify
from nfnet_ray.errors import UserError
from tests.deadlines import HANG_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE_BYTES = 4096  # FFCV's own are of 8 MiB, too much to write thousands of times
METADATA_OFFSET = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize
MEMORY_BYTES = 3 << 30  # address space of the process that is attacked
MOST_PIXELS = (
    1 << 22
)  # a beton alone may claim any size; the caller makes the room, so this is where it stops
CLASSES = ["aster", "daisy", "rose"]

Files = dict[str, bytearray]
Random = np.random.Generator


# --- A small valid data set -------------------------------------------------------------------------------


def stored_images(generator: Random, count: int) -> list[tuple[bytes, int, int, int]]:
    """(stored bytes, mode, height, width) of JPEGs of all kinds and of raw pixels."""
    images = []
    options: list[dict[str, object]] = [
        {"quality": 90, "subsampling": "4:2:0"},
        {"quality": 75, "subsampling": "4:4:4"},
        {"progressive": True},
        {"restart_marker_blocks": 2},
    ]
    for number in range(count):
        height, width = (int(side) for side in generator.integers(9, 34, size=2))
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
        if number % 5 == 4:
            images.append((image.tobytes(), RAW, height, width))
            continue
        buffer = io.BytesIO()
        pixels = image.convert("L") if number % 5 == 1 else image
        pixels.save(buffer, "JPEG", **options[number % len(options)])
        images.append((buffer.getvalue(), JPEG, height, width))
    return images


def write_split(stem: Path, images: list[tuple[bytes, int, int, int]]) -> None:
    metadata, table = np.zeros(len(images), METADATA), np.zeros(len(images), ALLOCATION)
    body = bytearray(-(-(METADATA_OFFSET + metadata.nbytes) // PAGE_BYTES) * PAGE_BYTES)
    for index, (stored, mode, height, width) in enumerate(images):
        if len(body) % PAGE_BYTES + len(stored) > PAGE_BYTES:
            body += bytes(-len(body) % PAGE_BYTES)
        metadata[index] = ((mode, width, height, len(body)), index % len(CLASSES))
        table[index] = (index, len(body), len(stored))
        body += stored
    body += bytes(-len(body) % PAGE_BYTES)
    fields = np.zeros(2, FIELD_DESCRIPTOR)
    for field, (type_id, name) in zip(fields, ((2, b"image"), (1, b"label")), strict=True):
        field["type_id"] = type_id
        field["name"][: len(name)] = np.frombuffer(name, np.uint8)
    header = np.array((VERSION, 2, PAGE_BYTES, len(images), len(body)), HEADER)
    front = header.tobytes() + fields.tobytes() + metadata.tobytes()
    body[: len(front)] = front
    stem.with_suffix(".beton").write_bytes(body + table.tobytes())
    write_manifest(
        stem.with_suffix(".parquet"),
        beton=Beton.open(stem.with_suffix(".beton")),
        class_names=CLASSES,
        sources=[f"{index}.jpg" for index in range(len(images))],
        hashes=[hash_stored(stored) for stored, *_ in images],
        settings={"quality": 90},
    )


def write_data_set(folder: Path) -> None:
    generator = np.random.default_rng(0)
    write_split(folder / "train", stored_images(generator, 11))
    write_split(folder / "validation", stored_images(generator, 4))


# --- Damage -----------------------------------------------------------------------------------------------


def place(generator: Random, data: bytearray, longest: int = 64) -> slice:
    start = int(generator.integers(0, max(len(data), 1)))
    return slice(start, start + int(generator.integers(1, longest + 1)))


def flip_bits(generator: Random, data: bytearray) -> None:
    for _ in range(int(generator.integers(1, 4))):
        if data:
            data[int(generator.integers(0, len(data)))] ^= 1 << int(generator.integers(0, 8))


def overwrite(generator: Random, data: bytearray) -> None:
    where = place(generator, data)
    length = len(data[where])
    data[where] = [generator.bytes(length), bytes(length), b"\xff" * length][int(generator.integers(0, 3))]


def truncate(generator: Random, data: bytearray) -> None:
    del data[int(generator.integers(0, len(data) + 1)) :]


def insert(generator: Random, data: bytearray) -> None:
    where = place(generator, data)
    data[where.start : where.start] = generator.bytes(where.stop - where.start)


def delete(generator: Random, data: bytearray) -> None:
    del data[place(generator, data)]


def swap_regions(generator: Random, data: bytearray) -> None:
    one, length = place(generator, data).start, int(generator.integers(1, 900))
    other = place(generator, data).start
    first, second = bytes(data[one : one + length]), bytes(data[other : other + length])
    data[one : one + len(second)] = second
    data[other : other + len(first)] = first


def copy_region(generator: Random, data: bytearray) -> None:
    """What a misplaced block of a disk looks like: same length, other content."""
    block = 1 << int(generator.integers(3, 13))
    one, other = (int(generator.integers(0, len(data) // block + 1)) * block for _ in range(2))
    source = bytes(data[other : other + block])
    target = data[one : one + len(source)]
    data[one : one + len(target)] = source[: len(target)]


def extreme(generator: Random, size: int, length: int) -> bytes:
    """An integer of ``size`` bytes at an edge: of its type, of signs, of powers of two, or of the file."""
    edges = [
        0,
        1,
        2,
        -1,
        -2,
        length,
        length - 1,
        length + 1,
        PAGE_BYTES,
        PAGE_BYTES - 1,
        1 << 31,
        (1 << 63) - 1,
    ]
    edges += [1 << int(generator.integers(0, 8 * size)), int(generator.integers(0, 300))]
    value = edges[int(generator.integers(0, len(edges)))]
    return (value % (1 << 8 * size)).to_bytes(size, "little")


def set_field(generator: Random, data: bytearray) -> None:
    """One number of the header, of a sample's metadata or of the allocation table."""
    samples = 11 if len(data) > 10_000 else 4
    records: list[tuple[np.dtype, int]] = [(HEADER, 0)]
    records += [(METADATA, METADATA_OFFSET + index * METADATA.itemsize) for index in range(samples)]
    table_offset = len(data) - samples * ALLOCATION.itemsize
    records += [(ALLOCATION, table_offset + index * ALLOCATION.itemsize) for index in range(samples)]
    dtype, offset = records[int(generator.integers(0, len(records)))]
    leaves = [(dtype.fields[name][0], dtype.fields[name][1]) for name in dtype.names]
    leaves += [
        (inner.fields[name][0], start + inner.fields[name][1])
        for inner, start in leaves
        if inner.fields
        for name in inner.names
    ]
    leaf, start = leaves[int(generator.integers(0, len(leaves)))]
    if not leaf.fields and 0 <= offset + start <= len(data) - leaf.itemsize:
        at = slice(offset + start, offset + start + leaf.itemsize)
        data[at] = extreme(generator, leaf.itemsize, len(data))


def swap_samples(generator: Random, data: bytearray) -> None:
    """Two samples' records change places, wholly or in the positions alone: a file that agrees with itself."""
    samples = 11 if len(data) > 10_000 else 4
    if len(data) < METADATA_OFFSET + samples * (METADATA.itemsize + ALLOCATION.itemsize):
        return
    metadata = np.frombuffer(data, METADATA, samples, METADATA_OFFSET)
    table = np.frombuffer(data, ALLOCATION, samples, len(data) - samples * ALLOCATION.itemsize)
    one, other = (int(index) for index in generator.choice(samples, 2, replace=False))
    fields = [
        ["data_ptr"],
        ["mode", "data_ptr"],
        ["width", "height"],
        ["mode", "width", "height", "data_ptr"],
    ]
    for name in fields[int(generator.integers(0, len(fields)))]:
        values = metadata["image"][name]
        values[[one, other]] = values[[other, one]]
    for name in [[], ["ptr"], ["ptr", "size"]][int(generator.integers(0, 3))]:
        table[name][[one, other]] = table[name][[other, one]]


def damage_jpeg(generator: Random, data: bytearray) -> None:
    """A JPEG's own structure: a marker, a segment's length, the frame's size, its components, its tables."""
    starts = [
        found.start() for found in re.finditer(rb"(?=\xff\xd8\xff)", data) if found.start() < len(data) - 40
    ]
    if not starts:
        return
    start = starts[int(generator.integers(0, len(starts)))]
    markers = [at for at in range(start, min(start + 900, len(data) - 12)) if data[at] == 0xFF]
    at = markers[int(generator.integers(0, len(markers)))] + int(generator.integers(1, 12))
    size = int(generator.integers(1, 3))
    data[at : at + size] = extreme(generator, size, len(data))


ANY: list[Callable[[Random, bytearray], None]] = [
    flip_bits,
    flip_bits,
    overwrite,
    truncate,
    insert,
    delete,
    swap_regions,
    copy_region,
]
OF_BETONS = [*ANY, set_field, set_field, set_field, swap_samples, swap_samples, damage_jpeg, damage_jpeg]


def damaged(original: Files, number: int) -> tuple[Files, str]:
    """The data set with damage ``number``, and what it is."""
    generator = np.random.default_rng([2024, number])
    files = {name: bytearray(content) for name, content in original.items()}
    name = list(files)[int(generator.choice(len(files), p=[0.55, 0.25, 0.1, 0.1]))]
    operations = []
    for _ in range(1 + int(generator.random() < 0.3) + int(generator.random() < 0.1)):
        choices = OF_BETONS if name.endswith(".beton") else ANY
        operation = choices[int(generator.integers(0, len(choices)))]
        operation(generator, files[name])
        operations.append(operation.__name__)
    return files, f"{name}: {', '.join(operations)}"


# --- The process that is attacked -------------------------------------------------------------------------

Sample = tuple[int, bytes]  # label, pixels


def one_line(error: UserError) -> None:
    assert str(error), "a UserError without a message"
    assert "\n" not in str(error), f"a UserError of several lines: {error}"


def pixels_of(beton: Beton, index: int) -> np.ndarray | None:
    """(H, W, 3), or None where the file is refused. Of a JPEG its upper rows and a box are decoded as well."""
    height, width = int(beton.heights[index]), int(beton.widths[index])
    if height * width > MOST_PIXELS:
        return None
    out = np.empty((height, width, 3), np.uint8)
    try:
        beton.decode(index, out)
    except UserError as error:
        one_line(error)
        out = None
    if beton.modes[index] == JPEG:
        try:
            top = decode_jpeg_top(beton.image_bytes(index), height, width, -(-height // 2))
        except DecodeError:
            assert out is None, "the upper half is damaged, but not the whole"
        else:
            assert out is None or np.array_equal(top[: -(-height // 2)], out[: -(-height // 2)])
        box = slice(height // 4, height // 4 + -(-height // 2)), slice(width // 3, None)
        try:
            pixels = decode_jpeg_box(
                beton.image_bytes(index),
                height,
                width,
                box[0].start,
                box[1].start,
                -(-height // 2),
                width - width // 3,
            )
        except DecodeError:
            assert out is None, "the box is damaged, but not the whole"
        else:
            assert out is None or np.array_equal(pixels, out[box])
    return out


def outcome(folder: Path, expected: dict[str, list[Sample]], touched: set[str]) -> str:
    """What became of the data set in ``folder``, in which the files ``touched`` were damaged.

    Raises AssertionError for what must not be.
    """
    is_sound = not verify(folder, workers=1).damages
    try:
        dataset = open_dataset(folder)
    except UserError as error:
        one_line(error)
        dataset = None
    if dataset is None:
        for name in expected:
            try:
                alone = Beton.open(folder / f"{name}.beton")
            except UserError as error:
                one_line(error)
            else:
                for index in range(len(alone)):
                    pixels_of(alone, index)
        assert not is_sound, "verify finds nothing wrong, but it cannot be opened"
        return "refused"
    assert list(dataset.class_names) == CLASSES, "the classes changed"
    refused = changed = 0
    for name, split in (("train", dataset.train), ("validation", dataset.validation)):
        assert len(split) == len(expected[name]), "the number of samples changed"
        for index, (label, pixels) in enumerate(expected[name]):
            assert split.beton.labels[index] == label, f"label of {name} {index} changed, and it was opened"
            if f"{name}.beton" not in touched:
                continue
            seen = pixels_of(split.beton, index)
            refused += seen is None
            changed += seen is not None and seen.tobytes() != pixels
    if refused or changed:
        assert not is_sound, (
            f"{refused} samples refused and {changed} changed, and verify finds nothing wrong"
        )
    if changed:
        return "changed, and named by verify"
    if refused:
        return "samples refused"
    return "sound" if is_sound else "unchanged, and named by verify"


def attack(folder: Path, first: int, count: int) -> None:
    """Runs in a process of its own; prints one line of JSON with how often what happened."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    names = ["train.beton", "train.parquet", "validation.beton", "validation.parquet"]
    original: Files = {name: bytearray((folder / name).read_bytes()) for name in names}
    dataset = open_dataset(folder)
    expected: dict[str, list[Sample]] = {}
    for name, split in (("train", dataset.train), ("validation", dataset.validation)):
        pixels = [pixels_of(split.beton, index) for index in range(len(split))]
        expected[name] = [
            (int(label), image.tobytes())
            for label, image in zip(split.beton.labels, pixels, strict=True)
            if image is not None
        ]
        assert len(expected[name]) == len(split)
    target = folder / "damaged"
    target.mkdir(exist_ok=True)
    outcomes: collections.Counter[str] = collections.Counter()
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    for name in names:
        (target / name).write_bytes(original[name])
    for number in range(first, first + count):
        files, what = damaged(original, number)
        print(f"damage {number} ({what})", file=sys.stderr)  # the last one is the one that a crash came with
        touched = {name for name, content in files.items() if content != original[name]}
        for name in touched:
            (target / name).write_bytes(files[name])
        outcomes[outcome(target, expected, touched)] += 1
        for name in touched:
            (target / name).write_bytes(original[name])
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(outcomes))


@pytest.mark.parametrize("decoder", ["libffcv", "plain"])
def test_damaged_files_are_refused_named_or_unchanged(tmp_path: Path, decoder: str) -> None:
    write_data_set(tmp_path)
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "NFNET_RAY_DECODER": decoder,
        "OMP_NUM_THREADS": "1",
    }
    count = 900
    first = 0 if decoder == "libffcv" else count
    process = subprocess.run(
        [sys.executable, __file__, str(tmp_path), str(first), str(count)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    outcomes = json.loads(process.stdout)
    assert sum(outcomes.values()) == count
    # It bites: everything that may happen does.
    assert set(outcomes) == {
        "refused",
        "samples refused",
        "changed, and named by verify",
        "unchanged, and named by verify",
        "sound",
    }
    assert min(outcomes.values()) >= 10, outcomes


def test_a_field_name_with_a_line_break_is_still_one_line(tmp_path: Path) -> None:
    """Found by the fuzzing: a message quoted the name as it was."""
    write_data_set(tmp_path)
    path = tmp_path / "train.beton"
    content = bytearray(path.read_bytes())
    at = content.index(b"label")
    content[at : at + 5] = b"la\nel"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        Beton.open(path)
    one_line(caught.value)


if __name__ == "__main__":
    attack(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
