"""From a record to the game it tells, move by move; and turns that alternating play does not have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llmgym.envs.go.layout import BARRED, ENDING, PASSES, TO_PLAY
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import Game
from llmgym.envs.go.record import GameRecord
from llmgym.envs.go.rules import PASSES_PLAYED, GoRules
from llmgym.envs.go.state import GoState
from llmgym.envs.go.vertices import vertex

PLAYERS = ("Black", "White")


def mdp_of(rules: GoRules) -> GoMDP:
    """The game of these rules."""
    return GoMDP(rules.board_size, rules.komi, rules.ko, rules.suicide, rules.max_moves, rules.handicap)


def new_game(mdp: GoMDP, state: GoState | None = None) -> Game:
    """A game that begins here; by default as its rules say."""
    state = mdp.initial() if state is None else state
    return Game(mdp, state, (), state)


def begin(mdp: GoMDP, record: GameRecord) -> Game:
    """The start of a recorded game: its stones and who moves first; all else is as the rules of `mdp` say.

    Raises:
        ValueError: another board, or stones without a liberty.
    """
    rules = mdp.rules
    if record.rules.board_size != rules.board_size:
        sizes = [f"{rows}x{cols}" for rows, cols in ((record.rules.rows, record.rules.cols), (rules.rows, rules.cols))]
        raise ValueError(f"the record is of a game on {sizes[0]}, not on {sizes[1]}")
    stones = np.zeros(rules.points, np.int8)
    for player, points in enumerate(record.first_stones):
        stones[list(points)] = player + 1
    return new_game(mdp, mdp.position(stones.reshape(rules.rows, rules.cols), int(record.to_play or 0)))


def record_of(game: Game) -> GameRecord:
    """What a game was, without names and result; what came before its start appears as stones."""
    start, first = game.start, game.start.to_play
    black, white = (tuple(np.flatnonzero(start.stones == stone).tolist()) for stone in (1, 2))
    moves = tuple(((first + number) % 2, action) for number, action in enumerate(game.moves))
    return GameRecord(replace(game.mdp.rules, handicap=0), moves, (black, white), first)


def replay(mdp: GoMDP, record: GameRecord, moves: int | None = None) -> Game:
    """A recorded game after so many of its moves; None: all of them.

    Raises:
        ValueError: it cannot be played by these rules.
    """
    game = begin(mdp, record)
    for number, (player, action) in enumerate(record.moves[:moves], 1):
        try:
            game = advance(game, player, action)
        except ValueError as error:
            raise ValueError(f"move {number}: {error}") from None
    return game


def advance(game: Game, player: int, action: int) -> Game:
    """The game after a legal move; a player may move out of turn, or go on after two passes.

    A game that alternates keeps its start; any other one begins anew where it does not, for a `Game` names no players.

    Raises:
        ValueError: the move is illegal.
    """
    mdp, state = game.mdp, game.state
    if state.to_play != player or state.ending == PASSES_PLAYED:
        game = new_game(mdp, turned(state, player))
    if game.state.ending:
        raise ValueError(f"the game is over after {state.n_moves} moves")
    rows, cols = mdp.rules.rows, mdp.rules.cols
    if not 0 <= action <= rows * cols:
        raise ValueError(f"illegal move: {PLAYERS[player]} plays {action}, off a {rows}x{cols} board")
    if not mdp.mask(game.state)[action]:
        raise ValueError(f"illegal move: {PLAYERS[player]} {vertex(action, rows, cols)}")
    return Game(mdp, game.start, (*game.moves, action), mdp.transition(game.state, action))


def turned(state: GoState, player: int) -> GoState:
    """The same position and past with this player to move, passes and what only the next move may not do forgotten."""
    ints = state.ints.copy()
    ints[TO_PLAY], ints[PASSES], ints[BARRED] = player, 0, 0
    if state.ending == PASSES_PLAYED:
        ints[ENDING] = 0
    return GoState(ints, state.longs, state.boards)
