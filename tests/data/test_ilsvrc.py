"""ImageNet's tar files as a source: the same data set as the unpacked images, and a line for every wrong file."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from data_prep.sources.choose import open_source
from data_prep.sources.tar_index import tar_members
from nfnet_ray.data.files.dataset import open_dataset

from .conftest import FILES, Encode, add_to, convert, refusal, tar_of

# In meta.mat's order, which is not the sorted one: the ground truth's numbers are positions in neither.
WNIDS = ("n03445777", "n01440764", "n02099601")
TRAIN_PER_CLASS = 4
GROUND_TRUTH = (2, 1, 3, 1, 2, 2)


def meta_mat(wnids: Sequence[str], train_images: int) -> bytes:
    """A meta.mat as the development kit's: classes first, then inner nodes from 1001 on."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    synsets = np.zeros((len(wnids) + 1, 1), [(name, object) for name in (*fields, "num_train_images")])
    for row, wnid in enumerate(wnids):
        nothing = np.zeros((1, 0))
        synsets[row, 0] = (row + 1, wnid, f"word {row}", "a gloss", 0, nothing, 0, train_images)
    children = np.arange(1, len(wnids) + 1)[None]
    synsets[-1, 0] = (1001, "n00001740", "entity", "all there is", len(wnids), children, 1, 0)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def kit_of(meta: bytes, ground_truth: Sequence[object]) -> bytes:
    lines = "".join(f"{number}\n" for number in ground_truth).encode()
    root = "ILSVRC2012_devkit_t12"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        add_to(tar, f"{root}/readme.txt", b"read me")
        add_to(tar, f"{root}/data/ILSVRC2012_validation_ground_truth.txt", lines)
        add_to(tar, f"{root}/data/meta.mat", meta)
    return buffer.getvalue()


@pytest.fixture
def unpacked(tmp_path: Path, encode: Encode) -> Path:
    """train/WNID/IMAGE and val/WNID/IMAGE, with the oddities that ImageNet has."""
    root = tmp_path / "unpacked"
    odd = {0: encode(1, mode="CMYK"), 1: encode(2, mode="L"), 2: encode(3, "PNG"), 3: encode(4)[:-40]}
    for label, wnid in enumerate(WNIDS):
        (root / "train" / wnid).mkdir(parents=True)
        for number in range(TRAIN_PER_CLASS):
            image = odd[number] if label == 1 and number < 3 else encode(10 * label + number)
            (root / "train" / wnid / f"{wnid}_{7 * number % 11}.JPEG").write_bytes(image)
    for number, ilsvrc_id in enumerate(GROUND_TRUTH, start=1):
        folder = root / "val" / WNIDS[ilsvrc_id - 1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(encode(50 + number))
    return root


@pytest.fixture
def ilsvrc(unpacked: Path, tmp_path: Path) -> Path:
    """The three files of the same images."""
    root = tmp_path / "ilsvrc"
    root.mkdir()
    classes = {}
    for wnid in WNIDS:
        images = sorted((unpacked / "train" / wnid).iterdir(), reverse=True)  # in no order that helps
        classes[f"{wnid}.tar"] = tar_of({image.name: image.read_bytes() for image in images})
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
    validation = sorted((unpacked / "val").glob("*/*"), key=lambda path: path.name)
    (root / "ILSVRC2012_img_val.tar").write_bytes(
        tar_of({image.name: image.read_bytes() for image in validation})
    )
    kit = kit_of(meta_mat(WNIDS, TRAIN_PER_CLASS), GROUND_TRUTH)
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(kit)
    return root


def test_imagenets_tars_give_the_data_set_of_the_unpacked_images(
    ilsvrc: Path, unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    files = sorted(ilsvrc.iterdir())
    assert convert(*files, tmp_path / "a.beton", "--workers", 1) == 0
    assert sorted(tmp_path.rglob("*")) == sorted([*before, *(tmp_path / f"a{suffix}" for suffix in FILES)])
    assert "development kit says" not in capsys.readouterr().out
    assert convert(*files[::-1], tmp_path / "b.beton", "--workers", 5) == 0
    for suffix in FILES:
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()

    assert convert(unpacked, tmp_path / "folder.beton") == 0
    for suffix in (".beton", ".validation.beton"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"folder{suffix}").read_bytes()
    tars, folder = open_dataset(tmp_path / "a.beton"), open_dataset(tmp_path / "folder.beton")
    assert tars.fingerprint == folder.fingerprint
    assert tars.class_names == tuple(sorted(WNIDS))
    for ours, theirs in ((tars.train, folder.train), (tars.validation, folder.validation)):
        assert ours.manifest.sources() == theirs.manifest.sources()
    labels = [sorted(WNIDS).index(WNIDS[number - 1]) for number in GROUND_TRUTH]
    numbers = [int(Path(name).stem[-8:]) for name in tars.validation.manifest.sources()]
    assert tars.validation.beton.labels.tolist() == [labels[number - 1] for number in numbers]


def test_imagenet_from_a_folder_and_with_the_kit_unpacked(ilsvrc: Path, tmp_path: Path) -> None:
    assert convert(ilsvrc, tmp_path / "a") == 0
    with tarfile.open(ilsvrc / "ILSVRC2012_devkit_t12.tar.gz") as tar:
        tar.extractall(ilsvrc, filter="data")
    assert convert(ilsvrc, tmp_path / "b") == 0
    kit = ilsvrc / "ILSVRC2012_devkit_t12"
    tars = (ilsvrc / "ILSVRC2012_img_train.tar", ilsvrc / "ILSVRC2012_img_val.tar")
    assert convert(*tars, kit, tmp_path / "c") == 0
    fingerprints = {open_dataset(tmp_path / name).fingerprint for name in "abc"}
    assert len(fingerprints) == 1


def test_an_incomplete_class_is_noted(
    ilsvrc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = kit_of(meta_mat(WNIDS, TRAIN_PER_CLASS + 1), GROUND_TRUTH)
    (ilsvrc / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(kit)
    assert convert(ilsvrc, tmp_path / "out") == 0
    assert "n01440764 has 4 training images, the development kit says 5" in capsys.readouterr().out


def train_in_place_of_validation(root: Path) -> None:
    shutil.copy(root / "ILSVRC2012_img_train.tar", root / "ILSVRC2012_img_val.tar")


def unlabelled_images_in_place_of_validation(root: Path) -> None:
    images = {f"ILSVRC2012_test_{number:08}.JPEG": b"jpeg" for number in range(1, 7)}
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(images))


def another_tar(root: Path) -> None:
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of({"home/thesis.tex": b"years of work"}))


def no_kit(root: Path) -> None:
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()


def a_kit_without_meta(root: Path) -> None:
    kit = io.BytesIO()
    with tarfile.open(fileobj=kit, mode="w:gz") as tar:
        add_to(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", b"1\n")
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(kit.getvalue())


def a_kit_with_a_damaged_meta(root: Path) -> None:
    kit = kit_of(meta_mat(WNIDS, TRAIN_PER_CLASS)[:700], GROUND_TRUTH)
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(kit)


def a_kit_cut_short(root: Path) -> None:
    path = root / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(path.read_bytes()[:-300])


def a_shorter_ground_truth(root: Path) -> None:
    kit = kit_of(meta_mat(WNIDS, TRAIN_PER_CLASS), GROUND_TRUTH[:-1])
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(kit)


def a_ground_truth_of_an_inner_node(root: Path) -> None:
    kit = kit_of(meta_mat(WNIDS, TRAIN_PER_CLASS), (*GROUND_TRUTH[:-1], 1001))
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(kit)


def a_kit_of_other_classes(root: Path) -> None:
    kit = kit_of(meta_mat((*WNIDS, "n15075141"), TRAIN_PER_CLASS), GROUND_TRUTH)
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(kit)


def cut(name: str, end: Callable[[bytes], int]) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: end(content)])

    build.__name__ = f"{name} cut short"
    return build


def before_the_end_mark(content: bytes) -> int:
    return len(content.rstrip(b"\0")) // 512 * 512 + 512


def a_class_tar_cut_short(root: Path) -> None:
    """The outer tar is whole; what was put into it was not."""
    path = root / "ILSVRC2012_img_train.tar"
    classes = {}
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            classes[member.name] = file.read()
    classes["n02099601.tar"] = classes["n02099601.tar"][:1000]
    path.write_bytes(tar_of(classes))


def a_compressed_train(root: Path) -> None:
    path = root / "ILSVRC2012_img_train.tar"
    content = path.read_bytes()
    with tarfile.open(path) as tar, tarfile.open(root / "again.tar", "w:gz") as compressed:
        for member in tar:
            compressed.addfile(member, tar.extractfile(member))
    (root / "again.tar").replace(path)
    assert path.read_bytes() != content


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (train_in_place_of_validation, "img_val.tar: holds the same as ILSVRC2012_img_train.tar"),
        (unlabelled_images_in_place_of_validation, "holds the test images, which have no labels"),
        (another_tar, "home/thesis.tex, which is not ILSVRC-2012's"),
        (no_kit, "ILSVRC2012_devkit_t12.tar.gz is missing"),
        (a_kit_without_meta, "has no data/meta.mat"),
        (a_kit_with_a_damaged_meta, "its meta.mat cannot be read"),
        (a_kit_cut_short, "download the development kit again"),
        (
            a_shorter_ground_truth,
            "holds 6 images, up to number 6, and the development kit's ground truth is of 5",
        ),
        (a_ground_truth_of_an_inner_node, "line 6 of its ground truth is '1001'"),
        (a_kit_of_other_classes, "holds 3 classes, the development kit names 4 (n15075141.tar is not in it)"),
        (cut("ILSVRC2012_img_train.tar", lambda content: len(content) // 2), "cut short"),
        (cut("ILSVRC2012_img_train.tar", before_the_end_mark), "cut short"),
        (cut("ILSVRC2012_img_val.tar", lambda content: len(content) // 2), "cut short"),
        (cut("ILSVRC2012_img_val.tar", before_the_end_mark), "cut short"),
        (cut("ILSVRC2012_img_val.tar", lambda _: 100), "not a tar file, or an empty one"),
        (a_class_tar_cut_short, "n02099601.tar: cut short"),
        (a_compressed_train, "not an uncompressed tar file"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_wrong_imagenet_files_each_get_a_line(
    ilsvrc: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    build: Callable[[Path], None],
    message: str,
) -> None:
    build(ilsvrc)
    files = sorted(ilsvrc.iterdir())
    error = refusal(tmp_path, capsys, *files)
    assert message in error


def test_an_index_reads_headers_only(tmp_path: Path) -> None:
    """Twenty images of 1 GiB each, which are holes in the file: reading them would take 20 GiB."""
    path = tmp_path / "holes.tar"
    with open(path, "wb") as file:
        for number in range(20):
            member = tarfile.TarInfo(f"{number}.JPEG")
            member.size = 1 << 30
            file.write(member.tobuf())
            file.seek(member.size, io.SEEK_CUR)
        file.write(b"\0" * 1024)
    tracemalloc.start()
    try:
        members = list(tar_members(path))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert [member.offset for member in members] == [512 + number * (512 + (1 << 30)) for number in range(20)]


def test_a_split_of_a_tar_reads_the_same_in_another_process(ilsvrc: Path) -> None:
    """Ray's workers get splits as pickles: a descriptor's number would be another file there."""
    split = open_source([ilsvrc], "label").splits["train"]
    copy = pickle.loads(pickle.dumps(split))
    indices = np.arange(len(split.labels))
    images = list(split.images(indices))
    again = [pickle.loads(pickle.dumps(image)) for image in copy.images(indices)]
    assert [image.load() for image in images] == [image.load() for image in again]


def test_a_tar_that_is_cut_short_meanwhile_is_an_error_of_its_disk(ilsvrc: Path) -> None:
    split = open_source([ilsvrc], "label").splits["train"]
    images = list(split.images(np.arange(len(split.labels))))
    with open(ilsvrc / "ILSVRC2012_img_train.tar", "r+b") as file:
        file.truncate(1100)
    with pytest.raises(OSError, match="ends before byte"):
        images[-1].load()
