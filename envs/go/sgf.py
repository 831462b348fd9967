"""Games as SGF (FF[4], GM[1]) and back: the main line, with set-up stones, handicap, komi, rules and result."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sgfmill import sgf_grammar
from sgfmill.sgf_properties import Presenter

import llmgym
from llmgym.envs.go.record import LETTER, RESIGN, TIME, VOID, GameRecord, Move
from llmgym.envs.go.rules import BLACK, ILLEGAL, KO_RULES, MOVES_SPENT, PASSES_PLAYED, WHITE, GoRules
from llmgym.files import write_text

MAX_MOVES = "XM"  # a property of ours, which SGF permits: the cap on moves
_ENDED = {"R": RESIGN, "T": TIME, "F": ILLEGAL}
_KO = {"japanese": "simple", "korean": "simple", "chinese": "simple", "goe": "positional", "ing": "positional"}
_KO |= {"tromp-taylor": "positional", "aga": "situational", "nz": "situational", "new zealand": "situational"}
_SUICIDE = ("goe", "ing", "tromp-taylor", "nz", "new zealand")
_KINDS = {"B": "a move", "W": "a move", "AB": "points", "AW": "points", "AE": "points", "PL": "a colour"}
_KINDS |= {"KM": "a number"}
Node = dict[str, list[bytes]]  # values as they stand in the file
T = TypeVar("T")


def write_sgf(record: GameRecord) -> str:
    """One game as SGF text in UTF-8.

    Rules are spelt as KataGo does, which names every option: `koPOSITIONALscoreAREAtaxNONEsui0`.
    """
    tree = sgf_grammar.Coarse_game_tree()
    board = _Board(record.rules)
    tree.sequence = [_root(record, board)]
    tree.sequence += [{LETTER[player]: [board.write_move(action)]} for player, action in record.moves]
    return sgf_grammar.serialise_game_tree(tree).decode()


def read_sgf(text: str) -> GameRecord:
    """The first game of an SGF text: its main line.

    Rules that are not named, or not known by name, are those of `GoRules`; komi is 0 unless given. A result that
    cannot be read is "?".

    Raises:
        ValueError: no game of Go, or one that cannot be read, in a sentence.
    """
    try:
        tree = sgf_grammar.parse_sgf_game(text.encode(errors="replace"))
    except ValueError as error:
        raise ValueError(f"this is no SGF: {error}") from None
    nodes = list(sgf_grammar.main_sequence_iter(tree))
    return _Reader(nodes).record()


def save_sgf(record: GameRecord, path: str | Path) -> None:
    """Write one game into a file, replaced in one step."""
    write_text(path, write_sgf(record))


def load_sgf(path: str | Path) -> GameRecord:
    """The first game of a file, in the encoding that it names, else UTF-8 or Latin-1.

    Raises:
        ValueError: it cannot be read as SGF; the sentence names the file.
        OSError: it cannot be read at all.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a folder, or a device that never ends
        raise ValueError(f"{path} is no file")
    try:
        return read_sgf(_decoded(path.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _decoded(data: bytes) -> str:
    named = re.search(rb"CA\s*\[([^\]]*)\]", data)
    for encoding in (named[1].decode("ascii", "replace").strip() if named else "utf-8", "utf-8"):
        try:
            return data.decode(encoding)
        except (LookupError, ValueError):  # unknown to Python, or not what it says it is
            continue
    return data.decode("latin-1")


class _Board:
    """Points on one board: sgfmill knows squares with rows from below, ours are rectangles with rows from above."""

    def __init__(self, rules: GoRules):
        self.rules, self.side = rules, max(rules.rows, rules.cols)
        self.presenter = Presenter(self.side, "UTF-8")

    def write(self, name: str, value: Any) -> list[bytes]:
        return self.presenter.serialise(name, value)

    def write_move(self, action: int) -> bytes:
        return self.write("B", None if action == self.rules.points else self._outside(action))[0]

    def write_points(self, points: tuple[int, ...]) -> list[bytes]:
        return self.write("AB", {self._outside(point) for point in points})

    def read_move(self, values: list[bytes]) -> int:
        point = self.presenter.interpret("B", values)
        return self.rules.points if point is None else self._inside(point)

    def read_points(self, values: list[bytes]) -> set[int]:
        return {self._inside(point) for point in self.presenter.interpret("AB", values)}

    def _outside(self, action: int) -> tuple[int, int]:
        row, col = divmod(action, self.rules.cols)
        return self.side - 1 - row, col

    def _inside(self, point: tuple[int, int]) -> int:
        row, col = self.side - 1 - point[0], point[1]
        if row >= self.rules.rows or col >= self.rules.cols:
            raise ValueError("off the board")
        return row * self.rules.cols + col


def _root(record: GameRecord, board: _Board) -> Node:
    rules, (black, white) = record.rules, record.first_stones
    size = str(rules.rows) if rules.rows == rules.cols else f"{rules.cols}:{rules.rows}"
    node = {"FF": [b"4"], "GM": [b"1"], "CA": [b"UTF-8"], "SZ": [size.encode()]}
    node |= {"AP": board.write("AP", ("llmgym", llmgym.__version__))}
    node |= {"KM": board.write("KM", rules.komi), "RU": board.write("RU", _rules_name(rules))}
    node |= {name: board.write_points(points) for name, points in (("AB", black), ("AW", white)) if points}
    given = len(black) if len(black) > 1 and not white and record.to_play == WHITE else 0
    node |= {"HA": [str(given).encode()]} if given else {}
    # Without PL a reader takes who moves first, and White after a handicap.
    first = record.moves[0][0] if record.moves else WHITE if given else BLACK
    node |= {"PL": [LETTER[record.to_play].encode()]} if first != record.to_play else {}  # type: ignore[index]
    node |= {MAX_MOVES: [str(rules.max_moves).encode()]} if rules.max_moves else {}
    texts = {"PB": record.names[0], "PW": record.names[1], "RE": record.result, "GC": record.comment}
    return node | {name: board.write(name, text) for name, text in texts.items() if text}


def _rules_name(rules: GoRules) -> str:
    return f"ko{rules.ko.upper()}scoreAREAtaxNONEsui{int(rules.suicide)}"


class _Reader:
    """The nodes of a main line, and what they say."""

    def __init__(self, nodes: list[Node]):
        self.nodes = nodes
        self.presenter = Presenter(19, "UTF-8")  # of what lies on no board
        if (game := self._text("GM", "1").strip()) != "1":
            raise ValueError(f"GM[{game}] is another game than Go, which is GM[1]")
        self.board = _Board(self._rules())

    def record(self) -> GameRecord:
        rules, moves, handicap = self.board.rules, tuple(self._moves()), self._number("HA", 0)
        black, white, to_play = self._setup()
        if to_play is None:
            to_play = moves[0][0] if moves else WHITE if handicap > 1 else BLACK
        if handicap > 1 and not black | white and to_play == WHITE:  # its stones go without saying
            rules = replace(rules, handicap=handicap)
        stones = (tuple(black), tuple(white))
        names, comment, result = (self._text("PB"), self._text("PW")), self._text("GC"), _result(self._text("RE"))
        return GameRecord(rules, moves, stones, to_play, names, result, _ending(rules, moves, result), comment)

    def _moves(self) -> Iterator[Move]:
        for number, node in enumerate(self.nodes):
            if "B" in node and "W" in node:
                raise ValueError(f"node {number} has moves of both players")
            for player in (BLACK, WHITE):
                if LETTER[player] in node:
                    yield player, self._value(number, LETTER[player], self.board.read_move)

    def _setup(self) -> tuple[set[int], set[int], int | None]:
        """Stones before the first move, Black's and White's, and who moves first if it is said."""
        on: dict[str, set[int]] = {"AB": set(), "AW": set(), "AE": set()}
        to_play, moved = None, False
        for number, node in enumerate(self.nodes):
            for name in (name for name in ("AB", "AW", "AE") if name in node):
                if moved:
                    raise ValueError(f"node {number} sets up stones after the first move, which cannot be replayed")
                points = self._value(number, name, self.board.read_points)
                on = {other: stones - points for other, stones in on.items()} | {name: on[name] | points}
            if "PL" in node and not moved:
                to_play = self._value(number, "PL", lambda raw: "bw".index(self.presenter.interpret("PL", raw)))
            moved = moved or "B" in node or "W" in node
        return on["AB"], on["AW"], to_play

    def _rules(self) -> GoRules:
        name = self._text("RU").strip().lower()
        said = re.match(r"ko([a-z]+)score.*sui([01])", name)
        ko, suicide = (said[1], said[2] == "1") if said else (_KO.get(name, GoRules.ko), name in _SUICIDE)
        komi = self._value(0, "KM", lambda raw: self.presenter.interpret("KM", raw)) if "KM" in self.nodes[0] else 0.0
        cap = self._number(MAX_MOVES, 0) or None
        return GoRules(self._size(), komi, ko if ko in KO_RULES else GoRules.ko, suicide, cap)

    def _size(self) -> tuple[int, int]:
        """Rows and columns; SGF writes a rectangle as columns:rows."""
        size = self._text("SZ", "19")
        sides = re.fullmatch(r"\s*(\d{1,3})\s*(?::\s*(\d{1,3})\s*)?", size)
        if not sides:
            raise ValueError(f"SZ[{size}] in node 0 is no size of a board")
        return int(sides[2] or sides[1]), int(sides[1])

    def _text(self, name: str, default: str = "") -> str:
        """A text of the root."""
        kind = "GC" if name == "GC" else "PB"
        raw = self.nodes[0].get(name)
        return default if raw is None else self.presenter.interpret(kind, raw[:1])

    def _number(self, name: str, default: int) -> int:
        """A whole number of the root."""
        text = self._text(name, str(default)).strip()
        if not re.fullmatch(r"[0-9]{1,6}", text):
            raise ValueError(f"{name}[{text}] in node 0 is no whole number")
        return int(text)

    def _value(self, number: int, name: str, read: Callable[[list[bytes]], T]) -> T:
        """A value of a node, or a sentence that says where it stands."""
        raw = self.nodes[number][name]
        try:
            return read(raw)
        except ValueError:
            rows, cols = (self.board.rules.rows, self.board.rules.cols) if hasattr(self, "board") else (0, 0)
            text = " ".join(b"][".join(raw)[:40].decode(errors="replace").split())
            where = f" of a {rows}x{cols} board" if rows and name != "PL" else ""
            raise ValueError(f"{name}[{text}] in node {number} cannot be read as {_KINDS[name]}{where}") from None


def _result(text: str) -> str:
    """A result as `GameRecord` has it."""
    said = text.strip()
    if said.lower() in ("0", "draw", "jigo"):
        return "0"
    if said.lower() == "void":
        return "Void"
    parts = re.fullmatch(r"([BW])\+(?:(R|T|F)[a-z]*|0*(\d+(?:\.\d+)?))?", said, re.IGNORECASE)
    if not parts:
        return "?" if said else ""
    how = (parts[2] or "").upper() or (f"{float(parts[3]):g}" if parts[3] else "")
    return f"{parts[1].upper()}+{how}"


def _ending(rules: GoRules, moves: tuple[Move, ...], result: str) -> str:
    """Why a game ended, as far as its file tells."""
    if result[2:] in _ENDED:
        return _ENDED[result[2:]]
    if result == "Void":
        return VOID
    if [action for _, action in moves[-2:]] == [rules.points] * 2:
        return PASSES_PLAYED
    return MOVES_SPENT if len(moves) >= rules.cap else ""
