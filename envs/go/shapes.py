"""Eye spaces that one stone of the opponent makes a single eye, and stones that leave such a space when they are taken.

Three points in a row or bent, four around a point, the bulky and the crossed five, the rabbity six: each has one vital
point. All are found by what a region of connected points is: how many, how many pairs of neighbours among them, and
the most neighbours of one of them.
"""

from __future__ import annotations

from llmgym.compiled import inlined
from llmgym.envs.go.cells import at, colour_at, neighbour
from llmgym.envs.go.layout import CELLS, EMPTY, STRIDE, TO_PLAY

MOST = 6  # points of a region that matters


@inlined
def has_vital_point(points, pairs, most):
    """Of a region of so many points: whether the one with the most neighbours decides how many eyes it becomes."""
    bulky = most == 3 and points == 5 and pairs == 5
    crossed = most == 4 and points == 5
    rabbity = most == 4 and points == 6 and pairs == 6
    return points == 3 or (points == 4 and most == 3) or bulky or crossed or rabbity


@inlined
def vital_point(ints, cell, region):
    """The vital point of the opponent's eye space that an empty cell belongs to, 0 if it is none or has none.

    Args:
        region: int64 [6] to work in.
    """
    stride, own, points, pairs = at(ints, STRIDE), 5 + 3 * at(ints, TO_PLAY), 1, 0
    region[0], best, most, i = cell, cell, 0, 0
    while i < points:
        near = at(ints, CELLS + region[i])
        free = (near >> 2) & 7
        if (near >> own) & 7 or free == 0:  # a stone of the player to move, or a single point
            return 0 * cell
        pairs += free
        if free > most:
            best, most = region[i], free
        for k in range(4):
            q = neighbour(region[i], stride, k)
            if colour_at(ints, q) == EMPTY:
                points = _collect(region, points, q)
                if points > MOST:
                    return 0 * cell
        i += 1
    return best if has_vital_point(points, pairs // 2, most) else 0 * cell


@inlined
def _collect(region, points, cell):
    """A cell more in a region, if it is new; returns how many there are, more than MOST if there is no room."""
    for i in range(points):
        if region[i] == cell:
            return points
    if points < MOST:
        region[points] = cell
    return points + 1


@inlined
def leaves_one_eye(ints, cell, region):
    """Whether own stones, connected by one on this cell, leave the opponent at most one eye where they are taken.

    So are two stones, four in a square and all that have a vital point.

    Args:
        region: int64 [6] to work in.
    """
    stride, own, points, pairs, most, i = at(ints, STRIDE), 1 + at(ints, TO_PLAY), 1, 0, 0, 0
    region[0] = cell
    while i < points:
        touching = 0
        for k in range(4):
            q = neighbour(region[i], stride, k)
            if q == cell or colour_at(ints, q) == own:
                touching += 1
                points = _collect(region, points, q)
                if points > MOST:
                    return False
        pairs += touching
        most = max(most, touching)
        i += 1
    pairs //= 2
    return points == 2 or (points == 4 and pairs == 4) or has_vital_point(points, pairs, most)
