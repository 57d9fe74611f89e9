"""Checks of a study before anything is started, and what they make ready: folders, data, weights."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.digits import DigitsPart, describe_digits, write_digits
from nfnet_ray.command_line.terminal import say
from nfnet_ray.data.files.dataset import DatasetSummary, check_dataset
from nfnet_ray.errors import UserError
from nfnet_ray.models.own.source import COPIES_FOLDER, NetworkSource, pinned_network, source_of, use_copies_in
from nfnet_ray.models.published import resolve
from nfnet_ray.models.weights.weights_file import pinned
from nfnet_ray.places import (
    MOST_NAME_BYTES,
    check_can_write,
    check_path,
    nearest_folder,
    readable,
    resolved,
)
from nfnet_ray.printable import printable
from nfnet_ray.processor import available_cpus
from nfnet_ray.recipe import split_weights
from nfnet_ray.study.space import with_values_of
from nfnet_ray.study.study import TRIALS_FOLDER, Study, Trial
from nfnet_ray.tracking.destination.uri import DATABASE_FILE, sqlite_path
from nfnet_ray.tracking.destination.uri_check import MOST_DATABASE_PATH_BYTES, check_tracking_uri
from studies.running.program import MadeWeights
from studies.running.request import Request

# MLflow 3.17's empty one is 1.0 MB, and SQLite's journal of what it changes takes room beside it.
NEW_DATABASE_BYTES = 2_000_000
# "/checkpoints/epochs-100000/step-00000000-00000000.json.partial" is the longest path there, with room to grow.
MOST_BYTES_BELOW_A_TRIAL = 100
DATA_FOLDER = Path("data")
"""The folder of the built-in data sets."""
# Of a URI that has become a path, which has lost a slash.
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")


def storage_folder(home: Path, request: Request) -> Path:
    """The absolute path of ``--storage``. Raises UserError if no results can be kept there; a plan keeps none."""
    _refuse_uri(
        request.storage,
        "--storage",
        "journals grow line by line, which no bucket can: give a folder that all nodes share; checkpoints of "
        "studies/train.py may go to a bucket (--checkpoints)",
    )
    storage = resolved(home / request.storage, "--storage", makes=MOST_NAME_BYTES)
    database = storage / DATABASE_FILE
    if not request.tracking_uri and len(os.fsencode(database)) > MOST_DATABASE_PATH_BYTES:
        raise UserError(
            f"--storage: MLflow's database {database} would have a path of more than {MOST_DATABASE_PATH_BYTES} bytes, "
            "which SQLite cannot open; name a shorter folder, or another place with --tracking-uri"
        )
    if request.plan:
        nearest_folder(storage, "--storage")
    else:
        check_can_write(storage / (request.begun or request.name or ""), "--storage")
    return storage


def _refuse_uri(path: str | Path, named: str, remedy: str) -> None:
    """Raises UserError for an address, which would be a folder of an odd name here."""
    if _SCHEME.match(str(path)):
        raise UserError(f"{named}: {printable(path)} is an address, and not a folder: {remedy}")


def check_tracking(uri: str, experiment: str) -> None:
    """Raises UserError if a study cannot be recorded at ``uri`` in that experiment."""
    check_path(uri, "--tracking-uri")
    try:
        check_tracking_uri(uri, experiment)
    except (OSError, ValueError) as error:
        raise UserError(f"tracking URI {uri!r}: {error}") from error
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        check_can_write(database.absolute().parent, f"tracking URI {uri!r}", NEW_DATABASE_BYTES)


def check_study_folder(directory: Path, trials: Sequence[Trial]) -> None:
    """Raises UserError if a trial's files would have names or paths that are too long."""
    longest = max((trial.name for trial in trials), key=len)
    check_path(directory / TRIALS_FOLDER / longest, "--storage and --name", makes=MOST_BYTES_BELOW_A_TRIAL)


def data_at(home: Path, path: str | Path | None, only_plan: bool, digits: DigitsPart) -> DatasetSummary:
    """The data set at a path below ``home``, or the built-in ``digits``, which are written unless it is for a plan."""
    if path:
        _refuse_uri(
            path, "--data", "copy the data set to each node (deploy/fetch_data.py) and give that folder"
        )
        folder = resolved(home / path, "--data")
        with readable("--data"):
            return check_dataset(folder)
    folder = (home / DATA_FOLDER / digits.name).resolve()
    if only_plan:
        return describe_digits(folder, digits)
    if not folder.exists():
        check_can_write(folder, "built-in data")
    return check_dataset(write_digits(folder, digits))


def with_weights(study: Study, made: MadeWeights | None, only_plan: bool, console: Console) -> Study:
    """The study with the hash of each file of weights behind its name.

    Weights that the study makes itself are made if they are missing, unless it is for a plan. Raises UserError for a
    file that is missing, or that is not the one with which the study began.
    """

    def known(weights: str | None) -> str | None:
        if weights is None:
            return None
        path = Path(split_weights(weights)[0])
        if made and path.resolve() == made.path().resolve() and not path.exists():
            if only_plan:
                return weights
            made.make(path, console)
        return pinned(weights)

    return _with_known(study, "model.weights", known)


def with_networks(study: Study, directory: Path) -> Study:
    """The study with what identifies the code behind the name of each network of one's own.

    A study that has begun in ``directory`` has copies of the code there, which are meant even if the files have changed
    since. Raises UserError for code that is not there.
    """
    use_copies_in(directory / COPIES_FOLDER)
    return _with_known(study, "model.name", lambda name: name if name is None else pinned_network(name))


def _with_known(study: Study, field: str, known: Callable[[Any], Any]) -> Study:
    """The study with what ``known`` returns for each value of a field of its Recipe, its space and its points."""
    recipe = study.recipe.with_values({field: known(study.recipe.to_values()[field])})
    space = dict(study.space)
    if field in space:
        space[field] = with_values_of(space[field], known)
    points = study.points and tuple(
        {**point, field: known(point[field])} if field in point else point for point in study.points
    )
    return replace(study, recipe=recipe, space=space, points=points)


def check_networks(trials: Sequence[Trial], classes: int, console: Console) -> None:
    """Builds each network of one's own, tries it once, and says where its code is. Raises UserError if it fails."""
    recipes = [resolve(trial.recipe) for trial in trials if trial.recipe.model.is_own]
    if not recipes:
        return
    # They import torch, which most studies do not need here.
    from nfnet_ray.models.own.cost import cost_of
    from nfnet_ray.training.own_network import check_own_network

    sizes = {
        (recipe.model.name, size)
        for recipe in recipes
        for size in (recipe.data.image_size, recipe.data.eval_size)
    }
    for name, size in sorted(sizes):
        cost_of(name, size, classes)
    for recipe in {(recipe.model, recipe.optimizer.agc): recipe for recipe in recipes}.values():
        check_own_network(recipe, classes)
    for source in network_sources(trials):
        say(console, f"Network: {source.sentence()}.")


def network_sources(trials: Sequence[Trial]) -> list[NetworkSource]:
    """Where the code of the trials' networks of one's own is. Raises UserError if it is not there."""
    names = {trial.recipe.model.name for trial in trials if trial.recipe.model.is_own}
    return [source_of(name) for name in sorted(names)]


def check_weights(trials: list[Trial], classes: int, console: Console) -> None:
    """Says which weights the trials will load. Raises UserError if they do not fit the networks."""
    # A file is read once, however many trials load it into the same network.
    models = {
        replace(trial.recipe.model, trained="all", dropout=None, stochastic_depth=None) for trial in trials
    }
    # Weights that the study has yet to make have no hash, and fit.
    known = [model for model in models if model.weights is not None and split_weights(model.weights)[1]]
    sentences = set()
    for model in known:
        # It imports torch, which most studies do not need here.
        from nfnet_ray.models.weights.pretrained import check_pretrained

        sentences.add(check_pretrained(model, classes).sentence())
    for sentence in sorted(sentences):
        say(console, f"Weights: {sentence}.")


def verify(path: Path) -> None:
    """Checks every byte of the data. Raises UserError if one is not as it was written."""
    from nfnet_ray.command_line.progress import bytes_on_stderr
    from nfnet_ray.data.files.verification import check_all

    check_all(path, available_cpus(), bytes_on_stderr)
