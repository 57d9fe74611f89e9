"""The folder in which a data set is written: next to its final path, moved there at the end, found after a kill."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from data_prep.conversion.identity import changed_file, difference
from data_prep.conversion.quarantine import check_quarantine_path, quarantine_path
from data_prep.conversion.record import count_records
from nfnet_ray.data.files.dataset import split_paths
from nfnet_ray.errors import UserError
from nfnet_ray.whole_file import whole_file
from nfnet_ray.wording import agree, count

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})  # some network file systems have none


class OutTakenError(UserError):
    """The path for a data set is taken."""


@dataclass(frozen=True)
class Staging:
    """A folder in which a data set is being written."""

    folder: Path

    @property
    def progress(self) -> Path:
        """The state for resuming a conversion, which is removed before the data set is moved into place."""
        return self.folder / "progress"

    @property
    def quarantine(self) -> Path:
        return self.progress / "quarantine.csv"

    @property
    def _identity(self) -> Path:
        return self.progress / "identity.json"

    @property
    def _file_states(self) -> Path:
        return self.progress / "source_files.npy"

    def journal(self, split: str) -> Path:
        return self.progress / f"{split}.journal"

    def images_done(self) -> int:
        """Number of images that a resumed conversion need not look at again."""
        return sum(count_records(self.journal(split)) for split in split_paths(self.folder))

    def begin(self, identity: dict[str, str], states: np.ndarray) -> None:
        """Note what is converted and how; again on resume, because an image may have been repaired."""
        with whole_file(self._file_states, sync=False) as file:
            np.save(file, np.sort(states))
        with whole_file(self._identity, "w", sync=False) as file:
            json.dump(identity, file, indent=1)

    def why_not_resumable(
        self, identity: dict[str, str], names: Sequence[str], states: np.ndarray, images: dict[str, list[str]]
    ) -> str | None:
        """The difference from the conversion of this folder, or None. The arguments are those of :func:`leftover`."""
        try:
            before = json.loads(self._identity.read_text())
            states_before = np.load(self._file_states)
        except (OSError, ValueError):
            return "it was stopped before it began"
        to_come = {
            name
            for split, all_names in images.items()
            for name in all_names[count_records(self.journal(split)) :]
        }
        changed = changed_file(states_before, names, states, to_come)
        return difference(before, identity) or (f"in SOURCE, {changed}" if changed else None)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse an ``out`` that is taken, before any work is done.

    Raises:
        OutTakenError: there is a data set and ``overwrite`` is off.
        UserError: there is something else, which is never overwritten.
    """
    ours = _files(out)
    if not out.exists() and os.path.islink(os.path.realpath(out)):
        raise UserError(f"{out}: a link that leads to itself; remove it, or choose another OUT")
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
    check_quarantine_path(out)


def check_outside(out: Path, source_paths: Sequence[Path]) -> None:
    """Refuse an ``out`` in a folder that is converted: the next conversion would take it for part of the source.

    Raises:
        UserError: it is below one of the paths, or is one of them.
    """
    place = Path(os.path.realpath(out))  # Path.resolve() raises RuntimeError for a link to itself
    for path in source_paths:
        folder = Path(os.path.realpath(path))
        if path.is_dir() and (place == folder or folder in place.parents):
            raise UserError(
                f"{out}: OUT is inside SOURCE, {path}, and the next conversion would read it as images; choose a path"
                f" outside, such as {folder.parent / f'{folder.name}.beton'}"
            )


@contextmanager
def staging_folder(out: Path, *, resume: Staging | None, keep: bool) -> Generator[Staging]:
    """A temporary folder next to ``out``, on the same file system.

    Args:
        resume: the folder of an earlier conversion; None makes a new one.
        keep: an exception leaves the folder if there are images in it that were done.

    An exception gets a note if the folder stays.
    """
    # Two conversions to one place do not meet here; the second to finish finds it taken.
    staging = resume or Staging(out.parent / f"{out.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        staging.progress.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if resume is None:
            shutil.rmtree(staging.folder, ignore_errors=True)
        raise UserError(f"{out.parent}: cannot be written ({error.strerror}); choose another OUT") from error
    with _lock(staging):
        try:
            yield staging
        except BaseException as error:
            done = staging.images_done() if keep else 0
            if done:
                error.add_note(
                    f"{count(done, 'image')} {agree(done, 'is', 'are')} kept in {staging.folder}; the same command"
                    " with --resume resumes it"
                )
            else:
                shutil.rmtree(staging.folder, ignore_errors=True)
            raise
        shutil.rmtree(staging.folder, ignore_errors=True)  # gone already if it was published as a folder


def leftover(
    out: Path,
    identity: dict[str, str],
    files: tuple[list[str], np.ndarray],
    images: dict[str, list[str]],
) -> Staging | None:
    """The folder of an earlier conversion to ``out`` that can be resumed, the most advanced of several; or None.

    Args:
        identity, files: of the conversion that wants to resume; the files as :func:`file_states` gives them.
        images: each split's image names, in order.

    Raises:
        UserError: there are some, but none of the same source and settings, or they are being written to.
    """
    good: list[Staging] = []
    problem = None
    for path in unfinished(out):
        staging = Staging(path)
        if not staging.progress.is_dir() or not staging.images_done():
            continue
        if _is_locked(staging):
            problem = problem or f"{path}: a conversion is running there; wait for it, or choose another OUT"
            continue
        why_not = staging.why_not_resumable(identity, *files, images)
        if why_not is None:
            good.append(staging)
        else:
            problem = f"{path}: is of another conversion: {why_not}; convert as it did, or delete it and start again"
    if good:
        return max(good, key=Staging.images_done)
    if problem is not None:
        raise UserError(problem)
    return None


def unfinished(out: Path) -> Sequence[Path]:
    """The folders of conversions to ``out`` that were stopped or are running right now."""
    return sorted(out.parent.glob(f"{glob.escape(out.name)}.partial-*"))


def describe_unfinished(path: Path) -> str:
    """One line for people: what it is, and what to do with it."""
    staging = Staging(path)
    if staging.progress.is_dir() and _is_locked(staging):
        return f"{path}: another conversion to the same place is running"
    done = staging.images_done()
    if done:
        return f"{path}: {count(done, 'image')} of a conversion that was stopped; resume it with --resume, or delete it"
    # One that was killed while it put a data set in the place of another one leaves both beside it.
    if all(file.exists() for file in _files(path)):
        return f"{path}: a whole data set that a conversion had not put in its place yet; move it there, or delete it"
    return f"{path}: left from a conversion that was stopped; delete it"


def publish(staging: Staging, out: Path, *, overwrite: bool) -> None:
    """Move a finished data set into place; until the last move, nothing there looks like one.

    Raises:
        OutTakenError: something else has taken the place meanwhile.
    """
    check_out(out, overwrite=overwrite)
    if staging.quarantine.exists():
        staging.quarantine.replace(quarantine_path(out))
    else:
        quarantine_path(out).unlink(missing_ok=True)  # of the data set that is replaced
    shutil.rmtree(staging.progress)
    folder = staging.folder
    if out.suffix != ".beton":
        out = Path(os.path.realpath(out))  # a link to a folder stays a link
        old = folder.with_name(folder.name + ".old")
        if out.is_dir() and any(out.iterdir()):
            out.rename(old)
        try:
            folder.rename(out)  # replaces an empty folder, but no other
        except OSError as error:
            raise OutTakenError(f"{out}: cannot be put in place ({error.strerror})") from error
        shutil.rmtree(old, ignore_errors=True)
        return
    # The train beton is what makes a data set of the four files: it leaves first and arrives last.
    pairs = list(zip(_files(folder), _files(out), strict=True))[::-1]
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


@contextmanager
def _lock(staging: Staging) -> Generator[None]:
    """Hold a lock for as long as this process lives, by which others tell a running conversion from a killed one."""
    # A soft lock, a file that only its maker removes, would outlive a kill.
    lock = FileLock(staging.progress / "lock", timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{staging.folder}: a conversion is running there; wait for it, or choose another OUT"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


def _is_locked(staging: Staging) -> bool:
    with suppress(UserError), _lock(staging):
        return False
    return True


def _files(path: Path) -> list[Path]:
    """The four files of a data set, train's beton first."""
    return [file for files in split_paths(path).values() for file in files]
