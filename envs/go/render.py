"""Go positions as text, as pictures and in a window."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from llmgym.envs.go.artwork import star_points
from llmgym.envs.go.picture import board_picture
from llmgym.envs.go.rules import BLACK, ILLEGAL, MOVES_SPENT, PASSES_PLAYED
from llmgym.envs.go.vertices import LETTERS, vertex

if TYPE_CHECKING:
    from llmgym.envs.go.state import GoState

MODES = ("ansi", "rgb_array", "human")
FPS = 4  # positions a second in the window
_ENDINGS = {PASSES_PLAYED: "two passes", MOVES_SPENT: "the cap on moves", ILLEGAL: "an illegal move"}


def render_state(
    state: GoState,
    mode: str,
    overlay: dict[str, Any] | None = None,
    size: int = 640,
    window: Window | None = None,
) -> str | np.ndarray | None:
    """A state as text ("ansi"), as uint8 [height, width, 3] ("rgb_array"), or on the screen ("human": None).

    Args:
        state: what to show.
        mode: one of `MODES`.
        overlay: `visits` and `ownership` of `board_picture`; text shows neither.
        size: pixels of the longer side.
        window: where "human" shows it; None for the window that all share.
    """
    if mode not in MODES:
        raise ValueError(f"a Go board is rendered as one of {', '.join(MODES)}, got {mode!r}")
    if mode == "ansi":
        return f"{board_text(state.stones, state.last_action, state.captures)}\n{_status(state)}"
    picture = board_picture(state.stones, state.last_action, size=size, **(overlay or {}))
    if mode == "rgb_array":
        return picture
    (window or SHARED).show(picture)
    return None


def board_text(stones: np.ndarray, last: int | None = None, captures: Any = None) -> str:
    """A position as text: X Black, O White, + star points; the last move stands in brackets.

    Args:
        stones: int [rows, cols], 0 empty, 1 black, 2 white.
        last: the last action, or None.
        captures: stones taken by Black and by White, or None to leave that line out.
    """
    stones = np.asarray(stones)
    rows, cols = stones.shape
    signs = np.array([".", "X", "O"])[stones]
    for point in star_points(rows, cols):
        signs[point] = "+" if signs[point] == "." else signs[point]
    letters = "   " + " ".join(LETTERS[:cols])
    lines = [letters, *(_row(signs[row], rows - row, _column(last, row, rows, cols)) for row in range(rows)), letters]
    notes = [] if last is None else [f"Last move: {vertex(last, rows, cols)}."]
    if captures is not None:
        notes.append(f"Black (X) has taken {captures[0]}, White (O) {captures[1]}.")
    return "\n".join([*lines, " ".join(notes)] if notes else lines)


def _column(last: int | None, row: int, rows: int, cols: int) -> int | None:
    """The column of the last move if it lies in this row."""
    return last % cols if last is not None and last < rows * cols and last // cols == row else None


def _row(signs: np.ndarray, number: int, marked: int | None) -> str:
    gaps = [" "] * (len(signs) + 1)
    if marked is not None:
        gaps[marked : marked + 2] = "()"
    points = "".join(gap + sign for gap, sign in zip(gaps, signs, strict=False))
    return f"{number:2}{points}{gaps[-1]}{number}"


def _status(state: GoState) -> str:
    if state.ending is not None:
        return f"The game has ended by {_ENDINGS[state.ending]} after {state.n_moves} moves."
    return f"Move {state.n_moves + 1}: {'Black (X)' if state.to_play == BLACK else 'White (O)'} to play."


class Window:
    """A window that shows one picture after the other. pygame has one a process, so the last picture shown wins.

    When the user closes it, the game goes on unseen; `close` makes the object ready to open it again.

    Args:
        caption: its title.
        fps: pictures a second at most; `show` waits so long.
    """

    def __init__(self, caption: str = "Go", fps: float = FPS):
        self.caption, self.fps = caption, fps
        self._clock: Any = None
        self._shut = False  # by the user

    def show(self, picture: np.ndarray) -> None:
        """Show uint8 [height, width, 3]; opens the window the first time.

        Raises:
            ImportError: pygame is not installed.
        """
        pygame = _pygame()
        self._shut |= self._clock is not None and self._asked_to_close(pygame)
        if self._shut:
            return
        screen = self._screen(pygame, (picture.shape[1], picture.shape[0]))
        screen.blit(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (0, 0))
        pygame.display.flip()
        self._clock.tick(self.fps)

    @property
    def is_open(self) -> bool:
        """Whether it has been opened and not closed since."""
        return self._clock is not None

    def close(self) -> None:
        """Close the window; harmless when there is none."""
        self._shut = False
        self._drop()

    def _screen(self, pygame: Any, size: tuple[int, int]) -> Any:
        screen = pygame.display.get_surface()
        if screen is None or screen.get_size() != size:
            pygame.display.init()
            screen = pygame.display.set_mode(size)
            pygame.display.set_caption(self.caption)
        self._clock = self._clock or pygame.time.Clock()
        return screen

    def _asked_to_close(self, pygame: Any) -> bool:
        """Whether the user closed it; reading the events also tells the desktop that the program is alive."""
        # Another window object may have closed the display, and with it the queue of events.
        events = pygame.event.get() if pygame.display.get_init() else []
        asked = any(event.type == pygame.QUIT for event in events)
        if asked:
            self._drop()
        return asked

    def _drop(self) -> None:
        if self._clock is not None:
            _pygame().display.quit()
            self._clock = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of an environment opens a window of its own.
        return self.__dict__ | {"_clock": None}


SHARED = Window()


def close_window() -> None:
    """Close the window that `render_state` opened in mode "human"; harmless when there is none."""
    SHARED.close()


def _pygame() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # standard output may be a protocol's
    try:
        import pygame
    except ImportError as error:
        message = 'render_mode "human" needs pygame: install llmgym with its extra "render" (llmgym[render])'
        raise ImportError(message) from error
    return pygame
