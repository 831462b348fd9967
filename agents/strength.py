"""How well a search plays: its mean return against a fixed opponent, or alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from llmgym.agents.planner import Planner
from llmgym.mdp import MDP
from llmgym.search import SearchOptions
from llmgym.search.proposals import Evaluate

Reply = Callable[[Any, np.random.Generator], int]  # state, generator -> action


def strength(
    mdp: MDP, evaluate: Evaluate, options: SearchOptions, opponent: str, games: int, rng: np.random.Generator
) -> float:
    """Mean return of the search over some games, without noise; a game in two has it on both sides in turn.

    Args:
        mdp: the rules.
        evaluate: of the search.
        options: of the search.
        opponent: of a game for two, see `make_reply`.
        games: how many, side by side.
        rng: of the opponent.
    """
    planner, states = Planner(mdp, evaluate, options, reuse=False), [mdp.initial(rng) for _ in range(games)]
    seats = np.arange(games) % 2 if two_play(mdp) else np.zeros(games, int)
    reply, total = make_reply(mdp, opponent), 0.0
    while going := [row for row, state in enumerate(states) if not mdp.terminal(state)]:
        mine = [row for row in going if mdp.player(states[row]) == seats[row]]
        found = planner.plan([states[row] for row in mine], rng, chance=False) if mine else []
        chosen = {row: result.action for row, result in zip(mine, found, strict=True)}
        for row in going:
            before = states[row]
            action = chosen[row] if row in chosen else reply(before, rng)
            states[row] = mdp.transition(before, action)
            reward = mdp.reward(before, action, states[row])
            total += reward if row in chosen else -reward
    return total / games


def make_reply(mdp: Any, opponent: str) -> Reply:
    """The moves of "light" (of "random" where the rules know no such moves), of "random", or of Go's "mcts:…".

    Raises:
        ValueError: a search where the game is not Go.
    """
    if opponent.startswith("mcts"):
        return _searching(mdp, opponent)
    if opponent == "light" and hasattr(mdp, "light_move"):
        return mdp.light_move
    return lambda state, rng: int(rng.choice(np.flatnonzero(mdp.mask(state))))


def check_opponent(name: str) -> None:
    """Refuse what is no opponent.

    Raises:
        ValueError: it is none.
    """
    if name.partition(":")[0] == "mcts":
        from llmgym.envs.go.search_player import SearchSettings  # compiled: loaded when it is needed

        SearchSettings.parse(name)
    elif name not in ("light", "random"):
        raise ValueError(f"opponent must be light, random or mcts:…, got {name!r}")


def check_teacher(name: str) -> None:
    """Refuse what is no search with playouts.

    Raises:
        ValueError: it is none.
    """
    if name.partition(":")[0] != "mcts":
        raise ValueError(f"teacher must be mcts or mcts:option=value,…, got {name!r}")
    check_opponent(name)


def _searching(mdp: Any, name: str) -> Reply:
    from llmgym.envs.go.mdp import GoMDP
    from llmgym.envs.go.opponents import Game
    from llmgym.envs.go.search_player import SearchOpponent, SearchSettings

    if not isinstance(mdp, GoMDP):
        raise ValueError(f"the opponent {name!r} plays Go only")
    # Games side by side have one tree between them, and are played to the end.
    player = SearchOpponent(replace(SearchSettings.parse(name), reuse=False, resign=0.0))

    def reply(state: Any, rng: np.random.Generator) -> int:
        action = player.move(Game(mdp, state, (), state), rng)
        assert action is not None
        return action

    return reply


def two_play(mdp: MDP) -> bool:
    """Whether the rules say who moves."""
    return type(mdp).player is not MDP.player
