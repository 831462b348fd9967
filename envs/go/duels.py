"""Many games, each seen from one side: `GoBatch` with an agent's action and its opponent's reply as one call."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from llmgym.compiled import kernel, shared
from llmgym.envs.go.area import margin, write_area
from llmgym.envs.go.batch import GoBatch
from llmgym.envs.go.layout import ENDING
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import Game
from llmgym.envs.go.rows import Kernels
from llmgym.envs.go.turn import NO_ACTION, NOBODY, turn


class Duels(GoBatch):
    """N games by the rules of an MDP.

    Args:
        mdp: rules and planes.
        num_games: N.
        threads: of the compiled code.

    Attributes:
        viewers: whose planes come first in every row; int64 [N], 0 Black, 1 White.
        won: stones that the last turn won for the player it began with; int64 [N].
    """

    def __init__(self, mdp: GoMDP, num_games: int, threads: int = 1):
        super().__init__(mdp.rules, num_games, mdp.planes, threads)
        self.mdp, self._start = mdp, mdp.initial()
        self.viewers, self.won = np.zeros(num_games, np.int64), np.zeros(num_games, np.int64)
        self._moves = np.zeros((num_games, mdp.rules.cap), np.int16)
        self._starts = [self._start] * num_games

    def begin(self, rows: np.ndarray, options: dict[str, Any]) -> None:
        """New games in some rows, bool [N]; options as `GoMDP.initial` takes them."""
        at = np.flatnonzero(rows).tolist()
        if not options:
            self.reset(rows)
            start = self._start
        else:
            state, start = self.mdp.initial(None, options), self.mdp.initial(None, {**options, "moves": ()})
            moves = () if options.get("moves") is None else options["moves"]
            self._moves[rows, : len(moves)] = moves
            for row in at:
                self.set_state(row, state)
        for row in at:
            self._starts[row] = start

    def turn(
        self,
        rows: np.ndarray,
        actions: np.ndarray | None = None,
        replies: Any = NOBODY,
        draws: np.ndarray | None = None,
    ) -> None:
        """In some rows, bool [N]: the action of the player to move, then a reply, then what the viewer sees.

        Args:
            rows: the others stay as they are.
            actions: int64 [N], NO_ACTION for none; by default none.
            replies: who replies, int or int [N]: NOBODY, or a compiled opponent.
            draws: the random bits of compiled replies, int64 [N].
        """
        n = self.num_games
        actions = np.full(n, NO_ACTION) if actions is None else actions
        replies = np.broadcast_to(np.asarray(replies, np.int64), (n,)).copy()
        draws = np.zeros(n, np.int64) if draws is None else draws
        told = (actions, replies, draws, self.viewers, float(self.rules.komi))
        self._run(TURNS, rows, *told, self._moves, self.masks, self._planes(), self.scores, self.won)

    def game(self, row: int) -> Game:
        """What an opponent is told."""
        state = self.state(row)
        return Game(self.mdp, self._starts[row], self._moves[row, : state.n_moves].tolist(), state)

    def get_state(self) -> dict[str, Any]:
        """A picklable snapshot."""
        return {name: getattr(self, name).copy() for name in _ARRAYS} | {"starts": list(self._starts)}

    def set_all(self, snapshot: dict[str, Any]) -> None:
        """Continue from `get_state()`.

        Raises:
            ValueError: it is of another number of games, or of games by other rules.
        """
        ints, own = snapshot["_ints"], self._ints
        if ints.shape != own.shape or not np.array_equal(ints[:, :_RULES], own[:, :_RULES]):
            raise ValueError(f"a snapshot here is of {self.num_games} games of {self.rules}, got one of other games")
        for name in _ARRAYS:
            getattr(self, name)[:] = snapshot[name]
        self._starts = list(snapshot["starts"])
        self.turn(np.ones(self.num_games, bool))


_ARRAYS = ("_ints", "_longs", "_boards", "_moves", "viewers", "scores")
_RULES = 8  # numbers of a header that say the rules


@kernel
def _turns(start, stop, ints, longs, boards, flags, live, actions, replies, draws, viewers, komi, moves, *outputs):
    masks, planes, scores, won = outputs
    area = np.empty(masks.shape[1] - 1, np.uint8)
    for i in range(start, stop):
        won[i] = 0
        if live[i]:
            game, asked = (ints[i], longs[i], boards[i], moves[i]), (actions[i], replies[i], draws[i], viewers[i])
            won[i] = turn(*game, *asked, flags, planes[i], masks[i])
            if ints[i, ENDING] > 0:
                write_area(ints[i], area)
                scores[i] = margin(area) - komi


@shared
def _turns_in_parts(parts, n, *arguments):
    for part in prange(parts):
        _turns(part * n // parts, (part + 1) * n // parts, *arguments)


TURNS = Kernels(_turns, _turns_in_parts)
