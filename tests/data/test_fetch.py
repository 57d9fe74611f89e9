"""`fetch` downloads a file completely and correctly or says why not, over any bad network. About 3 s."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import fetch as fetch_module
from data_prep.__main__ import main
from data_prep.fetch import ARCHIVES, FRUITLESS_ATTEMPTS, Archive, fetch, next_command
from nfnet_ray.data.files.verification import silent
from nfnet_ray.errors import UserError
from nfnet_ray.printable import interpreter

CONTENT = np.random.default_rng(0).bytes(1_000_000)


class Server(ThreadingHTTPServer):
    """A web server with one file and bad habits."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges = True
        self.shifted = 0
        """How many bytes later than asked for a range begins."""
        self.cuts: list[int] = []
        """After how many bytes the next connections are cut."""
        self.statuses: list[int] = []
        """What the next requests are answered with."""
        self.endless = False
        self.asked: list[str | None] = []
        """The Range of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/some/where.tgz"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        start, size = 0, len(server.content)
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) + server.shifted
            if start >= size:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        if not server.endless:
            self.send_header("Content-Length", str(size - start))
        self.end_headers()
        body = server.content[start:] * (3 if server.endless else 1)
        if server.cuts:
            self.wfile.write(body[: server.cuts.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def published(content: bytes = CONTENT, folder: str | None = None) -> Archive:
    return Archive(
        "http://127.0.0.1:9/thing.tgz", len(content), "sha256", hashlib.sha256(content).hexdigest(), folder
    )


class Fetcher:
    def __init__(self, server: Server, out: Path) -> None:
        self.server, self.out = server, out
        self.pauses: list[float] = []

    def __call__(self, archive: Archive | None = None) -> Path:
        return fetch(
            archive or published(), self.out, url=self.server.url, progress=silent, sleep=self.pauses.append
        )

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.out.iterdir())


@pytest.fixture
def fetcher(server: Server, tmp_path: Path) -> Fetcher:
    return Fetcher(server, tmp_path / "out")


def test_a_file_comes_whole_and_is_not_fetched_twice(fetcher: Fetcher) -> None:
    assert fetcher() == fetcher.out / "thing.tgz"
    assert (fetcher.out / "thing.tgz").read_bytes() == CONTENT
    assert fetcher.files == ["thing.tgz"]
    fetcher()
    assert fetcher.server.asked == [None]


def test_cut_connections_resume_where_they_ended(fetcher: Fetcher) -> None:
    fetcher.server.cuts = [300_000, 1, 200_000]
    fetcher()
    assert (fetcher.out / "thing.tgz").read_bytes() == CONTENT
    assert fetcher.server.asked == [None, "bytes=300000-", "bytes=300001-", "bytes=500001-"]
    assert fetcher.pauses == [1, 1, 1]  # each brought something


def test_the_same_command_resumes_a_killed_download(fetcher: Fetcher) -> None:
    fetcher.out.mkdir()
    (fetcher.out / "thing.tgz.partial").write_bytes(CONTENT[:700_000])
    (fetcher.out / "thing.tgz.partial.lock").touch()  # a lock is held by a process, not by the file
    fetcher()
    assert (fetcher.out / "thing.tgz").read_bytes() == CONTENT
    assert fetcher.server.asked == ["bytes=700000-"]
    assert fetcher.files == ["thing.tgz"]


def test_a_part_that_was_all_but_checked_is_not_fetched_again(fetcher: Fetcher) -> None:
    fetcher.out.mkdir()
    (fetcher.out / "thing.tgz.partial").write_bytes(CONTENT)
    fetcher()
    assert fetcher.server.asked == []
    assert fetcher.files == ["thing.tgz"]


@pytest.mark.parametrize("held", [b"another download" * 10, CONTENT + b"more"])
def test_a_part_of_something_else_is_thrown_away_once(fetcher: Fetcher, held: bytes) -> None:
    fetcher.out.mkdir()
    (fetcher.out / "thing.tgz.partial").write_bytes(held)
    fetcher()
    assert (fetcher.out / "thing.tgz").read_bytes() == CONTENT


def test_a_server_without_ranges_is_begun_again_with(fetcher: Fetcher) -> None:
    fetcher.server.ranges = False
    fetcher.server.cuts = [400_000]
    fetcher()
    assert (fetcher.out / "thing.tgz").read_bytes() == CONTENT
    assert fetcher.server.asked == [None, "bytes=400000-"]


def test_a_server_that_sends_another_part_than_asked_for_is_begun_again_with(fetcher: Fetcher) -> None:
    fetcher.server.shifted = 7
    fetcher.server.cuts = [400_000]
    fetcher()
    assert (fetcher.out / "thing.tgz").read_bytes() == CONTENT
    assert fetcher.server.asked == [None, "bytes=400000-", None]


def test_a_wrong_checksum_keeps_nothing(fetcher: Fetcher) -> None:
    fetcher.server.content = CONTENT[:-1] + b"?"
    with pytest.raises(
        UserError, match=r"sha256 is [0-9a-f]{64}, not [0-9a-f]{64}: this is not the file"
    ) as caught:
        fetcher()
    assert "\n" not in str(caught.value)
    assert fetcher.files == []


def test_a_file_of_another_size_is_refused_before_it_is_fetched(fetcher: Fetcher) -> None:
    fetcher.server.content = b"<html>Please log in</html>"
    with pytest.raises(UserError, match="offers 26 bytes, the published file has 1,000,000"):
        fetcher()
    assert fetcher.files == []


def test_a_server_that_sends_without_end_fills_no_disk(fetcher: Fetcher) -> None:
    fetcher.server.endless = True
    fetcher()
    assert (fetcher.out / "thing.tgz").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(fetcher: Fetcher) -> None:
    fetcher.server.statuses = [503, 429, 500]
    fetcher()
    assert fetcher.pauses == [2, 4, 8]
    (fetcher.out / "thing.tgz").unlink()
    fetcher.server.statuses = [404]
    with pytest.raises(UserError, match="the server says 404"):
        fetcher()
    assert len(fetcher.server.asked) == 5


def test_a_server_that_stays_away_is_given_up_and_the_part_is_kept(fetcher: Fetcher) -> None:
    fetcher.server.cuts = [250_000]
    fetcher.server.statuses = []
    fetcher.server.cuts += FRUITLESS_ATTEMPTS * [0]
    with pytest.raises(UserError, match=r"5 attempts made no progress .*run the same command later"):
        fetcher()
    assert fetcher.files == ["thing.tgz.partial"]
    assert (fetcher.out / "thing.tgz.partial").stat().st_size == 250_000
    fetcher()
    assert (fetcher.out / "thing.tgz").read_bytes() == CONTENT


def test_no_server_at_all_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/thing.tgz"
        with pytest.raises(UserError, match=r"attempts made no progress \(Connection refused\); check"):
            fetch(published(), tmp_path, url=url, progress=silent, sleep=lambda _: None)


def test_too_little_room_is_said_before_anything_is_fetched(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=999_999))
    with pytest.raises(UserError, match="make room"):
        fetcher()
    assert fetcher.server.asked == []


def test_a_disk_that_fills_up_keeps_what_came(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = fetch_module._copy

    def full_after_a_while(response: Any, file: Any, most: int, advance: Any) -> None:
        copy(response, file, min(most, 300_000), advance)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch_module, "_copy", full_after_a_while)
    with pytest.raises(UserError, match="no room left"):
        fetcher()
    assert fetcher.files == ["thing.tgz.partial"]
    monkeypatch.undo()
    fetcher()
    assert fetcher.server.asked == [None, "bytes=300000-"]
    assert (fetcher.out / "thing.tgz").read_bytes() == CONTENT


def test_a_finished_file_that_is_another_one_is_left_alone(fetcher: Fetcher) -> None:
    fetcher.out.mkdir()
    (fetcher.out / "thing.tgz").write_bytes(b"mine")
    with pytest.raises(UserError, match="move it away"):
        fetcher()
    assert (fetcher.out / "thing.tgz").read_bytes() == b"mine"


def test_two_at_once_do_not_write_into_one_file(fetcher: Fetcher) -> None:
    fetcher.out.mkdir()
    with (
        fetch_module._lone(fetcher.out / "thing.tgz.partial"),
        pytest.raises(UserError, match="is being downloaded by another process"),
    ):
        fetcher()
    fetcher()


def test_only_web_addresses_are_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="https://"):
        fetch(published(), tmp_path, url="file:///etc/passwd", progress=silent)


def tar_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_a_folder_is_unpacked_whole_and_can_be_converted(
    fetcher: Fetcher, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Imagenette is made: train/ and val/ of class folders, and a table of labels beside them."""
    files = {
        f"tiny/{split}/{path.parent.name}/{path.name}": path.read_bytes()
        for path in image_folder.rglob("*.jpg")
        for split in (["val"] if path.stem == "4" else ["train"])
    }
    fetcher.server.content = tar_of(**files, **{"tiny/noisy_imagenette.csv": b"path,noisy_labels_0\n"})
    folder = fetcher(published(fetcher.server.content, "tiny"))
    assert folder == fetcher.out / "tiny"
    assert fetcher.files == ["thing.tgz", "tiny"]
    assert {str(path.relative_to(fetcher.out)) for path in folder.rglob("*.jpg")} == set(files)
    command = next_command(folder).split()
    assert command[:4] == [interpreter(), "-m", "data_prep", "convert"]
    assert main(command[3:]) == 0
    assert "12 training and 3 validation images of 3 classes" in capsys.readouterr().out
    fetcher(published(fetcher.server.content, "tiny"))
    assert fetcher.server.asked == [None]


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "tiny/../../outside.txt"])
def test_an_archive_that_writes_outside_is_refused(fetcher: Fetcher, name: str) -> None:
    fetcher.server.content = tar_of(**{"tiny/a": b"a", name: b"out"})
    if name.startswith("/"):  # the slash is dropped
        assert fetcher(published(fetcher.server.content, "tiny")).name == "tiny"
    else:
        with pytest.raises(UserError, match="cannot be unpacked"):
            fetcher(published(fetcher.server.content, "tiny"))
        assert fetcher.files == ["thing.tgz"]
    assert not (fetcher.out / "outside.txt").exists()
    assert not (fetcher.out.parent / "outside.txt").exists()


def test_unpacking_that_breaks_off_leaves_no_folder(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher.server.content = tar_of(**{"tiny/a": b"a", "tiny/b": b"b"})
    archive = published(fetcher.server.content, "tiny")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "makefile", full)
    with pytest.raises(UserError, match="no room to unpack"):
        fetcher(archive)
    assert fetcher.files == ["thing.tgz"]
    monkeypatch.undo()
    (fetcher.out / "tiny.partial").mkdir()  # of a kill
    assert sorted(path.name for path in fetcher(archive).iterdir()) == ["a", "b"]
    assert fetcher.files == ["thing.tgz", "tiny"]


def test_the_command_says_what_to_do_next(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = dataclasses.replace(published(), url=ARCHIVES["cifar10"].url)
    monkeypatch.setitem(fetch_module.ARCHIVES, "cifar10", known)
    assert main(["fetch", "cifar10", str(tmp_path), "--url", server.url]) == 0
    out, _ = capsys.readouterr()
    archive = tmp_path / "cifar-10-binary.tar.gz"
    assert archive.read_bytes() == CONTENT
    assert out.endswith(
        f"next: {interpreter()} -m data_prep convert {archive} {tmp_path / 'cifar-10.beton'}\n"
    )


def test_the_known_archives_are_well_formed() -> None:
    digits = {"md5": 32, "sha256": 64}
    for archive in ARCHIVES.values():
        assert archive.url.startswith("https://")
        assert len(bytes.fromhex(archive.checksum)) * 2 == digits[archive.algorithm]
        assert archive.folder is None or archive.name == f"{archive.folder}.tgz"
    assert len({archive.checksum for archive in ARCHIVES.values()}) == len(ARCHIVES)


@pytest.mark.parametrize(
    "url",
    [
        "x", "ftp://x/y", "file:///etc/passwd", "http://", "http:///x", "http://[", "http://h:abc/x", "http://a b/",
        "http://x/\n", "http://x:0/", "http://x:99999/",
    ],
)  # fmt: skip
def test_anything_but_an_address_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert main(["fetch", "cifar10", str(tmp_path / "out"), "--url", url]) == 2
    error = capsys.readouterr().err
    assert ": not an address; give one with https:// or http://, such as https://www.cs.toronto.edu/" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_empty_address_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As that of a shell variable that is not set."""
    with pytest.raises(SystemExit) as left:
        main(["fetch", "cifar10", str(tmp_path / "out"), "--url", ""])
    assert left.value.code == 2
    assert "--url: a value is needed, and this is empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
