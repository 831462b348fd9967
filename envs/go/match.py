"""The referee: two players, many games, colours and openings dealt fairly, and a count of nothing that went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import Game, Opponent, OpponentFailed
from llmgym.envs.go.record import RESIGN, VOID, GameRecord, result_of, won_by
from llmgym.envs.go.replay import PLAYERS, advance, new_game, record_of, replay
from llmgym.envs.go.rules import ILLEGAL
from llmgym.intervals import wilson


@dataclass(frozen=True)
class Entrant:
    """Someone who plays a match, and what the match calls him."""

    name: str
    player: Opponent


@dataclass(frozen=True)
class Played:
    """One game of a match.

    Attributes:
        record: the game, opening included.
        black: which entrant had Black, 0 or 1.
        opening: number of the opening; both games of a pair have the same.
        failed: which entrant voided the game, 0 or 1; None if nobody did.
        seconds: thinking time of entrants 0 and 1.
    """

    record: GameRecord
    black: int
    opening: int
    failed: int | None = None
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def winner(self) -> int | None:
        """Which entrant has won, 0 or 1; None for a draw and a void game."""
        winner = self.record.winner
        return None if winner is None else self.black ^ winner

    @property
    def counts(self) -> bool:
        """Whether the game is no void one."""
        return self.record.ending != VOID


@dataclass
class Tally:
    """What the games of a match add up to; void ones count in nothing but `void`."""

    games: list[Played] = field(default_factory=list)

    @property
    def counted(self) -> list[Played]:
        """The games that are not void."""
        return [game for game in self.games if game.counts]

    @property
    def draws(self) -> int:
        """Games without a winner."""
        return sum(game.winner is None for game in self.counted)

    def wins(self, entrant: int, black: int | None = None) -> int:
        """Games that an entrant has won; with `black` only those in which that entrant had Black."""
        return sum(game.winner == entrant for game in self.counted if black in (None, game.black))

    def with_black(self, entrant: int) -> int:
        """Games in which an entrant had Black."""
        return sum(game.black == entrant for game in self.counted)

    def forfeits(self, entrant: int) -> int:
        """Games that an entrant has lost by an illegal move."""
        return sum(game.record.ending == ILLEGAL and game.winner == 1 - entrant for game in self.counted)

    def void(self, entrant: int) -> int:
        """Games that an entrant has voided: it crashed, did not answer in time, or answered nonsense."""
        return sum(game.failed == entrant for game in self.games)

    def points(self, entrant: int) -> float:
        """Wins, and half of the draws."""
        return self.wins(entrant) + self.draws / 2

    def score(self, entrant: int) -> float:
        """Points a game; NaN before the first."""
        return self.points(entrant) / len(self.counted) if self.counted else float("nan")

    def interval(self, entrant: int) -> tuple[float, float]:
        """95 % Wilson interval of the score, as if games were independent and a draw half a win and half a loss.

        Draws make the true interval narrower. The two games of an opening are paired: where openings favour a colour,
        pairs vary less than independent games, and this interval is too wide rather than too narrow.
        """
        return wilson(self.points(entrant), len(self.counted))

    def seconds(self, entrant: int) -> float:
        """Thinking time a game; NaN before the first."""
        return float(np.mean([game.seconds[entrant] for game in self.counted])) if self.counted else float("nan")


def play_match(entrants: Sequence[Entrant], openings: Sequence[Game], games: int, seed: int = 0) -> Iterator[Played]:
    """The games of a match, each played when it is asked for.

    Games 2k and 2k + 1 are a pair: the k-th opening (from the first again when they run out), with colours swapped; so
    entrant 0 has Black in every other game. Players that draw their moves from the generator they are given repeat
    themselves with the seed.

    Args:
        entrants: two of them.
        openings: what games begin with, see `draw_openings`.
        games: how many.
        seed: of the players' randomness.

    Raises:
        ValueError: an entrant cannot play from the first opening.
    """
    for entrant in entrants:
        _introduce(entrant, openings[0])
    rngs = (np.random.default_rng([seed, number]) for number in range(games))
    return (play_game(entrants, openings, number, rng) for number, rng in enumerate(rngs))


def play_game(entrants: Sequence[Entrant], openings: Sequence[Game], number: int, rng: np.random.Generator) -> Played:
    """Game `number` of a match.

    The referee scores by area, with every stone on the board alive: players must capture what is dead. A move that the
    rules forbid loses the game; a player that has no move to give voids it.
    """
    black, opening = number % 2, number // 2 % len(openings)
    seated = (entrants[black], entrants[1 - black])
    table = _Table((seated[0].player, seated[1].player), openings[opening])
    end = table.play(rng)
    names = (seated[0].name, seated[1].name)
    record = replace(record_of(table.game), names=names, result=end.result, ending=end.ending, comment=end.comment)
    failed = None if end.failed is None else black ^ end.failed
    return Played(record, black, opening, failed, (table.seconds[black], table.seconds[1 - black]))


def draw_openings(
    mdp: GoMDP, count: int, seed: int = 0, random_moves: int = 0, records: Sequence[GameRecord] = ()
) -> list[Game]:
    """What games begin with: the records in turn, else the empty board, and then some random moves.

    Args:
        mdp: the rules.
        count: how many openings.
        seed: of the random moves.
        random_moves: uniform over legal moves that fill no own eye.
        records: games whose moves are played first.

    Raises:
        ValueError: a record does not fit the rules, or an opening leaves nothing to play.
    """
    begun = [replay(mdp, record) for record in records] or [new_game(mdp)]
    openings = []
    for number in range(count if random_moves else min(count, len(begun))):
        game, rng = begun[number % len(begun)], np.random.default_rng([seed, number])
        for _ in range(random_moves):
            if not game.state.ending:
                game = advance(game, game.state.to_play, mdp.light_move(game.state, rng))
        if game.state.ending:
            raise ValueError(f"opening {number + 1} leaves nothing to play: it ends after {game.state.n_moves} moves")
        openings.append(game)
    return openings


def _introduce(entrant: Entrant, opening: Game) -> None:
    """One that cannot play at all is no entrant, and voids no games."""
    try:
        entrant.player.check(opening.mdp)
        entrant.player.start(opening)
    except OpponentFailed as error:
        raise ValueError(str(error)) from None


class _End(NamedTuple):
    result: str
    ending: str
    comment: str = ""
    failed: int | None = None  # who has voided the game, 0 Black or 1 White


class _Table:
    """One game between Black and White as it is played."""

    def __init__(self, players: tuple[Opponent, Opponent], opening: Game):
        self.players, self.opening, self.game = players, opening, opening
        self.seconds, self.asked = [0.0, 0.0], 0

    def play(self, rng: np.random.Generator) -> _End:
        """Play on to the end."""
        try:
            self._start()
            while not self.game.state.ending:
                if (end := self._move(rng)) is not None:
                    return end
        except OpponentFailed as error:
            self.players[self.asked].close()  # an engine is started anew by the next game
            return _End("Void", VOID, f"{PLAYERS[self.asked]}: {error}", self.asked)
        return _End(result_of(self.game.mdp.score(self.game.state)), self.game.state.ending)

    def _start(self) -> None:
        for player in (0, 1):
            try:
                self._ask(player, lambda opponent: opponent.start(self.opening))
            except ValueError as error:  # refused, though it was asked before the match whether it can play
                raise OpponentFailed(str(error)) from None
        self.seconds = [0.0, 0.0]  # starting a program is no thinking

    def _move(self, rng: np.random.Generator) -> _End | None:
        """One move, and the end of the game if it is one that the board does not see."""
        game, mover = self.game, self.game.state.to_play
        action = self._ask(mover, lambda opponent: opponent.move(game, rng))
        if action is None:
            return _End(won_by(1 - mover, "R"), RESIGN)
        try:
            self.game = advance(game, mover, action)
        except ValueError as error:
            return _End(won_by(1 - mover, "F"), ILLEGAL, str(error))
        return None

    def _ask(self, player: int, question: Callable[[Opponent], Any]) -> Any:
        self.asked, start = player, time.perf_counter()
        try:
            return question(self.players[player])
        finally:
            self.seconds[player] += time.perf_counter() - start
