"""How far an accuracy measured on n images may be off, by the binomial distribution."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""The 97.5% quantile of the standard normal distribution: two-sided 95% intervals."""


def wilson_interval(fraction: float, n: int) -> tuple[float, float]:
    """95% score interval of a fraction that was seen in ``n`` independent draws (Wilson 1927).

    .. math:: \\frac{p + z^2/2n \\pm z\\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}

    It stays within 0 and 1 and is right where accuracies are high, unlike ``p ± z·sqrt(p(1-p)/n)``.

    >>> [round(bound, 3) for bound in wilson_interval(0.972, 360)]
    [0.95, 0.985]
    """
    centre = fraction + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(fraction * (1 - fraction) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def difference_interval(fraction_a: float, fraction_b: float, n: int) -> tuple[float, float]:
    """95% interval of ``a - b``, each seen in ``n`` draws (Newcombe 1998, method 10).

    Two networks that are evaluated on the same images err on partly the same ones, so their difference
    is surer than this says: a difference outside the noise here is outside it there too.
    """
    (low_a, high_a), (low_b, high_b) = wilson_interval(fraction_a, n), wilson_interval(fraction_b, n)
    difference = fraction_a - fraction_b
    return (
        difference - math.hypot(fraction_a - low_a, high_b - fraction_b),
        difference + math.hypot(high_a - fraction_a, fraction_b - low_b),
    )
