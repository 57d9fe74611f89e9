"""Fits a parabola through accuracies whose noise is partly known, and computes the interval of its optimum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nfnet_ray.analysis.effects.design import ROUNDING
from nfnet_ray.analysis.inference.paired import Floats
from nfnet_ray.analysis.inference.selection import Noise

_PLACES = 801
"""The number of places on the axis at which the curve and the interval of its optimum are computed."""
_FREEDOM_FOR_A_QUARTIC = 4
"""The degrees of freedom for a quartic: two more coefficients, and two settings to estimate the noise."""
_FREEDOM_FOR_A_PRODUCT = 4
"""The degrees of freedom left to estimate the noise. With fewer, the F test of one coefficient finds only obvious
effects."""
_LEVEL_OF_PRODUCTS = 0.01
"""Lower than the usual 0.05, because a study has a response for each field and condition."""


@dataclass(frozen=True)
class Parabola:
    """The least-squares fit of ``a + b x + c x²``, of products of x with other fields, and of columns of these fields.

    If settings have several seeds, each setting is weighted by its own noise.

    The curve, its noise and its optimum refer to the middle of the other fields, where the products are 0.

    The part of the residuals that the noise of images and seeds does not explain is modelled as an additional variance,
    the same for each setting. It contains the noise of single seeds, the effects of other fields, and the deviation of
    the curve from a parabola.

    Attributes:
        x: (n,) the places of the settings.
        beta: (p,) the coefficients: first a, b and c, then those of the products.
        solver: (p, n) the matrix that yields the coefficients from the accuracies.
        noise: the noise of the settings.
        extra: the variance of the residuals beyond ``noise``, at least 0.
        freedom: n - p.
        explains: the p value of the hypothesis that the field has no effect, alone or with others.
        lack_of_fit: the p value of the hypothesis that the response is a parabola: with several seeds, tested against
            their noise; with many settings, against a polynomial of degree four. 1 if neither test is possible.
        misfit: the root of the mean squared residual beyond the noise, a fraction.
    """

    x: Floats
    beta: Floats
    solver: Floats
    noise: Noise
    extra: float
    freedom: int
    explains: float
    lack_of_fit: float
    misfit: float

    def rows(self, at: Floats, order: int = 0) -> Floats:
        """Returns (len(at), p) the rows that yield the curve's value or, with ``order`` 1, its slope from ``beta``."""
        ones, zeros = np.ones_like(at), np.zeros_like(at)
        first = [ones, at, at**2] if order == 0 else [zeros, ones, 2 * at]
        return np.stack([*first, *[zeros] * (len(self.beta) - 3)], axis=1)

    def half_width(self, rows: Floats, others: Floats | None = None) -> Floats:
        """Returns half the 95% interval of ``rows @ beta`` minus the accuracies weighted by ``others``, (rows, n)."""
        from scipy.special import stdtrit

        weights = rows @ self.solver - (0.0 if others is None else others)
        images = self.noise.of_images(weights)
        seeds = (weights**2) @ self.noise.seeds
        extra = (weights**2).sum(axis=1) * self.extra
        total = images + seeds + extra
        # Satterthwaite 1946; the part of the images is practically known.
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = total**2 / (seeds**2 / self.noise.freedom + extra**2 / max(self.freedom, 1))
        freedom = np.clip(np.where(np.isfinite(freedom), freedom, 1e6), 1, 1e6)
        return np.asarray(stdtrit(freedom, 0.975) * np.sqrt(total))

    def grid(self) -> Floats:
        """Returns the places of a grid over the range that was tried."""
        return np.linspace(self.x.min(), self.x.max(), _PLACES)

    def optimum_at(self, place: float, product: int) -> float:
        """Returns the optimum if the field of this product, counted from 0, is at another place than its middle.

        The optimum lies within the range that was tried, or at an end of it if the curve rises towards that end.
        """
        places = self.grid()
        slope = self.beta[1] + self.beta[3 + product] * place
        return float(places[int((slope * places + self.beta[2] * places**2).argmax())])


@dataclass(frozen=True)
class Optimum:
    """The optimum of the curve within the range that was tried.

    Attributes:
        x: the place of the optimum.
        low, high: the 95% interval: the places at which a slope of 0 cannot be rejected (Fieller 1954). It includes an
            end if the curve may be highest there.
        is_edge: whether ``x`` is an end of the range.
        reaches_low, reaches_high: whether the interval includes that end.
    """

    x: float
    low: float
    high: float
    is_edge: bool
    reaches_low: bool
    reaches_high: bool


def joint_fields(x: Floats, top1: Floats, others: Floats, places: Floats) -> list[int]:
    """Returns the other fields on which the effect of x depends: their products with x explain more than noise does.

    The field that explains most is added first, and each further one is tested together with those added before. If no
    field matters, the probability that any field is added is :data:`_LEVEL_OF_PRODUCTS`.

    Args:
        x: (n,) the places of the settings.
        top1: (n,) the accuracies of the settings.
        others: (n, m) centred columns of the other fields.
        places: (n, fields) the places of the settings on the axes of the other fields, 0 in their middle.

    Returns:
        Columns of ``places``, in the order in which they were added.
    """
    from scipy.special import fdtrc

    design = np.column_stack([np.ones_like(x), x, x**2, others])
    chosen: list[int] = []
    left = [number for number in range(places.shape[1]) if np.ptp(places[:, number]) > 0]
    level = _LEVEL_OF_PRODUCTS / max(1, len(left))  # Bonferroni
    while left:
        squares, _ = _left_over(design, top1)
        wider = {number: np.column_stack([design, x * places[:, number]]) for number in left}
        rest, freedom, best = min((*_left_over(columns, top1), number) for number, columns in wider.items())
        if freedom < _FREEDOM_FOR_A_PRODUCT or rest <= 0:
            break
        if fdtrc(1, freedom, max(0.0, (squares - rest) / (rest / freedom))) >= level:
            break
        design = wider[best]
        chosen.append(best)
        left.remove(best)
    return chosen


def _left_over(design: Floats, top1: Floats) -> tuple[float, int]:
    """Returns the residual sum of squares of a least-squares fit, and its degrees of freedom."""
    beta, _, rank, _ = np.linalg.lstsq(design, top1, rcond=None)
    return _squares(top1 - design @ beta), len(top1) - int(rank)


def _squares(residuals: Floats) -> float:
    """Returns the sum of squares of residuals; 0 if it consists of rounding errors."""
    squares = float(residuals @ residuals)
    return squares if squares >= len(residuals) * ROUNDING**2 else 0.0


def fit_parabola(
    x: Floats, top1: Floats, noise: Noise, others: Floats, joint: Floats | None = None
) -> Parabola:
    """Fits the accuracies (n,) at the places (n,).

    ``others`` (n, m) are centred columns of other fields, and ``joint`` (n, k) the places on the axes of those fields
    on which the effect of x depends (:func:`joint_fields`).
    """
    from scipy.special import fdtrc  # scipy.stats takes a second to import

    products = np.empty((len(x), 0)) if joint is None else x[:, None] * joint
    design = np.column_stack([np.ones_like(x), x, x**2, products, others])
    own = [1, 2, *range(3, 3 + products.shape[1])]
    points = len(x)
    solver = np.asarray(np.linalg.pinv(design), np.float64)
    left = np.eye(points) - design @ solver
    freedom = points - int(np.linalg.matrix_rank(design))
    residuals = left @ top1
    known = max(0.0, float(np.trace(left @ noise.covariance)))
    squares = _squares(residuals)
    extra = max(0.0, (squares - known) / freedom) if freedom > 0 else 0.0
    without = np.delete(design, own, axis=1)
    lost = max(0.0, _squares(top1 - without @ (np.linalg.pinv(without) @ top1)) - squares)
    # Two mean squares: that of the field, and that of the residuals, which is at least what images and seeds explain.
    level = max(squares / freedom if freedom else 0.0, known / max(freedom, 1))
    seeded = bool(noise.seeds.any())
    if seeded:
        solver = _weighted(design, noise, extra)
    bottom = freedom if not seeded or squares > known else max(freedom, noise.freedom)
    explains = float(fdtrc(len(own), bottom, lost / len(own) / level)) if level > 0 else float(lost == 0)
    lacks = []
    if seeded and freedom > 0:
        expected = left @ noise.covariance @ left
        quadratic = float(residuals @ np.linalg.pinv(expected, hermitian=True, rcond=1e-9) @ residuals)
        lacks.append(float(fdtrc(freedom, noise.freedom, max(0.0, quadratic / freedom))))
    if freedom >= _FREEDOM_FOR_A_QUARTIC and len(set(x)) > 5:
        wider = np.column_stack([design, x**3, x**4])
        rest = _squares(top1 - wider @ (np.linalg.pinv(wider) @ top1))
        if rest > 0:
            lacks.append(
                float(fdtrc(2, freedom - 2, max(0.0, (squares - rest) / 2 / (rest / (freedom - 2)))))
            )
    lack = min([1.0, *(len(lacks) * one for one in lacks)])  # Bonferroni
    return Parabola(
        x,
        solver @ top1,
        solver,
        noise,
        extra,
        freedom,
        explains,
        lack,
        float(np.sqrt(extra * freedom / points)),
    )


def _weighted(design: Floats, noise: Noise, extra: float) -> Floats:
    """Returns (p, n) the matrix that yields the coefficients if settings differ in their noise.

    A setting at the edge of divergence may have ten times the spread between seeds of others, so its distance from the
    curve has a correspondingly small weight.
    """
    roots = 1 / np.sqrt(np.maximum(np.diag(noise.covariance) + extra, np.finfo(float).tiny))
    return np.asarray(np.linalg.pinv(design * roots[:, None]) * roots)


def optimum_of(fit: Parabola) -> Optimum:
    """Returns the optimum of a fitted curve, within the range that was tried."""
    places = fit.grid()
    curve = fit.rows(places) @ fit.beta
    best = int(curve.argmax())
    rows = fit.rows(places, order=1)
    slope, half = rows @ fit.beta, fit.half_width(rows)
    half += ROUNDING  # the slope of a flat curve is not quite 0, and may have no noise
    plausible = np.abs(slope) <= half
    plausible[0], plausible[-1] = slope[0] <= half[0], slope[-1] >= -half[-1]
    plausible[best] = True
    within = np.flatnonzero(plausible)
    x = float(places[best])
    # Refines the optimum between two places of the grid.
    if 0 < best < len(places) - 1 and fit.beta[2] < 0:
        x = float(np.clip(-fit.beta[1] / (2 * fit.beta[2]), places[best - 1], places[best + 1]))
    return Optimum(
        x,
        # The bounds are between two places of the grid.
        float(places[max(within[0] - 1, 0)]),
        float(places[min(within[-1] + 1, len(places) - 1)]),
        best in (0, len(places) - 1),
        bool(plausible[0]),
        bool(plausible[-1]),
    )
