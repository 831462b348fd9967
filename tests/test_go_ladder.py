"""The table of `benchmarks/go_ladder.py`: what counts, and that games of another player are not taken over."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from llmgym.files import write_json

PATH = Path(__file__).parents[1] / "benchmarks" / "go_ladder.py"


@pytest.fixture(scope="module")
def ladder():
    spec = importlib.util.spec_from_file_location("go_ladder", PATH)
    module = sys.modules["go_ladder"] = importlib.util.module_from_spec(spec)  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def game(number, winner, moves, void=False):
    times = {"seconds": [0.5, 1.5], "cpu": [0.25]}
    return {"number": number, "black": number % 2, "winner": winner, "moves": moves, "void": void} | times


def test_a_draw_is_half_a_win_and_a_void_game_is_nothing(ladder):
    games = [game(0, 0, "E5"), game(1, 1, "E5"), game(2, None, "C3"), game(3, None, "D4", void=True)]
    name, *numbers = ladder.cells("ours", games)
    assert (name, numbers[:4]) == ("ours", ["3", "2", "1", "50.0 %"])
    assert numbers[5:] == ["1.5 of 2", "0 of 1", "1.00", "1.50", "0.25", "0.25"]


def test_games_of_another_player_are_refused(ladder, tmp_path):
    file, ours = tmp_path / "uct.json", ladder.ROWS["uct"][1]
    assert ladder.read(file, ours) == []
    write_json(file, ladder.about(ours) | {"games": [game(0, 0, "E5")]})
    assert len(ladder.read(file, ours)) == 1
    with pytest.raises(ValueError, match="has games of mcts:simulations=5000"):
        ladder.read(file, "mcts:seconds=2")


def test_every_player_of_the_ladder_is_one_that_there_is(ladder):
    for _, player in ladder.ROWS.values():
        ladder.make_player(player).close()
