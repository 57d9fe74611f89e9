"""Imports the code of a user's own network, and builds the network.

The code is always imported from its files, even if this process has imported modules of the same names before. A
notebook may have changed the file since, and a study uses the copy that it began with.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from nfnet_ray.errors import UserError
from nfnet_ray.models.own.source import NetworkSource, source_of
from nfnet_ray.printable import shown
from nfnet_ray.recipe import split_weights
from nfnet_ray.wording import in_a_row

_HERE = str(Path(__file__).parent)
_builders: dict[str, Callable[..., Any]] = {}
"""{pinned name: builder}. The hash in a pinned name stands for one version of the code, whichever copy was imported."""
_lock = threading.RLock()


def build_own(name: str, num_classes: int, dropout: float = 0.0, stochastic_depth: float = 0.0) -> nn.Module:
    """Builds the network of ``model.name = "module:function"``, with initial weights.

    The function or class is called with ``num_classes``, and with ``dropout`` and ``stochastic_depth`` if it has
    parameters of these names.

    Raises UserError, in one line, if the code cannot be found or imported, if it raises an error, if it does not return
    a module, and for rates that it does not take.
    """
    label = split_weights(name)[0]
    builder = _builder_of(name)
    rates = {"dropout": dropout, "stochastic_depth": stochastic_depth}
    parameters = _parameters(builder)
    for field, rate in rates.items():
        if rate and field not in parameters:
            raise UserError(
                f"model.{field} = {rate:g}: {label} has no parameter {field}; give it one, or set model.{field} to 0"
            )
    takes_name = "num_classes" in parameters or inspect.Parameter.VAR_KEYWORD in parameters.values()
    classes = ((), {"num_classes": num_classes}) if takes_name else ((num_classes,), {})
    given = {field: rate for field, rate in rates.items() if field in parameters}
    try:
        network = builder(*classes[0], **classes[1], **given)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{label} cannot build its network for {num_classes} classes: {told(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{label} returns {shown(network)}, and not a torch.nn.Module: return the network")
    return network


def import_own(name: str) -> None:
    """Imports the code of ``model.name``, if this process has not done so. Raises UserError if that fails."""
    _builder_of(name)


def told(error: BaseException) -> str:
    """An error of a user's code in one line, with the place where it was raised."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_HERE)
    ]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        place = f" ({Path(error.filename or '').name}, line {error.lineno})"
        return f"{type(error).__name__}: {error.msg}{place}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def _builder_of(name: str) -> Callable[..., Any]:
    with _lock:
        known = _builders.get(name)
        if known is not None:
            return known
        source = source_of(name)
        if source.pinned not in _builders:
            _builders[source.pinned] = _imported(source)
        return _builders[source.pinned]


def _imported(source: NetworkSource) -> Callable[..., Any]:
    try:
        with _alone(source):
            module = importlib.import_module(source.module)
    except Exception as error:
        raise UserError(f"{source.name}: {source.module} cannot be imported: {told(error)}") from error
    builder = getattr(module, source.function, None)
    if not callable(builder):
        functions = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == source.module
        ]
        known = f"it has {in_a_row(functions)}" if functions else "it defines none"
        what = "has no function" if builder is None else "calls something else than a function"
        raise UserError(f"model.name = {source.name}: {source.module} {what} {source.function}; {known}")
    found: Callable[..., Any] = builder
    return found


@contextmanager
def _alone(source: NetworkSource) -> Generator[None]:
    """While this lasts, the modules of a source are imported from its root, and what was imported before is put aside.

    Compiled files are neither read nor written: one is taken for that of a source of the same size and second.
    """
    if source.is_installed:
        yield
        return
    names = {file.parts[0].removesuffix(".py") for file in source.files}
    before = _modules_of(names)
    for name in before:
        del sys.modules[name]
    root = str(source.root)
    prefix, writes = sys.pycache_prefix, sys.dont_write_bytecode
    sys.path.insert(0, root)
    sys.pycache_prefix, sys.dont_write_bytecode = str(source.root / ".nowhere"), True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.pycache_prefix, sys.dont_write_bytecode = prefix, writes
        sys.path.remove(root)
        if before:
            for name in _modules_of(names):
                del sys.modules[name]
            sys.modules.update(before)


def _modules_of(names: set[str]) -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in names}


def _parameters(builder: Callable[..., Any]) -> dict[str, Any]:
    """{name: kind} of the parameters of a function or class; empty where Python does not know them."""
    try:
        return {name: parameter.kind for name, parameter in inspect.signature(builder).parameters.items()}
    except (TypeError, ValueError):
        return {}
