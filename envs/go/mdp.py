"""`GoMDP`: Go as a two-player Markov decision process on `GoState`."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from llmgym.envs.go import many, position
from llmgym.envs.go.area import fill_area
from llmgym.envs.go.board import fill_mask, step
from llmgym.envs.go.layout import ENDED_BY_ILLEGAL, ENDING, LOST, TAKEN, TO_PLAY
from llmgym.envs.go.planes import DEFAULT_PLANES, check_planes, fill_planes, plane_count, plane_flags
from llmgym.envs.go.playout import finish, pick_light, pick_random
from llmgym.envs.go.rules import GoRules, check_number
from llmgym.envs.go.state import GoState
from llmgym.mdp import MDP

REWARDS = ("result", "margin")


class GoMDP(MDP[GoState, int]):
    """Area scoring, Black (player 0) first; actions are the points, row by row, and then the pass.

    Args:
        board_size: a side or (rows, cols), 1 to 25 each.
        komi: points White is given.
        ko: "positional" (no earlier position), "situational" (… with the same player to move) or "simple".
        suicide: whether a move may take its own stones.
        max_moves: moves, passes included, after which the board is scored as it stands; None: three times its points.
        handicap: stones of Black before White moves first.
        reward: at the end, "result" (1, 0 or -1) or "margin" (points ahead, as a share of the board).
        capture_reward: given for each stone a move takes, less those it loses by suicide.
        planes: see `llmgym.envs.go.planes`.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        board_size: int | tuple[int, int] = 9,
        komi: float = 7.5,
        ko: str = "positional",
        suicide: bool = False,
        max_moves: int | None = None,
        handicap: int = 0,
        reward: str = "result",
        capture_reward: float = 0.0,
        planes: Sequence[str] = DEFAULT_PLANES,
    ):
        self.rules = GoRules(board_size, komi, ko, suicide, max_moves, handicap)
        if reward not in REWARDS:
            raise ValueError(f"reward must be one of {', '.join(REWARDS)}, got {reward!r}")
        check_number("capture_reward", capture_reward)
        self.reward_kind, self.capture_reward, self.planes = reward, float(capture_reward), check_planes(planes)
        if not self.planes:
            raise ValueError("planes must name at least one kind of plane, got none")
        self._flags, self._shape = plane_flags(self.planes), (plane_count(self.planes), self.rules.points)
        self.observation_space = Box(0, 1, (self._shape[0], self.rules.rows, self.rules.cols), np.int8)
        self.action_space = Discrete(self.rules.points + 1)

    def initial(self, rng: np.random.Generator | None = None, options: dict[str, Any] | None = None) -> GoState:
        """The start of a game; nothing in it is random.

        Options: `handicap` in place of the rules' own; or `position` (see `position`) with `to_play`; and `moves`,
        actions that are played first.

        Raises:
            ValueError: an option that is none of these, or out of range.
        """
        return position.initial(self, options or {})

    def position(self, stones: Any, to_play: int = 0) -> GoState:
        """A game that begins with this board: ASCII (X or # Black, O White, . empty) or int [rows, cols] of 0, 1, 2.

        Raises:
            ValueError: another shape or another character, or a chain without a liberty.
        """
        return position.from_stones(self.rules, stones, to_play)

    def transition(self, state: GoState, action: int) -> GoState:
        """The next position; an illegal action ends the game, and its player loses."""
        ints, longs, boards = state.ints.copy(), state.longs.copy(), state.boards.copy()
        step(ints, longs, boards, index(action))
        return GoState(ints, longs, boards)

    def reward(self, state: GoState, action: int, next_state: GoState) -> float:
        """Of the player who moved: the result at the end, and what stones taken are worth."""
        ints = next_state.ints
        reward = self.outcome(next_state, 1 - ints.item(TO_PLAY)) if ints[ENDING] else 0.0
        if self.capture_reward:
            reward += self.capture_reward * (ints.item(TAKEN) - ints.item(LOST))
        return reward

    def outcome(self, state: GoState, player: int) -> float:
        """What a finished game is worth to a player: see `reward`; -1 for who played an illegal action."""
        sign = 1.0 - 2.0 * player
        if state.ints[ENDING] == ENDED_BY_ILLEGAL:
            return 1.0 if player == state.to_play else -1.0
        score = self.score(state)
        return sign * score / self.rules.points if self.reward_kind == "margin" else sign * float(np.sign(score))

    def terminal(self, state: GoState) -> bool:
        """Two passes, the cap on moves, or an illegal action."""
        return state.ints.item(ENDING) > 0

    def player(self, state: GoState) -> int:
        """Who moves: 0 Black, 1 White."""
        return state.ints.item(TO_PLAY)

    def mask(self, state: GoState) -> np.ndarray:
        """Legal actions, bool [points + 1]: ko, superko and suicide are masked; none once the game is over."""
        mask = np.empty(self.rules.points + 1, np.bool_)
        fill_mask(state.ints, state.longs, mask)
        return mask

    def observation(self, state: GoState) -> np.ndarray:
        """Planes of the player to move, int8 [C, rows, cols]."""
        planes = np.empty(self._shape, np.int8)
        fill_planes(state.ints, state.longs, state.boards, self._flags, planes)
        return planes.reshape(self.observation_space.shape)  # type: ignore[arg-type]

    def store(self) -> many.GoStore:
        """Positions in rows of memory, stepped in one compiled call."""
        return many.GoStore(self)

    def views(self, states: Sequence[GoState]) -> tuple[np.ndarray, np.ndarray]:
        """Planes int8 [n, C, rows, cols] and masks bool [n, points + 1]."""
        planes = np.empty((len(states), *self._shape), np.int8)
        masks = np.empty((len(states), self.rules.points + 1), np.bool_)
        many.views(states, self._flags, planes, masks)
        return planes.reshape(len(states), *self.observation_space.shape), masks  # type: ignore[misc]

    def info(self, state: GoState) -> dict[str, Any]:
        """Of a finished game: `winner` (0, 1; -1 for a draw), `score` (Black's points ahead) and `ending`."""
        if not state.ints[ENDING]:
            return {}
        winner = self.winner(state)
        info = {"winner": -1 if winner is None else winner, "score": self.score(state), "ending": state.ending}
        return info | {"illegal": True} if state.ints[ENDING] == ENDED_BY_ILLEGAL else info

    def score(self, state: GoState) -> float:
        """Points of Black less those of White and komi, if the game ended here."""
        return fill_area(state.ints, np.empty(self.rules.points, np.uint8)) - float(self.rules.komi)

    def area(self, state: GoState) -> np.ndarray:
        """Owner of every point, int8 [rows, cols]: 0 neutral, 1 Black, 2 White."""
        area = np.empty((self.rules.rows, self.rules.cols), np.int8)
        fill_area(state.ints, area.reshape(-1))
        return area

    def winner(self, state: GoState) -> int | None:
        """Who has won a finished game; None for a draw."""
        if state.ints[ENDING] == ENDED_BY_ILLEGAL:
            return state.to_play
        score = self.score(state)
        return None if score == 0 else int(score < 0)

    def random_move(self, state: GoState, rng: np.random.Generator) -> int:
        """A legal action, uniform, the pass included."""
        return pick_random(state.ints, state.longs, draw(rng))

    def light_move(self, state: GoState, rng: np.random.Generator) -> int:
        """Uniform among the legal moves that fill no own eye; a pass if there is none."""
        return pick_light(state.ints, state.longs, draw(rng))

    def rollout(self, state: GoState, rng: np.random.Generator) -> GoState:
        """The end of a game of light moves on both sides."""
        ints, longs, boards = state.ints.copy(), state.longs.copy(), state.boards.copy()
        finish(ints, longs, boards, rng.integers(0, 2**64, 1, np.uint64))
        return GoState(ints, longs, boards)

    def render(self, state: GoState, mode: str) -> str | np.ndarray | None:
        """The board as text ("ansi"), as a picture ("rgb_array": uint8 [H, W, 3]) or in a window ("human")."""
        from llmgym.envs.go.render import render_state  # pictures are loaded when one is asked for

        return render_state(state, mode)


def draw(rng: np.random.Generator) -> int:
    """32 random bits: one draw of the generator for each random move, however many moves are legal."""
    return int(rng.bit_generator.random_raw()) >> 32
