"""``python -m data_prep fetch``: known data sets from where they are published, checked against known checksums.

A download grows in ``NAME.partial`` and gets its name once its checksum is right; a folder is unpacked next to its
place and moved there whole. So what was cut off, by a network, a kill or a full disk, never looks finished, and the
same command resumes it.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from data_prep.lines import say
from nfnet_ray.command_line.progress import Progress, bytes_on_stderr
from nfnet_ray.errors import UserError
from nfnet_ray.places import in_words
from nfnet_ray.printable import interpreter, shell_command
from nfnet_ray.whole_file import partial_path

_BLOCK_BYTES = 1 << 18
_TIMEOUT_SECONDS = 60.0  # without a byte
FRUITLESS_ATTEMPTS = 5  # one after the other; an attempt that brought bytes starts the count again
_LONGEST_PAUSE_SECONDS = 30.0
# HTTP: the request timed out, too many requests, and everything that is the server's own trouble.
_WORTH_ANOTHER_ATTEMPT = frozenset({408, 429, *range(500, 600)})
_RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True)
class Archive:
    """A published file."""

    url: str
    size: int
    """Bytes."""
    algorithm: str
    """``md5`` or ``sha256``: what its checksum was published in."""
    checksum: str
    folder: str | None = None
    """The one folder in it, which is unpacked; None: it is converted as it is."""
    unpacked_bytes: int = 0
    """About, to see beforehand whether there is room."""

    @property
    def name(self) -> str:
        return urllib.parse.urlsplit(self.url).path.rpartition("/")[2]


_FAST_AI = "https://s3.amazonaws.com/fast-ai-imageclas/"
ARCHIVES = {
    # MD5: the data set's own page, https://www.cs.toronto.edu/~kriz/cifar.html.
    "cifar10": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        170_052_171, "md5", "c32a1d4ab5d03f1284b67883e8d87530",
    ),
    # Sizes and SHA-256: tensorflow_datasets/datasets/imagenette/checksums.tsv of TensorFlow Datasets, which are those
    # that other projects list too; fast.ai publishes none. JPEGs hardly compress: what is unpacked is about as large.
    "imagenette": Archive(
        _FAST_AI + "imagenette2.tgz", 1_557_161_267, "sha256",
        "6cbfac238434d89fe99e651496f0812ebc7a10fa62bd42d6874042bf01de4efd", "imagenette2", 1_600_000_000,
    ),
    "imagenette-320": Archive(
        _FAST_AI + "imagenette2-320.tgz", 341_663_724, "sha256",
        "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c", "imagenette2-320", 360_000_000,
    ),
    "imagenette-160": Archive(
        _FAST_AI + "imagenette2-160.tgz", 99_003_388, "sha256",
        "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5", "imagenette2-160", 120_000_000,
    ),
}  # fmt: skip


def fetch(
    archive: Archive,
    out: Path,
    *,
    url: str | None = None,
    progress: Progress = bytes_on_stderr,
    sleep: Callable[[float], object] = time.sleep,
) -> Path:
    """Bring an archive to the folder ``out``, and unpack it where it has to be; gives what ``convert`` takes.

    Does nothing twice: complete files are kept, partial ones are resumed.

    Args:
        archive: what to bring.
        out: a folder; made if there is none.
        url: a mirror to take it from instead. The checksum is the same.
        progress: told of bytes.
        sleep: waits between attempts, for seconds.

    Raises:
        UserError: no such file there, no room, a wrong checksum, or no connection after several attempts.
    """
    url = archive.url if url is None else url
    if not _is_web_address(url):
        raise UserError(f"{url}: not an address; give one with https:// or http://, such as {archive.url}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); choose another folder") from error
    finished = out / archive.name
    folder = out / archive.folder if archive.folder else None
    if folder is not None and folder.exists():
        return folder
    with _lone(partial_path(finished)) as partial:
        if finished.exists():
            if _checksum(finished, archive, progress) != archive.checksum:
                raise UserError(
                    f"{finished}: is there, but is not the file that was published; move it away and try again"
                )
        else:
            _check_room(out, archive, _size(partial))
            _download_checked(archive, url, partial, progress, sleep)
            partial.replace(finished)
        if folder is not None:
            _unpack(finished, archive, folder)
    return folder or finished


def _is_web_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        has_place = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # of brackets or a port that are none
        return False
    return (
        parts.scheme in ("http", "https")
        and has_place
        and url.isascii()
        and url.isprintable()
        and " " not in url
    )


def next_command(fetched: Path) -> str:
    """The command that converts what was fetched."""
    stem = re.sub(r"(-binary)?\.tar\.gz$", "", fetched.name)
    out = fetched.parent / f"{stem}.beton"
    return shell_command([interpreter(), "-m", "data_prep", "convert", fetched, out])


@contextmanager
def _lone(partial: Path) -> Generator[Path]:
    """Let one process at a time work on a download; the lock is free once that process has ended, however it did."""
    lock_path = partial.with_name(partial.name + ".lock")
    # A soft lock, a file that only its maker removes, would outlive a kill.
    lock = FileLock(lock_path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"{partial} is being downloaded by another process; wait for that to end") from error
    try:
        yield partial
    finally:
        lock_path.unlink(missing_ok=True)
        lock.release()


def _check_room(out: Path, archive: Archive, held_bytes: int) -> None:
    needed, free = archive.size - held_bytes + archive.unpacked_bytes, shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{out}: has {free / 1e6:,.0f} MB free, but {needed / 1e6:,.0f} MB are needed; make room, or choose"
            " another folder"
        )


def _download_checked(
    archive: Archive, url: str, partial: Path, progress: Progress, sleep: Callable[[float], object]
) -> None:
    """Download until the checksum is right; what an earlier, other download left is thrown away once."""
    began_before = _size(partial) > 0
    while True:
        _download(archive, url, partial, progress, sleep)
        found = _checksum(partial, archive, progress)
        if found == archive.checksum:
            return
        partial.unlink()
        if not began_before:
            raise UserError(
                f"{url}: {archive.algorithm} is {found}, not {archive.checksum}: this is not the file that was"
                " published; nothing was kept, try another mirror with --url"
            )
        began_before = False


def _download(
    archive: Archive, url: str, partial: Path, progress: Progress, sleep: Callable[[float], object]
) -> None:
    fruitless = 0
    if _size(partial) > archive.size:
        partial.unlink()
    with progress(f"fetch {archive.name}", archive.size - _size(partial)) as advance:
        while _size(partial) < archive.size:
            before = _size(partial)
            try:
                _attempt(archive, url, partial, advance)
                reason = "the connection ended early"
            except urllib.error.HTTPError as error:
                if error.code == _RANGE_NOT_SATISFIABLE and before:
                    partial.unlink()
                elif error.code not in _WORTH_ANOTHER_ATTEMPT:
                    raise UserError(
                        f"{url}: the server says {error.code} {error.reason}; check the address, or give a mirror"
                        " with --url"
                    ) from error
                reason = f"{error.code} {error.reason}"
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                ConnectionError,
                TimeoutError,
                ssl.SSLError,
            ) as error:
                cause = getattr(error, "reason", error)
                said = in_words(cause) if isinstance(cause, OSError) else str(cause)
                reason = said or type(error).__name__
            if _size(partial) >= archive.size:
                return
            fruitless = 0 if _size(partial) > before else fruitless + 1
            if fruitless >= FRUITLESS_ATTEMPTS:
                advice = "check the network, or run the same command later"
                if _size(partial):
                    advice = f"what was fetched stays in {partial}, run the same command later to resume"
                raise UserError(f"{url}: {fruitless} attempts made no progress ({reason}); {advice}")
            sleep(min(_LONGEST_PAUSE_SECONDS, 2.0**fruitless))


def _attempt(archive: Archive, url: str, partial: Path, advance: Callable[[int], None]) -> None:
    """One request, for what is missing."""
    held = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={held}-"} if held else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        total, start = _announced(response, held)
        if total is not None and total != archive.size:
            raise UserError(
                f"{url}: the server offers {total:,} bytes, the published file has {archive.size:,}; check the"
                " address, or give another mirror with --url"
            )
        if start != held:
            start = 0
            if response.status == http.HTTPStatus.PARTIAL_CONTENT:
                partial.unlink()  # another part than was asked for: the next attempt asks for all
                return
        try:
            with open(partial, "r+b" if held else "wb") as file:
                file.truncate(start)
                file.seek(start)
                _copy(response, file, archive.size - start, advance)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"{partial}: no room left; make room and run the same command again: what was fetched is kept"
                ) from error
            raise


def _announced(response: http.client.HTTPResponse, held: int) -> tuple[int | None, int]:
    """How many bytes the whole file has, if the server says so, and where what comes begins."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if match is None:
            return None, held + 1  # nobody knows what comes
        return (None if match[2] == "*" else int(match[2])), int(match[1])
    length = response.headers.get("Content-Length", "")
    return (int(length) if length.isdecimal() else None), 0


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, most: int, advance: Callable[[int], None]
) -> None:
    """Never more than is missing: a server that sends without end fills no disk."""
    while most > 0:
        block = response.read(min(_BLOCK_BYTES, most))
        if not block:
            return
        file.write(block)
        most -= len(block)
        advance(len(block))


def _checksum(path: Path, archive: Archive, progress: Progress) -> str:
    digest = hashlib.new(archive.algorithm, usedforsecurity=False)
    with open(path, "rb") as file, progress(f"check {archive.name}", path.stat().st_size) as advance:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def _unpack(archive_path: Path, archive: Archive, folder: Path) -> None:
    """Unpack next to ``folder``, then move there. The caller holds the lock, so anything there is left from a kill."""
    assert archive.folder is not None
    unpacking = partial_path(folder)
    shutil.rmtree(unpacking, ignore_errors=True)
    try:
        with tarfile.open(archive_path, "r:gz") as tar:
            # "data" refuses what would lie outside, links to outside, devices, and drops owners and permissions.
            tar.extractall(unpacking, filter="data")
        if not (unpacking / archive.folder).is_dir():
            raise UserError(f"{archive_path}: there is no folder {archive.folder} in it; fetch it again")
        (unpacking / archive.folder).rename(folder)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive_path}: cannot be unpacked ({error}); delete it and try again") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{folder.parent}: no room to unpack {archive_path.name}; make room and run the same command again"
            ) from error
        raise
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def run_fetch(name: str, size: str, out: Path, url: str | None) -> None:
    """Fetch and say what to do next."""
    archive = ARCHIVES[name if name != "imagenette" or size == "full" else f"imagenette-{size}"]
    fetched = fetch(archive, out, url=url)
    say(f"{fetched} is there, from an archive with the published {archive.algorithm}")
    say(f"next: {next_command(fetched)}")
