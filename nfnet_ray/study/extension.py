"""Extends a study by values, seeds or epochs in the same journal, without training again what is already trained.

If a trial of the extended study has the same Recipe as an earlier trial, it is that trial, with its name, epochs and
checkpoints. Earlier trials that the extended study does not contain are left out: they stay in the journal as evidence,
but later decisions ignore them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe, decisive_values
from nfnet_ray.study.decisions import groups, most_epochs
from nfnet_ray.study.differences import differing_fields
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.legs import Legs
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.search.axes import point_key
from nfnet_ray.study.search.first_points import point_within
from nfnet_ray.study.search.model import startup_points
from nfnet_ray.study.space import Point, Space, has_range
from nfnet_ray.study.space.asked import question_of
from nfnet_ray.study.study import Study
from nfnet_ray.study.trial_names import free_name, trial_key
from nfnet_ray.tracking.events import Event, StudyExtended, study_extended
from nfnet_ray.tracking.journal import Journal
from nfnet_ray.tracking.labels import value_label
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.wording import agree, count

MAY_CHANGE = "only its space, seeds, epochs, number of settings, early stopping and confirmation can change"

UNNAMED: Final[dict[str, Any]] = {"found": None, "planned": None, "chosen": None, "names": {}, "outside": ()}
"""The fields of a Study that record what its journal contains, with their values for a study without a journal."""


@dataclass(frozen=True)
class Extension:
    """A study after its extension, and the event that records the extension in the journal."""

    study: Study
    event: StudyExtended
    added: int
    """The number of trials that are not in the journal yet."""
    earlier_epochs: int
    without_their_seed: int = 0
    """The number of contenders' further trials whose seed the extended study no longer has."""
    further_seeds: int = 0
    """The number of seeds for settings that may be the best which the earlier study did not have."""
    more_reruns: int = 0
    """The number of fresh seeds for reruns of winners in addition to those of the earlier study."""

    def sentences(self) -> list[str]:
        """Describes in sentences what the extension changes."""
        left_out = len(self.event["left_out"]) + self.without_their_seed
        reconsidered = len(self.event["reconsidered"])
        kept = len(self.study.trials()) - self.added
        said = [f"{count(self.added, 'new trial')}"]
        if kept:
            said.append(f"{kept:,} that it has already")
        if left_out:
            verb = agree(left_out, "stays", "stay")
            said.append(f"{count(left_out, 'earlier trial')} {verb} as evidence, outside the study")
        if self.further_seeds:
            said.append(f"then {count(self.further_seeds, 'more seed')} of each setting that may be the best")
        if self.more_reruns:
            said.append(f"then {count(self.more_reruns, 'more rerun')} of the best setting")
        words = [f"Extended: {', '.join(said)}."]
        if self.study.epochs != self.earlier_epochs:
            words.append(
                f"Training for {count(self.study.epochs, 'epoch')} instead of {self.earlier_epochs:,} is another "
                "learning-rate schedule, so every setting is trained from its beginning."
            )
        if reconsidered:
            words.append(
                f"{count(reconsidered, 'trial')} that {agree(reconsidered, 'was', 'were')} given up "
                f"{agree(reconsidered, 'is', 'are')} compared again, with the new ones."
            )
        return words


def extension(
    asked: Study,
    earlier: Study,
    state: StudyState,
    command: str,
    validation_images: int,
    has_checkpoint: Callable[[str], bool],
) -> Extension | None:
    """Returns the extension that turns ``earlier`` into ``asked``; None if nothing changes.

    Args:
        asked: the study after the extension.
        earlier: the study according to its journal, with all settings that were proposed.
        state: the state according to the journal. It is not modified.
        command: the command line, which is recorded in the journal.
        validation_images: the number of images on which accuracies are measured.
        has_checkpoint: tells whether the trial of a given name could continue from a checkpoint.

    Raises:
        UserError: ``asked`` differs from ``earlier`` in something that an extension cannot change.
    """
    _check(asked, earlier)
    asked = replace(asked, name=earlier.name, recipe=_recipe(asked, earlier), lag=earlier.lag)
    recipes = _recipes(earlier, state)
    study = _named(_with_known_points(asked, state, recipes), state, recipes)
    now = {trial.name for trial in study.trials()}
    _check_rungs(study, earlier, state)
    if not differing_fields(study, earlier) and now == {trial.name for trial in earlier.trials()}:
        return None
    before = state.outside
    event = study_extended(
        command,
        {
            **study.description(),
            "epochs": most_epochs(study),
            "more_seeds": list(study.more_seeds),
            "outside": list(study.outside),
        },
        [study.plan(trial) for trial in study.trials()],
        left_out=[name for name in study.outside if name not in before],
        taken_back=[name for name in state.plans if name in before and name in now],
    )
    given_up = [
        trial.name
        for trial in state.trials.values()
        if trial.state == "stopped" and trial.name in now and has_checkpoint(trial.name)
    ]
    event["reconsidered"] = _undecided(study, state, {**event, "reconsidered": given_up}, validation_images)
    added = sum(name not in state.trials for name in now)
    seeds = {*study.seeds, *study.more_seeds}
    unseeded = sum(
        plan["recipe"].get("seed") not in seeds
        for name, plan in state.further.items()
        if name not in before and name not in now
    )
    return Extension(
        study,
        event,
        added,
        earlier.epochs,
        unseeded,
        len(set(study.more_seeds).difference(earlier.seeds, earlier.more_seeds)),
        max(0, study.confirm - earlier.confirm),
    )


def points_within(space: Space, recipe: Recipe, points: Sequence[Mapping[str, Any]]) -> tuple[Point, ...]:
    """Returns those of the given points that lie in the space."""
    within = (point_within(space, recipe, {**recipe.to_values(), **point}) for point in points)
    return tuple(point for point in within if point is not None)


def _check(asked: Study, earlier: Study) -> None:
    """Raises UserError if ``asked`` differs from ``earlier`` in something that an extension cannot change."""
    name = earlier.name
    if earlier.chosen is not None:
        raise UserError(
            f"{name} cannot be extended, as the version that made it counted trials and not settings: start a new study"
        )
    if asked.question != earlier.question and not (_has_made_question(earlier) and _has_made_question(asked)):
        raise UserError(
            f"{name} asks a different question ({earlier.question!r}, not {asked.question!r}): {MAY_CHANGE}"
        )
    if (asked.points is None) != (earlier.points is None):
        kinds = ("a space", "a list of points")
        had, has = kinds if earlier.points is None else reversed(kinds)
        raise UserError(f"{name} has {had}, not {has}: {MAY_CHANGE}")
    missing = [field for field in earlier.space if field not in asked.space]
    if missing:
        raise UserError(
            f"{name} sweeps {missing[0]}: keep the field in the space, if need be with a single value"
        )
    if earlier.space and asked.fields[0] != earlier.fields[0]:
        raise UserError(f"{name} asks about {earlier.fields[0]}: it has to stay the first field of the space")
    if earlier.draws_points and not asked.draws_points:
        asked_for = asked.search_name
        raise UserError(f"{name} searches by {earlier.search_name}: {asked_for} cannot take its place")
    # A grid cannot cover ranges, and if all values are listed, another search would find no further points.
    may_search = has_range(asked.space) and not (earlier.draws_points or asked.is_adaptive)
    if asked.search_name != earlier.search_name and not may_search:
        raise UserError(f"{name} searches by {earlier.search_name}, not {asked.search_name}: {MAY_CHANGE}")
    free = {*earlier.space, *asked.space, *earlier.fields, *asked.fields, "schedule.epochs", "seed"}
    had_values = decisive_values(earlier.recipe.to_values())
    for field, value in decisive_values(asked.recipe.to_values()).items():
        if field not in free and value != had_values[field]:
            raise UserError(
                f"{name} has {field} = {value_label(had_values[field])}, not {value_label(value)}: {MAY_CHANGE}"
            )


def _has_made_question(study: Study) -> bool:
    """Whether the study's question was generated from its space, so that it changes with the space."""
    return bool(study.space) and study.question == question_of(study.space)


def _check_rungs(study: Study, earlier: Study, state: StudyState) -> None:
    """Raises UserError if the trials that have been trained could not be compared with the new ones."""
    name, had, has = earlier.name, earlier.halving or Halving(), study.halving or Halving()
    another = f"start a new study that begins with its best settings, --from {name}"
    if had.schedule != has.schedule:
        raise UserError(f"{name} has {had.schedule} schedules, not {has.schedule} ones: {another}")
    if earlier.halving and study.halving and had.unit != has.unit:
        raise UserError(f"{name} has rungs in {had.unit}, not in {has.unit}: {another}")
    if has.unit == "money" and has.money_seconds is None:
        raise UserError(f"{name} has no rungs in money: {another}")
    if not has.is_stretched:
        return
    before = {trial: group.schedules for group in groups(earlier) for trial in group.trials}
    for group in groups(study):
        for trial in group.trials:
            if trial in before and before[trial] != group.schedules and state.trials[trial].epochs:
                now, then = (", ".join(map(str, lengths)) for lengths in (group.schedules, before[trial]))
                raise UserError(
                    f"{name} would train schedules of {now} epochs, and {trial} has been trained with those of {then}: "
                    f"{another}"
                )


def _recipe(asked: Study, earlier: Study) -> Recipe:
    """Returns the Recipe of the extended study. Its values of swept fields apply where a point does not set them."""
    return earlier.recipe.with_values({"schedule.epochs": asked.epochs})


def _recipes(earlier: Study, state: StudyState) -> dict[Recipe, str]:
    """Returns {Recipe: name of its trial} of all trials in the journal, with those of the original plan first."""
    base, path = earlier.recipe.to_values(), {"data.path": earlier.recipe.data.path}
    recipes: dict[Recipe, str] = {}
    is_stretched = earlier.halving is not None and earlier.halving.is_stretched
    # Further trials of a contender train only the last schedule and pass no rung, so they cannot stand in for others.
    plans = state.plans if is_stretched else {**state.plans, **state.further}
    for name, plan in plans.items():
        recipes.setdefault(Recipe.from_values({**base, **plan["recipe"], **plan["point"], **path}), name)
    return recipes


def _with_known_points(asked: Study, state: StudyState, recipes: Mapping[Recipe, str]) -> Study:
    """Returns a study whose search begins with the points in the journal that lie in its space.

    The points that the search draws now follow in its own order. If the space is unchanged, they continue the sequence.
    """
    if not asked.draws_points:
        return asked
    outside = state.outside
    known: dict[str, Point] = {}
    for recipe, name in recipes.items():
        point = point_within(asked.space, asked.recipe, recipe.to_values())
        if point is None or point_key(point) in known:
            continue
        # Points that belong to the study are kept, even if their epochs or seeds change. A point that was left out is
        # kept if one of its trials has been trained.
        if name not in outside or any(trial.recipe in recipes for trial in asked.trials_at(point)):
            known[point_key(point)] = point
    number = asked.settings
    if asked.is_adaptive:
        first = {*known, *map(point_key, asked.searcher.first_points)}
        number = min(number, max(startup_points(asked.space), len(first)))
    return replace(asked, found=tuple(asked.searcher.planned(number, list(known.values()))))


def _named(asked: Study, state: StudyState, recipes: Mapping[Recipe, str]) -> Study:
    """Returns the study with the earlier trials' names, and for new trials names that no earlier trial has."""
    names = {
        trial_key(trial.point, trial.recipe.seed): recipes.get(trial.recipe)
        or free_name(trial.name, asked.epochs, state.trials)
        for trial in asked.trials()
    }
    taken = set(names.values())
    return replace(asked, names=names, outside=tuple(name for name in state.plans if name not in taken))


class _Nowhere(Journal):
    """A journal that stores nothing."""

    def __init__(self) -> None:
        return

    def append(self, _event: Event) -> None:
        return


def _undecided(study: Study, state: StudyState, event: StudyExtended, validation_images: int) -> list[str]:
    """Returns the reconsidered trials that the results in the journal do not immediately give up again."""
    tried = state.copy()
    tried.apply(event)
    Legs(study, validation_images, Recorder(_Nowhere(), tried, lambda: None, lambda _: None))
    return [name for name in event["reconsidered"] if tried.trials[name].state == "paused"]
