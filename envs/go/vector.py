"""The native vector form of Go-v0: N games against an opponent, played by compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from llmgym.env import check_render_mode
from llmgym.envs.autoreset import parse_autoreset_mode, reset_mask, seed_list, step_limit
from llmgym.envs.go.duels import Duels
from llmgym.envs.go.env import COLORS
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import COMPILED, OpponentFailed, make_opponent
from llmgym.envs.go.replies import Replies
from llmgym.envs.go.state import GoState
from llmgym.envs.go.streams import Streams
from llmgym.envs.go.turn import NO_ACTION, NOBODY
from llmgym.envs.go.verdicts import add_info, judge

_BLOCK = 64  # random numbers that a row reads ahead


def go_vector(num_envs: int = 1, **kwargs: Any) -> VectorGo:
    """Vector form of Go-v0: the arguments of `GoEnv` and those of `VectorGo`."""
    shell = {name: kwargs.pop(name) for name in _SHELL if name in kwargs}
    return VectorGo(GoMDP(**kwargs), num_envs, **shell)


class VectorGo(VectorEnv):
    """N games of Go side by side; row i of `reset(seed=s)` is a `GoEnv` reset with s + i, move for move.

    `options` of `reset` are those of `GoEnv`, for every row that begins, and `reset_mask` (bool [N], those rows only).

    Args:
        mdp: the rules, shared by all rows.
        num_envs: N.
        opponent: as in `GoEnv`. "random" and "light" are compiled; an agent's `predict` is given all rows at once,
            [n, C, rows, cols]; a function is asked row by row; a GTP engine is a process for every row.
        color: as in `GoEnv`; "random" is drawn for every row at each of its resets.
        autoreset_mode: an `AutoresetMode` or its string. "NextStep" (Gymnasium's default), "SameStep", or
            "Disabled": then a finished row ignores its action (reward 0, flags stay) until
            `reset(options={"reset_mask": bool [N]})`.
        render_mode: "ansi" or "rgb_array", one frame a row.
        mask_in_info: adds `info["action_mask"]`.
        max_episode_steps: truncates an episode after so many steps, as Gymnasium's `TimeLimit` does; None (or
            `gym.make`'s -1) for no outer limit.
        threads: of the compiled code; the rows are shared out among them.

    Raises:
        ValueError: an argument out of range.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own type)
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        mdp: GoMDP,
        num_envs: int = 1,
        *,
        opponent: Any = "random",
        color: str = "black",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        mask_in_info: bool = True,
        max_episode_steps: int | None = None,
        threads: int = 1,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if color not in COLORS:
            raise ValueError(f"color must be one of {', '.join(COLORS)}, got {color!r}")
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.mdp, self.num_envs, self.render_mode = mdp, num_envs, render_mode
        self.autoreset_mode = parse_autoreset_mode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.mask_in_info, self.max_episode_steps = mask_in_info, step_limit(max_episode_steps)
        self.single_observation_space, self.single_action_space = mdp.observation_space, mdp.action_space
        self.observation_space = batch_space(mdp.observation_space, num_envs)
        self.action_space = batch_space(mdp.action_space, num_envs)
        found = make_opponent(opponent, mdp)
        self._replies = Replies(found, num_envs) if found else None
        self._reply = NOBODY if found else COMPILED[opponent]
        self._games, self._color = Duels(mdp, num_envs, threads), color
        self._streams = Streams(num_envs, 1 if found else _BLOCK)
        self._allocate()

    @property
    def colors(self) -> np.ndarray:
        """The agent's player in every row, 0 Black or 1 White; int64 [N]."""
        return self._games.viewers.copy()

    @property
    def states(self) -> list[GoState]:
        """The position of every row."""
        return [self.state(row) for row in range(self.num_envs)]

    def state(self, row: int) -> GoState:
        """The position of one row."""
        self._check_started()
        return self._games.state(row)

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None):
        """Begin a game in every row, or in the rows of `options["reset_mask"]`."""
        options = dict(options or {})
        rows = reset_mask(options.pop("reset_mask", None), self.num_envs)
        for row, row_seed in enumerate(seed_list(seed, self.num_envs)):
            if row_seed is not None and rows[row]:
                self._streams.seed(row, row_seed)
        self._begin(rows, options)
        return self._games.planes.copy(), self._with_mask({}, rows)

    def step(self, actions: np.ndarray):
        """The agent's action in every row, int [N], and the opponent's reply.

        Raises:
            ResetNeeded: a row was never reset.
            ValueError: an action is none of the action space.
        """
        self._check_started()
        over = self._terminated | self._truncated
        actions, rewards, infos = self._checked(actions, ~over), np.zeros(self.num_envs), dict[str, Any]()
        self._exchange(actions, ~over & ~self._finished())
        if self.mdp.capture_reward:
            rewards[:] = self.mdp.capture_reward * self._games.won
        self._end(~over & self._finished(), rewards, infos)
        self._steps[~over] += 1
        if self.max_episode_steps is not None:
            self._truncated |= ~over & (self._steps >= self.max_episode_steps)
        # Copies: an autoreset below clears the flags of the rows it begins anew.
        if over.any() and self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._begin(over)
        terminated, truncated = self._terminated.copy(), self._truncated.copy()
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            infos = self._restart(terminated | truncated, infos)
        return self._games.planes.copy(), rewards, terminated, truncated, self._with_mask(infos)

    def action_masks(self) -> np.ndarray:
        """Legal actions of every row, bool [N, points + 1]; none once its game is over, as `GoEnv.action_masks`."""
        self._check_started()
        masks, finished = self._games.masks.copy(), self._finished()
        masks[finished] = False
        masks[finished, -1] = ~(self._terminated | self._truncated)[finished]
        return masks

    def get_state(self) -> dict[str, Any]:
        """An opaque, picklable snapshot of all rows."""
        self._check_started()
        shell = {name: getattr(self, name).copy() for name in _SNAPSHOT}
        return shell | {"games": self._games.get_state(), "streams": self._streams.get_state()}

    def set_state(self, snapshot: dict[str, Any]) -> None:
        """Continue from `get_state()`, of this or of another environment with the same arguments.

        Raises:
            ValueError: the snapshot is of games by other rules, or of another number of rows.
        """
        self._games.set_all(snapshot["games"])
        self._streams.set_state(snapshot["streams"])
        for name in _SNAPSHOT:
            setattr(self, name, snapshot[name].copy())
        self._games.masks[:] = self.action_masks()

    def render(self):
        """One frame a row, as the single environment renders it."""
        if self.render_mode is None:
            return None
        return tuple(self.mdp.render(state, self.render_mode) for state in self.states)

    def close_extras(self, **kwargs: Any) -> None:
        """End the processes of engines."""
        if self._replies is not None:
            self._replies.close()

    def _allocate(self) -> None:
        n = self.num_envs
        self._begun, self._resigned = np.zeros(n, bool), np.zeros(n, bool)
        self._terminated, self._truncated = np.zeros(n, bool), np.zeros(n, bool)
        self._steps, self._failures = np.zeros(n, np.int64), np.full(n, None, object)

    def _check_started(self) -> None:
        if not self._begun.all():
            raise ResetNeeded("the environment has no state yet: call reset() or set_state() on every row first")

    def _checked(self, actions: Any, live: np.ndarray) -> np.ndarray:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            shapes = f"{actions.dtype} of shape {actions.shape}"
            raise ValueError(f"actions must be integers of shape ({self.num_envs},), got {shapes}")
        used, points = actions[live], self.mdp.rules.points
        if used.size and (used.min() < 0 or used.max() > points):
            raise ValueError(f"actions must lie in [0, {points}], got {used.min()} to {used.max()}")
        return actions.astype(np.int64)

    def _finished(self) -> np.ndarray:
        """Rows where nobody moves any more, whether or not that has been told; bool [N]."""
        finished = self._games.terminated
        return finished if self._replies is None else finished | self._resigned | self._failed()

    def _failed(self) -> np.ndarray:
        return self._failures != None  # noqa: E711 (by element)

    def _begin(self, rows: np.ndarray, options: dict[str, Any] | None = None) -> None:
        """New games; where the opponent is to move, it moves."""
        games = self._games
        games.begin(rows, options or {})
        games.viewers[rows] = self._draw_colors(rows)[rows]
        self._begun[rows], self._resigned[rows], self._failures[rows] = True, False, None
        self._terminated[rows], self._truncated[rows], self._steps[rows] = False, False, 0
        opening = rows & ~games.terminated & (games.to_play != games.viewers)
        if self._replies is not None:
            self._meet(self._replies, rows, opening)
        else:
            games.turn(rows, None, np.where(opening, self._reply, NOBODY), self._streams.draw(opening))
        ended = rows & self._finished()
        games.masks[ended], games.masks[ended, -1] = False, True  # the next step tells, whatever is chosen

    def _draw_colors(self, rows: np.ndarray) -> np.ndarray:
        """As `draw_color` does in each row."""
        if self._color == "random":
            return self._streams.draw(rows) >> 31
        return np.full(self.num_envs, COLORS.index(self._color))

    def _exchange(self, actions: np.ndarray, rows: np.ndarray) -> None:
        """The agent's actions, and the replies to them."""
        games = self._games
        if self._replies is None:
            games.turn(rows, actions, self._reply, self._streams.draw(rows))
            return
        games.viewers ^= rows  # the opponent is to see the board from its own side
        games.turn(rows, actions)
        won = games.won.copy()
        games.viewers ^= rows
        self._answer(self._replies, rows & ~games.terminated, rows)
        games.won[:] = won - games.won

    def _meet(self, replies: Replies, rows: np.ndarray, opening: np.ndarray) -> None:
        """Begin games with opponents of flesh; a failure is told by the first step."""
        games = self._games
        games.viewers ^= opening
        games.turn(rows)
        games.viewers ^= opening
        for row in np.flatnonzero(rows).tolist():
            if (failure := replies.start(row, games)) is not None:
                self._void(replies, row, failure)
        self._answer(replies, opening & ~self._failed(), rows)

    def _answer(self, replies: Replies, asked: np.ndarray, shown: np.ndarray) -> None:
        """What opponents of flesh reply in some rows; then the agents see the board in all that are shown."""
        actions, rows = np.full(self.num_envs, NO_ACTION), np.flatnonzero(asked).tolist()
        try:
            answers = replies.ask(rows, self._games, self._streams)
        except BaseException:  # Ctrl-C: nobody may go on where the opponent is to move
            for row in rows:
                self._void(replies, row, OpponentFailed("the opponent was interrupted"))
            raise
        for row, reply in zip(rows, answers, strict=True):
            if isinstance(reply, OpponentFailed):
                self._void(replies, row, reply)
            elif reply is None:
                self._resigned[row] = True
            else:
                actions[row] = reply
        self._games.turn(shown, actions)

    def _void(self, replies: Replies, row: int, failure: OpponentFailed) -> None:
        self._failures[row] = str(failure)
        replies.stop(row)

    def _end(self, rows: np.ndarray, rewards: np.ndarray, infos: dict[str, Any]) -> None:
        """Flags, rewards and infos of games that are over."""
        if rows.any():
            failed = self._failed()
            judge(self.mdp, self._games, np.flatnonzero(rows), self._resigned, self._failures, rewards, infos)
            self._games.masks[rows] = False
            self._terminated |= rows & ~failed
            self._truncated |= rows & failed

    def _restart(self, rows: np.ndarray, infos: dict[str, Any]) -> dict[str, Any]:
        """Same-step autoreset: what games ended with moves to `final_obs` and `final_info`."""
        at = np.flatnonzero(rows)
        if not at.size:
            return infos
        if self.mask_in_info:
            add_info(infos, "action_mask", self.num_envs, at, self._games.masks[at])
        observations = np.full(self.num_envs, None, object)
        for row in at.tolist():
            observations[row] = self._games.planes[row].copy()
        self._begin(rows)
        final = {"final_obs": observations, "final_info": infos}
        return final | {f"_{name}": rows.copy() for name in final}

    def _with_mask(self, infos: dict[str, Any], rows: np.ndarray | None = None) -> dict[str, Any]:
        if self.mask_in_info:
            told = np.ones(self.num_envs, bool) if rows is None else rows.copy()
            infos |= {"action_mask": self._games.masks & told[:, None], "_action_mask": told}
        return infos


_SHELL = (
    "opponent",
    "color",
    "autoreset_mode",
    "render_mode",
    "mask_in_info",
    "max_episode_steps",
    "threads",
)
_SNAPSHOT = ("_begun", "_resigned", "_failures", "_terminated", "_truncated", "_steps")
