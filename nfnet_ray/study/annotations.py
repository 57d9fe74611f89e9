"""The notes and tags that people attach to a study. They appear in its journal, its report and MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nfnet_ray.errors import UserError
from nfnet_ray.printable import printable
from nfnet_ray.tracking.state import StudyState

MOST_NOTE_CHARACTERS = 2000
"""Three notes of this length fit into one tag of MLflow 3.17 (MAX_TAG_VAL_LENGTH in mlflow/utils/validation.py,
8000)."""
MOST_VALUE_CHARACTERS = 250

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# The tags that nfnet_ray/tracking/delivery/writer.py writes, or may write, to a study's run in MLflow.
_OUR_KEYS = {
    *("attempt", "command", "kind", "point", "question", "reason", "seeds", "state", "study", "study_id"),
    *("trial", "wall_seconds"),
}
_OUR_PREFIXES = ("mlflow.", "hardware.", "versions.")
# A journal would read these texts back as numbers (nfnet_ray/tracking/journal.py).
_RESERVED_TEXTS = {"NaN", "Infinity", "-Infinity"}


@dataclass(frozen=True)
class Annotations:
    """Notes in the order in which they were written, and tags as {key: value}."""

    notes: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.notes or self.tags)

    def beyond(self, state: StudyState) -> Annotations:
        """Returns the notes and tags that a study does not have yet, so that a command can be repeated."""
        return Annotations(
            [note for note in self.notes if note not in state.notes],
            {key: value for key, value in self.tags.items() if state.tags.get(key) != value},
        )


def note_text(text: str) -> str:
    """Returns the text of a note without surrounding whitespace.

    Raises UserError if the text is empty, too long or reserved.
    """
    text = text.strip()
    if not text:
        raise UserError("the note is empty; write something about the study")
    if len(text) > MOST_NOTE_CHARACTERS:
        raise UserError(
            f"the note has {len(text):,} characters, and the limit is {MOST_NOTE_CHARACTERS:,}; shorten it, "
            "or name a file that holds it"
        )
    if text in _RESERVED_TEXTS:
        raise UserError(f"the note {text!r} would be read as a number; use more words")
    return text


def tag_pair(text: str) -> tuple[str, str]:
    """Parses ``KEY=VALUE`` to (key, value). Raises UserError if the key is not allowed or the value is missing."""
    key, equals, value = text.partition("=")
    value = value.strip()
    shown = printable(text if len(text) <= 60 else f"{text[:60]}…")
    if not equals or not value:
        raise UserError(f"{shown} is not a tag; write KEY=VALUE, such as team=vision")
    if not _KEY.fullmatch(key):
        raise UserError(
            f"{shown}: a tag's key has up to 100 letters, digits, dots, dashes and underscores, and begins with a "
            "letter or a digit"
        )
    if key in _OUR_KEYS or key.startswith(_OUR_PREFIXES):
        raise UserError(f"{shown}: MLflow's tag {key!r} is written by nfnet_ray itself; choose another key")
    if len(value) > MOST_VALUE_CHARACTERS:
        raise UserError(f"{shown}: the value has more than {MOST_VALUE_CHARACTERS} characters; use a --note")
    if value in _RESERVED_TEXTS or printable(value) != value:
        raise UserError(f"{shown}: a tag's value is printable text, and none of NaN, Infinity and -Infinity")
    return key, value
