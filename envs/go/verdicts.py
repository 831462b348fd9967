"""What finished games are worth, and what is told about them, for many rows at once: `GoEnv` says the same of one."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmgym.envs.go.duels import Duels
from llmgym.envs.go.env import RESIGN
from llmgym.envs.go.layout import ENDED_BY_ILLEGAL
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.state import ENDINGS


def judge(
    mdp: GoMDP,
    games: Duels,
    rows: np.ndarray,
    resigned: np.ndarray,
    failures: np.ndarray,
    rewards: np.ndarray,
    infos: dict[str, Any],
) -> None:
    """Add the outcome to the rewards of rows that are over, and fill their infos.

    Args:
        mdp: the rules.
        games: all games.
        rows: those that are over, int [n].
        resigned: where the opponent has, bool [N].
        failures: why a game is void, a sentence or None, object [N].
        rewards: float64 [N].
        infos: in Gymnasium's vector form.
    """
    void = failures[rows] != None  # noqa: E711 (by element)
    if void.any():
        rewards[rows[void]] = 0.0
        add_info(infos, "opponent_failed", len(rewards), rows[void], failures[rows[void]])
        rows = rows[~void]
    for row in rows[resigned[rows]].tolist():
        games.scores[row] = mdp.score(games.state(row))
    illegal = games.endings[rows] == ENDED_BY_ILLEGAL
    winners, outcomes = _outcomes(mdp, games, rows, resigned[rows], illegal)
    rewards[rows] += outcomes
    endings = np.where(resigned[rows], RESIGN, np.array(ENDINGS, object)[games.endings[rows]])
    told = {"winner": winners, "score": games.scores[rows], "ending": endings}
    for name, values in (told | {"is_success": winners == games.viewers[rows]}).items():
        add_info(infos, name, len(rewards), rows, values)
    if illegal.any():
        add_info(infos, "illegal", len(rewards), rows[illegal], illegal[illegal])


def _outcomes(
    mdp: GoMDP, games: Duels, rows: np.ndarray, resigned: np.ndarray, illegal: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Winners, -1 for a draw, and what the game is worth to the viewer."""
    viewers, scores = games.viewers[rows], games.scores[rows]
    signs = 1.0 - 2.0 * viewers
    worth = signs * scores / mdp.rules.points if mdp.reward_kind == "margin" else signs * np.sign(scores)
    winners = np.where(scores == 0, -1, (scores < 0).astype(np.int64))
    # Who is to play after an illegal action has won; only agents play one, an opponent's voids the game.
    winners = np.where(resigned, viewers, np.where(illegal, 1 - viewers, winners))
    return winners, np.where(resigned, 1.0, np.where(illegal, -1.0, worth))


def add_info(infos: dict[str, Any], name: str, num_envs: int, rows: np.ndarray, values: np.ndarray) -> None:
    """Put values of some rows into infos of a vector environment, as Gymnasium does one by one."""
    if not rows.size:
        return
    if name not in infos:
        shape, plain = (num_envs, *values.shape[1:]), values.dtype != object
        infos[name] = np.zeros(shape, values.dtype) if plain else np.full(shape, None, object)
        infos[f"_{name}"] = np.zeros(num_envs, bool)
    infos[name][rows], infos[f"_{name}"][rows] = values, True
