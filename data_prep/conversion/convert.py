"""From a source to a finished data set: in one pass per split, in bounded memory, all or nothing, resumable."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.conversion.encode import CHROMA_SUBSAMPLING, EncodeSettings
from data_prep.conversion.identity import conversion_identity, file_states
from data_prep.conversion.parallel import Prepared, in_own_thread, in_ray_tasks, in_threads
from data_prep.conversion.quarantine import Quarantine, unreadable_limit, write_quarantine
from data_prep.conversion.record import SYNC_SECONDS, SplitJournal, StoredRecord, UnreadableRecord
from data_prep.conversion.splits import Selection, SplitPlan
from data_prep.conversion.staging import OutTakenError as OutTakenError
from data_prep.conversion.staging import Staging, check_out, leftover, publish, staging_folder
from data_prep.sources.source import Source, SourceImage
from nfnet_ray.command_line.progress import Progress, silent
from nfnet_ray.data.decoding.pillow_image import UnreadableImageError
from nfnet_ray.data.files.beton import JPEG, Beton, BetonWriter
from nfnet_ray.data.files.dataset import DatasetSummary, check_dataset, split_paths
from nfnet_ray.data.files.manifest import hash_stored, write_manifest
from nfnet_ray.errors import UserError
from nfnet_ray.places import in_words
from nfnet_ray.whole_file import partial_path


@dataclass(frozen=True)
class ConvertSettings:
    """How to convert. None of it says what to convert, or to where."""

    encode: EncodeSettings = field(default_factory=EncodeSettings)
    workers: int = 1
    """Threads that fetch, check and re-encode images. They do not change what is written."""
    address: str | None = None
    """Address of a Ray cluster that does the work: ``auto``, ``HOST:PORT``, or ``local`` to start one here."""
    max_unreadable: int | float | None = 0
    """How many images that nothing decodes are left out, and listed, before the conversion stops: a number of
    images, a share of all (a float below 1), or None for any number."""
    overwrite: bool = False
    resume: bool = False
    """Resume an earlier conversion of the same source with the same settings, if there is one."""
    keep_unfinished: bool = False
    """Keep what was done when the conversion is stopped, for ``resume``."""


@dataclass(frozen=True)
class ConvertReport:
    """The result of a conversion."""

    dataset: DatasetSummary
    stored_bytes: int
    """Of all files."""
    re_encoded: Counter[str]
    """Number of images per reason why they were not stored as they were."""
    skipped: Sequence[tuple[str, str]]
    """The name of each unreadable image that was left out, and why; one of each split may have the same."""
    images_resumed: int
    """Number of images that an earlier conversion had done."""
    lossy_jpegs: int
    """How many of the re-encoded images were stored as JPEGs of the settings' quality."""
    orientation_tags: int
    """How many images have a tag that says that they are to be turned, whether they were or not."""


def convert(
    source: Source,
    plan: SplitPlan,
    out: Path,
    settings: ConvertSettings,
    progress: Progress = silent,
    source_paths: Sequence[Path] = (),
) -> ConvertReport:
    """Write a data set to ``out``: a ``.beton`` with its other files next to it, or a folder.

    Everything is written into ``<out>.partial-…`` next to it and moved into place at the end. The same source and
    settings give the same bytes, in one go or resumed.

    Args:
        source_paths: the source's paths. A resumed conversion is refused if a file there has been changed
            since, other than an image that is still to come.

    Raises:
        OutTakenError: ``out`` is taken, at the start or at the end.
        UserError: ``out`` cannot be written, too many images cannot be read, or there is nothing like this
            conversion to resume.
    """
    check_out(out, overwrite=settings.overwrite)
    selections = {"train": plan.train, "validation": plan.validation}
    total = sum(len(selection.indices) for selection in selections.values())
    quarantine = Quarantine(unreadable_limit(settings.max_unreadable, total))
    re_encoded: Counter[str] = Counter()
    images_resumed = lossy_jpegs = orientation_tags = 0
    identity = conversion_identity(source, plan, settings.encode)
    keep = settings.keep_unfinished or settings.resume
    files = in_own_thread(lambda: file_states(source_paths if keep else ()))
    resumed = None
    if settings.resume:
        names = {split: _names(selection) for split, selection in selections.items()}
        resumed = leftover(out, identity, files, names)
    try:
        with (
            _ray(settings.address),
            staging_folder(out, resume=resumed, keep=keep) as staging,
        ):
            staging.begin(identity, files[1])
            for split, selection in selections.items():
                writer = _SplitWriter(split, selection, source, settings, staging, quarantine)
                writer.write(progress)
                re_encoded += writer.re_encoded
                images_resumed += writer.images_resumed
                lossy_jpegs += writer.lossy_jpegs
                orientation_tags += writer.orientation_tags
            if quarantine.images:
                write_quarantine(staging.quarantine, quarantine)
            written = [path for pair in split_paths(staging.folder).values() for path in pair]
            stored_bytes = sum(path.stat().st_size for path in written)
            publish(staging, out, overwrite=settings.overwrite)
    except OSError as error:  # what the source's disk does is a UserError by now
        problem = UserError(
            f"{out}: cannot be written ({error.strerror or error}); make room or mend the disk"
        )
        for note in getattr(error, "__notes__", ()):
            problem.add_note(note)
        raise problem from error
    skipped = [(name, reason) for _, name, reason in quarantine.images]
    return ConvertReport(
        check_dataset(out), stored_bytes, re_encoded, skipped, images_resumed, lossy_jpegs, orientation_tags
    )


class _SplitWriter:
    """Writes one beton and its manifest, or what is missing of them."""

    def __init__(
        self,
        split: str,
        selection: Selection,
        source: Source,
        settings: ConvertSettings,
        staging: Staging,
        quarantine: Quarantine,
    ) -> None:
        self.split, self.selection, self.source, self.settings = split, selection, source, settings
        self.quarantine = quarantine
        self.beton_path, self.manifest_path = split_paths(staging.folder)[split]
        self.journal_path = staging.journal(split)
        self.sources: list[str] = []
        self.hashes: list[str] = []
        self.re_encoded: Counter[str] = Counter()
        """Number of images per reason."""
        self.lossy_jpegs = 0
        self.orientation_tags = 0
        self.images_resumed = 0

    def write(self, progress: Progress) -> None:
        """Take over what an earlier conversion did, and do the rest."""
        total = len(self.selection.indices)
        partial = partial_path(self.beton_path)
        if self.beton_path.exists():  # whole, but what comes after it was not
            self.beton_path.replace(partial)
        with (
            SplitJournal(self.journal_path) as journal,
            BetonWriter(self.beton_path, capacity=total) as writer,
        ):
            done = self.images_resumed = self._take_over(journal, writer)
            images = self.selection.split.images(self.selection.indices[done:])
            with progress(self.split, total, done) as advance, closing(self._prepared(images)) as prepared:
                try:
                    last_sync = time.monotonic()
                    for image, result in prepared:
                        self._write_image(image, result, journal, writer)
                        advance()
                        if time.monotonic() - last_sync >= SYNC_SECONDS:
                            _sync(journal, writer)
                            last_sync = time.monotonic()
                except BaseException:
                    with suppress(OSError):  # the disk may be full; what was synced before stays
                        _sync(journal, writer)
                    raise
            _sync(journal, writer)
        self._write_manifest()

    def _take_over(self, journal: SplitJournal, writer: BetonWriter) -> int:
        """Count what an earlier conversion did, and hash it again; the number of its images.

        From the first image that does not match its hash, everything is converted again.
        """
        done = 0
        split = self.selection.split
        for index, record in zip(self.selection.indices, journal.replay(), strict=False):
            name, label = split.names[index], int(split.labels[index])
            if isinstance(record, UnreadableRecord):
                self.quarantine.add(self.split, name, record.reason)
            else:
                if hash_stored(writer.held(record.size)) != record.hash:
                    break
                writer.adopt(
                    record.size, label=label, height=record.height, width=record.width, mode=record.mode
                )
                self._count(name, record)
            done += 1
        return done

    def _write_image(
        self, image: SourceImage, result: Prepared, journal: SplitJournal, writer: BetonWriter
    ) -> None:
        try:
            stored = result()
        except UnreadableImageError as error:
            self.quarantine.add(self.split, image.name, str(error))
            journal.add(UnreadableRecord(str(error)))
            return
        except OSError as error:  # the disk's fault, not the image's: nothing is left out for it
            advice = "check the disk"
            if self.settings.address is not None:
                advice += ", and that every node sees the source under the same path"
            raise UserError(f"{image.name}: cannot be read ({in_words(error)}); {advice}") from error
        except MemoryError as error:  # of this machine, where another one may have enough
            raise UserError(
                f"{image.name}: {str(error) or 'there is not enough memory to decode it'}; shrink or remove it, or"
                " convert where there is more memory"
            ) from error
        writer.append(
            stored.data, label=image.label, height=stored.height, width=stored.width, mode=stored.mode
        )
        record = StoredRecord(
            len(stored.data), stored.mode, stored.height, stored.width, stored.hash, stored.re_encoded,
            stored.orientation,
        )  # fmt: skip
        self._count(image.name, record)
        journal.add(record)

    def _count(self, name: str, record: StoredRecord) -> None:
        self.sources.append(name)
        self.hashes.append(record.hash)
        self.orientation_tags += record.orientation != 1
        if record.re_encoded is not None:
            self.re_encoded[record.re_encoded] += 1
            self.lossy_jpegs += record.mode == JPEG

    def _prepared(self, images: Iterator[SourceImage]) -> Generator[tuple[SourceImage, Prepared]]:
        if self.settings.address is not None:
            return in_ray_tasks(images, self.settings.encode)
        return in_threads(images, self.settings.encode, self.settings.workers)

    def _write_manifest(self) -> None:
        encode = self.settings.encode
        write_manifest(
            self.manifest_path,
            beton=Beton.open(self.beton_path),
            class_names=self.source.class_names,
            sources=self.sources,
            hashes=self.hashes,
            settings={
                "source": self.source.kind,
                "split": self.split,
                "write_mode": encode.write_mode,
                "jpeg_quality": encode.jpeg_quality,
                "chroma_subsampling": CHROMA_SUBSAMPLING,
                "max_side": encode.max_side,
                "orientation_tags": self.orientation_tags,
                "apply_orientation": encode.apply_orientation,
                "re_encoded": dict(sorted(self.re_encoded.items())),
                "skipped": self.quarantine.names(self.split),
            },
        )


def _sync(journal: SplitJournal, writer: BetonWriter) -> None:
    """The images first: the journal must not promise what is not there."""
    writer.sync()
    journal.commit()


def _names(selection: Selection) -> list[str]:
    return [selection.split.names[int(index)] for index in selection.indices]


def _ray(address: str | None) -> AbstractContextManager[object]:
    if address is None:
        return nullcontext()
    import data_prep
    from nfnet_ray.cluster.connection.session import ray_session

    package = Path(data_prep.__file__).parent
    return ray_session(address, packages=[package])
