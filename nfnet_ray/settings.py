"""Settings: frozen dataclasses whose fields have a range, a meaning and a dotted name.

    @dataclass(frozen=True)
    class AGCRecipe(Section):
        clip_factor: float | None = setting(0.01, "largest gradient norm / parameter norm", above=0)

    @dataclass(frozen=True)
    class Recipe(Section):
        agc: AGCRecipe = AGCRecipe()                       # its field is called agc.clip_factor

    Recipe().with_values({"agc.clip_factor": -1})           # RecipeError: agc.clip_factor = -1 is not allowed: …

A section checks its fields whenever it is built. Needs nothing but the standard library.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import numbers
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from nfnet_ray.errors import UserError
from nfnet_ray.printable import shown


class RecipeError(UserError):
    """A setting does not exist, or does not take a value."""


# No setting takes a larger number: seeds and sizes have 32 bits, and float32 products of two such numbers are finite.
LARGEST_WHOLE_NUMBER = 2**31 - 1
LARGEST_NUMBER = 1e6
LARGEST_SIDE = 2048
"""The largest side of an image, in pixels: twice that of any published recipe. Memory grows with its square."""


def setting(
    default: Any,
    meaning: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Any:
    """Declares a dataclass field with its meaning and the range of values that it takes."""
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    return dataclasses.field(
        default=default,
        metadata={"meaning": meaning, "bounds": {k: v for k, v in bounds.items() if v is not None}},
    )


def required(section: type[Section], name: str) -> Any:
    """The field ``name`` of ``section``, in a subclass that narrows its type: without a default, by keyword only."""
    metadata = {field.name: field.metadata for field in dataclasses.fields(section)}[name]  # pyrefly: ignore[bad-argument-type]
    return dataclasses.field(kw_only=True, metadata=metadata)


class Section:
    """A dataclass that checks every field against its type and its range when it is built.

    A section may be the default of a field of another section. So sections form a tree, and the names of their fields
    have dots. Each class of sections has a single place in a single tree.
    """

    prefix: ClassVar[str] = ""
    """The prefix of this section's field names, such as ``optimizer.agc.``; empty at the root of the tree."""

    def __init_subclass__(cls) -> None:
        for name, value in vars(cls).items():
            if isinstance(value, Section):
                value._place_below(f"{name}.")

    def _place_below(self, prefix: str) -> None:
        type(self).prefix = prefix
        for name, value in vars(self).items():
            if isinstance(value, Section):
                value._place_below(f"{prefix}{name}.")

    def __post_init__(self) -> None:
        for field in _fields(type(self)):
            given = getattr(self, field.name)
            value = _conform(given, field.hint)
            if value is _MISFIT or not _within(value, field.bounds):
                raise RecipeError(_refusal(f"{self.prefix}{field.name}", given, field))
            if value is not given:
                object.__setattr__(self, field.name, value)

    def to_values(self) -> dict[str, Any]:
        """All leaves as {dotted name below this section: value}, in the order in which they are declared."""
        return dict(self._leaves(""))

    def _leaves(self, prefix: str) -> Iterator[tuple[str, Any]]:
        for field in _fields(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, Section):
                yield from value._leaves(f"{prefix}{field.name}.")
            else:
                yield f"{prefix}{field.name}", value

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A copy with other values in the fields of the given dotted names, which are names below this section.

        Raises RecipeError for a name that is not a field, with the fields that may have been meant, and for a value
        that the field does not take.
        """
        if not isinstance(values, Mapping):
            raise RecipeError(
                f"with_values takes a dict {{dotted name of a field: value}}, and not {shown(values)}"
            )
        changes: dict[str, Any] = {}
        below: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if not isinstance(name, str) or name not in _leaves_of(type(self)):
                raise RecipeError(_unknown_field(name, leaf_names(type(self))))
            first, dot, rest = name.partition(".")
            if dot:
                below.setdefault(first, {})[rest] = value
            else:
                changes[name] = value
        # Sections in which nothing changes are kept as they are, without another check.
        changes |= {name: getattr(self, name).with_values(changed) for name, changed in below.items()}
        return dataclasses.replace(self, **changes)  # pyrefly: ignore[bad-specialization]


SectionType = TypeVar("SectionType", bound=Section)


def narrowed(section: Section, kind: type[SectionType]) -> SectionType:
    """The same values in a section of type ``kind``, a subclass of its own type that has :func:`required` fields.

    Raises RecipeError if a required field is None.
    """
    values = {field.name: (getattr(section, field.name), field) for field in _fields(kind)}
    return kind(
        **{
            name: narrowed(value, field.section) if field.section is not None else value
            for name, (value, field) in values.items()
        }
    )


class _Field(NamedTuple):
    """A field of a section: its annotated type, its range, and its meaning."""

    name: str
    hint: Any
    bounds: Mapping[str, float]
    meaning: str

    @property
    def section(self) -> type[Section] | None:
        """The type of the section that the field holds; None for a leaf."""
        return self.hint if isinstance(self.hint, type) and issubclass(self.hint, Section) else None


def _read_fields(section: type[Section]) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(section)
    return tuple(
        _Field(field.name, hints[field.name], field.metadata.get("bounds", {}), field.metadata.get("meaning", ""))
        for field in dataclasses.fields(section)  # pyrefly: ignore[bad-argument-type]
    )  # fmt: skip


# Once for each class: compiling its annotations takes many times as long as checking its values.
_fields = functools.cache(_read_fields)


def _read_leaves(section: type[Section]) -> dict[str, _Field]:
    leaves: dict[str, _Field] = {}
    for field in _fields(section):
        if field.section is None:
            leaves[field.name] = field
        else:
            leaves |= {f"{field.name}.{name}": leaf for name, leaf in _leaves_of(field.section).items()}
    return leaves


_leaves_of: Any = functools.cache(_read_leaves)


def leaf_names(section: type[Section]) -> list[str]:
    """The dotted names of a tree's leaves, in the order in which they are declared."""
    return list(_leaves_of(section))


def field_meanings(section: type[Section]) -> dict[str, str]:
    """{dotted name: its meaning and the values that it takes} of a tree's leaves, for help texts."""
    return {
        name: f"{field.meaning} ({_describe(field.hint, field.bounds)})"
        for name, field in _leaves_of(section).items()
    }


def checked_value(section: type[Section], name: str, value: Any) -> Any:
    """``value`` as the field of this dotted name holds it (int to float, list to tuple).

    Rules between fields are not checked; building a section checks them. Raises RecipeError for a name that is not a
    field, and for a value that the field does not take.
    """
    field = _leaf(section, name)
    conformed = _conform(value, field.hint)
    if conformed is _MISFIT or not _within(conformed, field.bounds):
        raise RecipeError(_refusal(name, value, field))
    return conformed


def number_type(section: type[Section], name: str) -> type[int] | type[float] | None:
    """``int`` or ``float`` for a field that takes one number, or one number or None; None for all other fields.

    Raises RecipeError for a name that is not a field.
    """
    hint = _leaf(section, name).hint
    kinds = set(typing.get_args(hint) or (hint,)) - {types.NoneType}
    return kinds.pop() if kinds in ({int}, {float}) and typing.get_origin(hint) is not tuple else None


def _leaf(section: type[Section], name: str) -> _Field:
    leaves = _leaves_of(section)
    if not isinstance(name, str) or name not in leaves:
        raise RecipeError(_unknown_field(name, list(leaves)))
    return leaves[name]


_MISFIT = object()


def _conform(value: Any, hint: Any) -> Any:
    """``value`` as the annotated type (int to float, list to tuple), or _MISFIT."""
    if isinstance(hint, type) and isinstance(value, Section):
        return value if isinstance(value, hint) else _MISFIT
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        results = (_conform(value, argument) for argument in arguments)
        return next((result for result in results if result is not _MISFIT), _MISFIT)
    if origin is Literal:
        return value if isinstance(value, str) and value in arguments else _MISFIT
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return _MISFIT
        items = tuple(_conform(item, arguments[0]) for item in value)
        return _MISFIT if _MISFIT in items else items
    if isinstance(value, bool):
        return value if hint is bool else _MISFIT
    # NumPy's numbers are converted to Python's, which can be written to a journal.
    if hint is float and isinstance(value, numbers.Integral):
        return float(value) if abs(int(value)) < 2**53 else _MISFIT
    if hint is float and isinstance(value, numbers.Real):
        return float(value)
    if hint is int and isinstance(value, numbers.Integral):
        return int(value)
    if hint is types.NoneType:
        return None if value is None else _MISFIT
    return value if isinstance(value, hint) else _MISFIT


def _within(value: Any, bounds: Mapping[str, float]) -> bool:
    if isinstance(value, tuple):
        return (bool(value) or not bounds) and all(_within(item, bounds) for item in value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return True
    return (
        # This is False for nan.
        abs(value) <= _largest(value)
        and value > bounds.get("above", float("-inf"))
        and value >= bounds.get("at least", float("-inf"))
        and value < bounds.get("below", float("inf"))
        and value <= bounds.get("at most", float("inf"))
    )


def _largest(value: int | float) -> float:
    return LARGEST_NUMBER if isinstance(value, float) else LARGEST_WHOLE_NUMBER


def _refusal(name: str, given: Any, field: _Field) -> str:
    bounds = field.bounds
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if is_number and abs(given) > _largest(given) and not {"below", "at most"} & bounds.keys():
        bounds = {**bounds, "at most": _largest(given)}
    return f"{name} = {shown(given)} is not allowed: it takes {_describe(field.hint, bounds)}"


def _describe(hint: Any, bounds: Mapping[str, float]) -> str:
    """The values that a field takes, in words: ``a number above 0, or none``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return ", or ".join(_describe(argument, bounds) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if isinstance(hint, type) and issubclass(hint, Section):
        return f"{hint.__name__}(…)"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        types.NoneType: "none",
    }
    text = "a list of " + words[arguments[0]].removeprefix("a ") + "s" if origin is tuple else words[hint]
    if hint not in (int, float) and origin is not tuple:
        return text
    limits = _range_in_words(bounds)
    return f"{text} {limits}" if limits else text


def _range_in_words(bounds: Mapping[str, float]) -> str:
    """``above 0``, ``of at least 0 and below 1``, ``from 8 to 2,048``, or "" without bounds."""
    limits = {kind: f"{limit:,.0f}" if abs(limit) >= 1000 else f"{limit:g}" for kind, limit in bounds.items()}
    if limits.keys() == {"at least", "at most"}:
        return f"from {limits['at least']} to {limits['at most']}"
    words = " and ".join(f"{kind} {limit}" for kind, limit in limits.items())
    return f"of {words}" if words.startswith("at") else words


def parse_setting(section: type[Section], text: str) -> tuple[str, Any]:
    """``"agc.clip_factor=0.02"`` as (dotted name, value), for a name that ``section`` has.

    Raises RecipeError as :func:`parse_assignment` does, and for a name that is not a field. The value is checked when a
    section is built with it.
    """
    name, value = parse_assignment(text, "field=value, such as optimizer.agc.clip_factor=0.02")
    field, written = _leaf(section, name), text.partition("=")[2].strip()
    # Words, such as paths, may have commas and dots in them.
    one_number_or_word = _conform("", field.hint) is _MISFIT and _conform((), field.hint) is _MISFIT
    if one_number_or_word and (
        "," in written or ".." in written or written.startswith(("log:", "int:", "same:"))
    ):
        said = written if re.fullmatch(r"[\w.,:+-]{1,60}", written) else shown(written)
        raise RecipeError(
            f"--set {name}={said}: --set takes one value; to try several, give a study --sweep {name}={said}"
        )
    return name, value


def parse_assignment(text: str, form: str) -> tuple[str, Any]:
    """The text of a ``--set``, such as ``"width=[32, 64]"``, as (name, value).

    ``none`` is None, ``true`` and ``false`` are booleans in any case, and text that is not a Python literal is a word.
    Raises RecipeError if it has no ``=`` or nothing after it; ``form`` says how to write it.

    >>> parse_assignment("width=[32, 64]", "FIELD=VALUE"), parse_assignment("memory_format=auto", "FIELD=VALUE")
    (('width', [32, 64]), ('memory_format', 'auto'))
    """
    name, equals, literal = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise RecipeError(f"--set {text}: write it as {form}")
    if not literal:
        raise RecipeError(
            f"--set {text}: there is no value; is a shell variable not set? Write none for None"
        )
    return name, parse_value(literal)


def each_once(assignments: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """{name: value} of several ``--set``. Raises RecipeError if two of them give a name different values.

    >>> each_once([("width", 32), ("depth", 2), ("width", 32)])
    {'width': 32, 'depth': 2}
    """
    given: dict[str, Any] = {}
    for name, value in assignments:
        if name in given and repr(given[name]) != repr(value):
            raise RecipeError(
                f"--set {name} is given twice, as {shown(given[name])} and as {shown(value)}: leave one of them out"
            )
        given[name] = value
    return given


def parse_value(literal: str) -> Any:
    """A value as a person writes it: ``none``, ``true``, ``false``, a Python literal, or a word such as ``auto``.

    A list may hold words: ``[classifier.weight, stem.*]``, as help texts show it.
    """
    words = {"none": None, "true": True, "false": False}
    if literal.lower() in words:
        return words[literal.lower()]
    try:
        return ast.literal_eval(literal)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        in_brackets = re.fullmatch(r"\[([^][()'\"]*)\]", literal)
        words_of_list = [word.strip() for word in in_brackets[1].split(",")] if in_brackets else []
        return (
            [parse_value(word) for word in words_of_list] if words_of_list and all(words_of_list) else literal
        )


_MOST_FIELDS_NAMED = 12
"""An error lists at most this number of fields: all of ``model.overrides``, the largest part without parts."""


def _unknown_field(name: object, known: Sequence[str]) -> str:
    if not isinstance(name, str):
        return f"{shown(name)} is not the name of a field of the Recipe, which is a text"
    leaf = name.rsplit(".", 1)[-1]
    if below := [other for other in known if f".{name}." in f".{other}"]:
        shown_below = [*below[:_MOST_FIELDS_NAMED], *(["…"] if len(below) > _MOST_FIELDS_NAMED else [])]
        hint = f"it is a part of it, with the fields {', '.join(shown_below)}"
    elif same_leaf := [other for other in known if other.rsplit(".", 1)[-1] == leaf]:
        hint = did_you_mean(name, same_leaf, similarity=0.0)
    else:
        hint = did_you_mean(name, known, otherwise="see --help for the list", similarity=0.4)
    return f"{name} is not a field of the Recipe: {hint}"


def did_you_mean(
    word: object, known: Sequence[str], otherwise: str | None = None, similarity: float = 0.6
) -> str:
    """``did you mean batch_size?``, or ``otherwise`` where no known word is similar; by default it lists them all.

    ``similarity`` is difflib's ratio from 0 to 1 that a word has to reach.

    >>> did_you_mean("DEPT", ["width", "depth"]), did_you_mean("x", ["width", "depth"])
    ('did you mean depth?', 'use one of width, depth')
    """
    in_lower_case = {name.lower(): name for name in known}
    found = difflib.get_close_matches(str(word).lower(), in_lower_case, cutoff=similarity)
    similar = [in_lower_case[name] for name in found]
    if similar:
        return f"did you mean {' or '.join(similar)}?"
    return otherwise if otherwise is not None else f"use one of {', '.join(known)}"
