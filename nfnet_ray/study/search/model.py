"""Proposes points with Optuna's samplers, from an Optuna study that is rebuilt from the results each time.

No state is kept or pickled between proposals, so none can be lost. Ray Tune's OptunaSearch is not used, because it
reports a trial that was stopped early as complete, with the accuracy of an early epoch.
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

# A field whose range may be none becomes two parameters for Optuna: whether it is none, and its number otherwise.
_IS_NONE = " is none"
# The number of times that a sampler is asked for a point that differs from all earlier points.
_ATTEMPTS = 8


def startup_points(space: Space) -> int:
    """Returns the number of results from which a model proposes points. Before that, Sobol's points are used.

    BOHB fits its model to at least d + 1 results (Falkner et al. 2018, section 3.2). Twice as many are used here,
    because accuracies are noisy, but at most 10, which is Optuna's default.
    """
    return min(10, 2 * (len(axis_names(space)) + 1))


def is_learned_from(sampler: str, result: Result) -> bool:
    """Whether a sampler uses the values of a result, rather than its point alone."""
    return bool(result.values) and (
        result.state == "finished" or (result.state == "given up" and sampler == "tpe")
    )


def told_study(
    space: Space, recipe: Recipe, sampler: str, seed: int, results: Sequence[Result]
) -> optuna.Study:
    """Returns Optuna's study of the results, in memory.

    A finished setting is COMPLETE with its last value. A setting that was given up is PRUNED, with its values at
    epochs. A setting that diverged or failed is FAIL. A setting without a result is RUNNING.

    Optuna's samplers ignore FAIL, and ``gp`` ignores PRUNED, too. They would therefore propose the same place again and
    again. So such a point is additionally listed as RUNNING: the samplers keep away from it, and no value has to be
    made up for it.
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
    """Yields the points that the study's sampler proposes in turn; each counts as RUNNING for the next proposals."""
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
    """Returns the parameters and distributions of a point that lies in the space."""
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
    """Returns the distribution from which :func:`_suggested` draws the field's value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Range):
        if domain.integer:
            return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
        return FloatDistribution(domain.low, domain.high, log=domain.log)
    # A list of numbers is an ordered scale, on which neighbours are similar.
    if all_numbers(domain):
        return IntDistribution(0, len(domain) - 1)
    return CategoricalDistribution(range(len(domain)))


def _scale(values: tuple[Any, ...]) -> list[Any]:
    """Returns the values in the order in which Optuna numbers them."""
    return sorted(values) if all_numbers(values) else list(values)


def all_numbers(values: tuple[Any, ...]) -> bool:
    """Whether all values are numbers (true and false are not)."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _may_be_none(domain: Domain) -> bool:
    inner = unconditional(domain)
    return isinstance(inner, Range) and inner.or_none


@contextmanager
def _quiet() -> Generator[None]:
    """Silences Optuna, which announces each study and warns that ``group`` is experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
