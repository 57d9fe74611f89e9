"""Named arrays out of a pickle, read as data: nothing that the file names is imported or called.

Python's unpickler runs whatever a file asks for. Even with a list of allowed names, a small file can make it hash
a tuple that is nested a million deep, which ends the process, or reserve memory that the file does not have.
So the steps of the pickle are followed here, by a machine that knows no more than such files need: text, bytes,
whole numbers, tuples, mappings with text as keys, and NumPy arrays of numbers, which it builds itself from
their bytes. `pickletools`, of Python's own library, splits the file into steps.
"""

from __future__ import annotations

import math
import os
import pickletools
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

import numpy as np

from nfnet_ray.errors import UserError

# NFNet-F7, the largest that was defined, takes 74,000 at most (haiku mappings, dill, protocol 0). No step makes
# more than a few hundred bytes that are not in the file, so this bounds the memory.
MAX_STEPS = 500_000
MAX_DIMENSIONS = 32  # NumPy's own limit before version 2
MAX_SIDE = 1 << 48  # beyond every file; keeps products of sides small

# Kinds and bytes of NumPy's type codes: truth values, whole numbers, floating point ('f4' is float32).
_TYPE_CODES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})

Arrays = dict[str, dict[str, np.ndarray]]


def read_pickled_arrays(path: str | os.PathLike[str]) -> Arrays:
    """{module: {parameter: array}} from a pickle of that, whatever the file's name says.

    Mappings may be `dict`, `OrderedDict`, or haiku's `FlatMapping` and `frozendict`; arrays are NumPy's, of
    truth values, whole numbers or floating point; protocols 0 to 5, written by pickle or dill. The arrays that
    are returned are read-only.

    Raises `UserError`, with nothing run and nothing kept, for a file that asks for anything else, is damaged,
    or is no pickle.
    """
    where = readable(os.fspath(path))
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: a pipe would wait for its writer
            raise UserError(f"{where} is not a file; give the path of a file of weights")
        with open(path, "rb") as file:
            return _read(file, where)
    except (OSError, ValueError) as error:  # a ValueError is a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read weights from {where}: {reason}; check the path") from error


def readable(name: str) -> str:
    """`name` for an error message, as one line, whatever an untrusted file contains."""
    if len(name) > 200:
        name = f"{name[:200]}…"
    return name if name.isprintable() else ascii(name)


def _read(file: BinaryIO, where: str) -> Arrays:
    source = _Source(file)
    if source.size == 0:
        raise UserError(f"{where} is empty; download it again")
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":
        raise UserError(
            f"{where} is a zip archive, as numpy.savez and torch.save write them, and not a pickle, which the "
            "published files are despite their name; open it with what wrote it, and pass the arrays themselves"
        )
    try:
        return _two_levels(_Machine(source).run())
    except _Refused as refusal:
        raise UserError(
            f"{where} {refusal}: refused, with nothing run and nothing loaded; if you trust its source, open it "
            "where it was written and pickle it again as {module: {parameter: numpy.ndarray}}"
        ) from None
    except MemoryError as error:
        raise UserError(f"{where} needs more memory than there is") from error
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise UserError(
            f"{where} is not a pickle, or it is damaged or cut short (near byte {file.tell()} of {source.size}); "
            "download it again"
        ) from error


class _Refused(Exception):
    """The file asks for something that weights do not need; the text continues the file's name."""


class _Source:
    """A file that never reserves more memory than it has bytes left, however many it is asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self.tell = file.tell
        self.readline = file.readline
        self._read = file.read

    def bytes_left(self) -> int:
        return max(0, self.size - self.tell())

    def read(self, size: int) -> bytes:
        return self._read(min(size, self.bytes_left()))


@dataclass(frozen=True)
class _Global:
    """A function or class that the file names, and our replacement. Not a tuple: those are a call's arguments."""

    name: str
    call: Callable[..., Any]


class _Type:
    """A `numpy.dtype` in the making."""

    def __init__(self, code: object, *flags: object) -> None:
        if not isinstance(code, str) or code not in _TYPE_CODES:
            what = readable(code) if isinstance(code, str) else type(code).__name__
            raise _Refused(f"has an array of type {what}, which is not a plain number")
        if not all(isinstance(flag, int) for flag in flags) or len(flags) > 2:
            raise ValueError("flags of a type")
        self.dtype = np.dtype(code)

    def set_state(self, state: object) -> None:
        # (version, byte order, then what only types with parts have, then three numbers that follow from the type)
        if not isinstance(state, tuple) or len(state) != 8 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("state of a type")
        if any(part is not None for part in state[2:5]):
            raise _Refused("has an array of a type with parts")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A `numpy.ndarray` in the making: without an array until its state is set."""

    array: np.ndarray | None = None

    def set_state(self, state: object) -> None:
        if self.array is not None or not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("state of an array")
        _version, shape, dtype, is_fortran, data = state
        self.array = _array(data, dtype, shape, "F" if is_fortran is True or is_fortran == 1 else "C")


def _array(data: object, dtype: object, shape: object, order: object) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Type) or order not in ("C", "F"):
        raise ValueError("parts of an array")
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
        raise ValueError("shape of an array")
    if not all(type(side) is int and 0 < side < MAX_SIDE for side in shape):
        raise ValueError("side of an array")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise _Refused(f"has an array of shape {shape} with {len(data)} bytes of {dtype.dtype.name} numbers")
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    array.flags.writeable = False
    return array


def _finished(array: np.ndarray) -> _Array:
    result = _Array()
    result.array = array
    return result


def _mapping(*arguments: object) -> dict[str, Any]:
    """`FlatMapping(mapping)` and its like: the mapping itself."""
    if len(arguments) > 1 or (arguments and not isinstance(arguments[0], dict)):
        raise ValueError("argument of a mapping")
    return arguments[0] if arguments else {}  # pyrefly: ignore[bad-return]


def _ndarray_class() -> None:
    raise ValueError("arrays are not made by calling their class")


def _reconstruct(array_class: object, _shape: object, _code: object) -> _Array:
    if not isinstance(array_class, _Global) or array_class.call is not _ndarray_class:
        raise ValueError("class of an array")
    return _Array()


def _scalar(dtype: object, data: object) -> _Array:
    return _finished(_array(data, dtype, (), "C"))


def _frombuffer(data: object, dtype: object, shape: object, order: object) -> _Array:
    return _finished(_array(data, dtype, shape, order))


def _dill_array(function: object, arguments: object, state: object, attributes: object = None) -> _Array:
    """dill's form of an array: NumPy's `_reconstruct`, its arguments and its state in one call."""
    if not isinstance(function, _Global) or function.call is not _reconstruct or attributes:
        raise ValueError("parts of an array")
    if not isinstance(arguments, tuple):
        raise ValueError("arguments of an array")
    array = _reconstruct(*arguments)
    array.set_state(state)
    return array


def _encode(text: object, encoding: object) -> bytes:
    """Bytes as protocols before 3 write them: as text of the code points 0 to 255."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused("has bytes in an encoding that pickles of arrays do not use")
    return text.encode("latin-1")


@dataclass(frozen=True)
class _Module:
    """The name of a module: it is not imported."""

    name: str


def _import_module(name: object) -> _Module:
    if not isinstance(name, str):
        raise ValueError("name of a module")
    return _Module(name)


def _get_attr(module: object, name: object) -> _Global:
    """dill's form of a compiled function: an attribute of a module. The pair has to be one of the listed."""
    if not isinstance(module, _Module):
        raise _Refused(f"asks for an attribute of {_kind(module)}")
    return _find(module.name, name)


# haiku up to 0.0.2 wrote frozendict, from then on FlatMapping, both as calls with one dict (`__reduce__` in its
# data_structures.py). The published files must come from dill 0.3.4 or older, which took NumPy's compiled
# functions from their module with `_get_attr`: only so has F0 its 285,976,842 bytes (tests/parity). From 0.3.6 on
# dill wrote `_create_array`. NumPy 2 renamed `numpy.core`; its `_frombuffer` is how protocol 5 writes arrays.
_GLOBALS: Mapping[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "builtins.dict": _mapping,
    "__builtin__.dict": _mapping,
    "collections.OrderedDict": _mapping,
    "dill._dill._create_array": _dill_array,
    "dill._dill._get_attr": _get_attr,
    "dill._dill._import_module": _import_module,
    "haiku._src.data_structures.FlatMap": _mapping,
    "haiku._src.data_structures.FlatMapping": _mapping,
    "haiku._src.data_structures.FrozenDict": _mapping,
    "haiku._src.data_structures.frozendict": _mapping,
    "numpy.core._multiarray_umath._reconstruct": _reconstruct,
    "numpy.core._multiarray_umath.scalar": _scalar,
    "numpy._core._multiarray_umath._reconstruct": _reconstruct,
    "numpy._core._multiarray_umath.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.numeric._frombuffer": _frombuffer,
    "numpy.dtype": _Type,
    "numpy.ndarray": _ndarray_class,
}


def _find(module: object, name: object) -> _Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("name of a global")
    # The pair has to be as listed: "numpy" with the name "core.multiarray.scalar" would walk through attributes.
    full_name = f"{module}.{name}"
    if full_name not in _GLOBALS or "." in name:
        raise _Refused(f"asks for {readable(full_name)}, which weights do not need")
    return _Global(full_name, _GLOBALS[full_name])


_VALUES = (
    frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"})
    | frozenset({"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"})
    | frozenset({"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"})
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STORES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_FETCHES = frozenset({"GET", "BINGET", "LONG_BINGET"})


class _Machine:
    """The stack machine of the pickle format (documented in `pickletools`), as far as arrays need it."""

    def __init__(self, source: _Source) -> None:
        self.source = source
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.encoded_bytes = 0

    def run(self) -> object:
        steps = pickletools.genops(cast(IO[bytes], self.source))  # it reads, reads lines and tells, no more
        for number, (opcode, argument, _position) in enumerate(steps):
            if number == MAX_STEPS:
                raise _Refused(f"takes more than {MAX_STEPS:,} steps")
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ValueError("no end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in _TUPLES:
            stack.append(tuple(self.take(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self.take_to_mark()))
        elif name == "DICT":
            stack.append(self.filled({}, self.take_to_mark()))
        elif name == "SETITEM":
            items = self.take(2)
            self.filled(stack[-1], items)
        elif name == "SETITEMS":
            items = self.take_to_mark()
            self.filled(stack[-1], items)
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in _STORES:
            self.memo[argument] = stack[-1]
        elif name in _FETCHES:
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            stack.append(_find(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_find(*self.take(2)))
        elif name in ("REDUCE", "NEWOBJ"):
            stack.append(self.called(*self.take(2)))
        elif name == "BUILD":
            (state,) = self.take(1)
            if not isinstance(stack[-1], _Array | _Type):
                raise _Refused(f"sets attributes of {_kind(stack[-1])}")
            stack[-1].set_state(state)
        elif name == "INST":
            _find(*argument.split(" ", 1))
            raise _Refused("makes an object of a class")
        elif name == "FRAME":
            if argument > self.source.bytes_left():
                raise ValueError("end of a frame")
        elif name != "PROTO":
            raise _Refused(f"has a step {name}")

    def take(self, count: int) -> list[Any]:
        bottom = self.marks[-1] if self.marks else 0
        if len(self.stack) - count < bottom:
            raise ValueError("stack too short")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def take_to_mark(self) -> list[Any]:
        height = self.marks.pop()
        values = self.stack[height:]
        del self.stack[height:]
        return values

    @staticmethod
    def filled(mapping: object, items: list[Any]) -> dict[str, Any]:
        if not isinstance(mapping, dict) or len(items) % 2:
            raise ValueError("items of a mapping")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # No other keys: to hash a tuple is to hash all that is nested in it.
            if not isinstance(key, str):
                raise _Refused(f"has {_kind(key)} where the name of a module or parameter belongs")
            mapping[key] = value
        return mapping

    def called(self, function: object, arguments: object) -> object:
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("call")
        result = function.call(*arguments)
        if isinstance(result, bytes):
            # The same text can be encoded over and over; each byte of the file can be an array's only once.
            self.encoded_bytes += len(result)
            if self.encoded_bytes > self.source.size:
                raise _Refused("encodes more bytes than it has")
        return result


def _two_levels(weights: object) -> Arrays:
    """The result as {module: {parameter: array}}, or a refusal."""
    if not isinstance(weights, dict):
        raise _Refused(f"holds {_kind(weights)}, not a mapping of modules")
    arrays: Arrays = {}
    for module, parameters in weights.items():
        if not isinstance(parameters, dict):
            raise _Refused(f"holds {_kind(parameters)} in {readable(module)}, not a mapping of parameters")
        arrays[module] = {}
        for name, value in parameters.items():
            if not isinstance(value, _Array) or value.array is None:
                raise _Refused(f"holds {_kind(value)} in {readable(f'{module}/{name}')}, not an array")
            arrays[module][name] = value.array
    return arrays


def _kind(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, _Array):
        kind = "array" if value.array is not None else "array without values"
    kind = {"_Type": "type", "_Global": "function", "_Module": "module"}.get(kind, kind)
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
