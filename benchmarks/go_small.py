"""The shipped network of a small board against GNU Go 3.8, level 10, and against itself: 5x5 by default.

Three questions, komi 0.5, positional superko, area scoring with every stone alive, nobody resigns:

- From the centre: Black's first stone is in the middle. By how much does our Black win against GNU Go, and against our
  own White? (With best play it is the whole board, 25 points: van der Werf 2002.)
- From random openings: 2 to 4 moves, uniform over legal ones (no passes), all different; each is played with both
  colours. Ours less theirs: the mean score of a pair's two games and its 95 % interval over pairs (Student's t).
- Of the pairs that one side sweeps, wins with both colours, how many are ours?

Void games (an engine has crashed) are told apart and their pairs left out.

    python benchmarks/go_small.py
    python benchmarks/go_small.py --player alphazero:policy=runs/five,simulations=100 --openings 100
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llmgym.commands.players import make_player
from llmgym.envs.go.match import Entrant, Played, play_game
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import Game
from llmgym.envs.go.replay import advance, new_game
from llmgym.envs.go.vertices import vertex
from llmgym.files import write_json

GNU_GO = "gnugo --mode gtp --chinese-rules --capture-all-dead --level 10 --positional-superko --never-resign"
T_95 = {49: 2.010, 59: 2.001, 99: 1.984}  # by degrees of freedom; 1.96 for others


@dataclass(frozen=True)
class Config:
    """What to play."""

    player: str = "alphazero:simulations=400,early=false,reuse=false"
    opponent: str = GNU_GO
    size: int = 5
    komi: float = 0.5
    openings: int = 60
    seed: int = 0
    json: Path | None = None  # also write everything here


def main(config: Config) -> None:
    mdp = GoMDP(config.size, config.komi)
    ours = [Entrant("ours", make_player(config.player)) for _ in range(2)]
    gnugo = Entrant("GNU Go", make_player(config.opponent))
    centre = [advance(new_game(mdp), 0, mdp.rules.points // 2)]
    against = play_game((ours[0], gnugo), centre, 0, np.random.default_rng(config.seed))
    itself = play_game(ours, centre, 0, np.random.default_rng(config.seed))
    openings = draw(mdp, config.openings, config.seed)
    numbers = tqdm(range(2 * len(openings)), "games", file=sys.stderr)
    games = [play_game((ours[0], gnugo), openings, k, np.random.default_rng([config.seed, k])) for k in numbers]
    for name, game in (("GNU Go", against), ("itself", itself)):
        print(f"from the centre, as Black against {name}: {game.record.result} in {len(game.record.moves)} moves")
    pairs = [pair for pair in zip(games[::2], games[1::2], strict=True) if all(game.counts for game in pair)]
    said = judged(pairs)
    print(said)
    if config.json:
        results = [[game.record.result for game in pair] for pair in pairs]
        centre_results = {"GNU Go": against.record.result, "itself": itself.record.result}
        names = [[vertex(move, config.size, config.size) for move in opening.moves] for opening in openings]
        told = {"player": config.player, "centre": centre_results, "openings": names, "results": results, "said": said}
        write_json(config.json, told)
    for entrant in (*ours, gnugo):
        entrant.player.close()


def draw(mdp: GoMDP, count: int, seed: int) -> list[Game]:
    """So many different openings."""
    rng, found = np.random.default_rng(seed), dict[tuple[int, ...], Game]()
    while len(found) < count:
        game = new_game(mdp)
        for _ in range(rng.integers(2, 5)):
            game = advance(game, game.state.to_play, int(rng.choice(np.flatnonzero(mdp.mask(game.state)[:-1]))))
        found[tuple(game.moves)] = game
    return list(found.values())


def judged(pairs: list[tuple[Played, Played]]) -> str:
    """What pairs of games add up to."""
    means = np.array([(margin(one, 0) + margin(two, 1)) / 2 for one, two in pairs])
    half = T_95.get(len(means) - 1, 1.96) * means.std(ddof=1) / math.sqrt(len(means))
    sweeps = [one.winner for one, two in pairs if one.winner is not None and one.winner == two.winner]
    won = [game.winner == 0 for pair in pairs for game in pair]
    return (
        f"{len(pairs)} openings, both colours: {means.mean():+.2f} points a game, 95 % interval "
        f"{means.mean() - half:+.2f} to {means.mean() + half:+.2f}; {sum(won)} of {len(won)} games won; "
        f"{sum(winner == 0 for winner in sweeps)} of {len(sweeps)} swept pairs are ours"
    )


def margin(game: Played, black: int) -> float:
    """Points on the board that entrant 0 is ahead; `black` is who has Black. Komi is not counted."""
    result: Any = game.record.result
    ahead = 0.0 if result == "0" else float(result[2:]) * (1 if result[0] == "B" else -1)
    ahead += float(game.record.rules.komi)
    return ahead if black == 0 else -ahead


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
