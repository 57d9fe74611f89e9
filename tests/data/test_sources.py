"""Where images come from, and how they are stored: ImageNet's tar files, CIFAR's batches, a CSV list. About 5 s."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from scipy.io import savemat

from data_prep.__main__ import main
from data_prep.conversion.encode import SMALL_RAW_BYTES, EncodeSettings, StoredImage, prepare_image
from data_prep.sources import pillow_image
from data_prep.sources.choose import open_source
from data_prep.sources.source import UnreadableImageError, WriteMode
from data_prep.sources.tar_index import tar_members
from nfnet_ray.data.decoding.decode import decode_jpeg
from nfnet_ray.data.files.beton import JPEG, PAGE_BYTES, RAW, Beton
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.errors import UserError

from .conftest import Encode

FILES = (".beton", ".parquet", ".validation.beton", ".validation.parquet")
# In meta.mat's order, which is not the sorted one: the ground truth's numbers are positions in neither.
WNIDS = ("n03445777", "n01440764", "n02099601")
TRAIN_PER_CLASS = 4
GROUND_TRUTH = (2, 1, 3, 1, 2, 2)


def convert(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def tar_of(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in contents.items():
            add(tar, name, content)
    return buffer.getvalue()


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
        add(tar, f"{root}/readme.txt", b"read me")
        add(tar, f"{root}/data/ILSVRC2012_validation_ground_truth.txt", lines)
        add(tar, f"{root}/data/meta.mat", meta)
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


# ImageNet as it is distributed


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
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", b"1\n")
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
    before = sorted(tmp_path.rglob("*"))
    files = sorted(ilsvrc.iterdir())
    assert convert(*files, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


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


# CIFAR


def cifar_pixels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 32, 32, 3) uint8, in which no two channels are alike; and (count,) labels of all 10 classes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return pixels, np.arange(count) * 7 % 10


def records(pixels: np.ndarray, labels: np.ndarray, coarse: bool = False) -> bytes:
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    first = [labels[:, None] // 5] if coarse else []
    return np.concatenate([*first, labels[:, None], planes], axis=1).astype(np.uint8).tobytes()


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    root = tmp_path / "cifar-10-batches-bin"
    root.mkdir()
    for number in range(1, 6):
        (root / f"data_batch_{number}.bin").write_bytes(records(*cifar_pixels(10 + number, number)))
    (root / "test_batch.bin").write_bytes(records(*cifar_pixels(12, 6)))
    (root / "batches.meta.txt").write_text("".join(f"class{number}\n" for number in range(10)) + "\n")
    (root / "readme.html").write_text("read me")
    return root


def packed(folder: Path, path: Path) -> Path:
    """As a .tar.gz, with the files in no order that helps."""
    with tarfile.open(path, "w:gz") as tar:
        for file in sorted(folder.iterdir(), reverse=True):
            tar.add(file, f"{folder.name}/{file.name}")
    return path


def pixels_of(beton: Beton) -> np.ndarray:
    out = np.empty((len(beton), int(beton.heights[0]), int(beton.widths[0]), 3), np.uint8)
    for index in range(len(beton)):
        beton.decode(index, out[index])
    return out


def test_cifar10_is_stored_without_loss(cifar10: Path, tmp_path: Path) -> None:
    archive = packed(cifar10, tmp_path / "cifar-10-binary.tar.gz")
    assert convert(cifar10, tmp_path / "folder.beton", "--workers", 1) == 0
    assert convert(archive, tmp_path / "archive.beton", "--workers", 5) == 0
    for suffix in FILES:
        folder, tar = tmp_path / f"folder{suffix}", tmp_path / f"archive{suffix}"
        assert folder.read_bytes() == tar.read_bytes()
    dataset = open_dataset(tmp_path / "archive.beton")
    assert dataset.class_names == tuple(f"class{number}" for number in range(10))
    train = [cifar_pixels(10 + number, number) for number in range(1, 6)]
    for split, batches in ((dataset.train, train), (dataset.validation, [cifar_pixels(12, 6)])):
        assert set(split.beton.modes.tolist()) == {RAW}
        np.testing.assert_array_equal(pixels_of(split.beton), np.concatenate([batch[0] for batch in batches]))
        np.testing.assert_array_equal(split.beton.labels, np.concatenate([batch[1] for batch in batches]))
    assert dataset.train.manifest.sources()[-1] == "data_batch_5/00014"
    assert dataset.train.manifest.settings["write_mode"] == "auto"
    assert dataset.train.manifest.settings["re_encoded"] == {}


def test_cifar10_as_jpegs_when_asked(cifar10: Path, tmp_path: Path) -> None:
    assert convert(cifar10, tmp_path / "out", "--write-mode", "jpg") == 0
    train = open_dataset(tmp_path / "out").train
    assert set(train.beton.modes.tolist()) == {JPEG}
    assert train.manifest.settings["re_encoded"] == {"pixels, not a JPEG": len(train)}


def test_cifar100_has_its_fine_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "cifar-100-binary"
    root.mkdir()
    (root / "train.bin").write_bytes(records(*cifar_pixels(30, 1), coarse=True))
    (root / "test.bin").write_bytes(records(*cifar_pixels(10, 2), coarse=True))
    (root / "fine_label_names.txt").write_text("".join(f"fine{number}\n" for number in range(10)))
    (root / "coarse_label_names.txt").write_text("coarse0\ncoarse1\n")
    assert convert(packed(root, tmp_path / "cifar-100-binary.tar.gz"), tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    pixels, labels = cifar_pixels(30, 1)
    np.testing.assert_array_equal(pixels_of(dataset.train.beton), pixels)
    assert dataset.train.beton.labels.tolist() == labels.tolist()
    assert dataset.class_names[:2] == ("fine0", "fine1")
    assert "fine labels" in capsys.readouterr().out


def python_version(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (root.parent / "exploded",))

    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (root / name).write_bytes(pickle.dumps(Bomb()))


def without_a_batch(root: Path) -> None:
    (root / "data_batch_3.bin").unlink()


def half_a_record(root: Path) -> None:
    path = root / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])


def a_label_without_a_name(root: Path) -> None:
    (root / "batches.meta.txt").write_text("cat\ndog\n")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (python_version, "give the binary version"),
        (without_a_batch, "data_batch_3.bin of CIFAR-10 is missing"),
        (half_a_record, "data_batch_3.bin: cut short"),
        (a_label_without_a_name, "has label 7"),
    ],
)
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_wrong_cifar_files_each_get_a_line(
    cifar10: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    build: Callable[[Path], None],
    message: str,
    form: str,
) -> None:
    build(cifar10)
    source = packed(cifar10, tmp_path / "cifar.tar.gz") if form == "archive" else cifar10
    before = sorted(tmp_path.rglob("*"))
    assert convert(source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


# A CSV list


def write_csv(root: Path, *rows: str, header: str = "path,label,split") -> Path:
    path = root / "list.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_a_csv_list_names_images_labels_and_splits(image_folder: Path, tmp_path: Path) -> None:
    rows = [
        "aster/0.jpg,b,Train",
        "daisy/1.jpg,a,training",
        '"./rose/../rose/2.jpg",b,VALID',
        "rose/3.jpg,a,test",
    ]
    source = write_csv(image_folder, *rows)
    assert convert(source, tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.class_names == ("a", "b")
    assert dataset.train.manifest.sources() == ["aster/0.jpg", "daisy/1.jpg"]
    assert dataset.train.beton.labels.tolist() == [1, 0]
    assert dataset.validation.manifest.sources() == ["rose/2.jpg"]
    assert dataset.train.beton.image_bytes(1).tobytes() == (image_folder / "daisy" / "1.jpg").read_bytes()


def test_a_csv_list_may_number_its_classes_and_leave_the_split_to_us(
    image_folder: Path, tmp_path: Path
) -> None:
    """10 comes after 9 and 2.0 before it, and the header may name columns in any order and others besides."""
    names = sorted(path.relative_to(image_folder).as_posix() for path in image_folder.glob("*/*"))
    rows = [f"{number},{(9, 10, 2.0)[number % 3]},{name}" for number, name in enumerate(names)]
    source = write_csv(image_folder, *rows, header="id,class,path")
    assert convert(source, tmp_path / "out", "--label-column", "class") == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.class_names == ("2.0", "9", "10")
    assert (len(dataset.train), len(dataset.validation)) == (12, 3)
    for split in (dataset.train, dataset.validation):
        for name, label in zip(split.manifest.sources(), split.beton.labels.tolist(), strict=True):
            assert dataset.class_names[label] == str((9, 10, 2.0)[names.index(name) % 3])


TWO = ("aster/0.jpg,a,train", "daisy/0.jpg,b,train")


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (TWO, "file,label,split", "no column 'path' among file, label, split"),
        (TWO, "path,class,split", "no column 'label'"),
        (TWO, "path,label,label", "names a column twice"),
        ((), "path,label,split", "lists no images"),
        ((*TWO, "rose/0.jpg,a"), "path,label,split", "cannot be read as a CSV"),
        ((*TWO, "rose/0.jpg,,train"), "path,label,split", "row 3: no label"),
        ((*TWO, "./aster/0.jpg,b,train"), "path,label,split", "row 3: ./aster/0.jpg is listed already, in row 1"),
        ((*TWO, "rose/x.jpg,b,train", "rose/y.jpg,b,train"), "path,label,split", "(2 of 4 are missing)"),
        ((*TWO, "/etc/passwd,b,train"), "path,label,split", "absolute path"),
        ((*TWO, "rose/0.jpg,b,trian"), "path,label,split", "row 3: split 'trian' is none of train, training, val"),
        ((*TWO, "rose/0.jpg,c,val"), "path,label,split", "row 3: no training image has label 'c'"),
        (("rose/0.jpg,a,val", "rose/1.jpg,b,test"), "path,label,split", "no row's split is train"),
        ((TWO[0], "rose/0.jpg,a,train"), "path,label,split", "only one class"),
        (("rose/0.jpg,01,train", "rose/1.jpg,1,train"), "path,label,split", "'01' and '1' are one number"),
        ((*TWO, "rose/0.jpg, a,train"), "path,label,split", "two classes of SOURCE have one name"),
        (("rose/0.jpg,-1,train", "rose/1.jpg,1,train"), "path,label,split", "row 1: label -1 is negative, which m"),
        ((*TWO, "rose/0.jpg,-1.0,train"), "path,label,split", "row 3: label -1.0 is negative, which means no la"),
        ((*TWO, "rose,a,train"), "path,label,split", "flowers/rose is a folder, not a file (1 of 3 are missing)"),
    ],
)  # fmt: skip
def test_wrong_csv_lists_each_get_a_line(
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: Sequence[str],
    header: str,
    message: str,
) -> None:
    source = write_csv(image_folder, *rows, header=header)
    before = sorted(tmp_path.rglob("*"))
    assert convert(source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_csv_list_may_come_from_a_spreadsheet(image_folder: Path, tmp_path: Path) -> None:
    """With a byte order mark and Windows' line ends; its labels may look like missing values."""
    lines = [
        "path,label,split",
        *(f"rose/{number}.jpg,{('null', 'NA')[number % 2]},train" for number in range(5)),
    ]
    (image_folder / "list.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert convert(image_folder / "list.csv", tmp_path / "out") == 0
    assert open_dataset(tmp_path / "out").class_names == ("NA", "null")


def test_a_csv_list_may_have_its_suffix_in_capitals(image_folder: Path) -> None:
    shutil.move(write_csv(image_folder, *TWO), image_folder / "LIST.CSV")
    assert open_source([image_folder / "LIST.CSV"], "label").class_names == ("a", "b")


def test_a_label_of_many_digits_is_a_name(image_folder: Path) -> None:
    path = write_csv(image_folder, f"aster/0.jpg,{'9' * 5000},train", "rose/0.jpg,1,train")
    assert open_source([path], "label").class_names == ("1", "9" * 5000)


def test_a_csv_list_in_another_encoding_gets_a_line(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for header in ("path,label", "p\xe4th,label"):
        (image_folder / "list.csv").write_bytes(f"{header}\nrose/0.jpg,caf\xe9\n".encode("latin-1"))
        assert convert(image_folder / "list.csv", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert "cannot be read as a CSV file in UTF-8" in error
        assert error.count("\n") == 1


def test_classes_that_differ_only_in_case_are_noted(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "rose").rename(image_folder / "Daisy")
    assert convert(image_folder, tmp_path / "out") == 0
    assert "classes 'Daisy' and 'daisy' differ only in upper and lower case" in capsys.readouterr().out


# How images are stored


def stored(image: bytes | np.ndarray, write_mode: WriteMode = "jpg", max_side: int = 1024) -> StoredImage:
    return prepare_image(image, EncodeSettings(write_mode=write_mode, max_side=max_side))


def stored_pixels(image: StoredImage) -> np.ndarray:
    """(H, W, 3) uint8, by the decoder that trains."""
    shape = (image.height, image.width, 3)
    if image.mode == RAW:
        return np.frombuffer(image.data, np.uint8).reshape(shape)
    out = np.empty(shape, np.uint8)
    decode_jpeg(np.frombuffer(image.data, np.uint8), out)
    return out


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_raw_pixels_of_a_jpeg_are_those_that_training_would_decode(encode: Encode, mode: str) -> None:
    image = encode(3, size=(150, 130), mode=mode)
    as_it_is, raw = stored(image), stored(image, "raw")
    assert (as_it_is.mode, raw.mode) == (JPEG, RAW)
    assert as_it_is.data == image
    assert len(raw.data) == 3 * 150 * 130
    assert raw.re_encoded is as_it_is.re_encoded is None
    np.testing.assert_array_equal(stored_pixels(raw), stored_pixels(as_it_is))


def test_raw_pixels_of_a_lossless_image_are_its_own(encode: Encode, photograph: Image.Image) -> None:
    raw = stored(encode(3, "PNG", size=(150, 130)), "raw")
    with Image.open(io.BytesIO(encode(3, "PNG", size=(150, 130)))) as image:
        np.testing.assert_array_equal(stored_pixels(raw), np.asarray(image))
    assert raw.re_encoded is None
    pixels = np.asarray(photograph)
    np.testing.assert_array_equal(stored_pixels(stored(pixels, "raw")), pixels)
    shrunk = stored(encode(3, "PNG", size=(150, 130)), "raw", max_side=75)
    assert (shrunk.height, shrunk.width, shrunk.re_encoded) == (65, 75, "a side longer than 75 pixels")


def test_smart_is_raw_where_that_is_small_or_smaller(encode: Encode) -> None:
    side = int((SMALL_RAW_BYTES / 3) ** 0.5)
    for kind in ("JPEG", "PNG"):
        assert stored(encode(1, kind, size=(side, side)), "smart").mode == RAW
        assert stored(encode(1, kind, size=(side + 1, side)), "smart").mode == JPEG
    noise = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=100, subsampling="4:4:4")
    assert len(buffer.getvalue()) > noise.nbytes
    assert stored(buffer.getvalue(), "smart").mode == RAW
    assert stored(buffer.getvalue(), "jpg").mode == JPEG


def test_pixels_of_more_than_a_page_are_refused_in_words(encode: Encode) -> None:
    """FFCV's pages hold 8 MiB, and no image straddles one."""
    image = encode(1, size=(1700, 1700))
    with pytest.raises(UnreadableImageError, match="lower --max-side"):
        stored(image, "raw", max_side=2000)
    assert PAGE_BYTES < 3 * 1700 * 1700
    assert stored(image, "smart", max_side=2000).mode == JPEG
    assert stored(image, "raw", max_side=1000).width == 1000


def turned(encode: Encode) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn it by 90 degrees; ImageFolder does not, so neither do we
    return encode(1, exif=exif)


ODDITIES: dict[str, tuple[Callable[[Encode], bytes], str | None]] = {
    "grey JPEG": (lambda encode: encode(1, mode="L"), None),
    "progressive JPEG": (lambda encode: encode(1, progressive=True), None),
    "JPEG with an orientation": (turned, None),
    "JPEG with bytes after its end": (lambda encode: encode(1) + b"\0" * 100, None),
    "CMYK JPEG": (lambda encode: encode(1, mode="CMYK"), "a JPEG with neither one nor three channels"),
    "PNG in JPEG's clothing": (lambda encode: encode(1, "PNG"), "not a JPEG"),
    "PNG with a palette": (lambda encode: encode(1, "PNG", mode="P"), "not a JPEG"),
    "transparent PNG": (lambda encode: encode(1, "PNG", mode="RGBA"), "not a JPEG"),
    "grey PNG": (lambda encode: encode(1, "PNG", mode="L"), "not a JPEG"),
    "grey PNG with transparency": (lambda encode: encode(1, "PNG", mode="LA"), "not a JPEG"),
    "black and white PNG": (lambda encode: encode(1, "PNG", mode="1"), "not a JPEG"),
    "GIF": (lambda encode: encode(1, "GIF", mode="P"), "not a JPEG"),
    "BMP": (lambda encode: encode(1, "BMP"), "not a JPEG"),
    "WebP": (lambda encode: encode(1, "WEBP", lossless=True), "not a JPEG"),
    "CMYK TIFF": (lambda encode: encode(1, "TIFF", mode="CMYK"), "not a JPEG"),
}  # fmt: skip


@pytest.mark.parametrize("write_mode", ["auto", "jpg", "raw", "smart"])
@pytest.mark.parametrize("name", ODDITIES)
def test_odd_images_are_stored_as_what_they_show(encode: Encode, name: str, write_mode: WriteMode) -> None:
    build, reason = ODDITIES[name]
    image = build(encode)
    result = stored(image, write_mode)
    with Image.open(io.BytesIO(image)) as opened:
        expected = np.asarray(opened.convert("RGB"), np.int64)
    assert (result.height, result.width) == expected.shape[:2] == (40, 48)
    difference = np.abs(stored_pixels(result).astype(np.int64) - expected)
    # What the JPEG of quality 90 that was made of it loses; CMYK and a palette's dither lose more than photographs.
    assert difference.mean() < (6 if write_mode == "jpg" and reason is not None else 1)
    assert result.orientation == (6 if name == "JPEG with an orientation" else 1)
    if write_mode == "jpg" or (write_mode == "auto" and reason is None):
        assert result.re_encoded == reason
        assert (result.data == image) == (reason is None)
    else:
        assert result.mode == RAW
        assert result.re_encoded == (reason if name == "CMYK JPEG" else None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(encode: Encode, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    image = encode(1, kind, exif=exif, **options)
    settings = EncodeSettings(write_mode="raw", apply_orientation=True)
    turned = prepare_image(image, settings)
    with Image.open(io.BytesIO(image)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened), np.int64)
    assert np.abs(stored_pixels(turned).astype(np.int64) - expected).mean() < 2
    assert turned.orientation == (
        1 if kind == "TIFF" else orientation
    )  # Pillow turns those whatever one says
    if orientation == 1:
        assert turned == prepare_image(image, EncodeSettings(write_mode="raw"))


@pytest.mark.parametrize(
    "tag", [b"", b"MM", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x63\0\0"]
)
def test_a_damaged_orientation_is_none(encode: Encode, tag: bytes) -> None:
    image = encode(1, exif=b"Exif\0\0" + tag)
    assert stored(image).orientation == 1
    assert stored(image).data == image


# Large images, and what is attached to images


def png_with(chunks: dict[bytes, bytes], image: bytes) -> bytes:
    """A PNG with more chunks behind its header, each with a checksum (PNG, 5.3)."""
    header = 8 + 25
    more = b"".join(
        len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        for name, content in chunks.items()
    )
    return image[:header] + more + image[header:]


MUCH = bytes(40 << 20)
PROFILE, TEXT = b"profile\0\0" + zlib.compress(MUCH), zlib.compress(MUCH)


@pytest.mark.parametrize(
    "chunks",
    [
        {b"iCCP": PROFILE},
        {b"zTXt": b"Comment\0\0" + TEXT},
        {b"iTXt": b"Comment\0\1\0\0\0" + TEXT},
        {b"tEXt": b"Comment\0" + MUCH[: 2 << 20]},
        {b"iCCP": b"no profile at all", b"zTXt": b""},
    ],
    ids=lambda chunks: "+".join(map(bytes.decode, chunks)),
)
def test_what_is_attached_to_a_png_does_not_keep_it_from_being_read(
    encode: Encode, chunks: dict[bytes, bytes]
) -> None:
    image = encode(3, "PNG")
    assert stored(png_with(chunks, image), "raw") == stored(image, "raw")


def test_what_is_attached_to_a_jpeg_does_not_keep_it_from_being_read(encode: Encode) -> None:
    image = encode(3, icc_profile=bytes(3 << 20), comment=bytes(60_000))
    assert stored(image).data == image
    assert stored(image, max_side=30).width == 30


def test_an_image_above_pillows_limit_is_read(capfd: pytest.CaptureFixture[str]) -> None:
    side = 13_600  # above 89 megapixels Pillow warns, and above 179 it refuses
    image = b"P4 %d %d\n" % (side, side) + (bytes(side // 16) + b"\xff" * (side // 16)) * side
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = stored(image, "raw", max_side=100)
    assert (result.height, result.width) == (100, 100)
    assert stored_pixels(result)[50, [0, 40, 60, 99], 0].tolist() == [255, 255, 0, 0]
    assert capfd.readouterr().err == ""


def test_pillows_warnings_reach_nobody(encode: Encode) -> None:
    """Nobody can do anything about them, and they name lines of the library."""
    image = encode(1, "PNG", mode="P", transparency=bytes(range(64)))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(image)) as opened:
            opened.convert("RGB")
        assert len(shown) == 1
        pillow_image._pillow.cache_clear()
        stored(image)
    assert len(shown) == 1


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(
    photograph: Image.Image, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    del encode
    buffer = io.BytesIO()
    photograph.save(buffer, "JPEG", quality=95)
    whole = stored(buffer.getvalue(), "raw", max_side=80)
    sizes: list[tuple[int, int]] = []
    check_memory = pillow_image._check_memory
    monkeypatch.setattr(pillow_image, "_SCALED_PIXELS", 100_000)
    monkeypatch.setattr(
        pillow_image, "_check_memory", lambda image: (sizes.append(image.size), check_memory(image))
    )
    part = stored(buffer.getvalue(), "raw", max_side=80)
    assert sizes == [(160, 107)]
    assert (part.height, part.width) == (whole.height, whole.width) == (53, 80)
    difference = stored_pixels(part).astype(np.int64) - stored_pixels(whole)
    assert np.abs(difference).mean() < 2


def test_an_image_that_does_not_fit_into_memory_stops_the_conversion(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pillow_image, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(pillow_image, "_free_memory_bytes", lambda: 5_000.0)
    assert convert(image_folder, tmp_path / "out", "--max-side", 30, "--skip-unreadable") == 2
    error = capsys.readouterr().err
    assert (
        "0.jpg: decoding its 0 megapixels takes 0.0 GB of memory, and 0.0 GB are free; shrink or remove it"
        in error
    )
    assert error.count("\n") == 1
    monkeypatch.setattr(pillow_image, "MOST_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match="48 x 40 pixels, more than 1,000: shrink or cut it"):
        stored((image_folder / "rose" / "0.jpg").read_bytes(), max_side=30)


UNREADABLE: dict[str, Callable[[Encode], bytes]] = {
    "nothing": lambda _: b"",
    "text": lambda _: b"<html>404 not found</html>",
    "the start of a JPEG": lambda encode: encode(1)[:300],
    "the start of a PNG": lambda encode: encode(1, "PNG")[:300],
    "a JPEG without its scan": lambda encode: encode(1)[: encode(1).index(b"\xff\xda")],
    "16 bits a channel": lambda _: png_of_16_bits(),
}


def png_of_16_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("write_mode", ["auto", "raw"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_anything_but_an_image_is_refused(encode: Encode, name: str, write_mode: WriteMode) -> None:
    with pytest.raises(UnreadableImageError):
        stored(UNREADABLE[name](encode), write_mode)


# Other sources' bad input


def write_parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


IMAGE = pa.array([{"bytes": b"x", "path": "x"}] * 2)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, 1]}, "it needs one image column"),
        ({"image": IMAGE}, "no integer column 'label' (it has no integer column)"),
        ({"image": IMAGE, "fine": [0, 1]}, "no integer column 'label' (its integer columns: fine)"),
        ({"image": IMAGE, "label": ["a", "b"]}, "no integer column 'label'"),
        ({"image": IMAGE, "second": IMAGE, "label": [0, 1]}, "and has 2 among"),
        ({"image": IMAGE, "label": [0, None]}, "1 row has no label"),
        ({"image": IMAGE, "label": [0, 0]}, "only one class"),
        ({"image": IMAGE, "label": [0, 5]}, "no training image has label 1, but the labels are 0 to 5: is a file mi"),
        ({"image": IMAGE, "label": [1, 2]}, "no training image has label 0, but the labels are 0 to 2"),
        ({"image": IMAGE, "label": [0, 10**12]}, "no training image has label 1, but the labels are 0 to 10000000"),
        ({"image": IMAGE, "label": [-1, 1]}, "the train split's image 0 has label -1, which means no label"),
    ],
)  # fmt: skip
def test_parquet_without_its_columns_gets_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, object], message: str
) -> None:
    write_parquet(tmp_path / "source" / "train.parquet", pa.table(columns))
    before = sorted(tmp_path.rglob("*"))
    assert convert(tmp_path / "source", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_two_parquet_classes_of_one_name_get_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = '{"info": {"features": {"label": {"names": ["crane", "crane"], "_type": "ClassLabel"}}}}'
    table = pa.table({"image": IMAGE, "label": [0, 1]}).replace_schema_metadata({"huggingface": features})
    write_parquet(tmp_path / "source" / "train.parquet", table)
    assert convert(tmp_path / "source", tmp_path / "out") == 2
    assert "two classes of SOURCE have one name, 'crane' and 'crane'" in capsys.readouterr().err


def test_a_class_of_parquet_files_without_a_training_image_is_named(tmp_path: Path) -> None:
    features = '{"info": {"features": {"label": {"names": ["cat", "cow", "dog"], "_type": "ClassLabel"}}}}'
    table = pa.table({"image": IMAGE, "label": [0, 2]}).replace_schema_metadata({"huggingface": features})
    write_parquet(tmp_path / "source" / "train.parquet", table)
    with pytest.raises(
        UserError, match=r"no training image has label 1 \('cow'\), but the labels are 0 to 2"
    ):
        open_source([tmp_path / "source"], "label")


LABELLED = {"image": IMAGE, "label": [0, 1]}


@pytest.mark.parametrize("names", [("train-0", "Test-0"), ("training_0", "testing_0"), ("train", "test")])
def test_parquet_files_may_name_their_splits_in_capitals(tmp_path: Path, names: Sequence[str]) -> None:
    for name in names:
        write_parquet(tmp_path / "source" / f"{name}.PARQUET", pa.table(LABELLED))
    assert set(open_source([tmp_path / "source"], "label").splits) == {"train", "test"}


@pytest.mark.parametrize(
    ("test", "others", "why"),
    [
        ({"image": IMAGE, "label": [-1, -1]}, (), "it has no labels"),
        ({"image": IMAGE, "label": pa.array([None, None], pa.int64())}, (), "it has no labels"),
        ({"image": IMAGE}, (), "it has no labels"),
        ({"image": IMAGE}, ("validation",), "there is a validation split"),
        (LABELLED, ("valid",), "there is a validation split"),
    ],
)
def test_a_test_split_of_parquet_files_without_labels_is_not_read(
    tmp_path: Path, test: dict[str, object], others: Sequence[str], why: str
) -> None:
    for name in ("train", *others):
        write_parquet(tmp_path / "source" / f"{name}-0.parquet", pa.table(LABELLED))
    write_parquet(tmp_path / "source" / "test-0.parquet", pa.table(test))
    source = open_source([tmp_path / "source"], "label")
    assert set(source.splits) == {"train", *(["validation"] if others else [])}
    assert source.notes == (f"the test split, test-0.parquet, is not read: {why}",)


@pytest.mark.parametrize(
    "files",
    [
        ("data/train-0.parquet", "data/test-0.parquet", "README.md", ".git/other.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("snapshots/abc/plain_text/train-0.parquet", "snapshots/abc/plain_text/test-0.parquet", "refs/main"),
        ("train-0.parquet", "test-0.parquet", "._train-0.parquet", "assets/sample.png"),
    ],
)
def test_a_repository_of_hugging_face_is_read(tmp_path: Path, files: Sequence[str]) -> None:
    for file in files:
        if (file.endswith("-0.parquet") and "._" not in file) or file.endswith("0000.parquet"):
            write_parquet(tmp_path / file, pa.table(LABELLED))
        else:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text("something else")
    source = open_source([tmp_path], "label")
    assert {name: len(split.names) for name, split in source.splits.items()} == {"train": 2, "test": 2}


def test_several_data_sets_of_parquet_files_get_a_line(tmp_path: Path) -> None:
    for name in ("small", "large"):
        write_parquet(tmp_path / name / "train.parquet", pa.table(LABELLED))
    with pytest.raises(
        UserError, match=r"holds Parquet files in several folders \(.*large, .*small\); give one of them"
    ):
        open_source([tmp_path], "label")


def test_a_table_or_archive_beside_class_folders_is_not_the_source(image_folder: Path) -> None:
    pq.write_table(pa.table({"path": ["rose/0.jpg"], "label": [1]}), image_folder / "index.parquet")
    (image_folder / "photos.tar").write_bytes(tar_of({"a.txt": b"hello"}))
    assert open_source([image_folder], "label").class_names == ("aster", "daisy", "rose")


@pytest.mark.parametrize("name", ["pipe", "list.csv", "a.parquet", "ILSVRC2012_img_train.tar"])
def test_a_source_that_is_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a named pipe; give a file or a folder"):
        open_source([tmp_path / name], "label")
    with pytest.raises(UserError, match=r"no class folders|none of its tar files"):
        open_source([tmp_path], "label")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt"], "neither .parquet, .csv nor .tar"),
        (["a.txt", "b.txt"], "several SOURCEs are understood only if"),
        (["a.tar"], "not a tar file, or an empty one"),
    ],
)
def test_other_files_get_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], message: str
) -> None:
    for name in names:
        (tmp_path / name).write_text("hello")
    before = sorted(tmp_path.rglob("*"))
    assert convert(*(tmp_path / name for name in names), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
