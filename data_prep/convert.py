"""From a source to a finished data set: in one pass per split, in bounded memory, all or nothing."""

from __future__ import annotations

import glob
import shutil
import uuid
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.encode import (
    CHROMA_SUBSAMPLING,
    EncodeSettings,
    StoredImage,
    prepare_image,
)
from data_prep.progress import Progress, silent
from data_prep.sources import Source, SourceImage, UnreadableImageError
from data_prep.splits import Selection, SplitPlan
from nfnet_ray.data.beton import Beton, BetonWriter
from nfnet_ray.data.dataset import DatasetSummary, check_dataset, split_paths
from nfnet_ray.data.manifest import write_manifest
from nfnet_ray.errors import UserError

# Images in flight per worker: enough that none waits while the writer catches up on a large one.
_IN_FLIGHT_PER_WORKER = 8


class OutTakenError(UserError):
    """There is something where a data set was to be written."""


@dataclass(frozen=True)
class ConvertSettings:
    """How to convert. None of it says what to convert, or to where."""

    encode: EncodeSettings = field(default_factory=EncodeSettings)
    workers: int = 1
    """Threads that fetch, check and re-encode images. They do not change what is written."""
    skip_unreadable: bool = False
    """Leave images that nothing decodes out, and list them, instead of stopping."""
    overwrite: bool = False


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion wrote."""

    dataset: DatasetSummary
    stored_bytes: int
    """Of all files."""
    re_encoded: Counter[str]
    """Number of images per reason why they were not stored as they were."""
    skipped: Mapping[str, str]
    """Names of unreadable images that were left out, and why."""


def convert(
    source: Source, plan: SplitPlan, out: Path, settings: ConvertSettings, progress: Progress = silent
) -> ConvertReport:
    """Write a data set to ``out``: a ``.beton`` with its partners beside it, or a folder.

    Everything is written into ``<out>.partial-…`` beside it and moved into place at the end; an error or an
    interruption removes it. The same source and settings give the same bytes.

    Raises:
        OutTakenError: ``out`` is taken, at the start or at the end.
        UserError: ``out`` cannot be written, or an image cannot be read.
    """
    check_out(out, overwrite=settings.overwrite)
    re_encoded: Counter[str] = Counter()
    skipped: dict[str, str] = {}
    with staging_folder(out) as staging:
        paths = split_paths(staging)
        for name, selection in (("train", plan.train), ("validation", plan.validation)):
            counts, left_out = _write_split(name, selection, *paths[name], source, settings, progress)
            re_encoded += counts
            skipped |= left_out
        stored_bytes = sum(path.stat().st_size for files in paths.values() for path in files)
        publish(staging, out, overwrite=settings.overwrite)
    return ConvertReport(check_dataset(out), stored_bytes, re_encoded, skipped)


def _write_split(
    name: str,
    selection: Selection,
    beton_path: Path,
    manifest_path: Path,
    source: Source,
    settings: ConvertSettings,
    progress: Progress,
) -> tuple[Counter[str], dict[str, str]]:
    """Write one beton and its manifest; gives the re-encoding reasons counted, and what was left out."""
    sources: list[str] = []
    hashes: list[str] = []
    re_encoded: Counter[str] = Counter()
    skipped: dict[str, str] = {}
    total = len(selection.indices)
    images = selection.split.images(selection.indices)
    with (
        BetonWriter(beton_path, capacity=total) as writer,
        progress(name, total) as advance,
        closing(_in_order(images, settings)) as in_order,
    ):
        for image, future in in_order:
            advance()
            try:
                stored = future.result()
            except UnreadableImageError as error:
                if not settings.skip_unreadable:
                    raise UserError(
                        f"{image.name}: cannot be decoded ({error}); repair or remove it, or leave such"
                        " images out with --skip-unreadable"
                    ) from error
                skipped[image.name] = str(error)
                continue
            except OSError as error:  # the disk's fault, not the image's: nothing is left out for it
                raise UserError(f"{image.name}: cannot be read ({error}); check the disk") from error
            writer.append(stored.jpeg, label=image.label, height=stored.height, width=stored.width)
            sources.append(image.name)
            hashes.append(stored.hash)
            if stored.re_encoded is not None:
                re_encoded[stored.re_encoded] += 1
    write_manifest(
        manifest_path,
        beton=Beton.open(beton_path),
        class_names=source.class_names,
        sources=sources,
        hashes=hashes,
        settings={
            "source": source.kind,
            "split": name,
            "jpeg_quality": settings.encode.jpeg_quality,
            "chroma_subsampling": CHROMA_SUBSAMPLING,
            "max_side": settings.encode.max_side,
            "re_encoded": dict(sorted(re_encoded.items())),
            "skipped": list(skipped),
        },
    )
    return re_encoded, skipped


def _in_order(
    images: Iterator[SourceImage], settings: ConvertSettings
) -> Generator[tuple[SourceImage, Future[StoredImage]]]:
    """The images as they came, each with its result in the making; a bounded number at a time."""

    def work(image: SourceImage) -> StoredImage:
        return prepare_image(image.load(), settings.encode)

    in_flight: deque[tuple[SourceImage, Future[StoredImage]]] = deque()
    pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="prepare")
    try:
        for image in images:
            in_flight.append((image, pool.submit(work, image)))
            if len(in_flight) >= _IN_FLIGHT_PER_WORKER * settings.workers:
                yield in_flight.popleft()
        yield from in_flight
    finally:
        pool.shutdown(cancel_futures=True)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse an ``out`` that is taken, before any work is done.

    Raises:
        OutTakenError: there is a data set and ``overwrite`` is off.
        UserError: there is something else, which is never overwritten.
    """
    ours = _files(out)
    if out.suffix == ".beton":
        if out.is_dir():
            raise UserError(f"{out}: is a folder; choose another name for OUT")
        taken = [path for path in ours if path.exists()]
        for beton, manifest in split_paths(out).values():
            if manifest.exists() and not beton.exists():  # not ours; perhaps it is what is being converted
                raise UserError(f"{manifest}: is in the way of a manifest; choose another name for OUT")
    elif out.is_dir():
        taken = list(out.iterdir())
        foreign = sorted({path.name for path in taken} - {path.name for path in ours})
        if foreign:
            raise UserError(f"{out}: holds other things ({foreign[0]}, …); choose a new folder for OUT")
    elif out.exists():
        raise UserError(f"{out}: is a file; choose a new folder, or a name that ends in .beton, for OUT")
    else:
        taken = []
    if taken and not overwrite:
        raise OutTakenError(f"{out}: is there already ({taken[0].name}); replace it with --overwrite")


@contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """A new folder beside ``out``, on the same file system, that is gone afterwards."""
    # Two conversions to one place do not meet here; the second to finish finds it taken.
    staging = out.parent / f"{out.name}.partial-{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out.parent}: cannot be written ({error.strerror}); choose another OUT") from error
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already if it was published as a folder


def publish(staging: Path, out: Path, *, overwrite: bool) -> None:
    """Move a finished data set into place; until the last move, nothing there looks like one.

    Raises:
        OutTakenError: something else has taken the place meanwhile.
    """
    check_out(out, overwrite=overwrite)
    if out.suffix != ".beton":
        out = out.resolve()  # a link to a folder stays a link
        old = staging.with_name(staging.name + ".old")
        if out.is_dir() and any(out.iterdir()):
            out.rename(old)
        try:
            staging.rename(out)  # replaces an empty folder, but no other
        except OSError as error:
            raise OutTakenError(f"{out}: cannot be put in place ({error.strerror})") from error
        shutil.rmtree(old, ignore_errors=True)
        return
    # The train beton is what makes a data set of the four files: it leaves first and arrives last.
    pairs = list(zip(_files(staging), _files(out), strict=True))[::-1]
    out.unlink(missing_ok=True)
    arrived: list[Path] = []
    try:
        for finished, place in pairs:
            finished.replace(place)
            arrived.append(place)
    except BaseException:
        for place in arrived:
            place.unlink(missing_ok=True)
        raise


def unfinished(out: Path) -> Sequence[Path]:
    """What conversions to ``out`` that were killed, or are running right now, have beside it."""
    return sorted(out.parent.glob(f"{glob.escape(out.name)}.partial-*"))


def _files(path: Path) -> list[Path]:
    """The four files of a data set, train's beton first."""
    return [file for files in split_paths(path).values() for file in files]
