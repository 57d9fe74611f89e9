"""The description of a study in studies/ for the code that runs it: the function that builds it, and more."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.digits import ALL_DIGITS, DigitsPart
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.printable import shown
from nfnet_ray.study.study import Study

StudyFactory = Callable[..., Study]
"""``build(data, epochs)``, and keyword arguments of the study's own. If ``epochs`` was not given, it is left out where
it has a default, and None where it has none. An argument ``model`` is given the value of ``--set model.name=``."""


@dataclass(frozen=True)
class MadeWeights:
    """A file of weights that a study makes on first use: ``path()`` is the file, ``make(path, console)`` writes it."""

    path: Callable[[], Path]
    make: Callable[[Path, Console], None]


@dataclass(frozen=True)
class StudyProgram:
    """A study as a program. Most need nothing but the function that builds them.

    Attributes:
        build: the study on a data set.
        digits: the digits on which it runs without ``--data``; they are written on first use.
        flags: {name of a keyword argument of ``build``: how argparse shows its flag}. Its value is a text, or None.
        made_weights: a file of weights that is made when it is missing, or None.
        is_open: whether it is asked what to sweep, and the question is made from that.
        is_whole: whether a study that is extended becomes the one that is built, with its space and its seeds; else
            what is not said stays as it was.
    """

    build: StudyFactory
    digits: DigitsPart = ALL_DIGITS
    flags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    made_weights: MadeWeights | None = None
    is_open: bool = False
    is_whole: bool = False

    def study(self, data: DatasetSummary, epochs: int | None, **own: Any) -> Study:
        """The study on a data set. Raises UserError if the function is not one that builds a study."""
        name = getattr(self.build, "__name__", repr(self.build))
        try:
            bound = inspect.signature(self.build).bind(data, epochs, **own)
        except (TypeError, ValueError):  # a ValueError: one of Python's own, which has no signature
            raise UserError(
                f"{name} cannot be called with a data set and the number of epochs: write it as def {name}(data, "
                "epochs=None), and let it return a Study (docs/new_study.md)"
            ) from None
        if epochs is None:
            _, *others = bound.signature.parameters.values()
            if others and others[0].default is not inspect.Parameter.empty:
                del bound.arguments[others[0].name]
        study = self.build(*bound.args, **bound.kwargs)
        if not isinstance(study, Study):
            raise UserError(
                f"{name} returned {shown(study)}, which is not a Study: end it with return Study(…) (docs/new_study.md)"
            )
        return study

    @property
    def takes_model(self) -> bool:
        """Whether the function has an argument ``model``: the name of the network, from which it makes the study."""
        try:
            return "model" in inspect.signature(self.build).parameters
        except (TypeError, ValueError):  # study() says what is wrong with it
            return False

    @property
    def file(self) -> Path | None:
        """The file of the function that builds the study; None for a study that was built in Python, or a notebook."""
        if self.is_whole:
            return None
        try:
            file = Path(inspect.getfile(self.build))
        except TypeError:
            return None
        return file if file.is_file() else None
