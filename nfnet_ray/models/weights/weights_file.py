"""Files of weights in a Recipe. The content counts, so its hash is appended to the name.

This module needs no torch, since a program pins the weights of its trials before it starts anything.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from pathlib import Path

from nfnet_ray.errors import UserError
from nfnet_ray.models.weights.pickled_arrays import readable
from nfnet_ray.recipe import WEIGHTS_DIGEST_MARK, Recipe, split_weights

# The suffixes of torch.save, safetensors and the published pickles. A file that is named may have any suffix.
_SUFFIXES = (".pt", ".pth", ".safetensors", ".npz")


def pinned(weights: str) -> str:
    """``model.weights`` with an absolute path and the SHA-256 of the content: ``/data/F0.npz@sha256:…``.

    It reads the file, at about 1 GB/s. Raises UserError for a file that cannot be read, and for one whose content does
    not have the given hash.
    """
    path, expected = split_weights(weights)
    digest = _sha256(path, is_known=expected is not None)
    if expected not in (None, digest):
        raise UserError(
            f"model.weights: {readable(path)} is not the file that was meant (its SHA-256 is {digest}, not "
            f"{readable(str(expected))}): restore that file, or start a new run with this one"
        )
    return f"{Path(path).resolve()}{WEIGHTS_DIGEST_MARK}{digest}"


def with_pinned_weights(recipe: Recipe) -> Recipe:
    """The Recipe with its weights :func:`pinned`, if it starts from weights.

    So a run never continues from a checkpoint that began with other weights, even if the file was moved. Raises
    UserError as :func:`pinned` does.
    """
    if recipe.model.weights is None:
        return recipe
    return recipe.with_values({"model.weights": pinned(recipe.model.weights)})


def refuse_what_is_no_file(path: str | os.PathLike[str], where: str) -> None:
    """Raises UserError for a folder and for a pipe, which would block until it has a writer.

    For a folder, such as that of a training's checkpoints, the error names its newest file of weights. Raises OSError
    or ValueError if the path cannot be examined.
    """
    if stat.S_ISREG(os.stat(path).st_mode):
        return
    files = [file for file in Path(path).glob("*") if file.suffix in _SUFFIXES and file.is_file()]
    if not files:
        raise UserError(f"model.weights: {where} is not a file; give the path of a file of weights")
    newest = max(files, key=lambda file: (file.stat().st_mtime, file.name))
    raise UserError(
        f"model.weights: {where} is a folder; give one of its files: the newest is {readable(newest.name)}"
    )


def _sha256(path: str, is_known: bool) -> str:
    """The SHA-256 of a file. ``is_known`` says that it belongs to a run that has begun, so that its path is fixed."""
    where = f"{readable(path)} on {socket.gethostname()}"
    try:
        refuse_what_is_no_file(path, where)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        reason = error.strerror if isinstance(error, OSError) else error
        remedy = (
            "put that file there, or a link to it, on every node"
            if is_known
            else "give a path that every node sees"
        )
        raise UserError(f"model.weights: cannot read {where} ({reason}): {remedy}") from error
