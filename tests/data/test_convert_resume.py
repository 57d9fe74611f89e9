"""A conversion that is stopped, in whatever way, resumes and writes the same bytes. About 15 s.

The slow ones start a Ray.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import data_prep.conversion.convert as convert_module
from data_prep.conversion import parallel
from data_prep.conversion.convert import ConvertSettings
from data_prep.conversion.encode import EncodeSettings
from data_prep.conversion.record import SplitJournal, StoredRecord, UnreadableRecord, count_records
from data_prep.conversion.splits import plan_splits
from data_prep.conversion.staging import unfinished
from data_prep.sources.choose import open_source
from data_prep.sources.source import Source, SourceImage
from nfnet_ray.command_line.progress import images_on_stderr
from nfnet_ray.data.files.beton import BetonWriter
from nfnet_ray.data.files.dataset import open_dataset
from tests.deadlines import HANG_SECONDS

from .conftest import HELD, Encode, convert

REPOSITORY = Path(__file__).parents[2]
IMAGES = 90

# Runs the command line with a sync after every image, and kills itself at the COUNTth fsync (0: never).
PROGRAM = """\
import os, signal, sys
import data_prep.conversion.convert
from data_prep.__main__ import main
sync_seconds, count = float(sys.argv[1]), int(sys.argv[2])
data_prep.conversion.convert.SYNC_SECONDS = sync_seconds
fsync, calls = os.fsync, 0
def fsync_or_die(descriptor):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = fsync_or_die
sys.exit(main(["convert", *sys.argv[3:]]))
"""


def start(
    *arguments: object,
    sync_seconds: float = 0,
    die_at_fsync: int = 0,
    before: Callable[[], None] | None = None,
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(sync_seconds), str(die_at_fsync), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before
    )


def data_set_files(out: Path) -> dict[str, bytes]:
    """The files of a data set, and its list of unreadable images, by their names less ``out``'s."""
    files = sorted(out.iterdir()) if out.is_dir() else []
    files += [path for path in out.parent.glob(f"{out.stem}.*") if path.is_file()]
    return {path.name.removeprefix(out.stem): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, encode: Encode) -> Path:
    """90 images of three classes, of which some are re-encoded and two cannot be decoded; in two splits."""
    root = tmp_path_factory.mktemp("source") / "flowers"
    for number in range(IMAGES):
        folder = root / ("val" if number % 5 == 0 else "train") / ("aster", "daisy", "rose")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if number % 7 == 0 else "JPEG"
        (folder / f"{number:03}.{kind.lower()}").write_bytes(encode(number, kind, size=(96, 80)))
    for name in ("train/daisy/004.jpeg", "val/aster/015.jpeg"):
        (root / name).write_bytes(b"\xff\xd8 this is no picture")
    return root


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert convert(source, out, "--skip-unreadable") == 0
    files = data_set_files(out)
    assert len(files) == 5
    return files


def kill_after(out: Path, images: int, process: subprocess.Popen[str]) -> None:
    """SIGKILL as soon as ``images`` images are in the journals."""
    deadline = time.monotonic() + HANG_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        journals = [path for folder in unfinished(out) for path in folder.glob("progress/*.journal")]
        if sum(map(count_records, journals)) >= images:
            break
        time.sleep(0.001)
    process.kill()
    process.communicate()


# Stopped and resumed


@pytest.mark.parametrize("name", ["out", "out.beton"])
def test_killed_again_and_again_it_gives_the_bytes_of_an_undisturbed_conversion(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    seen = 0
    for images in sorted(random.Random(name).sample(range(1, IMAGES - 5), 3)):
        process = start(source, out, "--skip-unreadable", "--resume")
        kill_after(out, images, process)
        assert process.returncode == -signal.SIGKILL
        assert list(tmp_path.glob("out*.beton")) == list(out.glob("*")) == []
        (folder,) = unfinished(out)
        done = sum(map(count_records, folder.glob("progress/*.journal")))
        assert done >= max(images, seen)  # nothing that was done is done again
        seen = done
    assert convert(source, out, "--skip-unreadable", "--resume") == 0
    if name == "out":
        assert data_set_files(out) == undisturbed
    else:
        whole = {"train.beton": ".beton", "train.parquet": ".parquet"}
        whole |= {f"validation.{end}": f".validation.{end}" for end in ("beton", "parquet")}
        assert data_set_files(out) == {whole.get(key, key): data for key, data in undisturbed.items()}
    assert not unfinished(out)


@pytest.mark.parametrize("fsync", [1, 2, 3, 4, 5, 8, 10])
def test_a_kill_at_any_step_of_finishing_can_be_resumed(
    source: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fsync: int,
) -> None:
    """Each split brings to the disk: images, journal, beton but for its header, the header, the manifest."""
    process = start(source, tmp_path / "out", "--skip-unreadable", sync_seconds=60, die_at_fsync=fsync)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert convert(source, tmp_path / "out", "--skip-unreadable", "--resume") == 0
    # Of 72 and 18 images; a journal that was written but not synced is there after a kill all the same.
    resumed = {1: None, 2: 72, 3: 72, 4: 72, 5: 72, 8: 90, 10: 90}[fsync]
    assert (f"resumed: {resumed} images" in capsys.readouterr().out) == (resumed is not None)
    left = unfinished(tmp_path / "out")
    if fsync == 1:  # before any journal: there is nothing to resume
        for folder in left:
            shutil.rmtree(folder)
        left = []
    assert not left
    assert data_set_files(tmp_path / "out") == undisturbed


def test_a_full_disk_gives_one_line_and_keeps_what_is_done(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = (8 << 20) + 50_000  # the images begin at 8 MiB
    process = start(
        source,
        tmp_path / "out",
        "--skip-unreadable",
        before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, error = process.communicate()
    assert process.returncode == 2
    (line,) = [line for line in error.splitlines() if not line.startswith(("train:", "validation:"))]
    assert "out: cannot be written (File too large)" in line
    assert "--resume resumes it" in line
    (folder,) = unfinished(tmp_path / "out")
    done = count_records(folder / "progress" / "train.journal")
    assert done > 5
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert convert(source, tmp_path / "out", "--skip-unreadable", "--resume") == 0
    assert f"resumed: {done} images were done before" in capsys.readouterr().out
    assert data_set_files(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_says_how_to_resume(
    image_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    shutil.copytree(image_folder, tmp_path / "split" / "val")
    image_folder.rename(tmp_path / "split" / "train")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    image = tmp_path / "split" / "train" / "rose" / "4.jpg"  # the last one of train
    command = [sys.executable, "-c", HELD, str(image), str(pipe), "convert"]
    command += [str(tmp_path / "split"), str(tmp_path / "out"), "--workers", "1"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with open(pipe, "w"):  # waits for the reader, and lets it wait for ever
        time.sleep(0.3)  # the main thread takes over the images before, and waits for this one
        process.send_signal(number)
        _, error = process.communicate()
    (folder,) = unfinished(tmp_path / "out")
    assert error == (
        f"python -m data_prep: stopped; 14 images are kept in {folder}; the same command with --resume resumes it\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_leftover_is_named_with_what_to_do(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(source, tmp_path / "out") == 2  # at the first unreadable image
    capsys.readouterr()
    assert convert(source, tmp_path / "out", "--skip-unreadable") == 0
    (folder,) = unfinished(tmp_path / "out")
    note = capsys.readouterr().out.splitlines()[0]
    assert note.startswith(f"note: {folder}: ")
    assert note.endswith("images of a conversion that was stopped; resume it with --resume, or delete it")


def test_a_data_set_that_was_about_to_be_replaced_is_not_to_be_deleted(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two moves of --overwrite, which leaves the old one and the new one beside their place."""
    out = tmp_path / "out"
    assert convert(source, out, "--skip-unreadable") == 0
    rename = Path.rename

    def once(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if path == out:
            raise KeyboardInterrupt
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", once)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a kill cleans nothing up
        with suppress(KeyboardInterrupt):
            convert(source, out, "--skip-unreadable", "--overwrite")
    assert not out.exists()
    capsys.readouterr()
    (old,) = [folder for folder in unfinished(out) if folder.suffix == ".old"]
    assert convert(source, out, "--skip-unreadable") == 0
    notes = capsys.readouterr().out.splitlines()
    whole = "a whole data set that a conversion had not put in its place yet; move it there, or delete it"
    assert f"note: {old}: {whole}" in notes


def test_a_higher_limit_resumes_after_the_images_that_were_read(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(source, tmp_path / "out", "--resume") == 2  # to have nothing to resume is not an error
    assert convert(source, tmp_path / "out", "--resume", "--max-unreadable", 1) == 2
    capsys.readouterr()
    assert convert(source, tmp_path / "out", "--resume", "--max-unreadable", 2) == 0
    assert "resumed: 7" in capsys.readouterr().out
    assert data_set_files(tmp_path / "out") == undisturbed


def test_an_image_that_was_repaired_is_taken(source: Path, tmp_path: Path, encode: Encode) -> None:
    mine = Path(shutil.copytree(source, tmp_path / "mine"))
    assert convert(mine, tmp_path / "out") == 2
    (mine / "train/daisy/004.jpeg").write_bytes(encode(4))
    assert convert(mine, tmp_path / "out", "--resume") == 2  # at the next one
    (mine / "val/aster/015.jpeg").write_bytes(encode(15))
    assert convert(mine, tmp_path / "out", "--resume") == 0
    assert convert(mine, tmp_path / "again") == 0
    assert data_set_files(tmp_path / "out") == data_set_files(tmp_path / "again")


def test_damage_to_what_was_kept_is_found_and_done_again(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert convert(source, tmp_path / "out", "--max-unreadable", 1) == 2
    (folder,) = unfinished(tmp_path / "out")
    beton = folder / "train.beton"
    at = len(beton.read_bytes()[: (8 << 20) + 20_000])
    with open(beton, "r+b") as file:
        file.seek(at)
        file.write(b"\0" * 100)
    with open(folder / "progress" / "validation.journal", "ab") as file:
        file.write(b'[12, 0, "torn')
    assert convert(source, tmp_path / "out", "--skip-unreadable", "--resume") == 0
    assert data_set_files(tmp_path / "out") == undisturbed


# Refused


def other_quality(source: Path) -> list[object]:
    del source
    return ["--jpeg-quality", 80]


def other_size(source: Path) -> list[object]:
    del source
    return ["--max-side", 64]


def one_image_less(source: Path) -> list[object]:
    (source / "train/rose/089.jpeg").unlink()
    return []


def an_image_changed(source: Path) -> list[object]:
    os.utime(source / "train/aster/003.jpeg", ns=(1, 1))
    return []


def an_image_renamed(source: Path) -> list[object]:
    (source / "train/aster/003.jpeg").rename(source / "train/aster/002.jpeg")
    return []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_quality, "jpeg_quality was 90, is 80"),
        (other_size, "max_side was 1024, is 64"),
        (one_image_less, "training images was 72 (names"),
        (an_image_renamed, "training images was 72 (names"),
        (an_image_changed, "train/aster/003.jpeg has been changed or added"),
    ],
)
def test_other_settings_or_another_source_are_refused_with_the_difference(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], list[object]],
    message: str,
) -> None:
    mine = Path(shutil.copytree(source, tmp_path / "mine"))
    assert convert(mine, tmp_path / "out", "--max-unreadable", 1) == 2  # all of train is done
    capsys.readouterr()
    (folder,) = unfinished(tmp_path / "out")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert convert(mine, tmp_path / "out", "--skip-unreadable", "--resume", *change(mine)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_running_conversion_is_not_resumed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(source, tmp_path / "out", "--skip-unreadable", before=os.setpgrp)
    deadline = time.monotonic() + HANG_SECONDS
    while time.monotonic() < deadline:
        if any(count_records(path) for path in tmp_path.glob("out.partial-*/progress/train.journal")):
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    try:
        assert convert(source, tmp_path / "out", "--skip-unreadable", "--resume") == 2
        assert "a conversion is running there" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()
    assert convert(source, tmp_path / "out", "--skip-unreadable", "--resume") == 0


# The parts


def test_a_resumed_beton_has_the_bytes_of_one_written_in_one_go(tmp_path: Path) -> None:
    """Garbage behind the samples that are adopted, a header and metadata of a finish that was broken off."""
    samples = [bytes([number + 1]) * (5 << 20) for number in range(3)]  # a page each: holes between them
    whole, again = tmp_path / "whole.beton", tmp_path / "again.beton"
    for path, kept in ((whole, 0), (again, 1)):
        if kept:
            with suppress(KeyError), BetonWriter(path, capacity=500) as writer:
                writer.append(samples[0], label=0, height=8, width=8)
                raise KeyError
            with open(f"{path}.partial", "r+b") as file:
                file.write(b"\x55" * 14_000)  # of 500 samples' metadata
                file.seek(0, os.SEEK_END)
                file.write(b"\x55" * (30 << 20))
        with BetonWriter(path, capacity=500) as writer:
            if kept:
                assert writer.held(5 << 20) == samples[0]
                writer.adopt(5 << 20, label=0, height=8, width=8)
            for sample in samples[kept:]:
                writer.append(sample, label=0, height=8, width=8)
    assert whole.read_bytes() == again.read_bytes()
    assert sorted(tmp_path.iterdir()) == [again, whole]


def test_a_journal_gives_back_what_was_committed(tmp_path: Path) -> None:
    records = [StoredRecord(12, 0, 3, 4, "ab", None), UnreadableRecord('a "reason"\n of two lines')]
    path = tmp_path / "journal"
    with SplitJournal(path) as journal:
        for record in records:
            journal.add(record)
        assert path.read_bytes() == b""
        journal.commit()
        journal.add(records[0])  # never committed
    whole = path.read_bytes()
    for torn in (b"", b"[12, 0", b"\0" * 40, b"{}\n", b"[1, 2]\n"):
        path.write_bytes(whole + torn)
        with SplitJournal(path) as journal:
            assert list(journal.replay()) == records
            journal.add(records[1])
            journal.commit()
        assert path.read_bytes() == whole + json.dumps(records[1].reason).encode() + b"\n"


def test_progress_counts_what_was_there_but_not_as_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 5.0, 20.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with images_on_stderr("train", 1000, 900) as advance:
        advance()
        advance()
    assert capsys.readouterr().err == "train: 902 of 1,000 images, 0.1 images/s, 16:20 left\n"


# On Ray


@dataclass(frozen=True)
class _Split:
    """A split whose images are loaded by something else."""

    names: list[str]
    labels: np.ndarray
    found: list[SourceImage]

    def images(self, indices: np.ndarray) -> Iterator[SourceImage]:
        return (self.found[int(index)] for index in indices)


def with_load(source: Source, load_of: Callable[[str], Callable[[], bytes]]) -> Source:
    """The source with another way to load each image's file."""
    splits = {}
    for name, split in source.splits.items():
        found = [
            replace(image, load=load_of(str(split.root / image.name)))  # type: ignore[attr-defined]
            for image in split.images(np.arange(len(split.names)))
        ]
        splits[name] = _Split(list(split.names), split.labels, found)
    return replace(source, splits=splits)


@pytest.mark.slow
def test_ray_writes_the_same_bytes_and_survives_a_worker_that_is_killed(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    opened = open_source([source], "label")
    marker = tmp_path / "killed"

    def load(path: str, fatal: bool) -> bytes:
        import os
        import signal
        from pathlib import Path

        if fatal and not Path(str(marker)).exists():
            Path(str(marker)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Path(path).read_bytes()

    fatal = with_load(opened, lambda path: partial(load, path, path.endswith("044.jpeg")))
    settings = ConvertSettings(EncodeSettings(), address="local", max_unreadable=None)
    report = convert_module.convert(fatal, plan_splits(fatal, 0.2), tmp_path / "out", settings)
    assert marker.exists()
    assert report.dataset.fingerprint == open_dataset(tmp_path / "out").fingerprint
    assert data_set_files(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_a_node_that_is_lost_in_the_middle_costs_nothing(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        second_id, marker = second.node_id, tmp_path / "working"

        def load(path: str) -> bytes:
            import time
            from pathlib import Path

            import ray

            if ray.get_runtime_context().get_node_id() == second_id:
                Path(str(marker)).touch()
                time.sleep(300)  # it is still at it when its node goes
            return Path(path).read_bytes()

        def lose_the_second_node() -> None:
            deadline = time.monotonic() + HANG_SECONDS
            while not marker.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            cluster.remove_node(second, allow_graceful=False)

        slow = with_load(open_source([source], "label"), lambda path: partial(load, path))
        settings = ConvertSettings(EncodeSettings(), address=cluster.address, max_unreadable=None)
        accident = threading.Thread(target=lose_the_second_node)
        accident.start()
        convert_module.convert(slow, plan_splits(slow, 0.2), tmp_path / "out", settings)
        accident.join()
        assert marker.exists()
        assert cluster.worker_nodes == set()
    finally:
        cluster.shutdown()
    assert data_set_files(tmp_path / "out") == undisturbed


def test_on_a_cluster_an_unreadable_file_is_named_with_its_machine(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel.platform, "node", lambda: "worker-3")
    image = next(iter(open_source([source], "label").splits["train"].images(np.array([0]))))
    lost = replace(image, load=(source / "gone.jpg").read_bytes)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory, on worker-3: .*gone\.jpg"):
        parallel._attempt(EncodeSettings(), lost).result()
