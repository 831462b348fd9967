"""Go for two agents behind PettingZoo's AEC interface; docs/environments/go_v0.md is its page.

from llmgym.envs import go_v0

env = go_v0.env(board_size=9)
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space
from pettingzoo import AECEnv
from pettingzoo.utils import wrappers

from llmgym.env import check_render_mode
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.render import FPS, MODES, Window, render_state
from llmgym.envs.go.rules import BLACK, ILLEGAL
from llmgym.envs.go.state import GoState

BOARDS = 8  # positions in an observation: the one now and seven before
PLANES = 2 * BOARDS + 1


def env(**kwargs: Any) -> AECEnv:
    """`raw_env` in the wrappers that PettingZoo's own Go has: an illegal action ends the game with -1."""
    wrapped: AECEnv = wrappers.TerminateIllegalWrapper(raw_env(**kwargs), illegal_reward=-1)
    return wrappers.OrderEnforcingWrapper(wrappers.AssertOutOfBoundsWrapper(wrapped))


class raw_env(AECEnv):
    """Two agents, `black_0` and `white_0`, take turns on a `GoMDP`.

    All there is to remember is one `GoState` and whose turn it is: copies and pickles go on with the same game.

    Args:
        board_size: a side or (rows, cols), 1 to 25 each.
        komi: points White is given; a whole number makes draws possible.
        ko: "positional" (no earlier position), "situational" (… with the same player to move) or "simple".
        suicide: whether a move may take its own stones.
        max_moves: moves, passes included, after which the board is scored as it stands; None: three times its points.
        handicap: stones of Black before White moves first.
        render_mode: "ansi", "rgb_array" or "human".
        screen_height: pixels of the picture's longer side.

    Attributes:
        mdp: the rules; a search plans on them, starting from `game`.
        game: the current `GoState`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (PettingZoo's own type)
        "render_modes": list(MODES),
        "name": "go_v0",
        "is_parallelizable": False,
        "render_fps": FPS,
    }

    def __init__(
        self,
        board_size: int | tuple[int, int] = 9,
        komi: float = 7.5,
        ko: str = "positional",
        suicide: bool = False,
        max_moves: int | None = None,
        handicap: int = 0,
        render_mode: str | None = None,
        screen_height: int = 640,
    ):
        super().__init__()
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.mdp = GoMDP(board_size, komi, ko, suicide, max_moves, handicap, planes=("stones",))
        self.render_mode, self.screen_height = render_mode, screen_height
        self.possible_agents = ["black_0", "white_0"]
        rules = self.mdp.rules
        shape = (rules.rows, rules.cols, PLANES)
        self.observation_spaces = {agent: _observation_space(shape) for agent in self.possible_agents}
        self.action_spaces: dict[str, Space] = {agent: Discrete(rules.points + 1) for agent in self.possible_agents}
        self.state_space = Box(0, 1, shape, np.bool_)  # type: ignore[arg-type]  # as PettingZoo's own boards are
        self.game: GoState = self.mdp.initial()
        self._colours = [colour_plane(player, rules.rows, rules.cols) for player in range(2)]
        self._window = Window(fps=self.metadata["render_fps"])

    def observation_space(self, agent: str) -> Space:
        """Of either agent; always the same object."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Space:
        """The points, row by row, then the pass; always the same object."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Start a game. Nothing is random, so `seed` changes nothing.

        Options: `handicap` in place of the environment's own; or `position` (ASCII, or int [rows, cols] of 0, 1, 2)
        with `to_play` (0 or 1); and `moves`, actions that are played first.
        """
        # PettingZoo's api_test sends an option of that name to see that reset() takes options.
        self.game = self.mdp.initial(options={k: v for k, v in (options or {}).items() if k != "options"})
        self.agents = self.possible_agents[:]
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.truncations = dict.fromkeys(self.agents, False)
        self._skip_agent_selection = None
        self._publish(dict.fromkeys(self.agents, 0.0))

    def step(self, action: int | None) -> None:
        """The agent to move plays; once the game is over, each agent takes its leave with None."""
        mover = self.agent_selection
        if self.terminations[mover] or self.truncations[mover]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[mover] = 0.0
        before, self.game = self.game, self.mdp.transition(self.game, int(action))  # type: ignore[arg-type]
        reward = self.mdp.reward(before, int(action), self.game)  # type: ignore[arg-type]
        # As in TerminateIllegalWrapper: who did nothing wrong gains nothing.
        other = 0.0 if self.game.ending == ILLEGAL else -reward
        self._publish({agent: reward if agent == mover else other for agent in self.agents})
        self._accumulate_rewards()

    def observe(self, agent: str) -> dict[str, np.ndarray]:
        """`observation` bool [rows, cols, 17] as this agent sees the board, whoever is to move, and `action_mask`.

        `action_mask` is int8 [points + 1] and all zero for who is not to move.
        """
        player = self.possible_agents.index(agent)
        mask = np.zeros(self.mdp.rules.points + 1, np.int8)
        if agent == self.agent_selection:
            if self.terminations.get(agent, True):
                mask[-1] = 1  # as PettingZoo's Go: a mask to sample from even where only None can be played
            else:
                mask[:] = self.mdp.mask(self.game)
        return {"observation": self._planes(player, self._colours[player]), "action_mask": mask}

    def state(self) -> np.ndarray:
        """The board for a third person, bool [rows, cols, 17]: Black's planes first, the last one tells who moves."""
        return self._planes(BLACK, self._colours[self.game.to_play])

    def render(self) -> str | np.ndarray | None:
        """The board in `render_mode`."""
        if self.render_mode is None:
            gym.logger.warn("render() was called on a Go environment without a render_mode.")
            return None
        return render_state(self.game, self.render_mode, size=self.screen_height, window=self._window)

    def close(self) -> None:
        """Close the window, if there is one."""
        self._window.close()

    def _publish(self, rewards: dict[str, float]) -> None:
        """What PettingZoo's attributes say of the position reached."""
        self.rewards = rewards
        self.terminations = dict.fromkeys(self.agents, self.mdp.terminal(self.game))
        self.infos = {agent: self.mdp.info(self.game) for agent in self.agents}
        self.agent_selection = self.possible_agents[self.mdp.player(self.game)]
        if self.render_mode == "human":
            self.render()

    def _planes(self, player: int, colour: np.ndarray) -> np.ndarray:
        history = self.game.history(BOARDS)
        planes = np.empty((*colour.shape, PLANES), np.bool_)
        planes[..., 0:-1:2] = np.moveaxis(history == 1 + player, 0, -1)
        planes[..., 1:-1:2] = np.moveaxis(history == 2 - player, 0, -1)
        planes[..., -1] = colour
        return planes


def colour_plane(player: int, rows: int, cols: int) -> np.ndarray:
    """Ones for Black; for White a chessboard whose corners are 0; bool [rows, cols].

    Not zeros for White: an observation of zeros (White's, after a pass on the empty board) is what PettingZoo's checks
    and many a user's take for a fault. This pattern is the same under the eight symmetries of the board.
    """
    if player == BLACK:
        return np.ones((rows, cols), np.bool_)
    row, col = np.minimum(np.arange(rows), np.arange(rows)[::-1]), np.minimum(np.arange(cols), np.arange(cols)[::-1])
    plane = (row[:, None] + col) % 2 == 1
    if not plane.any():  # no more than 2x2: there no pattern is both symmetric and different from Black's
        plane.flat[0] = True
    return plane


def _observation_space(shape: tuple[int, int, int]) -> Space:
    return Dict(
        observation=Box(0, 1, shape, np.bool_),
        action_mask=Box(0, 1, (shape[0] * shape[1] + 1,), np.int8),
    )
