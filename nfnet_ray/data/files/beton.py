"""FFCV's file format (``.beton``, version 2), read and written with NumPy alone.

A file holds, in this order:

1. a header (:data:`HEADER`),
2. one descriptor per field (:data:`FIELD_DESCRIPTOR`); here an RGB image ``image``, then an int ``label``,
3. one metadata record per sample (:data:`METADATA`),
4. zeros up to the next page boundary, then pages of stored image bytes; no sample straddles a page,
5. the allocation table (:data:`ALLOCATION`), one record per stored image, up to the end of the file.

All numbers are little-endian; offsets count bytes from the start of the file. FFCV's own ``Loader`` reads
what :class:`BetonWriter` writes, and :class:`Beton` reads what FFCV's ``DatasetWriter`` writes for these two
fields. Source of the layout: ``ffcv/types.py``, ``reader.py``, ``writer.py``, ``memory_allocator.py``,
``fields/rgb_image.py`` and ``fields/basics.py`` of FFCV 1.0.2.
"""

from __future__ import annotations

import os
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from nfnet_ray.data.decoding.decode import decode_jpeg
from nfnet_ray.data.decoding.jpeg import DecodeError
from nfnet_ray.errors import DataChangedError, UserError
from nfnet_ray.whole_file import partial_path

HEADER = np.dtype(
    [
        ("version", "<u2"),  # of the format: 2
        ("num_fields", "<u2"),
        ("page_size", "<u4"),  # bytes, a power of two
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),  # offset of the allocation table; 0 while a file is being written
    ],
    align=True,
)
FIELD_DESCRIPTOR = np.dtype(
    [
        ("type_id", "<u1"),  # 1: int, 2: RGB image
        ("name", "<u1", 16),  # ASCII, padded with zeros
        ("arguments", "<u1", 1024),  # settings of the field; these two field types have none
    ],
    align=True,
)
_IMAGE_METADATA = np.dtype(
    [
        ("mode", "<u1"),  # JPEG or RAW, below
        ("width", "<u2"),  # pixels
        ("height", "<u2"),  # pixels
        ("data_ptr", "<u8"),  # offset of the stored bytes
    ]
)
METADATA = np.dtype([("image", _IMAGE_METADATA), ("label", "<i8")], align=True)
ALLOCATION = np.dtype(
    [
        ("sample_id", "<u8"),
        ("ptr", "<u8"),  # offset of the stored bytes: the sample's data_ptr again
        ("size", "<u8"),  # bytes
    ]
)

VERSION = 2
JPEG = 0  # mode: the stored bytes are a JPEG
RAW = 1  # mode: the stored bytes are height x width x 3 pixels
PAGE_BYTES = 1 << 23  # 8 MiB, what FFCV's DatasetWriter uses unless told otherwise
_MAX_SIDE = np.iinfo("<u2").max  # what the metadata can say

_INT_TYPE_ID, _RGB_IMAGE_TYPE_ID = 1, 2
_FIELDS = ((_RGB_IMAGE_TYPE_ID, "image"), (_INT_TYPE_ID, "label"))
_METADATA_OFFSET = HEADER.itemsize + len(_FIELDS) * FIELD_DESCRIPTOR.itemsize


@dataclass(frozen=True, eq=False)
class Beton:
    """A ``.beton`` file, open for reading; every offset in it was checked. N is the number of samples.

    Bytes are read with ``pread`` rather than through a memory map: a disk that fails, or a file cut short
    while it is open, is then an error with a name and not a signal that kills the process. One object
    serves any number of threads.
    """

    path: Path
    file_bytes: int
    labels: np.ndarray
    """(N,) int64, not negative."""
    heights: np.ndarray
    """(N,) int64, pixels."""
    widths: np.ndarray
    """(N,) int64, pixels."""
    modes: np.ndarray
    """(N,) uint8, :data:`JPEG` or :data:`RAW`."""
    offsets: np.ndarray
    """(N,) int64: where in the file a sample's stored bytes begin."""
    sizes: np.ndarray
    """(N,) int64: how many stored bytes a sample has."""
    _descriptor: int
    _opened: tuple[int, int]
    """Bytes of the file and nanoseconds of its last change when it was opened."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Beton:
        """Open and check a file. Reads everything but the images: 48 bytes a sample.

        Raises:
            UserError: the file is missing, truncated, not a beton of an image and a label, or contradicts
                itself.
        """
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
        try:
            beton = _open_checked(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        weakref.finalize(beton, os.close, descriptor)
        return beton

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles as its path: the descriptor's number means another file in another process."""
        return Beton.open, (self.path,)

    def check_unchanged(self) -> None:
        """Ask the file system whether the open file has been written to; microseconds, no image is read.

        A file that was replaced under its name is none of this: what is open is still the old one.

        Raises:
            DataChangedError: its size or the time of its last change is another than when it was opened.
        """
        try:
            now = _size_and_time(self._descriptor)
        except OSError as error:
            raise DataChangedError(
                f"{self.path} can no longer be read ({error.strerror}); make it readable again"
            ) from None
        if now != self._opened:
            changed_at = time.strftime("%H:%M:%S", time.localtime(now[1] / 1e9))
            raise DataChangedError(
                f"{self.path} was written to, at {changed_at}, while it was being read; copy or convert the data set"
                f" again, or check it with `python -m data_prep verify`"
            )

    def image_bytes(self, index: int) -> np.ndarray:
        """(bytes,) uint8: the stored bytes of sample ``index`` (0 <= index < N), a JPEG or raw pixels.

        Raises:
            UserError: the disk fails, or the file has become shorter since it was opened.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return _read(self.path, self._descriptor, int(self.offsets[index]), int(self.sizes[index]))

    def raw_rows(self, index: int, top: int, bottom: int) -> np.ndarray:
        """(bottom - top, width, 3) uint8: rows of sample ``index``, which is :data:`RAW`; no other bytes are read.

        Raises:
            UserError: as :meth:`image_bytes`.
        """
        height, width = int(self.heights[index]), int(self.widths[index])
        if self.modes[index] != RAW or not 0 <= top < bottom <= height:
            raise ValueError(f"sample {index} has no raw rows {top}:{bottom}")
        row_bytes = 3 * width
        offset, size = int(self.offsets[index]) + top * row_bytes, (bottom - top) * row_bytes
        return _read(self.path, self._descriptor, offset, size).reshape(bottom - top, width, 3)

    def decode(self, index: int, out_HWC: np.ndarray) -> None:
        """Decode sample ``index`` into ``out_HWC``: (height, width, 3) uint8, contiguous, RGB.

        Raises:
            UserError: the stored bytes cannot be read or are damaged.
            ValueError: ``out_HWC`` has another type, shape or layout.
        """
        stored = self.image_bytes(index)
        shape = (int(self.heights[index]), int(self.widths[index]), 3)
        if out_HWC.shape != shape:
            raise ValueError(f"sample {index} needs an array {shape}, not {out_HWC.shape}")
        if self.modes[index] == RAW:
            out_HWC[...] = stored.reshape(shape)
            return
        try:
            decode_jpeg(stored, out_HWC)
        except DecodeError as error:
            raise UserError(
                f"{self.path}: sample {index} is damaged ({error}); copy or convert the file again"
            ) from error


def _open_checked(path: Path, descriptor: int) -> Beton:
    try:
        opened = _size_and_time(descriptor)
        file_bytes = opened[0]
        os.pread(descriptor, 1, 0)  # a folder can be opened, but not read
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a .beton file") from error

    layout = _checked_layout(path, descriptor, file_bytes)
    metadata = _read_records(path, descriptor, METADATA, _METADATA_OFFSET, layout.num_samples)
    table = _read_records(path, descriptor, ALLOCATION, layout.table_offset, layout.num_samples)
    offsets, sizes = _checked_allocations(path, metadata, table, layout)
    image = metadata["image"]
    labels, modes = metadata["label"].astype(np.int64), image["mode"].copy()
    heights, widths = image["height"].astype(np.int64), image["width"].astype(np.int64)
    _check_each(path, (heights > 0) & (widths > 0), "has no pixels")
    _check_each(path, (modes == JPEG) | (modes == RAW), "is stored in a way that is neither JPEG nor raw")
    _check_each(
        path, (modes != RAW) | (sizes == 3 * heights * widths), "has another size than its raw pixels need"
    )
    _check_each(path, labels >= 0, "has a negative label")
    for array in (labels, heights, widths, modes, offsets, sizes):
        array.setflags(write=False)
    return Beton(path, file_bytes, labels, heights, widths, modes, offsets, sizes, descriptor, opened)


@dataclass(frozen=True)
class _Layout:
    """How many samples a file has; in bytes, the end of their metadata, the start of the table, the size of a page."""

    num_samples: int
    metadata_end: int
    table_offset: int
    page_bytes: int


def _checked_layout(path: Path, descriptor: int, file_bytes: int) -> _Layout:
    if file_bytes < _METADATA_OFFSET:
        raise UserError(
            f"{path}: truncated: a .beton begins with {_METADATA_OFFSET} bytes of header, the file has"
            f" {file_bytes}; copy or convert it again"
        )
    header = _read_records(path, descriptor, HEADER, 0, 1)[0]
    num_samples, table_offset = int(header["num_samples"]), int(header["alloc_table_ptr"])
    page_bytes = int(header["page_size"])
    if header["version"] != VERSION:
        raise UserError(
            f"{path}: not an FFCV file of format {VERSION} (its header says version {header['version']});"
            " give a file that a finished conversion wrote"
        )
    if header["num_fields"] != len(_FIELDS):
        raise _wrong_fields(path, f"{header['num_fields']} fields")
    descriptors = _read_records(path, descriptor, FIELD_DESCRIPTOR, HEADER.itemsize, len(_FIELDS))
    found = tuple(
        (int(field["type_id"]), field["name"].tobytes().split(b"\0")[0].decode("ascii", "replace"))
        for field in descriptors
    )
    if found != _FIELDS:
        raise _wrong_fields(path, ", ".join(f"{name!r} of type {type_id}" for type_id, name in found))

    if page_bytes == 0 or page_bytes & (page_bytes - 1):
        raise _damaged(path, f"its page size is {page_bytes}, not a power of two")
    if num_samples == 0:
        raise UserError(f"{path}: holds no samples; convert the source again")
    if table_offset == 0:
        raise UserError(f"{path}: its writing was never finished; convert the source again")
    expected_bytes = table_offset + num_samples * ALLOCATION.itemsize
    if file_bytes < expected_bytes:
        raise UserError(
            f"{path}: truncated: its header says {expected_bytes} bytes, the file has {file_bytes};"
            " copy or convert it again"
        )
    if file_bytes > expected_bytes:
        raise _damaged(path, f"its header says {expected_bytes} bytes, the file has {file_bytes}")
    metadata_end = _METADATA_OFFSET + num_samples * METADATA.itemsize
    if table_offset < metadata_end:
        raise _damaged(path, f"{num_samples} samples' metadata would overlap the allocation table")
    return _Layout(num_samples, metadata_end, table_offset, page_bytes)


def _size_and_time(descriptor: int) -> tuple[int, int]:
    """Bytes, and nanoseconds of the content's last change; not of the inode's, which a new link or owner changes."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _checked_allocations(
    path: Path, metadata: np.ndarray, table: np.ndarray, layout: _Layout
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and sizes in the samples' order, both (N,) int64. FFCV's writers leave the table in theirs."""
    num_samples = len(metadata)
    ids = table["sample_id"]
    if ids.max() >= num_samples or not (np.bincount(ids.astype(np.int64)) == 1).all():
        raise _damaged(path, "its allocation table does not name every sample once")
    by_sample = np.empty_like(table)
    by_sample[ids.astype(np.int64)] = table
    offsets, sizes = by_sample["ptr"], by_sample["size"]
    _check_each(path, offsets == metadata["image"]["data_ptr"], "has two different positions in the file")
    # Unsigned numbers wrap around: the bounds come first, each by itself, and sums only after them.
    inside = (offsets >= layout.metadata_end) & (offsets < layout.table_offset)
    inside &= (sizes > 0) & (sizes <= layout.page_bytes)
    _check_each(path, inside, "is outside the file's image data")
    _check_each(path, offsets + sizes <= layout.table_offset, "is outside the file's image data")
    same_page = offsets // layout.page_bytes == (offsets + sizes - 1) // layout.page_bytes
    _check_each(path, same_page, "straddles a page")
    return offsets.astype(np.int64), sizes.astype(np.int64)


def _check_each(path: Path, good: np.ndarray, what: str) -> None:
    if not good.all():
        raise _damaged(path, f"sample {int(np.argmin(good))} {what}")


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: damaged: {what}; copy or convert it again")


def _wrong_fields(path: Path, found: str) -> UserError:
    return UserError(
        f"{path}: holds {found}, but an RGB image named 'image' and then an int named 'label' are needed:"
        " convert the source with these two fields"
    )


def _read_records(path: Path, descriptor: int, dtype: np.dtype, offset: int, count: int) -> np.ndarray:
    return _read(path, descriptor, offset, count * dtype.itemsize).view(dtype)


def _read(path: Path, descriptor: int, offset: int, size: int) -> np.ndarray:
    """(size,) uint8 from the file, all of it or a UserError."""
    buffer = np.empty(size, np.uint8)
    done = 0
    while done < size:  # Linux reads at most 2 GiB at once
        try:
            count = os.preadv(descriptor, [buffer[done:].data], offset + done)
        except OSError as error:
            raise UserError(
                f"{path}: {size} bytes at {offset} cannot be read ({error.strerror}); check the disk,"
                " then copy or convert the file again"
            ) from error
        if count == 0:
            raise UserError(
                f"{path}: ends inside the {size} bytes at {offset}: it was cut short while open;"
                " copy or convert it again"
            )
        done += count
    return buffer


class BetonWriter:
    """Writes a ``.beton``, sample by sample, in order.

    A context manager. The bytes go to ``<name>.partial`` next to the file; leaving the ``with`` block in
    peace writes metadata, allocation table and, last, the header, flushes all to the disk and renames the
    file into place. Leaving it through an exception keeps the partial file.

    A partial file that is there is started from: its samples come back one by one, with :meth:`held` and
    :meth:`adopt`, before the first is appended; what lies behind them is thrown away. The bytes are then those of a
    file written in one go.

    Args:
        path: the file to write; one that exists is replaced at the end.
        capacity: the largest number of samples that may come. Metadata precede the images, so room
            for it is made first; the header then says how many samples really came.
    """

    def __init__(self, path: str | os.PathLike[str], capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.path = Path(path)
        self._partial = partial_path(self.path)
        self._metadata = np.zeros(capacity, METADATA)
        self._table = np.zeros(capacity, ALLOCATION)
        self._count = 0
        self._position = _page_end(_METADATA_OFFSET + self._metadata.nbytes)
        self._adopting = self._partial.exists()
        try:
            self._file = open(self._partial, "r+b" if self._adopting else "wb")  # noqa: SIM115 - closed in __exit__
        except OSError as error:
            raise UserError(f"{self._partial}: cannot be written ({error.strerror})") from error
        self._file.seek(self._position)

    def __enter__(self) -> BetonWriter:
        return self

    def append(
        self, stored: bytes | memoryview, *, label: int, height: int, width: int, mode: int = JPEG
    ) -> None:
        """Add the next sample: its stored bytes (at most :data:`PAGE_BYTES`), label, and size in pixels."""
        self._drop_what_was_not_adopted()
        self._check(len(stored), height, width)
        position = self._place(len(stored))
        if position != self._position:
            self._file.seek(position)
        self._file.write(stored)
        self._note(position, len(stored), label, height, width, mode)

    def held(self, size: int) -> bytes:
        """What a kept partial file contains in the place of a next sample of ``size`` bytes; less if it ends before."""
        if not self._adopting:
            return b""
        return os.pread(self._file.fileno(), size, self._place(size))

    def adopt(self, size: int, *, label: int, height: int, width: int, mode: int = JPEG) -> None:
        """Count what :meth:`held` gave as the next sample, without writing it again."""
        if not self._adopting:
            raise ValueError("a sample can be adopted only from a kept partial file, before any is appended")
        self._check(size, height, width)
        self._note(self._place(size), size, label, height, width, mode)

    def sync(self) -> None:
        """Bring all samples so far to the disk, so that they survive a kill or a power failure."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _check(self, size: int, height: int, width: int) -> None:
        if not 0 < size <= PAGE_BYTES:
            raise ValueError(f"a sample has 1 to {PAGE_BYTES} bytes, not {size}")
        if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
            raise ValueError(f"an image has 1 to {_MAX_SIDE} pixels a side, not {height}x{width}")
        if self._count == len(self._metadata):
            raise ValueError(f"the writer was made for {self._count} samples")

    def _place(self, size: int) -> int:
        """The offset of a next sample of ``size`` bytes: in this page, or at the beginning of the next."""
        page_end = _page_end(self._position)
        return self._position if self._position + size <= page_end else page_end

    def _note(self, position: int, size: int, label: int, height: int, width: int, mode: int) -> None:
        self._metadata[self._count] = ((mode, width, height, position), label)
        self._table[self._count] = (self._count, position, size)
        self._position = position + size
        self._count += 1

    def _drop_what_was_not_adopted(self) -> None:
        if not self._adopting:
            return
        self._adopting = False
        self._file.truncate(self._position)
        # A finish that was broken off has left metadata, perhaps even a header.
        self._file.seek(0)
        self._file.write(bytes(_METADATA_OFFSET + self._metadata.nbytes))
        self._file.seek(self._position)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            try:
                self._file.close()
            except OSError:  # a full disk, once more
                if kind is None:
                    raise

    def _finish(self) -> None:
        if self._count == 0:
            raise UserError(f"{self.path}: there is no sample to write")
        self._drop_what_was_not_adopted()
        file, table_offset = self._file, _page_end(self._position)
        file.seek(table_offset)
        file.write(self._table[: self._count].tobytes())

        descriptors = np.zeros(len(_FIELDS), FIELD_DESCRIPTOR)
        for descriptor, (type_id, name) in zip(descriptors, _FIELDS, strict=True):
            descriptor["type_id"] = type_id
            descriptor["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
        file.seek(HEADER.itemsize)
        file.write(descriptors.tobytes())
        file.write(self._metadata[: self._count].tobytes())
        file.flush()
        os.fsync(file.fileno())  # all of it is on the disk before a header says so

        header = np.array((VERSION, len(_FIELDS), PAGE_BYTES, self._count, table_offset), HEADER)
        file.seek(0)
        file.write(header.tobytes())
        file.flush()
        os.fsync(file.fileno())
        self._partial.replace(self.path)


def _page_end(offset: int) -> int:
    """The first page boundary at or after ``offset``."""
    return -(-offset // PAGE_BYTES) * PAGE_BYTES
