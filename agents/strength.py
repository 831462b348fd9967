"""How well a search plays: its mean return against a fixed opponent, or alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmgym.agents.planner import Planner
from llmgym.mdp import MDP
from llmgym.search import SearchOptions
from llmgym.search.proposals import Evaluate


def strength(
    mdp: MDP, evaluate: Evaluate, options: SearchOptions, opponent: str, games: int, rng: np.random.Generator
) -> float:
    """Mean return of the search over some games, without noise; a game in two has it on both sides in turn.

    Args:
        mdp: the rules.
        evaluate: of the search.
        options: of the search.
        opponent: of a game for two: "light" (where the rules know such moves, as Go's do) or "random".
        games: how many, side by side.
        rng: of the opponent.
    """
    planner, states = Planner(mdp, evaluate, options, reuse=False), [mdp.initial(rng) for _ in range(games)]
    seats = np.arange(games) % 2 if two_play(mdp) else np.zeros(games, int)
    total = 0.0
    while going := [row for row, state in enumerate(states) if not mdp.terminal(state)]:
        mine = [row for row in going if mdp.player(states[row]) == seats[row]]
        found = planner.plan([states[row] for row in mine], rng, chance=False) if mine else []
        chosen = {row: result.action for row, result in zip(mine, found, strict=True)}
        for row in going:
            before = states[row]
            action = chosen[row] if row in chosen else reply(mdp, before, opponent, rng)
            states[row] = mdp.transition(before, action)
            reward = mdp.reward(before, action, states[row])
            total += reward if row in chosen else -reward
    return total / games


def reply(mdp: Any, state: Any, opponent: str, rng: np.random.Generator) -> int:
    """A move of "light" or "random"."""
    if opponent == "light" and hasattr(mdp, "light_move"):
        return mdp.light_move(state, rng)
    return int(rng.choice(np.flatnonzero(mdp.mask(state))))


def two_play(mdp: MDP) -> bool:
    """Whether the rules say who moves."""
    return type(mdp).player is not MDP.player
