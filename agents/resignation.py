"""When a game of self-play is given up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

_LEAST_GAMES = 20  # played to the end before any is given up
_HIGHEST = -0.5  # no value above it is ever given up at


class Resignation:
    """A threshold that gives up too early in a known share of games (AlphaGo Zero, Silver et al. 2017, methods).

    Some games are played to their end whatever their values say. In each of them the lowest value that a player saw
    who did not lose is noted: the threshold lies below all but `wrong` of the last 500 of these.

    Args:
        wrong: share of the games that may be given up though they would not have been lost, in (0, 1).
    """

    def __init__(self, wrong: float = 0.05):
        self.wrong, self._lows = wrong, deque[float](maxlen=500)

    @property
    def threshold(self) -> float:
        """Root values below it are given up; -inf as long as too little is known."""
        if len(self._lows) < _LEAST_GAMES:
            return -np.inf
        return min(_HIGHEST, float(np.quantile(self._lows, self.wrong)))

    def add(self, lows: Iterable[float]) -> None:
        """Lowest values of games that were played to the end."""
        self._lows.extend(lows)

    def lows(self) -> list[float]:
        """Those that are known, for a file."""
        return list(self._lows)
