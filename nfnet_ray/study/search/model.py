"""Optuna's samplers, asked and told by us: the study that they see is made anew from the results each time.

Nothing of it is kept or pickled, so nothing can be lost. Ray Tune's OptunaSearch is not used: it tells the sampler that
a trial which was stopped early is complete, with the accuracy of an early epoch.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nfnet_ray.recipe import Recipe
from nfnet_ray.study.search.axes import axis_names, chosen_point, value_key
from nfnet_ray.study.search.result import Result
from nfnet_ray.study.space import Domain, Point, Range, Space, When, unconditional

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

# Of a field whose range may be none, Optuna sees two: whether it is none, and a number where it is not.
_IS_NONE = " is none"
# How often a sampler is asked for a point that is not among the earlier ones.
_ATTEMPTS = 8


def startup_points(space: Space) -> int:
    """The number of results from which on a model proposes: before that, points are Sobol's.

    BOHB fits its model to d + 1 results at least (Falkner et al. 2018, section 3.2); here they are twice as many, for
    an accuracy is noisy, and at most the 10 that are Optuna's default.
    """
    return min(10, 2 * (len(axis_names(space)) + 1))


def is_learned_from(sampler: str, result: Result) -> bool:
    """Whether a sampler uses the values of a result, and not its point alone."""
    return bool(result.values) and (
        result.state == "finished" or (result.state == "given up" and sampler == "tpe")
    )


def told_study(
    space: Space, recipe: Recipe, sampler: str, seed: int, results: Sequence[Result]
) -> optuna.Study:
    """Optuna's study of the results, in memory.

    A finished setting is COMPLETE with its last value. One that was given up is PRUNED, with its values at epochs. One
    that diverged or failed is FAIL. One without a result is RUNNING.

    Optuna's samplers do not look at FAIL, and ``gp`` does not look at PRUNED either. Without more they would propose
    the same place again and again, so such a point is also listed as RUNNING: the samplers keep away from it, and no
    value is made up for it.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    with _quiet():
        study = optuna.create_study(
            direction="maximize",
            storage=optuna.storages.InMemoryStorage(),
            sampler=_sampler(sampler, seed, space),
        )
        for result in results:
            parameters, distributions = _seen_by_optuna(space, recipe, result.point)
            seen: dict[str, Any] = {"params": parameters, "distributions": distributions}
            match result.state:
                case "finished" if result.values:
                    value = result.values[max(result.values)]
                    study.add_trial(create_trial(value=value, **seen))
                case "given up":
                    values = dict(result.values)
                    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values=values, **seen))
                case "running":
                    pass
                case _:
                    study.add_trial(create_trial(state=TrialState.FAIL, **seen))
            if not is_learned_from(sampler, result):
                study.add_trial(create_trial(state=TrialState.RUNNING, **seen))
    return study


def asked_points(space: Space, recipe: Recipe, study: optuna.Study) -> Iterator[Point]:
    """The points that the study's sampler proposes one after the other; each is RUNNING for those that follow."""
    for _ in range(_ATTEMPTS):
        with _quiet():
            trial = study.ask()
            point = chosen_point(space, recipe, functools.partial(_suggested, trial))
        yield point


def _sampler(name: str, seed: int, space: Space) -> optuna.samplers.BaseSampler:
    import optuna

    startup = startup_points(space)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    if name != "tpe":
        raise ValueError(f"{name} has no sampler of Optuna here")
    # A field that exists only in some points has to be sampled jointly with the fields that those points share.
    is_conditional = any(isinstance(domain, When) or _may_be_none(domain) for domain in space.values())
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True, group=is_conditional
    )


def _seen_by_optuna(
    space: Space, recipe: Recipe, point: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """The parameters and distributions of a point that lies in the space."""
    from optuna.distributions import CategoricalDistribution

    parameters: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}

    def note(name: str, domain: tuple[Any, ...] | Range) -> Any:
        value = point[name]
        if _may_be_none(domain):
            parameters[name + _IS_NONE] = value is None
            distributions[name + _IS_NONE] = CategoricalDistribution((False, True))
        if isinstance(domain, tuple):
            parameters[name] = [value_key(choice) for choice in _scale(domain)].index(value_key(value))
        elif value is not None:
            parameters[name] = value
        if name in parameters:
            distributions[name] = _distribution(domain)
        return value

    chosen_point(space, recipe, note)
    return parameters, distributions


def _suggested(trial: optuna.Trial, name: str, domain: tuple[Any, ...] | Range) -> Any:
    if isinstance(domain, tuple):
        scale = _scale(domain)
        if all_numbers(domain):
            return scale[trial.suggest_int(name, 0, len(scale) - 1)]
        return scale[trial.suggest_categorical(name, range(len(scale)))]
    if domain.or_none and trial.suggest_categorical(name + _IS_NONE, (False, True)):
        return None
    if domain.integer:
        return trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
    return domain.rounded(trial.suggest_float(name, domain.low, domain.high, log=domain.log))


def _distribution(domain: tuple[Any, ...] | Range) -> BaseDistribution:
    """The distribution from which :func:`_suggested` takes the field's value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Range):
        if domain.integer:
            return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
        return FloatDistribution(domain.low, domain.high, log=domain.log)
    # A list of numbers is a scale: neighbours in it are alike.
    if all_numbers(domain):
        return IntDistribution(0, len(domain) - 1)
    return CategoricalDistribution(range(len(domain)))


def _scale(values: tuple[Any, ...]) -> list[Any]:
    """The values in the order in which Optuna numbers them."""
    return sorted(values) if all_numbers(values) else list(values)


def all_numbers(values: tuple[Any, ...]) -> bool:
    """Whether all values are numbers (true and false are none)."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _may_be_none(domain: Domain) -> bool:
    inner = unconditional(domain)
    return isinstance(inner, Range) and inner.or_none


@contextmanager
def _quiet() -> Generator[None]:
    """Optuna announces each study, and warns that ``group`` is experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
