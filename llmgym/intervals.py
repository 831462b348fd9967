"""Confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # standard normal quantile of 97.5 %
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's, 1 to 9 degrees of freedom


def wilson(successes: float, total: int) -> tuple[float, float]:
    """95 % score interval of a share of independent successes (Wilson 1927); (0, 1) without an observation."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = successes / total, Z95**2 / total
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def student(values: Sequence[float]) -> tuple[float, float]:
    """Mean of a few independent measurements, and half the width of its 95 % interval; infinite for one."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.inf
    error = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)
    return mean, error * (T95[n - 2] if n - 2 < len(T95) else Z95)
