"""How a journal describes a study: its question, its trials, and everything that they share.

The keys are those of the JSON objects in a journal, so a name cannot change.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Values = dict[str, Any]
"""{dotted Recipe name: value}."""


class DataDescription(TypedDict):
    """Which images the study looked at."""

    path: str
    name: str
    fingerprint: str
    classes: int
    train_images: int
    validation_images: int


class Hardware(TypedDict):
    """What the study ran on; ``description`` is for people."""

    description: str
    cpus: float
    gpus: float
    memory_gib: float
    mps: NotRequired[bool]
    """Of a study whose workers share GPUs: whether MPS was up on every node that had a GPU when it began."""


class SourceVersion(TypedDict):
    """``commit`` is the repository's, empty where there is none; ``dirty``: tracked files differ from it."""

    commit: str
    dirty: NotRequired[bool]


class SourceDescription(TypedDict):
    """Which program ran, and who started it. A text is empty where it is not known.

    ``file`` is relative to its repository; ``branch`` and ``repository``, an address without a password, are those that
    :class:`SourceVersion` has the commit of.
    """

    file: str
    user: str
    branch: str
    repository: str


class Versions(SourceVersion):
    """What ran."""

    nfnet_ray: str
    torch: str
    ray: str
    python: str
    timm: NotRequired[str]


class HalvingDescription(TypedDict):
    """Early stopping: where trials are compared, and which of them continue.

    The first rung is at ``grace_epochs``, in ``unit``: epochs, where it is not said. ``money_seconds`` are the seconds
    of training that one unit of money pays for. ``cohort`` is the size of the groups in which trials compete. Journals
    of earlier versions have the first two keys alone.
    """

    grace_epochs: float
    reduction_factor: float
    rule: NotRequired[Literal["synchronous", "asynchronous", "median", "hyperband"]]
    finalists: NotRequired[int]
    cohort: NotRequired[int | None]
    unit: NotRequired[Literal["epochs", "seconds", "money"]]
    schedule: NotRequired[Literal["truncated", "stretched"]]
    money_seconds: NotRequired[float | None]


class SearchDescription(TypedDict):
    """How the points of a study are found: ``settings`` of them at most, ``first_points`` before all others.

    With a searcher that learns from results, ``trial_proposed`` adds trials while the study runs, and proposal number
    j waits for the results of those up to number j - ``lag``.
    """

    name: str
    settings: int
    first_points: list[Values]
    lag: NotRequired[int]


class WorkerDescription(TypedDict):
    """Workers of one trial, and the cores and GPUs of each. It may continue with ``min_workers`` of them."""

    workers: int
    cpus: int
    gpus: float
    min_workers: NotRequired[int | None]


def accelerators(workers: int, gpus: float) -> float:
    """How many accelerators workers hold that have ``gpus`` each: a worker without any counts as one."""
    return workers * (gpus or 1.0)


class CapsDescription(TypedDict, total=False):
    """What may be spent, and the price of an accelerator-hour. None: a cap that was taken away again."""

    max_hours: float | None
    max_gpu_hours: float | None
    max_cost: float | None
    price_per_hour: float | None


class StudyDescription(TypedDict):
    """The question of a study and everything that its trials share. Enough to resume it."""

    name: str
    question: str
    command: str
    metric: Literal["validation_top1"]
    mode: Literal["max"]
    space: dict[str, Any]
    """{dotted name: a list of values, or an object that nfnet_ray.study.space.domain_from_json reads}."""
    points: NotRequired[list[Values]]
    """The points of a study that has a plain list of them; its space is empty then."""
    asked: NotRequired[list[str]]
    """The fields of the points that are asked about; without it all."""
    seeds: list[int]
    epochs: int
    """Of a trial that is never given up, over all its schedules."""
    search: NotRequired[SearchDescription]
    """How its points are found; without it they are all combinations of the space's values."""
    halving: HalvingDescription | None
    equal_within: NotRequired[float]
    """Settings whose accuracies differ by less are equal in practice, a fraction."""
    holdout: NotRequired[float]
    """The share of the validation images on which the best setting is quoted; it is chosen on the others."""
    more_seeds: NotRequired[list[int]]
    """Seeds that only the contenders are trained with, once all settings have been trained with ``seeds``."""
    seed_spread: NotRequired[float]
    """The standard deviation between seeds by which contenders are chosen, a fraction, if it is not the usual one."""
    confirm: NotRequired[int]
    """With how many fresh seeds the winner is rerun."""
    worker: WorkerDescription
    places: NotRequired[int]
    """How many trials run at once, in the driver that started the study; with cohorts, how many of these."""
    cohorts: NotRequired[int]
    """How many trials are trained as one program at most; without it each is trained alone."""
    checkpoints: NotRequired[str | None]
    """Where a training's checkpoints lie, if not in its directory."""
    caps: NotRequired[CapsDescription]
    unrecorded: NotRequired[Literal[True]]
    """It began with ``--tracking-uri none``, and stays out of MLflow until an address is given."""
    recipe: Values
    data: DataDescription
    hardware: Hardware
    versions: Versions
    source: NotRequired[SourceDescription]
    """The program that asks the question; journals of earlier versions have none."""
    networks: NotRequired[dict[str, NetworkDescription]]
    """{name in the Recipes: its code} of the networks of one's own that the study began with."""
    notes: NotRequired[list[str]]
    tags: NotRequired[dict[str, str]]
    outside: NotRequired[list[str]]
    """Of a study that was extended: the trials that are not part of it any more."""


class NetworkDescription(TypedDict):
    """The code of a network of one's own: its hash, and its files below ``folder``.

    The study has copies of the files, unless they are those of an installed ``package``, told with its version.
    """

    sha256: str
    files: list[str]
    folder: str
    package: NotRequired[str]


class TrialPlan(TypedDict):
    """One trial: ``point`` holds what is swept, ``recipe`` what differs from the study's recipe."""

    name: str
    point: Values
    recipe: Values
