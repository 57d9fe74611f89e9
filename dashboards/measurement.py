"""Lists how a study was measured, as facts for its report: data, accuracy, hardware, time, versions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nfnet_ray.analysis import StudyRecord, budget_sentences, rung_sentences, rung_summaries
from nfnet_ray.analysis.comparability import comparability
from nfnet_ray.study.cost.spending import accelerator_word
from nfnet_ray.study.space.late_fields import compared_early
from nfnet_ray.tracking.labels import ABSENT, value_label
from nfnet_ray.tracking.swept import beside_the_question, tied_to
from nfnet_ray.wording import agree, count, duration, in_a_row

EVAL_CROPS = {
    "squash": "single crop “squash”: both sides resized to eval_size + 32 pixels, and the centre of that; "
    "images of eval_size whole",
    "central": "single crop “central”: the central square of eval_size / (eval_size + 32) of the shorter side; "
    "images of eval_size whole",
    "whole": "whole images, both sides resized to eval_size pixels",
}
"""{value of ``data.eval_crop``: how a validation image was cropped}."""


def measurement(record: StudyRecord) -> list[tuple[str, str]]:
    """Returns (name, text) of each fact that the journal contains."""
    study, data, guard = record.study, record.study["data"], comparability(record)
    facts = [
        (
            "Data",
            f"{data['name']}: {count(data['classes'], 'class')}, {data['train_images']:,} training and "
            f"{count(data['validation_images'], 'validation image')}; fingerprint {data['fingerprint']}",
        ),
        (
            "Trials",
            f"{_seeds(record)}; {_epochs(record)}{_halving(record)}",
        ),
        ("Accuracy against budget", " ".join(budget_sentences(record))),
        ("Early stopping", _early_stopping(record)),
        ("Early epochs", _rungs(record)),
        ("Cohorts", _cohorts(record)),
        ("Damaged images", _damaged_images(record)),
        ("Accuracy", _accuracy(record)),
        ("Precision", str(study["recipe"].get("precision", ""))),
        ("Hardware", _hardware(record)),
        ("Time", _time(record)),
        ("Idle time", record.idle.sentence(_accelerator(record)) if record.idle else ""),
        ("Versions", _versions(record)),
        ("Not the same for all trials", " ".join([*guard.sentences(), *guard.remark_sentences()])),
    ]
    return [(name, text) for name, text in facts if text]


def shared_recipe(record: StudyRecord) -> list[tuple[str, str]]:
    """Returns (name, value) of each field of the Recipe with the same value in all trials, or tied to another field."""
    found = []
    for name in record.study["recipe"]:
        if other := tied_to(record.study, name):
            found.append((name, f"that of {other}"))
        elif len(labels := {value_label(value) for value in _all_values(record, name)}) == 1:
            found.append((name, labels.pop()))
    return found


def _all_values(record: StudyRecord, name: str) -> Iterable[Any]:
    """Returns the values of a field of the Recipe, one for each trial, for each point, or for the study."""
    own = record.study["recipe"][name]
    if name == "seed" and not record.trials["seed"].isna().any():
        return record.trials["seed"]
    if name in record.fields:
        return (own if value is ABSENT else value for value in record.trials[name])
    return beside_the_question(record.study, name) or [own]


def _seeds(record: StudyRecord) -> str:
    """Formats seeds: ``3 seeds (0, 1, 2)``, or ``1 seed (0), and 2 more (1, 2) for contenders``."""
    first, more = record.study["seeds"], record.study.get("more_seeds", ())
    text = f"{count(len(first), 'seed')} ({', '.join(map(str, first))})"
    return f"{text}, and {len(more)} more ({', '.join(map(str, more))}) for contenders" if more else text


def _epochs(record: StudyRecord) -> str:
    """Formats epochs: ``8 epochs each``, or ``2 to 8 epochs, each in a complete schedule``."""
    budgets = _budgets(record)
    if len(set(budgets)) > 1:
        return f"{min(budgets):,} to {count(max(budgets), 'epoch')}, each in a complete schedule"
    epochs = f"{count(record.study['epochs'], 'epoch')} each"
    if not record.is_stretched:
        return epochs
    last = count(record.study["recipe"]["schedule.epochs"], "epoch")
    return f"{epochs}, in complete schedules of which each begins anew and the last has {last}"


def _budgets(record: StudyRecord) -> list[int]:
    """Returns the number of epochs of each trial if it is not stopped early."""
    usual = record.study["epochs"]
    if "schedule.epochs" not in record.fields:
        return [usual] * len(record.trials)
    return [usual if epochs is ABSENT else int(epochs) for epochs in record.trials["schedule.epochs"]]


def _halving(record: StudyRecord) -> str:
    described = record.study["halving"]
    if described is None:
        return ""
    first, eta = described["grace_epochs"], f"{described['reduction_factor']:g}"
    seconds = first * (described.get("money_seconds") or 1.0)
    in_epochs = described.get("unit", "epochs") == "epochs"
    if in_epochs and first >= max(_budgets(record), default=0):  # no trial reaches a rung before its end
        return ""
    if not in_epochs:
        rungs = f"after {seconds:.4g} s of training and at each {eta}-fold of it"
    elif described.get("schedule") == "stretched":
        rungs = f"after a schedule of {count(int(first), 'epoch')} and of each {eta}-fold of it"
    else:
        rungs = f"at epoch {first} and at each {eta}-fold of it"
    match described.get("rule", "earlier"):
        case "synchronous":
            how = (
                f"{rungs}, the best 1/{eta} under the same conditions, at least {described['finalists']}, continued "
                "(synchronous halving)"
            )
        case "hyperband":
            how = (
                f"{rungs}, the best 1/{eta} continued, in brackets that start at different rungs (Hyperband)"
            )
        case "median":
            how = f"at every multiple of epoch {first}, those below the median ended (median rule)"
        case _:
            how = f"{rungs}, only the best 1/{eta} under the same conditions so far continued (asynchronous halving)"
    return f", unless given up early: {how}"


def _early_stopping(record: StudyRecord) -> str:
    """Describes what each rung did and predicted, and the epochs saved; empty if no trial was given up."""
    rungs = [
        f"{rung.where}, {rung.given_up:,} of {count(rung.compared, 'trial')} ended"
        + (f" ({said})" if (said := rung.sentence()) else "")
        for rung in rung_summaries(record)
        if rung.given_up
    ]
    if not rungs:
        return ""
    trained, all_epochs = int(record.trials["epochs"].sum()), sum(_budgets(record))
    return f"{'; '.join(rungs)}; {trained:,} of {all_epochs:,} epochs were trained{_too_early(record)}"


def _too_early(record: StudyRecord) -> str:
    """Says ``; the best clip_factor may be another one at the first rung than at the end``; empty for other fields."""
    described = record.study["halving"]
    if described is None or described.get("unit", "epochs") != "epochs":
        return ""
    first, epochs = described["grace_epochs"], record.study["recipe"]["schedule.epochs"]
    early = compared_early(record.fields, first, epochs, is_stretched=record.is_stretched)
    if not early:
        return ""
    names = in_a_row([record.names[field] for field in early])
    return f"; the best {names} may be {agree(len(early), 'another one', 'others')} at the first rung than at the end"


def _rungs(record: StudyRecord) -> str:
    """Describes how well early epochs predicted the end, for a study without early stopping."""
    return " ".join(rung_sentences(record)) if record.study["halving"] is None else ""


def _damaged_images(record: StudyRecord) -> str:
    """Describes how many damaged images the trials skipped; empty if there were none."""
    words = {"damaged_train_images": "training", "damaged_validation_images": "validation"}
    most = {words[name]: record.epochs[name].max() for name in words if name in record.epochs}
    parts = [count(int(number), f"{split} image") for split, number in most.items() if number > 0]
    return f"skipped, at most in one trial: {' and '.join(parts)}" if parts else ""


def _cohorts(record: StudyRecord) -> str:
    """Describes which trials were trained as one program, and what that means for their seconds."""
    lanes = {trial: own["lanes"] for trial, own in record.measured_under.items() if "lanes" in own}
    if not lanes:
        return ""
    sizes = sorted({size for fact in lanes.values() for size in _as_tuple(fact.value)})
    of = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
    return (
        f"{len(lanes)} of {count(len(record.measured_under), 'trial')} were trained in cohorts of {of} trials as one "
        "program each; the seconds of a trial are those of its cohort, divided by the trials that were alive in it"
    )


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _accuracy(record: StudyRecord) -> str:
    """Describes the weights and the image crop with which the accuracies were measured."""
    decays, crops = (_values(record, name) for name in ("optimizer.ema.decay", "data.eval_crop"))
    words = []
    averaged = [decay for decay in decays if decay is not None]
    if averaged:
        words.append(
            f"of the averaged weights (EMA, decay {', '.join(map(value_label, averaged))})"
            + (", without EMA of the weights themselves" if None in decays else "")
        )
    elif decays:
        words.append("of the weights after the last step of an epoch")
    words += [EVAL_CROPS.get(crop, str(crop)) for crop in crops]
    return "; ".join(words)


def _values(record: StudyRecord, name: str) -> list[Any]:
    """Returns the values that a Recipe field had in the study; empty if the journal is older than the field."""
    recipe, name = record.study["recipe"], tied_to(record.study, name) or name
    own = [recipe[name]] if name in recipe else []
    if name not in record.fields:
        return list(dict.fromkeys(beside_the_question(record.study, name))) or own
    values = (own[0] if value is ABSENT and own else value for value in record.trials[name])
    return list(dict.fromkeys(values))


def _hardware(record: StudyRecord) -> str:
    hardware = record.study["hardware"]
    return (
        f"{hardware['description']} ({count(hardware['cpus'], 'CPU')}, {count(hardware['gpus'], 'GPU')}, "
        f"{hardware['memory_gib']:.0f} GiB of memory free for Ray's workers)"
    )


def _time(record: StudyRecord) -> str:
    """Describes how the seconds of all trials were spent, the largest part first, and how long the study took."""
    words = {
        "train_seconds": "training",
        "data_wait_seconds": "waiting for data",
        "eval_seconds": "evaluation",
        "checkpoint_seconds": "checkpoints",
        "startup_seconds": "start-up",
    }
    last = record.epochs.drop_duplicates("trial", keep="last")
    totals = {words[name]: float(last[name].sum()) for name in words if name in last}
    phases = sorted(totals.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in phases)
    parts = [
        f"over all trials: {shares}" if shares else "",
        f"{duration(record.wall_seconds)} from start to end" if record.wall_seconds else "",
        _paid(record),
    ]
    return "; ".join(filter(None, parts))


def _accelerator(record: StudyRecord) -> str:
    """Returns the unit of accelerator-hours."""
    return accelerator_word(record.study["worker"]["gpus"])


def _paid(record: StudyRecord) -> str:
    """Formats paid time, such as ``paid for 2.31 GPU-hours, 4.62 at 2 per GPU-hour``."""
    if not record.accelerator_hours:
        return ""
    word = _accelerator(record)
    paid = f"paid for {record.accelerator_hours:,.3g} {word}-hours"
    if record.price_per_hour is None:
        return paid
    cost = record.accelerator_hours * record.price_per_hour
    return f"{paid}, {cost:,.2f} at {record.price_per_hour:,.4g} per {word}-hour"


def _versions(record: StudyRecord) -> str:
    versions = record.study["versions"]
    names = ", ".join(
        f"{name} {version}" for name, version in versions.items() if version and name != "dirty"
    )
    return names + (" with uncommitted changes" if versions.get("dirty") else "")
