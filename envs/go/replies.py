"""Opponents that no kernel plays, in many rows: an agent is asked for all rows at once, any other row by row."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from llmgym.envs.go.duels import Duels
from llmgym.envs.go.opponents import AgentOpponent, Opponent, OpponentFailed
from llmgym.envs.go.streams import Streams

Reply = int | OpponentFailed | None  # an action, why there is none, or None to resign


class Replies:
    """The opponents of N rows: one for all, or one a row where it remembers its game (an engine starts when its row
    needs it)."""

    def __init__(self, opponent: Opponent, rows: int):
        own = opponent.remembers
        self._opponents = [copy.copy(opponent) if own else opponent for _ in range(rows)]

    def start(self, row: int, games: Duels) -> OpponentFailed | None:
        """Begin a game; the failure, if there is one."""
        try:
            self._opponents[row].start(games.game(row))
        except OpponentFailed as failure:
            return failure
        return None

    def ask(self, rows: Sequence[int], games: Duels, streams: Streams) -> list[Reply]:
        """A reply in each of some rows, where the opponent is to move and `games` shows what it sees."""
        if rows and isinstance(agent := self._opponents[0], AgentOpponent):
            return self._predict(agent, rows, games)
        return [self._move(row, games, streams) for row in rows]

    def stop(self, row: int) -> None:
        """A failed engine is started anew by the next game."""
        self._opponents[row].close()

    def close(self) -> None:
        """End all processes."""
        for opponent in self._opponents:
            opponent.close()

    def _move(self, row: int, games: Duels, streams: Streams) -> Reply:
        try:
            reply = self._opponents[row].move(games.game(row), streams.generator(row))
        except OpponentFailed as failure:
            return failure
        return _checked(reply, games.masks[row])

    @staticmethod
    def _predict(agent: AgentOpponent, rows: Sequence[int], games: Duels) -> list[Reply]:
        masks = games.masks[rows]
        try:
            actions = agent.moves(games.planes[rows], masks)
        except OpponentFailed as failure:
            return [failure] * len(rows)
        return [_checked(action, mask) for action, mask in zip(actions, masks, strict=True)]


def _checked(reply: int | None, mask: np.ndarray) -> Reply:
    if reply is None or (0 <= reply < len(mask) and mask[reply]):
        return reply
    return OpponentFailed(f"the opponent played the action {reply}, which is illegal")
