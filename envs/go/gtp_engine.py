"""A Go Text Protocol engine, version 2: any player behind the commands that GoGui, Sabaki and referees send."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple, TextIO

import numpy as np

import llmgym
from llmgym.envs.go.chains import chains_of
from llmgym.envs.go.opponents import Game, Opponent, OpponentFailed
from llmgym.envs.go.record import GameRecord, Move, result_of
from llmgym.envs.go.render import render_state
from llmgym.envs.go.replay import advance, begin, mdp_of, new_game, record_of, turned
from llmgym.envs.go.rules import MAX_CAP, MAX_SIZE, GoRules, handicap_points, most_handicap
from llmgym.envs.go.sgf import load_sgf, save_sgf, write_sgf
from llmgym.envs.go.vertices import parse_vertex, vertex

LONGEST_ID = 2**31 - 1
COLOURS = {"b": 0, "black": 0, "w": 1, "white": 1}
Command = tuple[Callable[..., str], int, int]  # and the fewest and most arguments


class _Moment(NamedTuple):
    """A game as it stood; `moves` are all since the board was cleared, with who played them."""

    game: Game
    moves: tuple[Move, ...]


class GTPEngine:
    """Answers GTP commands; `player` chooses the moves.

    A player may move twice in a row, and after two passes play can go on. Area scoring; all stones on the board count
    as alive. Clocks are read and ignored. On squares from 1 to 25 points a side.

    Args:
        player: who moves, see `llmgym.envs.go.opponents`.
        rules: before a command changes size or komi; `max_moves` None: ten times the points of the board.
        name: as the engine calls itself.
        seed: of the player's randomness; None takes fresh entropy.

    Raises:
        ValueError: this player cannot play by these rules.
    """

    def __init__(
        self, player: Opponent, rules: GoRules | None = None, *, name: str = "llmgym", seed: int | None = None
    ):
        self.player, self.name, self.over = player, name, False
        self.rules = rules or GoRules(19)
        self.rng = np.random.default_rng(seed)
        self._moments: list[_Moment] = []
        self._restart(self.rules)

    def answer(self, line: str) -> str:
        """The answer to one line, with the blank line that ends it; "" to a line that holds no command.

        No line is an error of the engine: what cannot be understood or done is answered by `? …`.
        """
        words = _without_comment(line).split()
        if not words:
            return ""
        id = words.pop(0) if re.fullmatch(r"[0-9]{1,10}", words[0]) and int(words[0]) <= LONGEST_ID else ""
        try:
            sign, text = "=", self._run(words)
        except OSError as error:
            sign, text = "?", f"cannot open {error.filename}: {error.strerror}"
        except OpponentFailed as error:
            self.player.close()  # it may begin anew
            sign, text = "?", str(error)
        except ValueError as error:
            sign, text = "?", str(error)
        return f"{sign}{id} {_printable(text)}".rstrip() + "\n\n"

    def serve(self, lines: Iterable[str], out: TextIO) -> None:
        """Answer line after line until `quit` or the end."""
        for line in lines:
            answer = self.answer(line)
            if answer:
                out.write(answer)
                out.flush()
            if self.over:
                break

    @property
    def game(self) -> Game:
        """The game as it stands."""
        return self._moments[-1].game

    def record(self) -> GameRecord:
        """The game so far."""
        start = record_of(self._moments[0].game)
        return replace(start, rules=replace(start.rules, max_moves=self.rules.max_moves), moves=self._moments[-1].moves)

    def _run(self, words: list[str]) -> str:
        if not words:
            raise ValueError("syntax error: a command is missing")
        name, *arguments = words
        if name not in COMMANDS:
            raise ValueError("unknown command")
        method, fewest, most = COMMANDS[name]
        if not fewest <= len(arguments) <= most:
            wanted = fewest if fewest == most else f"{fewest} to {most}"
            raise ValueError(f"syntax error: arguments of {name}: {wanted} wanted, got {len(arguments)}")
        return method(self, *arguments)

    # About the engine.

    def _protocol_version(self) -> str:
        return "2"

    def _name(self) -> str:
        return self.name

    def _version(self) -> str:
        return llmgym.__version__

    def _known_command(self, name: str) -> str:
        return str(name in COMMANDS).lower()

    def _list_commands(self) -> str:
        return "\n".join(COMMANDS)

    def _quit(self) -> str:
        self.over = True
        return ""

    def _set_random_seed(self, seed: str) -> str:
        self.rng = np.random.default_rng(_whole(seed, "a seed", 0, 2**63 - 1))
        return ""

    # The board.

    def _boardsize(self, size: str) -> str:
        side = _whole(size, "unacceptable size: a side", 1, MAX_SIZE)
        self._restart(replace(self.rules, board_size=side), "unacceptable size: ")
        return ""

    def _clear_board(self) -> str:
        self._restart(self.rules)
        return ""

    def _komi(self, komi: str) -> str:
        try:
            rules = replace(self.rules, komi=float(komi))
        except ValueError:
            raise ValueError(f"syntax error: komi is a number of points, got {komi}") from None
        mdp = mdp_of(_capped(rules))
        moments = [moment._replace(game=moment.game._replace(mdp=mdp)) for moment in self._moments]
        self._tell_komi(moments, rules)
        return ""

    def _fixed_handicap(self, stones: str) -> str:
        return self._put_handicap(self._usual_points(stones))

    def _place_free_handicap(self, stones: str) -> str:
        return self._put_handicap(self._usual_points(stones, fewer=True))

    def _set_free_handicap(self, *vertices: str) -> str:
        points = [self._action(name) for name in vertices]
        if len(set(points)) < len(points) or self.rules.points in points or len(points) == self.rules.points:
            raise ValueError("bad vertex list: points must differ, and one must stay empty")
        self._put_handicap(points)
        return ""

    def _showboard(self) -> str:
        return f"\n{render_state(self.game.state, 'ansi')}"

    # The game.

    def _play(self, colour: str, name: str) -> str:
        player = _colour(colour)
        if name.lower() != "resign":  # some controllers tell of it: no move of the board
            self._push(player, self._action(name))
        return ""

    def _genmove(self, colour: str) -> str:
        return self._choose(_colour(colour), keep=True)

    def _reg_genmove(self, colour: str) -> str:
        return self._choose(_colour(colour), keep=False)

    def _undo(self) -> str:
        if len(self._moments) == 1:
            raise ValueError("cannot undo")
        self._moments.pop()
        return ""

    def _time_settings(self, *numbers: str) -> str:
        for number in numbers:
            _whole(number, "syntax error: a time", 0, LONGEST_ID)
        return ""

    def _time_left(self, colour: str, *numbers: str) -> str:
        _colour(colour)
        return self._time_settings(*numbers)

    def _final_score(self) -> str:
        return result_of(self.game.mdp.score(self.game.state))

    def _final_status_list(self, status: str) -> str:
        if status not in ("alive", "dead", "seki"):
            raise ValueError(f"syntax error: a status is alive, dead or seki, got {status}")
        chains = chains_of(self.game.state.stones) if status == "alive" else []  # dead ones are to be captured
        return "\n".join(" ".join(map(self._vertex, chain)) for chain in chains)

    # Files.

    def _loadsgf(self, path: str, move: str | None = None) -> str:
        record = load_sgf(path)
        before = None if move is None else _whole(move, "a move number", 1, MAX_CAP) - 1
        rules = replace(self.rules, board_size=record.rules.board_size, komi=record.rules.komi)
        mdp = mdp_of(_capped(rules))
        moves, moments = record.moves[:before], [_Moment(begin(mdp, record), ())]
        for number, (player, action) in enumerate(moves, 1):
            moments.append(_Moment(advance(moments[-1].game, player, action), moves[:number]))
        self.player.check(mdp)
        self._tell_komi(moments, rules)
        return ""

    def _printsgf(self, path: str | None = None) -> str:
        if path is None:
            return write_sgf(self.record())
        save_sgf(self.record(), path)
        return ""

    # What commands share.

    def _restart(self, rules: GoRules, refusal: str = "") -> None:
        """An empty board; after an error all is as it was."""
        game = new_game(mdp_of(_capped(rules)))
        try:
            self.player.check(game.mdp)
            self.player.start(game)
        except ValueError as error:
            self.player.close()  # an engine may have done half of what it was asked: it is told all anew
            raise ValueError(f"{refusal}{error}") from None
        self.rules, self._moments = rules, [_Moment(game, ())]

    def _tell_komi(self, moments: list[_Moment], rules: GoRules) -> None:
        """Take over a game by other rules; a player that is an engine is told of komi only when it begins."""
        self.player.close()
        self.player.start(moments[-1].game)
        self.rules, self._moments = rules, moments

    def _push(self, player: int, action: int) -> None:
        game, moves = self._moments[-1]
        self._moments.append(_Moment(advance(game, player, action), (*moves, (player, action))))

    def _choose(self, player: int, keep: bool) -> str:
        game = self.game
        if game.state.to_play != player or game.state.ending:
            game = new_game(game.mdp, turned(game.state, player))
        if game.mdp.terminal(game.state):
            raise ValueError(f"the game is over after {game.state.n_moves} moves")
        action = self.player.move(game, self.rng)
        if action is None:
            return "resign"
        advance(game, player, action)  # refuses what no player may do
        if keep:
            self._push(player, action)
        return self._vertex(action)

    def _put_handicap(self, points: list[int]) -> str:
        if self._moments[-1].moves or self.game.state.stones.any():
            raise ValueError("board not empty")
        stones = np.zeros(self.rules.points, np.int8)
        stones[points] = 1
        mdp = self.game.mdp
        game = new_game(mdp, mdp.position(stones.reshape(self.rules.rows, self.rules.cols), to_play=1))
        self.player.start(game)
        self._moments = [_Moment(game, ())]
        return " ".join(map(self._vertex, points))

    def _usual_points(self, stones: str, fewer: bool = False) -> list[int]:
        rows, cols = self.rules.rows, self.rules.cols
        most = most_handicap(rows, cols)
        count = _whole(stones, "invalid number of stones: a handicap", 2, self.rules.points if fewer else max(most, 2))
        if most < 2:
            raise ValueError(f"invalid number of stones: a {rows}x{cols} board takes no handicap")
        return handicap_points(rows, cols, min(count, most))

    def _action(self, name: str) -> int:
        return parse_vertex(name, self.rules.rows, self.rules.cols)

    def _vertex(self, action: int) -> str:
        return vertex(action, self.rules.rows, self.rules.cols)


COMMANDS: dict[str, Command] = {
    "protocol_version": (GTPEngine._protocol_version, 0, 0),
    "name": (GTPEngine._name, 0, 0),
    "version": (GTPEngine._version, 0, 0),
    "known_command": (GTPEngine._known_command, 1, 1),
    "list_commands": (GTPEngine._list_commands, 0, 0),
    "quit": (GTPEngine._quit, 0, 0),
    "boardsize": (GTPEngine._boardsize, 1, 1),
    "clear_board": (GTPEngine._clear_board, 0, 0),
    "komi": (GTPEngine._komi, 1, 1),
    "fixed_handicap": (GTPEngine._fixed_handicap, 1, 1),
    "place_free_handicap": (GTPEngine._place_free_handicap, 1, 1),
    "set_free_handicap": (GTPEngine._set_free_handicap, 2, MAX_SIZE**2),
    "play": (GTPEngine._play, 2, 2),
    "genmove": (GTPEngine._genmove, 1, 1),
    "reg_genmove": (GTPEngine._reg_genmove, 1, 1),
    "undo": (GTPEngine._undo, 0, 0),
    "time_settings": (GTPEngine._time_settings, 3, 3),
    "time_left": (GTPEngine._time_left, 3, 3),
    "final_score": (GTPEngine._final_score, 0, 0),
    "final_status_list": (GTPEngine._final_status_list, 1, 1),
    "showboard": (GTPEngine._showboard, 0, 0),
    "loadsgf": (GTPEngine._loadsgf, 1, 2),
    "printsgf": (GTPEngine._printsgf, 0, 1),
    "set_random_seed": (GTPEngine._set_random_seed, 1, 1),
}


def _capped(rules: GoRules) -> GoRules:
    """Rules under which no game that people play is cut short."""
    return replace(rules, max_moves=rules.max_moves or min(MAX_CAP, max(10 * rules.points, 100)))


def _without_comment(line: str) -> str:
    """A line as GTP reads it: without its comment and control characters, tabs as spaces."""
    return re.sub(r"[\x00-\x1f\x7f]", "", line.partition("#")[0].replace("\t", " "))


def _printable(text: str) -> str:
    """A text as GTP may answer it: without control characters, and no blank line, for that ends the answer."""
    return re.sub(r"\n(?:[ ]*\n)+", "\n", re.sub(r"[\x00-\x09\x0b-\x1f\x7f]", " ", text))


def _colour(name: str) -> int:
    if name.lower() not in COLOURS:
        raise ValueError(f"syntax error: a colour is b, black, w or white, got {name}")
    return COLOURS[name.lower()]


def _whole(text: str, what: str, low: int, high: int) -> int:
    """A whole number of a command."""
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or not low <= int(text) <= high:
        raise ValueError(f"{what} is a whole number in [{low}, {high}], got {text}")
    return int(text)
