"""Pictures and small sources to convert; all from what the packages in the environment carry."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from nfnet_ray.data.files.beton import Beton

Encode = Callable[..., bytes]
FILES = (".beton", ".parquet", ".validation.beton", ".validation.parquet")
"""Endings of the files of a data set called NAME.beton."""

# ``python -c HELD IMAGE PIPE convert …``: the command line, in which reading the image waits until somebody has
# written to the named pipe: a conversion held at a known place, as a network share that does not answer holds it.
HELD = """\
import signal, sys
from pathlib import Path
import data_prep.sources.image_folder
from data_prep.__main__ import main
from nfnet_ray.command_line.exit_code import terminate
image, pipe, *arguments = sys.argv[1:]
read = data_prep.sources.image_folder.read_regular_file
def hold(path):
    if path == Path(image):
        with open(pipe) as file:
            file.read()
    return read(path)
data_prep.sources.image_folder.read_regular_file = hold
signal.signal(signal.SIGTERM, terminate)
sys.exit(main(arguments))
"""


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    """A real photograph, 640x427, from scikit-learn's folder (importing scikit-learn would take seconds)."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "images" / "flower.jpg"
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.fixture(scope="session")
def encode(photograph: Image.Image) -> Encode:
    """``encode(number, format, size=(width, height), mode)``: a part of the photograph as a file's bytes."""

    def encoded(
        number: int,
        kind: str = "JPEG",
        size: tuple[int, int] = (48, 40),
        mode: str = "RGB",
        **options: object,
    ) -> bytes:
        left, top = 13 * number % 300, 7 * number % 200
        part = photograph.crop((left, top, left + 200, top + 200)).resize(size)
        buffer = io.BytesIO()
        part.convert(mode).save(buffer, kind, **options)
        return buffer.getvalue()

    return encoded


@pytest.fixture
def image_folder(tmp_path: Path, encode: Encode) -> Path:
    """Three classes of five JPEGs, no splits."""
    root = tmp_path / "flowers"
    for label, name in enumerate(("aster", "daisy", "rose")):
        (root / name).mkdir(parents=True)
        for number in range(5):
            (root / name / f"{number}.jpg").write_bytes(encode(10 * label + number))
    return root


@pytest.fixture(scope="session")
def decoded() -> Callable[[Beton, int], np.ndarray]:
    """The pixels of one sample, (H, W, 3) uint8."""

    def decode(beton: Beton, index: int) -> np.ndarray:
        out = np.empty((beton.heights[index], beton.widths[index], 3), np.uint8)
        beton.decode(index, out)
        return out

    return decode


def convert(*arguments: object) -> int:
    """Runs ``python -m data_prep convert`` in this process; returns its exit code."""
    return main(["convert", *map(str, arguments)])


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], *sources: Path) -> str:
    """The one line in which a conversion of the sources to ``folder / "out"`` is refused; it leaves nothing behind."""
    before = sorted(folder.rglob("*"))
    assert convert(*sources, folder / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    return error


def add_to(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def tar_of(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in contents.items():
            add_to(tar, name, content)
    return buffer.getvalue()
