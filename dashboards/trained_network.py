"""Loads the network that a trial of a study has trained from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nfnet_ray.errors import UserError
from nfnet_ray.places import in_words
from nfnet_ray.printable import display_path, shown
from nfnet_ray.recipe import Recipe
from nfnet_ray.settings import did_you_mean
from nfnet_ray.study.study import TRIALS_FOLDER

if TYPE_CHECKING:
    from torch import nn

    from nfnet_ray.analysis import StudyRecord
    from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore, Entry

WhichEpoch = Literal["last", "best"]


def trained_network(record: StudyRecord, trial: str | None, epoch: WhichEpoch) -> nn.Module:
    """Implements :meth:`dashboards.study_results.StudyResults.load_model`."""
    record, trial = _study_of(record, trial)
    if record.folder is None or not (record.folder / TRIALS_FOLDER).is_dir():
        where = record.study["name"] if record.folder is None else display_path(record.folder)
        raise UserError(
            f"{where} has no checkpoints, as an export has none: load the study from the folder where it ran"
        )
    import torch

    from nfnet_ray.models import model_of
    from nfnet_ray.models.own.source import COPIES_FOLDER, use_copies_in
    from nfnet_ray.models.weights.state_dicts import find_state

    store, entry = _checkpoint(record, trial, epoch)
    where = f"{store.place}/{entry.name}.pt"
    if damage := store.damage(entry):
        raise UserError(f"{where} is damaged ({damage}): restore it, or train the network again")
    state = store.load(entry)
    weights, _ = find_state(state, where)
    # The Recipe in the checkpoint has all values filled in; checkpoints of earlier versions contain none.
    recipe = Recipe.from_any_version(state.get("recipe", _values(record, trial)))
    use_copies_in(record.folder / COPIES_FOLDER)
    with torch.random.fork_rng(devices=[]):
        network = model_of(recipe.model, record.study["data"]["classes"])
    try:
        network.load_state_dict(weights, assign=True)  # unchanged: float64 stays float64
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where} does not fit the network of {trial}: {reason}") from error
    return network.eval()


def _study_of(record: StudyRecord, trial: str | None) -> tuple[StudyRecord, str]:
    """Returns the study that has the trial, and the trial's name there. Raises UserError if there is none."""
    known = list(record.own_values)
    if trial is None and len(known) == 1:
        trial = known[0]
    if not isinstance(trial, str) or trial not in known:
        asked = "which trial? There are several" if trial is None else f"there is no trial {shown(trial)}"
        raise UserError(f"study {record.study['name']}: {asked}; {did_you_mean(str(trial or ''), known)}")
    for name, part in record.parts.items():
        if trial.startswith(f"{name}/") and trial.removeprefix(f"{name}/") in part.own_values:
            return part, trial.removeprefix(f"{name}/")
    return record, trial


def _values(record: StudyRecord, trial: str) -> dict[str, Any]:
    return {**record.study["recipe"], **record.own_values[trial]}


def _checkpoint(record: StudyRecord, trial: str, epoch: WhichEpoch) -> tuple[CheckpointStore, Entry]:
    """Returns the checkpoint of an epoch's end. Raises UserError if there is none."""
    from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore
    from nfnet_ray.training.checkpoints.storage import without_secrets

    tables = [table for table in (record.trials, record.left_out, record.reruns) if table is not None]
    epochs = next(int(table.loc[table["trial"] == trial, "epochs"].iloc[0])
                  for table in tables if (table["trial"] == trial).any())  # fmt: skip
    if epochs == 0:
        raise UserError(f"{trial} of {record.study['name']} has finished no epoch, so it has no network yet")
    assert record.folder is not None
    folder: Path = record.folder / TRIALS_FOLDER / trial / "checkpoints"
    number = epochs
    row = record.epochs.loc[(record.epochs["trial"] == trial) & (record.epochs["epoch"] == epochs)]
    if len(row) and "schedule_epochs" in row and row["schedule_epochs"].notna().all():
        # With several complete schedules, each has its own checkpoints and epochs.
        folder /= f"epochs-{int(row['schedule_epochs'].iloc[0])}"
        number = int(row["schedule_epoch"].iloc[0])
    elsewhere = record.study.get("checkpoints")
    store = CheckpointStore(elsewhere or folder)
    try:
        entries = [entry for entry in store.entries() if entry.metric is not None]  # at the end of an epoch
    except FileNotFoundError:
        entries = []
    except OSError as error:
        raise UserError(f"{store.place} cannot be read: {in_words(error)}") from error
    if epoch == "best":
        found = max(entries, key=lambda entry: (entry.metric or 0.0, entry.step), default=None)
    else:
        found = next((entry for entry in entries if entry.epoch == number), None)
    if found is None:
        place = without_secrets(elsewhere) if elsewhere else display_path(folder)
        left = f"of epoch {number}" if epoch == "last" and entries else "of any epoch"
        raise UserError(
            f"{place}: the checkpoint {left} of {trial} is gone, perhaps by python -m studies clean: the network has "
            "to be trained again"
        )
    return store, found
