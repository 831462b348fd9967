"""The symmetries of a board as permutations of its actions: eight of a square, four of a rectangle.

The image of x (a mask, a policy, a plane) under permutation p is `x[..., p]`: what is seen at action i of the image
is what was at action p[i]. The pass stays where it is.
"""

from __future__ import annotations

import numpy as np


def symmetries(rows: int, cols: int) -> np.ndarray:
    """Turned and mirrored boards, the board itself first; int64 [8, points + 1], or [4, points + 1] of a rectangle.

    On a board of one row or one column some of them are equal.
    """
    board = np.arange(rows * cols).reshape(rows, cols)
    turned = [board, board.T] if rows == cols else [board]
    images = [x[::down, ::right].ravel() for x in turned for down in (1, -1) for right in (1, -1)]
    return np.array([[*image, rows * cols] for image in images])


def inverse(permutations: np.ndarray) -> np.ndarray:
    """Permutations that undo these; [..., K] -> [..., K]."""
    return np.argsort(permutations, -1)


def turned_actions(x: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """Images of masks or policies [n, points + 1], each under a permutation of its own, int64 [n, points + 1]."""
    return np.take_along_axis(x, permutations, 1)


def turned_planes(planes: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """Images of planes [n, C, rows, cols], each under a permutation of its own, int64 [n, points + 1]."""
    flat = planes.reshape(*planes.shape[:2], -1)
    return np.take_along_axis(flat, permutations[:, None, :-1], 2).reshape(planes.shape)


class Turns:
    """Draws symmetries of a board.

    Args:
        rows, cols: of the board.
        rng: of the draws.
    """

    def __init__(self, rows: int, cols: int, rng: np.random.Generator):
        self._permutations, self._rng = symmetries(rows, cols), rng

    def draw(self, n: int) -> np.ndarray:
        """A permutation of the actions for each of n positions, int64 [n, points + 1]."""
        return self._permutations[self._rng.integers(len(self._permutations), size=n)]
