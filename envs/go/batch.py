"""`GoBatch`: many games side by side, both colours played from outside; compiled, on one thread or more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmgym.compiled import check_threads
from llmgym.envs.go import position
from llmgym.envs.go.layout import CAPTURES, ENDING, LAST, MOVES, PASSES, TO_PLAY
from llmgym.envs.go.planes import boards_needed, check_planes, plane_count, plane_flags
from llmgym.envs.go.rows import LIGHT, REFRESH, SAMPLE, STEP, Kernels
from llmgym.envs.go.rules import GoRules, check_whole
from llmgym.envs.go.state import GoState

_FEW_ROWS = 64  # are done before another thread has begun


class GoBatch:
    """N games for self-play: every row its own game, masks and planes for the player to move there.

    `masks` and `planes` are the same arrays all the time: copy what is to be kept.

    Args:
        rules: of every game.
        num_games: N.
        planes: names of `llmgym.envs.go.planes`; none are computed by default.
        threads: of numba that the rows are shared out among. Not in a process forked from one that used them: OpenMP
            ends such a process.

    Attributes:
        masks: legal actions, bool [N, points + 1]; none in a finished row.
        planes: int8 [N, C, rows, cols].
        rewards: of the last step, for who moved: 1, 0, -1 at the end of a game, else 0; float64 [N].
        scores: Black's points ahead in finished rows; float64 [N].
        captured: stones taken by the last step less those lost by suicide; int64 [N].
    """

    def __init__(self, rules: GoRules, num_games: int, planes: Sequence[str] = (), threads: int = 1):
        check_whole("num_games", num_games, 1, 2**31)
        check_whole("threads", threads, 1, 1024)
        self.threads = check_threads(threads)
        self.rules, self.num_games, self.plane_names = rules, num_games, check_planes(planes)
        self._flags, n_planes = plane_flags(planes), plane_count(planes)
        first = position.with_handicap(rules, depth=boards_needed(planes))
        self._first, n = (first.ints, first.longs, first.boards), num_games
        self._ints, self._longs, self._boards = (np.repeat(array[None], n, axis=0) for array in self._first)
        self.masks = np.zeros((n, rules.points + 1), np.bool_)
        self.planes = np.zeros((n, n_planes, rules.rows, rules.cols), np.int8)
        self.rewards, self.scores, self.captured = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)
        self.reset()

    # Columns of the header, copied: int16 [N], and int16 [N, 2] of `captures`.

    @property
    def to_play(self) -> np.ndarray:
        """Who moves in every row: 0 Black, 1 White."""
        return self._ints[:, TO_PLAY].copy()

    @property
    def n_moves(self) -> np.ndarray:
        """Moves played in every row, passes included."""
        return self._ints[:, MOVES].copy()

    @property
    def passes(self) -> np.ndarray:
        """Passes in a row."""
        return self._ints[:, PASSES].copy()

    @property
    def last_actions(self) -> np.ndarray:
        """The last action of every row; -1 at the start."""
        return self._ints[:, LAST].copy()

    @property
    def endings(self) -> np.ndarray:
        """0 while a game goes on; 1 over by two passes, 2 by the cap on moves, 3 by an illegal action."""
        return self._ints[:, ENDING].copy()

    @property
    def terminated(self) -> np.ndarray:
        """Which games are over; bool [N]."""
        return self._ints[:, ENDING] > 0

    @property
    def captures(self) -> np.ndarray:
        """Stones taken by Black and by White; int16 [N, 2]."""
        return self._ints[:, CAPTURES : CAPTURES + 2].copy()

    def reset(self, rows: np.ndarray | None = None) -> None:
        """New games in all rows, or in those of a bool mask [N]."""
        for array, first in zip((self._ints, self._longs, self._boards), self._first, strict=True):
            if rows is None:
                array[:] = first
            else:
                array[rows] = first
        self._run(REFRESH, self._all() if rows is None else np.asarray(rows, bool), self.masks, self._planes())

    def step(self, actions: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Play an action in every row, or in those of a bool mask [N]; an illegal one loses the game.

        Finished rows ignore theirs.

        Args:
            actions: int [N]; points row by row, then the pass.
            rows: bool [N]; the others wait, with a reward of 0.
        """
        actions = np.ascontiguousarray(actions, np.int64)
        if actions.shape != (self.num_games,):
            raise ValueError(f"actions must be {self.num_games} whole numbers, got shape {actions.shape}")
        live = self._all() if rows is None else np.ascontiguousarray(rows, np.bool_)
        outputs = (self.masks, self._planes(), self.rewards, self.scores, self.captured)
        self._run(STEP, live, float(self.rules.komi), actions, *outputs)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """A uniform legal action of every row, int64 [N]; the pass in finished rows."""
        actions, draws = np.empty(self.num_games, np.int64), rng.bit_generator.random_raw(self.num_games)
        self._share(SAMPLE, self.num_games < _FEW_ROWS, self.masks, draws, actions)
        return actions

    def light(self, rng: np.random.Generator) -> np.ndarray:
        """The same among moves that fill no own eye; a pass where there is none."""
        actions, draws = np.empty(self.num_games, np.int64), rng.bit_generator.random_raw(self.num_games)
        self._share(LIGHT, self.num_games < _FEW_ROWS, self._ints, self._longs, draws, actions)
        return actions

    def state(self, row: int) -> GoState:
        """The position of a row, as a value."""
        return GoState(self._ints[row].copy(), self._longs[row].copy(), self._boards[row].copy())

    def set_state(self, row: int, state: GoState) -> None:
        """Put a position into a row; it keeps as many last boards as the planes here need.

        Raises:
            ValueError: the state is of other rules, or keeps fewer boards.
        """
        same = state.ints.shape == self._ints[row].shape and (state.ints[:TO_PLAY] == self._ints[row, :TO_PLAY]).all()
        depth = self._boards.shape[1]
        if not same or len(state.boards) < depth:
            raise ValueError(f"a row takes states of {self.rules} with at least {depth} last boards, got {state!r}")
        self._ints[row], self._longs[row] = state.ints, state.longs
        if depth:
            ages = np.arange(depth)
            self._boards[row, (state.n_moves - ages) % depth] = state.boards[(state.n_moves - ages) % len(state.boards)]
        chosen = np.arange(self.num_games) == row
        self._run(REFRESH, chosen, self.masks, self._planes())

    def _all(self) -> np.ndarray:
        return np.ones(self.num_games, np.bool_)

    def _planes(self) -> np.ndarray:
        return self.planes.reshape(self.num_games, -1, self.rules.points)

    def _run(self, kernels: Kernels, live: np.ndarray, *arguments: Any) -> None:
        few = bool(np.count_nonzero(live) < _FEW_ROWS)
        self._share(kernels, few, self._ints, self._longs, self._boards, self._flags, live, *arguments)

    def _share(self, kernels: Kernels, few: bool, *arguments: Any) -> None:
        """Call a kernel on all rows, or where there is enough to do on parts of them in threads."""
        alone, in_parts = kernels
        if self.threads == 1 or few:
            alone(0, self.num_games, *arguments)
        else:
            in_parts(self.threads, self.num_games, *arguments)
