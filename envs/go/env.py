"""`GoEnv`: a game of Go against an opponent inside the environment."""

from __future__ import annotations

import operator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from llmgym.env import MDPEnv
from llmgym.envs.go.layout import ENDING
from llmgym.envs.go.mdp import GoMDP, draw
from llmgym.envs.go.opponents import COMPILED, Game, Opponent, OpponentFailed, make_opponent
from llmgym.envs.go.record import RESIGN
from llmgym.envs.go.render import close_window
from llmgym.envs.go.state import GoState
from llmgym.envs.go.turn import NO_ACTION, NOBODY, Table, copied

COLORS = ("black", "white", "random")


class GoEnv(MDPEnv):
    """
    ## Description
    One player's side of a game of Go: the agent moves, and the opponent's reply is part of the step. Area scoring
    (Tromp-Taylor): a side owns its stones and the empty points that reach only them, all stones count as alive, and
    two passes in a row end the game.

    ## Action Space
    `Discrete(rows * cols + 1)`: the points row by row from the upper left, then the pass. `info["action_mask"]` and
    `action_masks()` say what is legal; what suicide, ko or superko forbid is masked. An illegal action loses the
    game at once.

    ## Observation Space
    `Box(0, 1, (C, rows, cols), int8)`, the agent's side of the board first, at the end of the game too. C is 17 by
    default:

    | Planes | Number | Ones at |
    |---|---|---|
    | `stones` | 2 | the agent's stones, the opponent's |
    | `history` | 14 | the same of the 7 positions before, newest first |
    | `liberties` | 8 | the agent's chains with 1, 2, 3, 4 and more liberties, then the opponent's |
    | `ko` | 1 | empty points that only the ko rule forbids |
    | `colour` | 1 | everywhere if the agent is Black |

    ## Rewards
    At the end 1.0 for a win, -1.0 for a loss and 0.0 for a draw, a Python float; 0.0 before. `reward="margin"` gives
    the points ahead as a share of the board instead. `capture_reward` adds to every step what the stones taken in it
    are worth: those by the agent less those by the opponent; the stones of a suicide count for the other side.

    ## Starting State
    The empty board, Black to move; with a handicap Black's stones and White to move. `options` of `reset`:
    `handicap`; or `position`, as a drawing (`X` Black, `O` White, `.` empty) or int [rows, cols] of 0, 1 and 2, with
    `to_play` (0 Black, 1 White); and `moves`, actions that are played first. Where the opponent is to move, it moves
    before the first observation.

    ## Episode End
    Termination: two passes (`info["ending"] == "passes"`), `max_moves` moves of both sides (`"moves"`: the board is
    scored as it stands), an illegal action of the agent (`"illegal"`, and `info["illegal"]`), or an opponent that
    resigns (`"resign"`). `info` then holds `winner` (0 Black, 1 White, -1 a draw), `score` (Black's points ahead,
    komi included, of the board as it stands), `ending` and `is_success` (whether the agent has won). A game that ends
    before the agent has moved is reported by its first step, whatever the action; its mask allows the pass.

    Truncation: the opponent has crashed, did not answer in time or played an illegal move. The game is void: reward
    0.0, and `info["opponent_failed"]` says in a sentence what happened; an engine is started anew by the next reset.

    ## Arguments
    | Argument | Default | Meaning |
    |---|---|---|
    | `board_size` | 9 | a side or `(rows, cols)`, 1 to 25 each |
    | `komi` | 7.5 | points White is given; a whole number makes draws possible |
    | `ko` | `"positional"` | no earlier position; `"situational"`: with the same player to move; `"simple"` |
    | `suicide` | False | whether a move may take its own stones |
    | `max_moves` | None | moves of both sides, passes included; None: three times the points of the board |
    | `handicap` | 0 | stones of Black before White moves first |
    | `reward` | `"result"` | or `"margin"` |
    | `capture_reward` | 0.0 | for each stone |
    | `planes` | `("stones", "history", "colour")` | see above; their order is that of the table |
    | `opponent` | `"random"` | see below |
    | `color` | `"black"` | the agent's: `"black"`, `"white"`, or `"random"`, drawn at each reset |
    | `mask_in_info` | True | adds `info["action_mask"]` |
    | `render_mode` | None | `"ansi"`, `"rgb_array"` or `"human"` |

    The opponent is one of

    - `"random"`: uniform over its legal actions, the pass included;
    - `"light"`: uniform over the legal moves that fill no own eye, and a pass if there is none;
    - `"mcts"`: a search with playouts, 1,000 simulations a move; `"mcts:simulations=5000,threads=2"` sets its options,
      which are those of `SearchSettings` in `llmgym.envs.go.search_player`. Every row of the vector form has its own;
    - `"alphazero"`: a search with a network, for some sizes with one that llmgym brings; see `NetSettings` in
      `llmgym.envs.go.net_player`;
    - the command line of a GTP engine, such as
      `"gnugo --mode gtp --level 1 --chinese-rules --capture-all-dead --positional-superko"`, on square boards. It is
      told size, komi and position; its ko rule is for its command line to say. Each answer must be there within 60
      seconds; `GTPOpponent(command, timeout=5.0)` of `llmgym.envs.go.opponents` sets another limit;
    - a function `(mdp, state, rng) -> action`; `rng` is the environment's `np_random`;
    - an agent or a policy: anything with `predict(observation, …)`, such as a `NetPolicy` or a model of
      stable-baselines3. It sees the board from its own side, and the mask if its `predict` takes `action_masks`; one
      that takes none will play illegal moves, and void the game.

    The same seed gives the same game, against a function, a compiled opponent, and an engine with GNU Go's
    `set_random_seed`.

    ```python
    import gymnasium as gym
    import llmgym

    env = gym.make("llmgym/Go-v0", board_size=5, komi=0.5, opponent="light", color="random")
    observation, info = env.reset(seed=0)
    over = False
    while not over:
        action = env.action_space.sample(info["action_mask"].astype("int8"))
        observation, reward, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    print(info["ending"], info["score"], reward)
    ```

    `env.unwrapped` has `mdp` (the rules of both sides, for search), `state`, `table` (with `start` and `moves`, the
    whole game), `color` (0 Black, 1 White), `action_masks()`, `get_state()` and `set_state()`.

    ## Vectorized environment
    `gym.make_vec("llmgym/Go-v0", num_envs=N)` gives the native form, all three autoreset modes
    (`autoreset_mode="NextStep"`, `"SameStep"`, `"Disabled"`); `threads=2` shares its rows out among threads. An agent
    as opponent is asked for all rows at once; a GTP engine becomes a process for every row.

    ```python
    from llmgym.agents import PPO

    rows = gym.make_vec("llmgym/Go-v0", num_envs=8, board_size=5, opponent="light", autoreset_mode="SameStep")
    agent = PPO("CnnPolicy", rows, n_steps=32)
    agent.learn(total_timesteps=512)
    ```

    Under stable-baselines3, masks included:

    ```python
    from sb3_contrib import MaskablePPO

    from llmgym.envs import SB3VecEnv

    agent = MaskablePPO("MlpPolicy", SB3VecEnv(rows), n_steps=32)
    agent.learn(total_timesteps=512)
    ```

    For self-play, `GoBatch` of `llmgym.envs.go.batch` plays both colours from outside, every row its own game.

    ## Version History
    * v0: Initial version
    """

    metadata = {"render_modes": ["ansi", "rgb_array", "human"], "render_fps": 4}  # noqa: RUF012 (Gymnasium's own type)
    mdp: GoMDP

    def __init__(
        self,
        *,
        opponent: Any = "random",
        color: str = "black",
        mask_in_info: bool = True,
        render_mode: str | None = None,
        **mdp: Any,
    ):
        super().__init__(GoMDP(**mdp), render_mode, mask_in_info)
        if color not in COLORS:
            raise ValueError(f"color must be one of {', '.join(COLORS)}, got {color!r}")
        self._opponent = make_opponent(opponent, self.mdp)
        self._reply = NOBODY if self._opponent else COMPILED[opponent]
        self._table, self._begun = Table(self.mdp), False
        self._color, self.color = color, COLORS.index(color) % 2
        self._over, self._resigned, self._failure = True, False, ""

    @property
    def table(self) -> Table:
        """The game as it is played.

        Raises:
            ResetNeeded: before the first `reset` or `set_state`.
        """
        if not self._begun:
            raise ResetNeeded("the environment has no state yet: call reset() or set_state() first")
        return self._table

    @property
    def state(self) -> GoState:
        """The position, a copy."""
        return copied(self.table.state)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Begin a game; the opponent moves if it is to play."""
        gym.Env.reset(self, seed=seed)
        self._lay(options)
        self.color = draw_color(self._color, self.np_random)
        self._over, self._resigned, self._failure = False, False, ""
        waiting = self._table.state.to_play == self.color or self._finished()
        self._turn(NO_ACTION, NOBODY if waiting else self._reply)
        if self._opponent:
            self._meet(self._opponent, waiting)
        if self._finished():
            self._table.mask[:] = self.action_masks()
        self._show()
        return self._table.planes, self._mask_info()

    def step(self, action: Any):
        """The agent's action and the opponent's reply; a game that the opponent's failure voids is `truncated`.

        Raises:
            ResetNeeded: the episode has ended, or none has begun.
            ValueError: the action is none of the action space.
        """
        if self._over:
            raise ResetNeeded("no game is on: call reset() before the next step()")
        action = operator.index(action)
        if not 0 <= action <= self.mdp.rules.points:
            raise ValueError(f"an action lies in [0, {self.mdp.rules.points}], got {action}")
        won = 0 if self._finished() else self._exchange(action)
        reward = self.mdp.capture_reward * won if won else 0.0
        info = self._mask_info()
        if self._finished():
            reward = self._finish(reward, info)
        self._show()
        return self._table.planes, reward, self._over and not self._failure, bool(self._failure), info

    def action_masks(self) -> np.ndarray:
        """Legal actions, bool [points + 1]; none once the game is over, the pass while its end is still to be told."""
        mask = self.mdp.mask(self.table.state)
        if self._finished():
            mask[:] = False
            mask[-1] = not self._over
        return mask

    def get_state(self) -> dict[str, Any]:
        """An opaque, picklable snapshot: the game, and the state of the random generator."""
        game = {name: getattr(self, name) for name in _SNAPSHOT}
        table = {"start": self.table.start, "state": self.state, "moves": self.table.moves}
        return game | table | {"rng": self.np_random.bit_generator.state}

    def set_state(self, snapshot: dict[str, Any]) -> None:
        """Continue from `get_state()`, of this or of another environment with the same arguments.

        Raises:
            ValueError: the snapshot is of a game by other rules.
        """
        self._table.load(snapshot["start"], snapshot["state"], snapshot["moves"])
        for name in _SNAPSHOT:
            setattr(self, name, snapshot[name])
        self.np_random.bit_generator.state = snapshot["rng"]
        self._turn(NO_ACTION, NOBODY)

    def close(self) -> None:
        """End the process of an engine, and close the window; closing twice is safe."""
        if self._opponent:
            self._opponent.close()
        if self.render_mode == "human":
            close_window()

    def _lay(self, options: dict[str, Any] | None) -> None:
        """Put a new game on the table."""
        start = state = self._table.first
        moves = None
        if options:
            moves = options.get("moves")
            state = self.mdp.initial(self.np_random, options)
            start = self.mdp.initial(self.np_random, options | {"moves": ()})
        self._table.load(start, state, () if moves is None else moves)
        self._begun = True

    def _meet(self, opponent: Opponent, waiting: bool) -> None:
        """Begin a game with an opponent of flesh; its failure is told by the first step."""
        try:
            opponent.start(self._game())
        except OpponentFailed as error:
            self._void(opponent, str(error))
        else:
            if not waiting:
                self._ask(opponent)

    def _exchange(self, action: int) -> int:
        """The agent's action and the reply; returns the stones the agent has taken less those it has lost."""
        taken = self._turn(action, self._reply)
        if self._opponent and not self._finished():
            taken -= self._ask(self._opponent)
        return taken

    def _ask(self, opponent: Opponent) -> int:
        """A move of an opponent that is not compiled; returns the stones it has taken."""
        try:
            action = opponent.move(self._game(), self.np_random)
        except OpponentFailed as error:
            return self._void(opponent, str(error))
        except BaseException:  # Ctrl-C: nobody may go on where the opponent is to move
            self._void(opponent, "the opponent was interrupted")
            raise
        if action is None:
            self._resigned = True
        elif not 0 <= action < len(mask := self._table.mask) or not mask[action]:
            return self._void(opponent, f"the opponent played the action {action}, which is illegal")
        return 0 if action is None else self._turn(action, NOBODY)

    def _void(self, opponent: Opponent, failure: str) -> int:
        self._failure = failure
        opponent.close()  # an engine is started anew by the next reset
        return 0

    def _turn(self, action: int, reply: int) -> int:
        bits = 0 if reply == NOBODY else draw(self.np_random)
        return self._table.turn(action, reply, bits, self.color)

    def _game(self) -> Game:
        return Game(self.mdp, self.table.start, self.table.moves, self.state)

    def _finished(self) -> bool:
        return self._table.state.ints.item(ENDING) > 0 or self._resigned or self._failure != ""

    def _finish(self, reward: float, info: dict[str, Any]) -> float:
        """The reward of the last step; fills its info."""
        self._over, table = True, self._table
        table.mask[:] = False
        if self._failure:
            info["opponent_failed"] = self._failure
            return 0.0
        if self._resigned:
            info |= {"winner": self.color, "score": self.mdp.score(table.state), "ending": RESIGN, "is_success": True}
            return reward + 1.0
        info |= self.mdp.info(table.state)
        info["is_success"] = info["winner"] == self.color
        return reward + self.mdp.outcome(table.state, self.color)

    def _mask_info(self) -> dict[str, Any]:
        return {"action_mask": self._table.mask} if self.mask_in_info else {}


def draw_color(color: str, rng: np.random.Generator) -> int:
    """The agent's player, 0 Black or 1 White; drawn from `rng` if it is to be random."""
    return draw(rng) >> 31 if color == "random" else COLORS.index(color)


_SNAPSHOT = ("color", "_begun", "_over", "_resigned", "_failure")
