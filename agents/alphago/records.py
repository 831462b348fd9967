"""Game records as positions and moves to learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.record import VOID, GameRecord
from llmgym.envs.go.replay import advance, begin
from llmgym.envs.go.sgf import load_sgf
from llmgym.envs.go.state import GoState


class Moves(NamedTuple):
    """The positions of a game in which somebody moved, and the moves."""

    states: list[GoState]
    actions: list[int]


@dataclass(frozen=True)
class Records:
    """Different games on one board.

    Attributes:
        games: those that can be learnt from.
        rules: arguments of `GoMDP` that they were played by, the first game's komi among them.
        left_out: games that are void, repeat another one, are too short, or break the rules.
    """

    games: list[Moves]
    rules: dict[str, Any]
    left_out: int

    def split(self, share: float, rng: np.random.Generator) -> tuple[list[Moves], list[Moves]]:
        """Games to learn from, and a share of them, at least one, that is held out.

        Raises:
            ValueError: fewer than two games, or a share that leaves none.
        """
        held = max(1, round(share * len(self.games)))
        if not 0 < share < 1 or held >= len(self.games):
            raise ValueError(f"held_out must be a share in (0, 1) that leaves games, got {share} of {len(self.games)}")
        order = rng.permutation(len(self.games)).tolist()
        return [self.games[i] for i in order[held:]], [self.games[i] for i in order[:held]]


def load_records(paths: Sequence[str], skip: int = 0) -> Records:
    """The games in SGF files and in folders of them, at any depth.

    Args:
        paths: files and folders.
        skip: moves at the beginning of each game that are not learnt from, such as those of a random opening.

    Raises:
        ValueError: there is no game to learn from, or games on boards of different sizes.
    """
    records = [load_sgf(file) for path in paths for file in _files(path)]
    sizes = {record.rules.board_size for record in records}
    if len(sizes) > 1:
        raise ValueError(f"records must be of one board size, got {', '.join(sorted(map(str, sizes)))}")
    first, longest = records[0].rules, max(len(record.moves) for record in records)
    rules: dict[str, Any] = {"board_size": first.rows if first.rows == first.cols else [first.rows, first.cols]}
    rules |= {"komi": float(first.komi), "ko": first.ko, "suicide": first.suicide}
    mdp = GoMDP(**rules, max_moves=longest + 1)
    games = [moves for record in _different(records) if (moves := _replayed(mdp, record, skip)) is not None]
    if not games:
        raise ValueError(f"none of {len(records)} games in {', '.join(paths)} can be learnt from")
    return Records(games, rules, len(records) - len(games))


def _files(path: str) -> list[Path]:
    given = Path(path)
    files = sorted(given.rglob("*.sgf")) if given.is_dir() else [given]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"records must be SGF files or folders with some, got {path!r}")
    return files


def _different(records: Sequence[GameRecord]) -> Iterator[GameRecord]:
    """No void games, and each game once: one that is learnt from must not be held out too."""
    seen = set[Any]()
    for record in records:
        told = (record.moves, record.first_stones, record.to_play)
        if record.ending != VOID and told not in seen:
            seen.add(told)
            yield record


def _replayed(mdp: GoMDP, record: GameRecord, skip: int) -> Moves | None:
    """Where the player to move moved; None if that is nowhere, or if the game cannot be played by these rules."""
    game, states, actions = begin(mdp, record), list[GoState](), list[int]()
    for number, (player, action) in enumerate(record.moves):
        if number >= skip and game.state.to_play == player and not game.state.ending:
            states.append(game.state)
            actions.append(action)
        try:
            game = advance(game, player, action)
        except ValueError:
            return None
    return Moves(states, actions) if states else None
