"""Formats names, descriptions and the source of runs and experiments for MLflow's UI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nfnet_ray.tracking.delivery.spool import TrackedStudy
from nfnet_ray.tracking.descriptions import StudyDescription, Values
from nfnet_ray.tracking.labels import ABSENT, short_names, value_label
from nfnet_ray.tracking.trial_progress import TrialProgress

DESCRIPTION_TAG = "mlflow.note.content"
DIFFERS_TAG = "differs_in"
"""The tag with the conditions in which a trial is not comparable with the first one of its study; empty if it is."""

# The UI's list of runs cuts off names after some 25 characters. A field without an entry here keeps its short name.
_WORDS = {
    "batch_size": "batch",
    "optimizer.agc.clip_factor": "clip",
    "optimizer.weight_decay": "decay",
    "optimizer.sam.rho": "rho",
    "schedule.base_learning_rate": "rate",
    "schedule.epochs": "epochs",
}


def run_name(point: Values, fields: Sequence[str]) -> str:
    """Returns the name of a run, such as ``clip 0.04, batch 64`` or ``nfnet_f0, seed 1``; empty for an empty point.

    Args:
        point: {dotted name: value}; absent fields are left out.
        fields: dotted names from which those of the point have to be distinguished.
    """
    names = short_names([*fields, *point])
    brief = {name: _WORDS.get(name, short) for name, short in names.items()}
    words = []
    for field, value in point.items():
        if value is ABSENT:
            continue
        # The name of a network is clear without the name of the field.
        if field == "model.name":
            words.append(value_label(value))
        else:
            is_unique = list(brief.values()).count(brief[field]) == 1
            words.append(f"{brief[field] if is_unique else names[field]} {value_label(value)}")
    return ", ".join(words)


def unlike_name(name: str) -> str:
    """Returns the name, in a chart's legend, of a run that is not comparable with others."""
    return f"≠ {name}"


def source_tags(study: StudyDescription) -> dict[str, str]:
    """Returns the tags that MLflow's UI shows as the source and the creator of a run, as far as they are recorded."""
    versions, source = study["versions"], study.get("source")
    tags = {}
    if commit := versions.get("commit"):
        tags["mlflow.source.git.commit"] = commit
        if (dirty := versions.get("dirty")) is not None:
            tags["mlflow.source.git.dirty"] = str(dirty).lower()
    if source is not None:
        tags |= {
            "mlflow.source.name": source["file"] or "nfnet_ray.run",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.branch": source["branch"],
            "mlflow.source.git.repoURL": source["repository"],
            "mlflow.user": source["user"],
        }
    return {name: value for name, value in tags.items() if value}


def experiment_description(study: StudyDescription) -> str:
    """Returns the text above the runs of an experiment in the UI, in Markdown."""
    file = study.get("source", {}).get("file")
    return (
        f"{study['question']}\n\nStudies of `{file}`, recorded by nfnet_ray: one run for each trial (tag `kind` = "
        "`trial`) and one for each study (`study`). `python -m dashboards.compare STUDY` opens a study on accuracy "
        "against training time."
    )


def study_description(study: StudyDescription, notes: Sequence[str], extensions: Sequence[str] = ()) -> str:
    """Returns the description of the study's run in the UI, in Markdown."""
    commands = [f"`{study['command']}`", *(f"Extended: `{command}`" for command in extensions)]
    return "\n\n".join([study["question"], *commands, *notes])


def trial_description(
    study: StudyDescription,
    tracked: TrackedStudy,
    trial: TrialProgress,
    point: str,
    unlike: Mapping[str, str] | None = None,
) -> str:
    """Returns the description of a trial's run: its point, how it ended, and a link to the study's run.

    ``point`` is the point in words; empty if the study sweeps nothing. ``unlike`` is {condition: value} of the
    conditions in which the trial is not comparable with the first one of the study.
    """
    link = f"#/experiments/{tracked.experiment_id}/runs/{tracked.study_run_id}"
    of_study = f"`{trial.name}` of the study [{study['name']}]({link})"
    title = f"**{point}**: {of_study}" if point else of_study
    parts = [f"{title}. {study['question']}", _how_it_went(trial, study["metric"])]
    if unlike:
        values = "; ".join(f"{condition}: {value}" for condition, value in unlike.items())
        parts.append(f"≠ Not comparable without a reservation: {values}.")
    return "\n\n".join(parts)


def setting_description(study: StudyDescription, tracked: TrackedStudy, point: str, seeds: str) -> str:
    """Returns the description of a setting's run. ``seeds`` are those of its trials, in words."""
    link = f"#/experiments/{tracked.experiment_id}/runs/{tracked.study_run_id}"
    title = f"**{point}**: seeds {seeds}" if point else f"Seeds {seeds}"
    metric = study["metric"]
    return (
        f"{title} of the study [{study['name']}]({link}). {study['question']}\n\n`{metric}` is the mean over the "
        f"seeds, `{metric}_low` and `{metric}_high` are the lowest and the highest, up to the last epoch that all have "
        "reached."
    )


def _how_it_went(trial: TrialProgress, metric: str) -> str:
    if trial.outcome is None or trial.outcome != trial.state:
        return f"State: {trial.state or 'waiting'}."
    epochs = f"after {trial.epoch} epoch{'' if trial.epoch == 1 else 's'}"
    reason = f": {trial.reason}" if trial.reason else ""
    accuracy, seconds = trial.last(metric), trial.last("train_seconds")
    reached = ""
    if accuracy is not None and seconds is not None and accuracy == accuracy:
        reached = f" Top-1 {accuracy:.1%} after {seconds:,.0f} s of training."
    words: Mapping[str, str] = {"stopped": "Given up, as planned,", "diverged": "Diverged"}
    return f"{words.get(trial.outcome, trial.outcome.capitalize())} {epochs}{reason}.{reached}"
