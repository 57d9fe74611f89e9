"""The checks behind the health cards of a study.

The status is ``good``, ``look`` (keep this in mind when reading the numbers) or ``bad`` (do not trust the answer before
this is resolved). A check that does not apply to a study has no card.
"""

from __future__ import annotations

import math
import random
import shlex
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nfnet_ray.analysis.answer import BestSetting, best_per_stratum, spread_words
from nfnet_ray.analysis.clip_factor import command_with
from nfnet_ray.analysis.health.effect import behind_test, effect_test, is_compared_by_itself, others_by_value
from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.analysis.replay import Pool
from nfnet_ray.analysis.rungs import rung_summaries
from nfnet_ray.analysis.verdict import EQUAL_WITHIN
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import with_published_values
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.space import domain_from_json, domain_text, domain_to_json, unconditional
from nfnet_ray.study.space.domains import Domain, Range, When
from nfnet_ray.tracking.labels import ABSENT, point_label, value_label
from nfnet_ray.tracking.trial_progress import ENDED, LOST
from nfnet_ray.wording import agree, count, decimal, in_a_row, in_points, percent

Status = Literal["good", "look", "bad"]

# Spearman's correlation of normal variates for a Kendall's tau of 0.2. Below this, BOHB's users move the first rung to
# a later epoch, as quoted in NePS' documentation.
DISAGREEMENT = 0.3
# Spearman's correlation for a Kendall's tau of 0.5, at which three of four pairs of trials are in the same order.
DOUBT = 0.7
# With fewer trials, a correlation below DOUBT is common by chance.
LEAST_TRIALS = 5
# Shares of trials that diverged or failed. If more than a fifth are lost, the space that was really searched is
# narrower than intended; if more than half are lost, it is the wrong space.
SOME_LOST, MANY_LOST = 0.2, 0.5
# An optimum is at the edge of a range if it lies in the outer twentieth, on a logarithmic scale if the range has one.
EDGE = 0.05


@dataclass(frozen=True)
class HealthCard:
    """The result of one check of a study.

    Attributes:
        name: the name of the check, such as ``edge of the space``.
        sentence: the finding.
        command: a command for the next step; empty if there is nothing to do.
    """

    name: str
    status: Status
    sentence: str
    command: str = ""


def health_cards(record: StudyRecord) -> list[HealthCard]:
    """Returns the cards of a study, the bad ones first; none for a single training or before a trial has ended."""
    if not record.fields or not len(record.trials):
        return []
    if (
        "schedule.epochs" in record.fields
    ):  # a study of budgets asks about time at equal accuracy, and not which setting is best
        return list(_lost(record))
    answers = best_per_stratum(record)
    cards = [
        *_edges(record, answers),
        *_effect(record, answers),
        *_rungs(record),
        *_lost(record),
        *_published(record, answers),
        *_stopping(record),
    ]
    order: list[Status] = ["bad", "look", "good"]
    return sorted(cards, key=lambda card: order.index(card.status))


def health_lines(cards: list[HealthCard]) -> list[tuple[str, str]]:
    """Returns (sentence, command or empty) for a terminal: each card that is not good, or one line if all are.

    The sentences begin with the status and the name of the check: ``LOOK, edge of the space: …``
    """
    lines = [
        (f"{card.status.upper()}, {card.name}: {card.sentence}", card.command)
        for card in cards
        if card.status != "good"
    ]
    if lines or not cards:
        return lines
    return [(f"GOOD: nothing looks wrong; checked: {', '.join(card.name for card in cards)}.", "")]


def _edges(record: StudyRecord, answers: Sequence[BestSetting]) -> Iterator[HealthCard]:
    """Yields a card for the first field whose best value is the outermost one tried, once all trials have ended.

    Conditions are not checked: each of their values has its own best setting, so the outermost ones always have one.
    """
    if not record.trials["state"].isin(ENDED).all():
        return
    checked, ends = False, []
    for field, described in record.study["space"].items():
        if field in record.conditions:
            continue
        whole = domain_from_json(described)
        domain = unconditional(whole)
        tried = _tried(record, field, domain)
        best = [answer.best.point.get(field, ABSENT) for answer in answers]
        edges = [its for value in best if (its := _edge(tried, value))]
        checked = checked or _has_edges(tried)
        if not edges:
            continue
        edge = max(edges, key=edges.count)  # strata may have different edges; this is the one of most strata
        side = "smallest" if edge == "low" else "largest"
        where = "" if len(answers) == 1 else f" in {edges.count(edge)} of {len(answers)} strata"
        said = f"The best {record.names.get(field, field)} is the {side} that was tried{where}"
        if untried := _untried_beyond(domain, tried, edge):
            lie, were = agree(len(untried), "lies", "lie"), agree(len(untried), "was", "were")
            yield HealthCard(
                "edge of the space",
                "look",
                f"{said}; {in_a_row(list(map(value_label, untried)))} {lie} beyond it and {were} left out.",
                ""
                if "search" in record.study
                else _extend(record, "--trials", f"{_settings_of_grid(record.study['space'])}"),
            )
            return
        if (wider := _wider(record, field, domain, edge)) is None:
            value = next(value for value in best if _edge(tried, value) == edge)
            ends.append(f"{record.names.get(field, field)} {value_label(value)}")
            continue
        yield HealthCard(
            "edge of the space",
            "look",
            f"{said}, so the optimum may lie outside.",
            _extend_space(record, field, _under(whole, wider)),
        )
        return
    if checked and answers:
        or_end = f", or at an end beyond which no value is allowed: {in_a_row(ends)}" if ends else ""
        yield HealthCard("edge of the space", "good", f"The best setting lies inside the space{or_end}.")


def _tried(record: StudyRecord, field: str, domain: Any) -> Any:
    """Returns the domain with the listed values that were tried, as ``--trials`` runs only the first settings."""
    if not isinstance(domain, tuple):
        return domain
    had = list(record.trials[field])
    return tuple(value for value in domain if value in had)


def _untried_beyond(domain: Any, tried: Any, edge: Literal["low", "high"]) -> list[float]:
    """Returns the listed numbers that no trial has and that lie beyond this edge of the tried values."""
    if not isinstance(domain, tuple):
        return []
    numbers = _numbers(tried)
    return [
        value for value in _numbers(domain) if (value < numbers[0] if edge == "low" else value > numbers[-1])
    ]


def _settings_of_grid(space: Mapping[str, Any]) -> int:
    """Returns the number of settings in a whole space, an upper bound if there are conditional fields."""
    domains = (unconditional(domain_from_json(described)) for described in space.values())
    return math.prod(len(domain) for domain in domains if isinstance(domain, tuple))


def _under(domain: Domain, wider: Any) -> Domain:
    """Puts the wider domain under the conditions of the original one."""
    return replace(domain, domain=_under(domain.domain, wider)) if isinstance(domain, When) else wider


def _has_edges(domain: Any) -> bool:
    return isinstance(domain, Range) or (isinstance(domain, tuple) and len(_numbers(domain)) > 2)


def _numbers(domain: tuple[Any, ...]) -> list[float]:
    return sorted(value for value in domain if isinstance(value, int | float) and not isinstance(value, bool))


def _edge(domain: Any, value: Any) -> Literal["low", "high"] | None:
    if not _has_edges(domain) or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(domain, Range):
        scale: Callable[[float], float] = math.log if domain.log else float
        low, high = scale(domain.low), scale(domain.high)
        place = (scale(value) - low) / (high - low) if high > low else 0.5
        return "low" if place < EDGE else "high" if place > 1 - EDGE else None
    numbers = _numbers(domain)
    return "low" if value == numbers[0] else "high" if value == numbers[-1] else None


def _wider(record: StudyRecord, field: str, domain: Any, edge: Literal["low", "high"]) -> Any:
    """Returns the domain with one more step beyond the edge; None if the field does not allow such a value."""
    if isinstance(domain, Range):
        step = domain.high / domain.low if domain.log else domain.high - domain.low
        low, high = domain.low, domain.high
        if edge == "low":
            low = low / math.sqrt(step) if domain.log else low - step / 2
        else:
            high = high * math.sqrt(step) if domain.log else high + step / 2
        new = float(f"{low if edge == 'low' else high:.3g}")
        new = round(new) if domain.integer else new
        wider: Any = replace(domain, low=new) if edge == "low" else replace(domain, high=new)
    else:
        numbers = _numbers(domain)
        last, before = (numbers[0], numbers[1]) if edge == "low" else (numbers[-1], numbers[-2])
        if last == 0:
            return None
        new = last * last / before if before > 0 and last > 0 else last + (last - before)
        whole = all(isinstance(value, int) for value in numbers)
        new = max(1, round(new)) if whole else float(f"{new:.3g}")
        wider = (new, *domain) if edge == "low" else (*domain, new)
    if new in (domain if isinstance(domain, tuple) else (domain.low, domain.high)):
        return None
    try:
        Recipe.from_any_version(record.study["recipe"]).with_values({field: new})
    except UserError:
        return None
    return wider


def _effect(record: StudyRecord, answers: Sequence[BestSetting]) -> Iterator[HealthCard]:
    """Checks whether the values of the field in question differ by more than chance, in any stratum."""
    compared = [answer for answer in answers if len(_values(record, answer)) > 1]
    if not compared or not record.trials["state"].isin(ENDED).all():
        return
    asked = record.names.get(record.fields[0], record.fields[0])
    test = effect_test(record, compared)
    by_itself = is_compared_by_itself(record)
    is_better = by_itself and any(answer.verdict == "better" for answer in compared)
    if test.is_told or is_better or (by_itself and any(_diverged(record, answer) for answer in compared)):
        assumed = f", with {spread_words(record)}" if test.is_told and test.assumes_spread else ""
        yield HealthCard("effect", "good", f"{asked}: the best value can be told apart from others{assumed}.")
        return
    seeds = len(record.study["seeds"])
    others = [(answer, found) for answer in compared for found in others_by_value(record, answer)]
    intervals = [answer.over_seeds(found) for answer, found in others]
    widest = max((high for _, high in intervals), default=0.0)
    said = f"No effect of {asked} can be seen"
    if any(low > 0 for low, _ in intervals):
        said += (
            f": of equal values the best is as far ahead of another in {percent(test.p_value)} of studies"
            if by_itself
            else " beside the noise and the effects of other fields"
        )
    else:
        rest = f"cannot be told apart from any other; differences up to {in_points(widest)} fit the data"
        if not all(found.covers_seeds for _, found in others):
            rest += f", with {spread_words(record)}"
        said += f": its best value {rest}"
        if len(set(record.fields) - set(record.conditions)) > 1:  # an effect may exist elsewhere in the space
            said = f"Where the other fields are at their best, the best {asked} {rest}"
    yield HealthCard("effect", "look", f"{said}.", _extend(record, "--seeds", f"{max(3, 2 * seeds)},all"))


def _values(record: StudyRecord, answer: BestSetting) -> set[Any]:
    """Returns the values of the field in question in an answer's stratum, also those without a comparable trial."""
    return {point[record.fields[0]] for point in _points(record, answer)}


def _points(record: StudyRecord, answer: BestSetting) -> list[dict[Hashable, Any]]:
    """Returns the points of the trials in the stratum of an answer."""
    points = record.trials[list(record.fields)].to_dict("records")
    at = {condition: answer.best.point[condition] for condition in record.conditions}
    return [point for point in points if all(point[field] == value for field, value in at.items())]


def _diverged(record: StudyRecord, answer: BestSetting) -> bool:
    """Whether all trials with some value of the field in question diverged, in the stratum of an answer."""
    asked = record.fields[0]
    at = {condition: answer.best.point[condition] for condition in record.conditions}
    states: dict[Any, set[str]] = {}
    for trial in record.trials.to_dict("records"):
        if all(trial[field] == value for field, value in at.items()):
            states.setdefault(trial[asked], set()).add(trial["state"])
    return any(own == {"diverged"} for own in states.values())


def _rungs(record: StudyRecord) -> Iterator[HealthCard]:
    """Checks whether the order at the first rung agrees with that at the end, over the trials that finished.

    There is a card only if each stratum has enough trials: for the three that the default rule leaves, any order is
    likely. Further seeds of contenders pass no rung.
    """
    finished = record.trials[record.trials["state"] == "finished"]
    finished = finished[~finished["trial"].isin(record.further)]
    together = [*record.conditions, "seed"]
    if finished.empty or int(finished.groupby(together, dropna=False).size().min()) < LEAST_TRIALS:
        return
    first = next((rung for rung in rung_summaries(record) if rung.given_up), None)
    if first is None or math.isnan(first.correlation.value):
        return
    # Over the promoted trials alone the correlation would be low, however well the rung predicts.
    found = first.among_all
    how = (
        f"Spearman's rank correlation {decimal(found.value, 2)}, 95% interval {decimal(found.low, 2)} to "
        f"{decimal(found.high, 2)}, for all {count(first.compared, 'trial')} by those that finished"
    )
    cost = "" if math.isnan(first.regret) else f"; choosing there would cost {in_points(first.regret)}"
    if found.value >= DOUBT:
        said = f"The order {first.where} is much like that at the end ({how}){cost}."
        yield HealthCard("rungs", "good", said)
        return
    yield HealthCard(
        "rungs",
        "bad" if found.value < DISAGREEMENT else "look",
        f"The order {first.where} says little about the end ({how}){cost}; trials that "
        "were given up there may have been good ones.",
        _extend(record, "--early-stopping", "none"),
    )


def _lost(record: StudyRecord) -> Iterator[HealthCard]:
    """Checks whether many trials diverged or failed."""
    states = record.trials["state"]
    ended = int(states.isin(ENDED).sum())
    is_lost = states.isin(LOST)
    if not ended:
        return
    share = is_lost.sum() / ended
    diverged, failed = (int((states == state).sum()) for state in LOST)
    how = f"{diverged} diverged and {failed} failed" if diverged and failed else ""
    how = how or f"{failed or diverged} {'failed' if failed else 'diverged'}"
    said = f"Of {count(ended, 'trial')} {how}"
    if share <= SOME_LOST:
        yield HealthCard("lost trials", "good", f"{said}.")
        return
    status: Status = "bad" if share > MANY_LOST else "look"
    for field in record.fields:
        described = record.study["space"].get(field)
        if not isinstance(described, list):
            continue
        lost = [
            value
            for value in record.trials[field].unique()
            if is_lost[[one == value for one in record.trials[field]]].all()
        ]
        left = tuple(value for value in domain_from_json(described) if value not in lost)  # pyrefly: ignore[not-iterable]
        if lost and left:
            values = ", ".join(map(value_label, lost))
            yield HealthCard(
                "lost trials",
                status,
                f"{said}, among them all of those with {record.names[field]} {values}.",
                _extend_space(record, field, left),
            )
            return
    said += ", with no single value at fault"
    if failed > diverged:
        again = (
            "The table of trials has the reasons; once they are put right, resuming runs failed trials again."
        )
        command = command_with(record, ["--resume", record.study["name"]])
        yield HealthCard("lost trials", status, f"{said}. {again}", command)
        return
    said += ": lower the learning rate or narrow the space"
    yield HealthCard("lost trials", status, f"{said}. The table of trials has the reasons.")


def _published(record: StudyRecord, answers: Sequence[BestSetting]) -> Iterator[HealthCard]:
    """Checks whether the best setting is better than the default values of the study's Recipe or its model."""
    if not record.trials["state"].isin(ENDED).all():
        return
    try:
        base = Recipe.from_values(record.study["recipe"])
    except UserError:  # a journal of another version
        return
    values = (base.to_values(), with_published_values(base).to_values())
    met, assumed = False, ""
    for answer in answers:
        fields = [field for field in answer.best.point if field not in record.conditions]
        if all(point == answer.best.point for point in _points(record, answer)):  # no other setting exists
            continue

        def is_own(point: Any, fields: list[str] = fields) -> bool:
            return any(all(point[field] in (ABSENT, own[field]) for field in fields) for own in values)

        if is_own(answer.best.point):
            yield _not_beaten(record, answer, "are the best ones of the study")
            return
        own = next((found for found in answer.contrasts if is_own(found.other.point)), None)
        if own is None:
            continue
        in_reruns = own.rests_on != "sweep"  # the best one was not chosen by its reruns
        test = behind_test(record, answer, own.other)
        told = answer.verdict == "better" or (own.kind == "better" if in_reruns else test.is_told)
        low, high = answer.over_seeds(own)
        if low <= 0 or not told:
            chosen = f" as the best of {len(answer.contrasts) + 1}" if low > 0 and not in_reruns else ""
            spread = "" if own.covers_seeds else f", with {spread_words(record)}"
            interval = f"95% interval {decimal(100 * low)} to {decimal(100 * high)}{spread}"
            gain = f"{decimal(100 * own.difference)} points{chosen} ({interval})"
            yield _not_beaten(record, answer, f"cannot be told apart from the best ones, which gain {gain}")
            return
        met = True
        assumed = f", with {spread_words(record)}" if test.assumes_spread and not in_reruns else ""
    if met:
        said = f"The best setting is better than the Recipe's own values{assumed}."
        yield HealthCard("own values", "good", said)


def _not_beaten(record: StudyRecord, answer: BestSetting, said: str) -> HealthCard:
    confirmed = record.study.get("confirm", 0)
    where = {field: answer.best.point[field] for field in record.conditions}
    at = f" at {point_label(where, record.names)}" if where else ""
    return HealthCard(
        "own values",
        "look",
        f"Nothing is better than the Recipe's own values{at}: they {said}. Reruns with fresh seeds would tell more.",
        _extend(record, "--confirm", f"{max(3, 2 * confirmed)}"),
    )


def _stopping(record: StudyRecord) -> Iterator[HealthCard]:
    """Checks whether the default early stopping would have kept the winner, for a study without early stopping."""
    if record.study["halving"] is not None or record.epochs.empty:
        return
    try:
        pool = Pool.of(record)
        if pool.left_out:  # some trials have yet to run
            return
        (trained,) = pool.halved(Halving(), [random.Random(0)])
    except UserError:
        return
    regrets, saved = pool.regrets(trained), 1 - pool.cost(trained) / pool.cost(pool.everything())
    if not regrets or saved <= 0:
        return
    lost = max(regrets)
    name = shlex.quote(record.study["name"])
    if lost <= record.study.get("equal_within", EQUAL_WITHIN):
        said = f"Early stopping would have saved {percent(saved)} of the epochs and kept the best setting."
        yield HealthCard("early stopping", "good", said)
        return
    number = sum(regret > 0 for regret in regrets)
    strata = (
        f" in {number} of {len(regrets)} {agree(len(regrets), 'stratum', 'strata')}"
        if len(regrets) > 1
        else ""
    )
    yield HealthCard(
        "early stopping",
        "bad" if lost > 0.01 else "look",
        f"Early stopping would have lost the winner{strata}, and up to {in_points(lost)}: leave it off for this "
        "question, or compare later.",
        f"python -m studies replay {name}",
    )


def _extend_space(record: StudyRecord, field: str, domain: Domain) -> str:
    """Returns the command that changes the domain of a field and runs all settings of the resulting space.

    If the study has all settings of its space, or if its search draws them, the command does not give their number.
    """
    space, settings = record.study["space"], int((record.trials["seed"] == record.study["seeds"][0]).sum())
    is_whole = "search" in record.study or settings >= _settings_of_grid(space)
    number = _settings_of_grid({**space, field: domain_to_json(domain)})
    said = [] if is_whole else ["--trials", f"{number}"]
    return _extend(record, "--sweep", f"{field}={domain_text(domain)}", *said)


def _extend(record: StudyRecord, *arguments: str) -> str:
    """Returns ``python studies/agc_sweep.py --extend NAME …``, with ``--storage``; a call for a study from Python."""
    return command_with(record, ["--extend", record.study["name"], *arguments])
