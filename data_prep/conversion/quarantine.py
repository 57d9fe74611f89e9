"""Undecodable images: counted, listed with the reasons next to the data set, tolerated up to a limit."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path

from nfnet_ray.data.files.regular_file import read_regular_file
from nfnet_ray.errors import UserError
from nfnet_ray.wording import count

_COLUMNS = ["split", "source", "reason"]


@dataclass
class Quarantine:
    """The unreadable images of one conversion."""

    limit: int | None
    """None: any number."""
    images: list[tuple[str, str, str]] = field(default_factory=list)
    """Split, name, reason."""

    def add(self, split: str, name: str, reason: str) -> None:
        """Leave one image out.

        Raises:
            UserError: it is one too many.
        """
        if self.limit == 0:
            raise UserError(
                f"{name}: cannot be decoded ({reason}); repair or remove it, or leave such images out with"
                " --skip-unreadable, or up to N of them with --max-unreadable N"
            )
        if self.limit is not None and len(self.images) >= self.limit:
            raise UserError(
                f"{name}: cannot be decoded ({reason}), and {count(self.limit, 'image')} before it could not either,"
                " which is as many as --max-unreadable allows; repair them, or allow more"
            )
        self.images.append((split, name, reason))

    def names(self, split: str) -> list[str]:
        """Those of one split's images."""
        return [name for where, name, _ in self.images if where == split]


def unreadable_limit(max_unreadable: int | float | None, total: int) -> int | None:
    """A number of images stays one; a share (a float below 1) is taken of ``total`` and rounded down."""
    if isinstance(max_unreadable, float):
        return math.floor(max_unreadable * total)
    return max_unreadable


def quarantine_path(out: Path) -> Path:
    """The path of the list of unreadable images: next to the data set, whose folder holds nothing else."""
    name = out.name.removesuffix(".beton")
    return out.with_name(f"{name}.quarantine.csv")


def check_quarantine_path(out: Path) -> None:
    """Refuse a path at which the list would replace another file."""
    path = quarantine_path(out)
    if not path.exists():
        return
    try:
        text = read_regular_file(path).decode("utf-8", "replace")
        ours = next(csv.reader(io.StringIO(text, newline="")), None) == _COLUMNS
    except (OSError, csv.Error):
        ours = False
    if not ours:
        raise UserError(f"{path}: is in the way of a list of unreadable images; choose another name for OUT")


def write_quarantine(path: Path, quarantine: Quarantine) -> None:
    """A CSV file with a row per unreadable image, columns split, source and reason."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(quarantine.images)
