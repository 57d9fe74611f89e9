"""A file of weights is read as data: whatever else it asks for is refused in one line, and nothing is run."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.weights.deepmind import load_deepmind_weights, load_published
from nfnet_ray.models.weights.pickled_arrays import MAX_STEPS, read_pickled_arrays
from tests.deadlines import HANG_SECONDS

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
REPOSITORY = Path(__file__).resolve().parents[2]
PICKLED = json.loads((FIXTURES / "pickled_weights.json").read_text())

# Steps of the pickle format, for files that no pickler writes.
PROTO, STOP, FRAME = b"\x80\x04", b".", b"\x95"
MARK, EMPTY_DICT, EMPTY_TUPLE, EMPTY_LIST = b"(", b"}", b")", b"]"
REDUCE, BUILD, NEWOBJ, NEWOBJ_EX, OBJ = b"R", b"b", b"\x81", b"\x92", b"o"
SETITEM, SETITEMS, TUPLE, TUPLE1, TUPLE2 = b"s", b"u", b"t", b"\x85", b"\x86"
STACK_GLOBAL, MEMOIZE, NONE = b"\x93", b"\x94", b"N"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def data(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def weights(value: bytes) -> bytes:
    """A file with `value` as the array module/parameter."""
    return (
        PROTO
        + EMPTY_DICT
        + text("module")
        + EMPTY_DICT
        + text("parameter")
        + value
        + SETITEM
        + SETITEM
        + STOP
    )


FLOAT32 = named("numpy", "dtype") + text("f4") + b"\x89\x88" + b"\x87" + REDUCE


def array(shape: bytes, content: bytes, dtype: bytes = FLOAT32, order: bytes = text("C")) -> bytes:
    function = named("numpy.core.numeric", "_frombuffer")
    return function + MARK + content + dtype + shape + order + TUPLE + REDUCE


def sides(*values: int) -> bytes:
    return MARK + b"".join(map(number, values)) + TUPLE


def refusal(content: bytes, path: Path) -> str:
    """The one line that is said of a file."""
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_pickled_arrays(path)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "F0_haiku.npz"


def test_the_steps_here_are_those_of_a_pickle(path: Path) -> None:
    content = weights(array(sides(2, 1), data(np.float32([1, 2]).tobytes())))
    path.write_bytes(content)
    expected = {"module": {"parameter": np.float32([[1], [2]])}}
    assert str(read_pickled_arrays(path)) == str(expected)
    assert str(pickle.loads(content.replace(b"numpy.core", b"numpy._core"))) == str(expected)


# --- Code ------------------------------------------------------------------------------------------------------


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["top", "module", "parameter", "beside"])
def test_nothing_is_run_and_nothing_is_loaded(place: str, protocol: int, path: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = Runs(os.system, f"touch {canary}")
    array_ = np.zeros((3, 3, 3, 16), np.float32)
    content = {
        "top": bomb,
        "module": {"NFNet/~/stem_conv0": bomb},
        "parameter": {"NFNet/~/stem_conv0": {"w": bomb}},
        "beside": {"NFNet/~/stem_conv0": {"w": array_}, "a": bomb},
    }[place]
    path.write_bytes(pickle.dumps(content, protocol))
    model = create_model("nfnet_pico", 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for load in (lambda: load_deepmind_weights(model, path), lambda: load_published(path)):
        with pytest.raises(UserError) as error:
            load()
        message = str(error.value)
        assert message.startswith(f"{path} asks for posix.system, which weights do not need: refused")
        assert message.isprintable()
    assert not canary.exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    os.system(f"touch {canary}")
    assert canary.exists()  # it would have worked


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("__builtin__", "exec"),
        ("os", "system"),
        ("subprocess", "Popen"),
        ("importlib", "import_module"),
        ("numpy", "load"),
        ("numpy", "matrix"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.core.multiarray", "_reconstruct\0"),
        ("numpy.core.numeric", "array"),
        ("_codecs", "lookup"),
        ("collections", "defaultdict"),
        ("dill._dill", "_load_type"),
        ("dill._dill", "_create_function"),
        ("haiku._src.data_structures", "to_immutable_dict"),
        ("jax._src.array", "_reconstruct_array"),
        # Attributes of what is allowed: Python's unpickler follows the dots.
        ("numpy", "core.multiarray.scalar"),
        ("numpy.core", "multiarray._reconstruct"),
        ("numpy", "ndarray.tofile"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("", "numpy.dtype"),
    ],
)
def test_all_names_but_a_few_are_refused(module: str, name: str, path: Path) -> None:
    full_name = f"{module}.{name}" if f"{module}.{name}".isprintable() else ascii(f"{module}.{name}")
    for how in (
        text(module) + text(name) + STACK_GLOBAL,
        named(module, name),
        b"(i" + module.encode() + b"\n" + name.encode() + b"\n",  # INST
        named("dill._dill", "_get_attr")
        + named("dill._dill", "_import_module")
        + text(module)
        + TUPLE1
        + REDUCE
        + text(name)
        + TUPLE2
        + REDUCE,
    ):
        assert f"asks for {full_name}, which" in refusal(weights(how + EMPTY_TUPLE + REDUCE), path)


def test_a_name_is_no_tuple_of_arguments(path: Path) -> None:
    how = named("dill._dill", "_get_attr") + named("numpy", "dtype") + REDUCE
    assert "damaged" in refusal(weights(how), path)


def test_dill_reaches_no_attribute_of_an_object(path: Path) -> None:
    for thing, kind in ((EMPTY_DICT, "dict"), (named("numpy", "dtype"), "function"), (FLOAT32, "type")):
        how = named("dill._dill", "_get_attr") + thing + text("__class__") + TUPLE2 + REDUCE
        assert f"asks for an attribute of a {kind}" in refusal(weights(how), path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"Pname\n", "has a step PERSID"),
        (NONE + b"Q", "has a step BINPERSID"),
        (b"\x82\x01", "has a step EXT1"),
        (b"\x83\x01\x00", "has a step EXT2"),
        (b"\x84\x01\x00\x00\x00", "has a step EXT4"),
        (b"\x97", "has a step NEXT_BUFFER"),
        (data(b"x") + b"\x98", "has a step READONLY_BUFFER"),
        (MARK + named("numpy", "dtype") + text("f4") + OBJ, "has a step OBJ"),
        (named("numpy", "dtype") + EMPTY_TUPLE + EMPTY_DICT + NEWOBJ_EX, "has a step NEWOBJ_EX"),
        (b"(inumpy\ndtype\n", "makes an object of a class"),
        (EMPTY_DICT + EMPTY_DICT + BUILD, "sets attributes of a dict"),
        (
            named("haiku._src.data_structures", "FlatMapping") + EMPTY_TUPLE + NEWOBJ + EMPTY_DICT + BUILD,
            "sets attributes of a dict",
        ),
        (named("numpy", "ndarray") + EMPTY_DICT + BUILD, "sets attributes of a function"),
        (text("é") + text("utf-8") + TUPLE2, "holds a tuple in module/parameter, not an array"),
        (named("_codecs", "encode") + text("é") + text("utf-8") + TUPLE2 + REDUCE, "in an encoding"),
        (named("_codecs", "encode") + text("x") + text("zip_codec") + TUPLE2 + REDUCE, "in an encoding"),
        (named("_codecs", "encode"), "holds a function in module/parameter, not an array"),
        (
            named("numpy.core.multiarray", "_reconstruct")
            + MARK
            + named("numpy", "ndarray")
            + sides(0)
            + data(b"b")
            + TUPLE
            + REDUCE,
            "holds an array without values",
        ),
        (number(3), "holds an int in module/parameter"),
        (EMPTY_DICT, "holds a dict in module/parameter"),
    ],
)
def test_steps_that_weights_do_not_need_are_refused(content: bytes, words: str, path: Path) -> None:
    assert words in refusal(weights(content), path)


def test_only_two_levels_of_named_things(path: Path) -> None:
    zero = array(sides(1), data(bytes(4)))
    for content, words in (
        (zero, "holds an array, not a mapping of modules"),
        (EMPTY_TUPLE, "holds a tuple, not a mapping of modules"),
        (EMPTY_DICT + text("m") + zero + SETITEM, "holds an array in m, not a mapping of parameters"),
        (EMPTY_DICT + number(3) + EMPTY_DICT + SETITEM, "has an int where the name of a module"),
        (EMPTY_DICT + data(b"m") + EMPTY_DICT + SETITEM, "has a bytes where the name of a module"),
        (
            EMPTY_DICT + MEMOIZE + text("m") + b"h\x00" + SETITEM,
            "holds a dict in m/m, not an array",
        ),  # itself
        (EMPTY_DICT + text("m\n\x1b[2J") + NONE + SETITEM, r"holds a NoneType in 'm\n\x1b[2J'"),
        (EMPTY_DICT + b"X\x03\x00\x00\x00\xed\xa0\x80" + NONE + SETITEM, r"'\ud800'"),  # half a character
    ):
        assert words in refusal(PROTO + content + STOP, path)


# --- Arrays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([{}], object), "type O8"),
        (np.array([os.system], object), "asks for posix.system|type O8"),
        (np.zeros(2, [("a", "f4"), ("b", "O")]), "type V"),
        (np.zeros(2, "datetime64[s]"), "type M8"),
        (np.array(["text"]), "type U4"),
        (np.zeros(2, "V8"), "type V8"),
        (np.zeros(2, np.complex64), "type c8"),
        (np.zeros(2, np.longdouble), "type f16"),
        (np.zeros((1, 1)).view(np.recarray), "asks for numpy.rec"),
        (np.ma.masked_array([1.0]), r"asks for numpy\.ma\..*\._mareconstruct"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_anything_but_numbers_are_refused(
    value: Any, words: str, protocol: int, path: Path
) -> None:
    path.write_bytes(pickle.dumps({"module": {"parameter": value}}, protocol))
    with pytest.raises(UserError, match=words):
        read_pickled_arrays(path)


@pytest.mark.parametrize(
    "value",
    [
        array(sides(3), data(bytes(8))),
        array(sides(1 << 30), data(bytes(8))),
        array(sides(-2), data(bytes(8))),
        array(sides(-1, -2), data(bytes(8))),
        array(sides(0), data(b"")),
        array(sides(*[2] * 33), data(bytes(8))),
        array(MARK + b"\x88" + number(2) + TUPLE, data(bytes(8))),  # True
        array(MARK + b"G" + bytes(8) + TUPLE, data(bytes(8))),  # 0.0
        array(MARK + b"\x8a\x09" + bytes(8) + b"\x01" + TUPLE, data(bytes(8))),  # 2**64
        array(number(2), data(bytes(8))),
        array(sides(2), text("abcdefgh")),
        array(sides(2), sides(1, 2)),
        array(sides(2), data(bytes(8)), dtype=text("f4")),
        array(sides(2), data(bytes(8)), order=text("K")),
        array(sides(2), data(bytes(8)), order=NONE),
        array(sides(2), data(bytes(8)), dtype=FLOAT32 + sides(3, 60) + BUILD),
        named("numpy.core.numeric", "_frombuffer") + EMPTY_TUPLE + REDUCE,
        named("numpy", "ndarray") + sides(2) + TUPLE1 + REDUCE,
        named("numpy.core.multiarray", "scalar") + FLOAT32 + data(bytes(8)) + TUPLE2 + REDUCE,
        FLOAT32 + EMPTY_TUPLE + REDUCE,  # what is made is not called
    ],
)
def test_arrays_that_do_not_add_up_are_refused(value: bytes, path: Path) -> None:
    assert refusal(weights(value), path)


def test_the_state_of_an_array_is_set_once(path: Path) -> None:
    empty = (
        named("numpy.core.multiarray", "_reconstruct")
        + MARK
        + named("numpy", "ndarray")
        + sides(0)
        + data(b"b")
        + TUPLE
        + REDUCE
    )
    state = MARK + number(1) + sides(1) + FLOAT32 + b"\x89" + data(bytes(4)) + TUPLE + BUILD
    path.write_bytes(weights(empty + state))
    assert read_pickled_arrays(path)["module"]["parameter"].shape == (1,)
    assert refusal(weights(empty + state + state), path)


# --- What is no pickle -----------------------------------------------------------------------------------------


def test_files_that_are_no_pickles(path: Path, tmp_path: Path) -> None:
    assert "is empty; download it again" in refusal(b"", path)
    assert "is not a pickle" in refusal(b"<!DOCTYPE html><html><body>404</body></html>", path)
    assert "is not a pickle" in refusal(b"\x1f\x8b" + bytes(100), path)  # gzip
    assert "is not a pickle" in refusal(b"\x93NUMPY\x01\x00" + bytes(100), path)  # numpy.save
    assert "is not a pickle" in refusal(bytes(1000), path)
    archive = io.BytesIO()
    np.savez(archive, w=np.zeros(3))
    assert zipfile.is_zipfile(archive)
    assert "is a zip archive" in refusal(archive.getvalue(), path)

    with pytest.raises(UserError, match=r"cannot read weights from .*nowhere: No such file or directory"):
        read_pickled_arrays(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a file"):
        read_pickled_arrays(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a file"):
        read_pickled_arrays(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"null (byte|character)"):
        read_pickled_arrays("a\0b")


@pytest.mark.parametrize("form", [form for form in PICKLED if "FlatMapping, numpy 1" in form])
def test_cut_files_are_called_damaged(form: str, path: Path) -> None:
    whole = base64.b64decode(PICKLED[form])
    for length in range(1, len(whole), 5):
        assert "damaged or cut short" in refusal(whole[:length], path), length


# --- Memory and time -------------------------------------------------------------------------------------------


def bombs() -> dict[str, bytes]:
    """Small files that cost Python's own unpickler, or a careless reader, all memory, all time or the process."""
    huge = struct.pack("<Q", 1 << 60)
    half_megabyte = text("x" * 500_000)
    encoded = (
        named("_codecs", "encode") + MEMOIZE + half_megabyte + MEMOIZE + text("latin1") + TUPLE2 + MEMOIZE
    )
    return {
        "bytes beyond the end": weights(b"\x8e" + huge),
        "bytes beyond the end, 4 GB": weights(b"B\xff\xff\xff\xff"),
        "bytearray beyond the end": weights(b"\x96" + huge),
        "text beyond the end": weights(b"\x8d" + huge),
        "frame beyond the end": PROTO + FRAME + huge + EMPTY_DICT + STOP,
        "number beyond the end": weights(b"\x8b\xff\xff\xff\x7f"),
        "place 2 ** 31 in the memo": weights(NONE + b"r\xff\xff\xff\x7f"),
        "place 10 ** 18 in the memo": weights(NONE + b"p1000000000000000000\n"),
        "number of a million digits": weights(b"I" + b"9" * 1_000_000 + b"\n"),
        "sides of a million digits": weights(
            array(b"\x8b\x40\x42\x0f\x00" + b"\x7f" * 1_000_000, data(bytes(8)))
        ),
        "shape of 2 ** 60": weights(array(sides(*[1 << 30] * 2), data(bytes(8)))),
        "shape of none times much": weights(array(sides(0, 1 << 30, 1 << 30), data(b""))),
        "a tuple in 400,000 tuples, as a name": PROTO
        + EMPTY_DICT
        + EMPTY_TUPLE
        + TUPLE1 * 400_000
        + NONE
        + SETITEM
        + STOP,
        "a tuple of 2 ** 60 tuples, as a name": PROTO
        + EMPTY_DICT
        + EMPTY_TUPLE
        + b"".join(MEMOIZE + b"h" + bytes([depth]) + TUPLE2 for depth in range(60))
        + NONE
        + SETITEM
        + STOP,
        "mappings in 2 ** 60 mappings": PROTO
        + EMPTY_DICT
        + b"".join(
            MEMOIZE
            + EMPTY_DICT
            + text("a")
            + b"h"
            + bytes([depth])
            + SETITEM
            + text("b")
            + b"h"
            + bytes([depth])
            + SETITEM
            for depth in range(60)
        )
        + STOP,
        "a tuple in 400,000 tuples": PROTO + EMPTY_TUPLE + TUPLE1 * 400_000 + STOP,
        "a million marks": PROTO + MARK * 1_000_000 + STOP,
        "ten million mappings": PROTO + EMPTY_DICT * 10_000_000 + STOP,
        "one text in 10,000 encodings": PROTO + encoded + b"h\x00h\x02R" * 10_000 + STOP,
    }


def mutations() -> list[bytes]:
    """Files of weights with bytes changed, put in, taken out, cut off, and mixed; the same ones each time."""
    generator = random.Random(0)
    wholes = [base64.b64decode(content) for content in PICKLED.values()]
    steps = bytes(
        sorted(set(b"".join(wholes)) | set(b"()]}RbosuQPirjgphqBCXV\x81\x82\x8a\x8b\x92\x93\x94\x97"))
    )
    mutated = []
    for _ in range(4000):
        content = bytearray(generator.choice(wholes))
        for _ in range(generator.randint(1, 3)):
            place = generator.randrange(len(content))
            match generator.randrange(6):
                case 0:
                    content[place] = generator.randrange(256)
                case 1:
                    content[place] = generator.choice(steps)
                case 2:
                    content.insert(place, generator.choice(steps))
                case 3:
                    del content[place : place + generator.randint(1, 8)]
                case 4:
                    content[place:place] = content[place : place + generator.randint(1, 40)]
                case 5:
                    other = generator.choice(wholes)
                    cut = generator.randrange(len(other))
                    content[place : place + 20] = other[cut : cut + generator.randint(1, 40)]
            content = content or bytearray(b".")
        mutated.append(bytes(content))
    return mutated


# Reads all files of a folder with little memory and time; a crash of it is a crash of the process.
READER = """
import json, pathlib, resource, sys, time
import numpy as np
from nfnet_ray.errors import UserError
from nfnet_ray.models.weights.pickled_arrays import read_pickled_arrays

assert "torch" not in sys.modules  # it would need more memory than there is here
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
outcomes = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        arrays = read_pickled_arrays(path)
    except UserError as error:
        outcome = str(error)
        assert outcome.isprintable(), path
        outcome.encode()
    else:
        outcome = "loaded"
        for module, parameters in arrays.items():
            for name, array in parameters.items():
                assert type(module) is str and type(name) is str and type(array) is np.ndarray, path
                assert array.dtype.kind in "biuf" and not array.flags.writeable, path
                assert 0 < array.nbytes < path.stat().st_size, path
                array.sum()
    outcomes[path.name] = [outcome, time.process_time() - start]
print(json.dumps(outcomes))
"""


def read_with_little_memory(folder: Path, memory_bytes: int) -> dict[str, tuple[str, float]]:
    """{name of a file: (what was said of it, seconds of the processor)}."""
    process = subprocess.run(
        [sys.executable, "-c", READER, str(folder), str(memory_bytes)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    outcomes: dict[str, tuple[str, float]] = json.loads(process.stdout)
    return outcomes


def test_bombs_do_not_go_off(tmp_path: Path) -> None:
    for number_, (name, content) in enumerate(bombs().items()):
        (tmp_path / f"{number_:02d} {name}").write_bytes(content)
    outcomes = read_with_little_memory(tmp_path, memory_bytes=256 << 20)
    assert len(outcomes) == len(bombs())
    for name, (outcome, cpu_seconds) in outcomes.items():
        assert outcome != "loaded", name
        assert "needs more memory than there is" not in outcome, name  # it was refused before it cost that
        assert cpu_seconds < 10, name
    refused = " ".join(outcome for outcome, _ in outcomes.values())
    assert f"takes more than {MAX_STEPS:,} steps" in refused
    assert "encodes more bytes than it has" in refused
    assert "has a tuple where the name of a module or parameter belongs" in refused


def test_damaged_files_load_or_are_refused(tmp_path: Path) -> None:
    for number_, content in enumerate(mutations()):
        (tmp_path / f"{number_:04d}").write_bytes(content)
    read = read_with_little_memory(tmp_path, memory_bytes=128 << 20)
    outcomes = [outcome for outcome, _ in read.values()]
    assert len(outcomes) == 4000
    # Both happen: a byte of a number or a name changes nothing that can be seen.
    assert 100 < outcomes.count("loaded") < 3000
    for words in ("asks for", "damaged or cut short", "has a step", "has an array of", "holds a"):
        assert any(words in outcome for outcome in outcomes), words
