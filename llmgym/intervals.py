"""Confidence intervals."""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # standard normal quantile of 97.5 %


def wilson(successes: float, total: int) -> tuple[float, float]:
    """95 % score interval of a share of independent successes (Wilson 1927); (0, 1) without an observation."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = successes / total, Z95**2 / total
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)
