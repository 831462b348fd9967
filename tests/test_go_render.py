"""Go boards as text, as pictures and in a window."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from llmgym.envs.go.artwork import Layout, star_points
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.picture import board_picture, short_number
from llmgym.envs.go.render import SHARED, Window, board_text, close_window, render_state

BOARD = np.array([[0, 1, 2, 0, 0], [0, 1, 2, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 2]], np.int8)
SIZES = [(1, 1), (1, 2), (2, 1), (1, 25), (25, 1), (3, 7), (9, 9), (13, 4), (19, 19), (25, 25)]


def at(row: int, col: int, shape: tuple[int, int] = BOARD.shape, size: int = 640) -> tuple[slice, slice]:
    """The pixels around a point that a stone covers."""
    layout = Layout(*shape, size)
    x, y = layout.at(row, col)
    half = layout.cell // 3
    return slice(int(y) - half, int(y) + half + 1), slice(int(x) - half, int(x) + half + 1)


# Text


def test_a_board_as_text():
    assert board_text(BOARD, last=6, captures=(3, 1)).splitlines() == [
        "   A B C D E",
        " 4 . X O . . 4",
        " 3 .(X)O . . 3",
        " 2 . . . . . 2",
        " 1 X . . . O 1",
        "   A B C D E",
        "Last move: B3. Black (X) has taken 3, White (O) 1.",
    ]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("where", ["first", "last", "pass"])
def test_text_of_every_size_is_aligned(shape, where):
    last = {"first": 0, "last": shape[0] * shape[1] - 1, "pass": shape[0] * shape[1]}[where]
    *lines, note = board_text(np.ones(shape, np.int8), last).splitlines()
    assert len(lines) == shape[0] + 2 and lines[0] == lines[-1]
    assert all(len(line.rstrip("0123456789")) == 3 + 2 * shape[1] for line in lines[1:-1])
    assert "".join(lines[1:-1]).count("(X)") == (where != "pass")
    assert (note == "Last move: pass.") == (where == "pass")


def test_star_points_are_those_of_real_boards():
    assert star_points(9, 9) == [(2, 2), (2, 6), (4, 4), (6, 2), (6, 6)]
    assert star_points(13, 13) == [(3, 3), (3, 9), (6, 6), (9, 3), (9, 9)]
    assert star_points(19, 19) == [(r, c) for r in (3, 9, 15) for c in (3, 9, 15)]
    assert star_points(8, 8) == [(2, 2), (2, 5), (5, 2), (5, 5)]
    assert star_points(5, 5) == [(2, 2)] and star_points(1, 1) == star_points(4, 9) == []


# Pictures


@pytest.mark.parametrize("shape", SIZES)
def test_pictures_of_every_size(shape):
    stones = np.arange(shape[0] * shape[1]).reshape(shape) % 3
    zeros = np.zeros(shape)
    picture = board_picture(stones, last=0, visits=zeros, ownership=zeros, size=300)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and max(picture.shape) == 300
    assert picture.shape[0] == 300 if shape[0] >= shape[1] else picture.shape[1] == 300
    assert picture.flags.writeable


@pytest.mark.parametrize("shape", SIZES)
def test_the_board_lies_inside_the_picture(shape):
    for size in (64, 301, 640):
        layout = Layout(*shape, size)
        height, width = layout.shape
        for (row, col), room in (((0, 0), -0.5), ((shape[0] - 1, shape[1] - 1), 0.5)):
            x, y = layout.at(row + room, col + room)
            assert 0 <= x <= width and 0 <= y <= height
        left, top = layout.at(0, 0)
        right, bottom = layout.at(shape[0] - 1, shape[1] - 1)
        assert abs(left - (width - right)) <= 1 and abs(top - (height - bottom)) <= 1  # in the middle


def test_a_picture_is_always_the_same_and_leaves_the_empty_board_alone():
    empty = board_picture(np.zeros_like(BOARD))
    first = board_picture(BOARD, last=6)
    first_again = board_picture(BOARD.copy(), last=6)
    np.testing.assert_array_equal(first, first_again)
    first[:] = 0
    np.testing.assert_array_equal(board_picture(np.zeros_like(BOARD)), empty)


def test_stones_are_where_they_should_be():
    empty, picture = board_picture(np.zeros_like(BOARD)).astype(int), board_picture(BOARD).astype(int)
    for (row, col), stone in np.ndenumerate(BOARD):
        tone = picture[at(row, col)].mean()
        assert (tone < 70) == (stone == 1) and (tone > 215) == (stone == 2), (row, col)
    changed = np.abs(picture - empty).sum(-1) > 0
    assert not changed[at(3, 2)].any()


def test_the_edge_of_a_stone_is_smooth():
    rows, cols = at(0, 1)
    line = board_picture(BOARD)[rows.start + rows.stop >> 1, : cols.stop, 0].astype(int)
    assert len(set(line[cols.start - 30 : cols.stop])) > 10


@pytest.mark.parametrize(("last", "brighter"), [(1, True), (2, False)])
def test_the_last_move_is_marked_on_its_stone_only(last, brighter):
    plain, marked = board_picture(BOARD).astype(int), board_picture(BOARD, last=last).astype(int)
    rows, cols = at(0, last)
    assert ((marked - plain)[rows, cols].sum() > 0) == brighter
    marked[rows, cols] = plain[rows, cols]
    np.testing.assert_array_equal(marked, plain)


def test_a_pass_marks_nothing():
    np.testing.assert_array_equal(board_picture(BOARD, last=BOARD.size), board_picture(BOARD))


def test_visits_go_from_blue_to_red_on_empty_points_only():
    visits = np.zeros(BOARD.shape)
    visits[2, 1:4] = 150, 1000, 500
    visits[0, 1] = 10**6  # a stone is there
    plain, picture = board_picture(BOARD).astype(int), board_picture(BOARD, visits=visits).astype(int)
    warmth = [(picture[at(2, col)][..., 0] - picture[at(2, col)][..., 2]).mean() for col in (1, 2, 3)]
    assert warmth[1] > warmth[2] > warmth[0] and warmth[0] < 0 < warmth[1]
    for point in ((0, 1), (2, 0), (2, 4)):
        np.testing.assert_array_equal(picture[at(*point)], plain[at(*point)])


def test_few_visits_are_a_dot_that_hides_little():
    visits = np.zeros(BOARD.shape)
    visits[2, 1:4] = 90, 1000, 200
    changed = (board_picture(BOARD, visits=visits) != board_picture(BOARD)).any(-1)
    areas = [changed[at(2, col)].mean() for col in (1, 2, 3)]
    assert 0 < areas[0] < 0.3 < areas[2] <= areas[1]


def test_ownership_shades_the_board_and_marks_captives():
    ownership = np.full(BOARD.shape, 0.0)
    ownership[:, :2], ownership[:, 3:] = 1, -1
    ownership[0, 1] = -0.9
    plain, picture = board_picture(BOARD).astype(int), board_picture(BOARD, ownership=ownership).astype(int)
    change = {point: (picture - plain)[at(*point)].mean() for point in ((2, 0), (2, 4), (1, 1), (0, 1), (3, 4))}
    assert change[2, 0] < -20 and change[2, 4] > 20
    assert abs(change[1, 1]) < 1 and abs(change[3, 4]) < 1  # stones on their own side
    assert change[0, 1] > 20  # a black stone that is White's


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (0.25, "0.25"), (850, "850"), (999.4, "999"), (999.6, "1.0k"), (1234, "1.2k"), (3.4e6, "3.4M")],
)
def test_numbers_are_short(value, text):
    assert short_number(value) == text and len(text) <= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stones": np.zeros(9, np.int8)}, r"\[rows, cols\] with 1 to 25 each, got the shape \(9,\)"),
        ({"stones": np.zeros((26, 3), np.int8)}, r"got the shape \(26, 3\)"),
        ({"stones": np.full((2, 2), -1)}, r"2 \(white\), got \[-1\]"),
        ({"size": 20}, r"size must be a whole number in \[64, 10000\], got 20"),
        ({"visits": np.zeros((5, 4))}, r"visits must have the board's shape \(4, 5\), got \(5, 4\)"),
        ({"visits": np.full((4, 5), -1)}, "visits must be finite and at least 0, got -1"),
        ({"visits": np.full((4, 5), np.nan)}, "visits must be finite"),
        ({"ownership": np.full((4, 5), 1.5)}, r"ownership must be in \[-1, 1\], got 1.5"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        board_picture(**{"stones": BOARD} | arguments)


# States


def test_a_state_as_text_says_who_moves_and_how_it_ended():
    mdp = GoMDP(3)
    state = mdp.transition(mdp.initial(), 4)
    assert render_state(state, "ansi").splitlines()[-2:] == [
        "Last move: B2. Black (X) has taken 0, White (O) 0.",
        "Move 2: White (O) to play.",
    ]
    over = mdp.transition(mdp.transition(state, 9), 9)
    assert mdp.render(over, "ansi").endswith("The game has ended by two passes after 3 moves.")
    assert render_state(mdp.transition(state, 4), "ansi").endswith(
        "The game has ended by an illegal move after 2 moves."
    )


def test_a_state_as_a_picture_with_what_a_search_thinks():
    state = GoMDP((3, 4)).position("X... .O.. ....".replace(" ", "\n"))
    visits, ownership = np.ones((3, 4)), np.zeros((3, 4))
    picture = render_state(state, "rgb_array", {"visits": visits, "ownership": ownership}, size=200)
    np.testing.assert_array_equal(picture, board_picture(state.stones, None, visits, ownership, 200))


def test_other_modes_are_refused():
    with pytest.raises(ValueError, match="rendered as one of ansi, rgb_array, human, got 'depth_array'"):
        render_state(GoMDP(3).initial(), "depth_array")


# The window


@pytest.fixture
def pygame(monkeypatch):
    """pygame without a screen."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    module = pytest.importorskip("pygame")
    yield module
    module.display.quit()


def test_the_window_shows_the_picture(pygame):
    window = Window(fps=1000)
    picture = board_picture(BOARD, size=100)
    window.show(picture)
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    np.testing.assert_array_equal(shown, picture)
    window.show(board_picture(BOARD.T, size=120))
    assert pygame.display.get_surface().get_size() == board_picture(BOARD.T, size=120).shape[1::-1]
    window.close()
    window.close()
    assert not window.is_open and not pygame.display.get_init()


def test_when_the_user_closes_the_window_the_game_goes_on_unseen(pygame):
    window, picture = Window(fps=1000), board_picture(BOARD, size=100)
    window.show(picture)
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    for _ in range(3):
        window.show(picture)
    assert not window.is_open and not pygame.display.get_init()
    window.close()
    window.show(picture)
    assert window.is_open


def test_windows_of_two_games_do_not_crash_each_other(pygame):
    one, two = Window(fps=1000), Window(fps=1000)
    for window in (one, two, one):
        window.show(board_picture(BOARD, size=100))
    two.close()
    one.show(board_picture(BOARD, size=100))
    assert pygame.display.get_surface() is not None
    one.close()


def test_an_open_window_is_no_part_of_a_pickle(pygame):
    window = Window(fps=1000)
    window.show(board_picture(BOARD, size=100))
    copy = pickle.loads(pickle.dumps(window))
    assert window.is_open and not copy.is_open
    window.close()


def test_mode_human_uses_the_shared_window(pygame, monkeypatch):
    monkeypatch.setattr(SHARED, "fps", 1000)
    assert GoMDP(3).render(GoMDP(3).initial(), "human") is None
    assert SHARED.is_open
    close_window()
    assert not SHARED.is_open


def test_without_pygame_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ImportError, match=r'render_mode "human" needs pygame: install llmgym .*\(llmgym\[render\]\)'):
        Window().show(board_picture(BOARD, size=100))


def test_pictures_and_windows_are_loaded_when_they_are_asked_for():
    code = (
        "import sys, llmgym.envs, llmgym.envs.go.mdp, llmgym.envs.go.render\n"
        "print(sorted({'PIL', 'pygame', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=os.environ)
    assert done.stdout.strip() == "[]", done.stderr
