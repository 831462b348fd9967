"""Who plays against the agent of `GoEnv`: a rule that is compiled, a function, an agent, or a GTP engine."""

from __future__ import annotations

import inspect
import operator
import shutil
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from llmgym.envs.go.gtp_process import EngineError, EngineRefused, GTPProcess, check_timeout, split_command
from llmgym.envs.go.mdp import GoMDP, GoState
from llmgym.envs.go.rules import GoRules
from llmgym.envs.go.turn import LIGHT, RANDOM
from llmgym.envs.go.vertices import parse_vertex, vertex

COMPILED = {"random": RANDOM, "light": LIGHT}  # opponents that a kernel plays


class OpponentFailed(RuntimeError):
    """The opponent has no move to give: the game is void."""


class Game(NamedTuple):
    """What an opponent is told when it is to move.

    Attributes:
        mdp: the rules.
        start: the state the game began with.
        moves: actions since then, both players'.
        state: the state now.
    """

    mdp: GoMDP
    start: GoState
    moves: Sequence[int]
    state: GoState


class Opponent:
    """Someone who moves. What is remembered between moves is only speed: a game is told in full.

    Attributes:
        remembers: whether it does remember something of a game, so that games side by side each need a copy of it.
    """

    remembers = False

    def check(self, mdp: GoMDP) -> None:
        """Whether this opponent can play by these rules.

        Raises:
            ValueError: no.
        """

    def start(self, game: Game) -> None:
        """A game has begun.

        Raises:
            ValueError: this opponent refuses to play it.
            OpponentFailed: the opponent cannot play now.
        """

    def move(self, game: Game, rng: np.random.Generator) -> int | None:
        """An action for the player to move, or None to resign.

        Raises:
            OpponentFailed: there is none.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Free what is held; the next `start` takes it again."""


class FunctionOpponent(Opponent):
    """`(mdp, state, rng) -> action`; what it draws from `rng`, the environment's, repeats with the seed."""

    def __init__(self, function: Callable[[GoMDP, GoState, np.random.Generator], Any]):
        self.function = function

    def move(self, game: Game, rng: np.random.Generator) -> int:
        """The function's value."""
        with _as_failure():
            return operator.index(self.function(game.mdp, game.state, rng))


class AgentOpponent(Opponent):
    """Anything with `predict(observation, …)`: an agent or a policy of ours, or a model of stable-baselines3.

    It sees the board as the player to move, and is given `action_masks` if it takes them; it samples with a generator
    of its own.
    """

    def __init__(self, agent: Any):
        self.agent = agent
        self._masked = "action_masks" in inspect.signature(agent.predict).parameters

    def move(self, game: Game, rng: np.random.Generator) -> int:
        """The agent's sampled action."""
        return self._predict(game.mdp.observation(game.state), game.mdp.mask(game.state))[0]

    def moves(self, observations: np.ndarray, masks: np.ndarray) -> list[int]:
        """An action for each of a batch: observations [n, C, rows, cols], masks bool [n, points + 1].

        Raises:
            OpponentFailed: there is none.
        """
        return self._predict(observations, masks)

    def _predict(self, observations: np.ndarray, masks: np.ndarray) -> list[int]:
        masked = {"action_masks": masks} if self._masked else {}
        with _as_failure():
            predicted = self.agent.predict(observations, deterministic=False, **masked)
            actions = predicted[0] if isinstance(predicted, tuple) else predicted  # agents give (actions, state)
            return [operator.index(action) for action in np.asarray(actions).reshape(masks.shape[:-1]).flat]


class GTPOpponent(Opponent):
    """A GTP engine in a process of its own, started when it is needed.

    Args:
        command: its command line. Give it the rules that GTP cannot say: ko, suicide and area scoring.
        timeout: seconds in which each answer must be there.

    Raises:
        ValueError: there is no such program, or an argument is out of range.
    """

    remembers = True

    def __init__(self, command: str | Sequence[str], timeout: float = 60.0):
        self.command, self.timeout = split_command(command), check_timeout(timeout)
        if shutil.which(self.command[0]) is None:
            raise _no_opponent(command, f", and there is no program {self.command[0]!r}")
        self._engine: GTPProcess | None = None
        self._seeded = False  # whether the engine takes a seed
        self._begun: tuple[GoRules, GoState] | None = None  # the game that it has been told, and its moves
        self._moves: list[int] = []

    def check(self, mdp: GoMDP) -> None:
        """GTP knows square boards only."""
        if mdp.rules.rows != mdp.rules.cols:
            raise ValueError(f"a GTP opponent plays on square boards only, got board_size {mdp.rules.board_size}")

    def start(self, game: Game) -> None:
        """Start the engine, if it is not running, and tell it rules and position."""
        try:
            self._tell(game)
        except EngineError as error:
            kind = ValueError if isinstance(error, EngineRefused) else OpponentFailed
            raise kind(str(error)) from None

    def move(self, game: Game, rng: np.random.Generator) -> int | None:
        """The engine's `genmove`, its own randomness drawn from `rng` where the engine allows that (GNU Go does)."""
        try:
            engine = self._tell(game)
            if self._seeded:
                engine.ask(f"set_random_seed {rng.integers(2**31)}")
            answer = engine.ask(f"genmove {'bw'[game.state.to_play]}")
        except EngineError as error:
            raise OpponentFailed(str(error)) from None
        if answer.lower() == "resign":
            return None
        action = self._read(answer, game)
        self._moves.append(action)
        return action

    def close(self) -> None:
        """End the process."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._begun = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle starts an engine of its own and tells it the game.
        return self.__dict__ | {"_engine": None, "_begun": None}

    def _tell(self, game: Game) -> GTPProcess:
        """Bring the engine to the game as it stands: by the moves it has not seen, if it knows the others."""
        if self._engine is None:
            self._engine = GTPProcess(self.command, self.timeout)
            self._seeded = _knows(self._engine, "set_random_seed")
        moves, begun = list(game.moves), (game.mdp.rules, game.start)
        if self._begun != begun or self._moves != moves[: len(self._moves)]:
            self._begun, self._moves = None, []
            self._set_up(self._engine, game)
            self._begun = begun
        for action in moves[len(self._moves) :]:
            self._play(self._engine, game, (game.start.to_play + len(self._moves)) % 2, action)
            self._moves.append(action)
        return self._engine

    def _set_up(self, engine: GTPProcess, game: Game) -> None:
        """The rules, and the stones the game began with: those of a handicap, or of a given position."""
        rules = game.mdp.rules
        for line in (f"boardsize {rules.rows}", "clear_board", f"komi {float(rules.komi)}"):
            engine.ask(line)
        for action in np.flatnonzero(game.start.stones).tolist():
            self._play(engine, game, int(game.start.stones.flat[action]) - 1, action)

    @staticmethod
    def _play(engine: GTPProcess, game: Game, player: int, action: int) -> None:
        engine.ask(f"play {'bw'[player]} {vertex(action, game.mdp.rules.rows, game.mdp.rules.cols)}")

    def _read(self, answer: str, game: Game) -> int:
        try:
            return parse_vertex(answer, game.mdp.rules.rows, game.mdp.rules.cols)
        except ValueError as error:
            raise OpponentFailed(f"{self._engine} gave no move: {error}") from None


def _knows(engine: GTPProcess, command: str) -> bool:
    try:
        return engine.ask(f"known_command {command}").lower() == "true"
    except EngineRefused:  # it does not even know this one
        return False


def make_opponent(opponent: Any, mdp: GoMDP) -> Opponent | None:
    """The opponent that was asked for; None for those that a kernel plays (`COMPILED`).

    Raises:
        ValueError: it is none of what an opponent can be, or cannot play by these rules.
    """
    if isinstance(opponent, str) and opponent in COMPILED:
        return None
    found = _opponent(opponent)
    found.check(mdp)
    return found


def _opponent(opponent: Any) -> Opponent:
    if isinstance(opponent, Opponent):
        return opponent
    if isinstance(opponent, str):
        return search_named(opponent) or GTPOpponent(opponent)
    if hasattr(opponent, "predict"):
        # An agent that plans needs the state, which its `move` is told.
        return FunctionOpponent(opponent.move) if hasattr(opponent, "move") else AgentOpponent(opponent)
    if callable(opponent):
        return FunctionOpponent(opponent)
    raise _no_opponent(opponent)


def search_named(name: str) -> Opponent | None:
    """A player that searches, if it is named: `mcts` with playouts, `alphazero` with a network; `mcts:option=value,…`.

    Raises:
        ValueError: an option of it that there is not, or a value that it cannot have.
    """
    kind = name.partition(":")[0]
    if kind == "mcts":
        from llmgym.envs.go.search_player import SearchOpponent, SearchSettings  # compiled: loaded when it is used

        return SearchOpponent(SearchSettings.parse(name))
    if kind == "alphazero":
        from llmgym.envs.go.net_player import NetSearcher, NetSettings  # loads torch

        return NetSearcher(NetSettings.parse(name))
    return None


def _no_opponent(opponent: Any, why: str = "") -> ValueError:
    kinds = '"random", "light", "mcts", "alphazero", the command line of a GTP engine, a function or an agent'
    return ValueError(f"opponent must be {kinds}, got {opponent!r}{why}")


@contextmanager
def _as_failure() -> Any:
    """Whatever foreign code raises voids the game; the sentence says what it was."""
    try:
        yield
    except Exception as error:
        raise OpponentFailed(f"the opponent raised {type(error).__name__}: {error}") from error
