"""A game that is played in place, an action and its reply at a time: a call from Python costs more than a move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmgym.compiled import kernel
from llmgym.envs.go.board import keep_board, move
from llmgym.envs.go.cells import at
from llmgym.envs.go.layout import ENDING, LOST, MOVES, TAKEN, TO_PLAY
from llmgym.envs.go.legality import write_mask
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.planes import plane_count, plane_flags, write_planes
from llmgym.envs.go.playout import pick, spare_eyes
from llmgym.envs.go.state import GoState

NO_ACTION = -1
NOBODY, RANDOM, LIGHT = 0, 1, 2  # who replies


@kernel
def turn(ints, longs, boards, moves, action, reply, draw, viewer, flags, planes, mask):
    """An action of the player to move (or none), and a compiled opponent's reply, chosen by 32 random bits.

    Args:
        ints, longs, boards: the game, changed in place.
        moves: every action goes in here, int16 [cap].
        action: or NO_ACTION.
        reply: NOBODY, RANDOM or LIGHT.
        draw: the random bits.
        viewer: whose planes come first, 0 or 1.
        flags: the kinds of planes.
        planes: filled, int8 [C, points].
        mask: filled for the player to move, bool [points + 1].

    Returns:
        Stones won by the player to move less those won by the reply.
    """
    won, sign = np.int64(0), 1
    while True:  # once or twice, so that what is inlined here is compiled once
        if action != NO_ACTION:
            moves[at(ints, MOVES)] = action
            move(ints, longs, action)
            if boards.shape[0] > 0:
                keep_board(ints, boards)
            won += sign * (at(ints, TAKEN) - at(ints, LOST))
        write_mask(ints, longs, mask)
        if reply == NOBODY or ints[ENDING] > 0:
            break
        if reply == LIGHT:
            spare_eyes(ints, mask)
        action, reply, sign = np.int64(pick(mask, draw)), NOBODY, -1
    mover, ints[TO_PLAY] = ints[TO_PLAY], viewer
    write_planes(ints, longs, boards, flags, planes)
    ints[TO_PLAY] = mover
    return won


class Table:
    """One game by the rules of an MDP, played in place.

    Attributes:
        first: the state that a game begins with if nothing else is asked for.
        start: the state that this one began with, before any move.
        state: the state now, which every turn overwrites.
        planes: the board after the last turn, int8 [C, rows, cols]; a new array each time.
        mask: legal actions then, bool [points + 1]; a new array each time.
    """

    def __init__(self, mdp: GoMDP):
        self.first = self.start = self.state = mdp.initial()
        self._rules, self._moves = mdp.rules, np.zeros(mdp.rules.cap, np.int16)
        self._shape, self._flags = mdp.observation_space.shape, plane_flags(mdp.planes)
        self._flat, self._width = (plane_count(mdp.planes), mdp.rules.points), mdp.rules.points + 1

    @property
    def moves(self) -> list[int]:
        """Actions of both sides since `start`."""
        return self._moves[: self.state.n_moves].tolist()

    def load(self, start: GoState, state: GoState, moves: Sequence[int] = ()) -> None:
        """Go on with a game; the states stay as they are.

        Raises:
            ValueError: a state of a game by other rules.
        """
        for given in (start, state):
            # The kernels trust the header, whose first numbers are those of the rules.
            if given is not self.first and not np.array_equal(given.ints[:TO_PLAY], self.first.ints[:TO_PLAY]):
                raise ValueError(f"a game here has the {self._rules}, got one of other rules: {given}")
        self.start, self.state = start, copied(state)
        self._moves[: len(moves)] = moves

    def turn(self, action: int, reply: int, draw: int, viewer: int) -> int:
        """See the kernel `turn`."""
        state, planes, mask = self.state, np.empty(self._flat, np.int8), np.empty(self._width, np.bool_)
        self.planes, self.mask = planes.reshape(self._shape), mask
        return turn(
            state.ints, state.longs, state.boards, self._moves, action, reply, draw, viewer, self._flags, planes, mask
        )


def copied(state: GoState) -> GoState:
    """A state with memory of its own."""
    return GoState(state.ints.copy(), state.longs.copy(), state.boards.copy())
