"""Defines how a journal describes a study: its question, its trials, and everything that the trials share.

The keys are those of the JSON objects in a journal, so their names must not change.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Values = dict[str, Any]
"""{dotted Recipe name: value}."""


class DataDescription(TypedDict):
    """The images of the study."""

    path: str
    name: str
    fingerprint: str
    classes: int
    train_images: int
    validation_images: int


class Hardware(TypedDict):
    """The hardware on which the study ran; ``description`` is for people."""

    description: str
    cpus: float
    gpus: float
    memory_gib: float
    mps: NotRequired[bool]
    """For a study whose workers share GPUs: whether MPS ran on every node with a GPU when the study began."""


class SourceVersion(TypedDict):
    """``commit`` is the repository's, empty without a repository; ``dirty``: tracked files differ from the commit."""

    commit: str
    dirty: NotRequired[bool]


class SourceDescription(TypedDict):
    """The program that ran, and the user who started it. Unknown texts are empty.

    ``file`` is relative to the repository. ``branch`` and ``repository`` (an address without a password) belong to the
    commit in :class:`SourceVersion`.
    """

    file: str
    user: str
    branch: str
    repository: str


class Versions(SourceVersion):
    """The versions of the software that ran."""

    nfnet_ray: str
    torch: str
    ray: str
    python: str
    timm: NotRequired[str]


class HalvingDescription(TypedDict):
    """Early stopping: where trials are compared, and how many of them continue.

    The first rung is at ``grace_epochs``, in ``unit``, which is epochs if it is missing. ``money_seconds`` are the
    seconds of training that one unit of money buys. ``cohort`` is the size of the groups in which trials compete.
    Journals of earlier versions have only the first two keys.
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
    """The search of a study: at most ``settings`` points, with ``first_points`` before all others.

    With a search that learns from results, ``trial_proposed`` adds trials while the study runs, and proposal number j
    uses the results up to number j - ``lag``.
    """

    name: str
    settings: int
    first_points: list[Values]
    lag: NotRequired[int]


class WorkerDescription(TypedDict):
    """The workers of one trial, and the cores and GPUs of each. The trial may continue with ``min_workers`` of them."""

    workers: int
    cpus: int
    gpus: float
    min_workers: NotRequired[int | None]


def accelerators(workers: int, gpus: float) -> float:
    """Returns the number of accelerators of workers with ``gpus`` each: a worker without GPUs counts as one."""
    return workers * (gpus or 1.0)


class CapsDescription(TypedDict, total=False):
    """The caps on time and money, and the price of an accelerator-hour. None: the cap was removed."""

    max_hours: float | None
    max_gpu_hours: float | None
    max_cost: float | None
    price_per_hour: float | None


class StudyDescription(TypedDict):
    """The question of a study and everything that its trials share, which is sufficient to resume it."""

    name: str
    question: str
    command: str
    metric: Literal["validation_top1"]
    mode: Literal["max"]
    space: dict[str, Any]
    """{dotted name: a list of values, or an object that nfnet_ray.study.space.domain_from_json reads}."""
    points: NotRequired[list[Values]]
    """The points of a study with a plain list of points, whose space is empty."""
    asked: NotRequired[list[str]]
    """The fields of the points that are in question; if missing, all fields."""
    seeds: list[int]
    epochs: int
    """The number of epochs of a trial that is never given up, over all its schedules."""
    search: NotRequired[SearchDescription]
    """How the points are found; if missing, they are all combinations of the space's values."""
    halving: HalvingDescription | None
    equal_within: NotRequired[float]
    """The difference in accuracy, a fraction, below which settings are equal in practice."""
    holdout: NotRequired[float]
    """The share of the validation images on which the best setting is quoted. It is chosen on the other images."""
    more_seeds: NotRequired[list[int]]
    """Seeds for contenders only, which are trained after all settings have been trained with ``seeds``."""
    seed_spread: NotRequired[float]
    """The standard deviation between seeds by which contenders are chosen, a fraction, if it is not the default."""
    confirm: NotRequired[int]
    """The number of fresh seeds with which the winner is rerun."""
    worker: WorkerDescription
    places: NotRequired[int]
    """The number of trials that run at once in the driver that started the study; with cohorts, the number of
    cohorts."""
    cohorts: NotRequired[int]
    """The largest number of trials that are trained as one program; if missing, each is trained alone."""
    checkpoints: NotRequired[str | None]
    """The place of a training's checkpoints if it is not the training's directory."""
    caps: NotRequired[CapsDescription]
    unrecorded: NotRequired[Literal[True]]
    """The study began with ``--tracking-uri none``, and is not recorded in MLflow until an address is given."""
    recipe: Values
    data: DataDescription
    hardware: Hardware
    versions: Versions
    source: NotRequired[SourceDescription]
    """The program that defines the study; missing in journals of earlier versions."""
    networks: NotRequired[dict[str, NetworkDescription]]
    """{name in the Recipes: code} of the user's own networks with which the study began."""
    notes: NotRequired[list[str]]
    tags: NotRequired[dict[str, str]]
    outside: NotRequired[list[str]]
    """The trials that an extension has left out of the study."""


class NetworkDescription(TypedDict):
    """The code of a user's own network: its hash, and its files below ``folder``.

    The study has copies of the files, unless they belong to an installed ``package``, which is given with its version.
    """

    sha256: str
    files: list[str]
    folder: str
    package: NotRequired[str]


class TrialPlan(TypedDict):
    """One trial: ``point`` contains the swept values, ``recipe`` those that differ from the study's Recipe."""

    name: str
    point: Values
    recipe: Values
