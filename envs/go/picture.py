"""Go boards as pictures: a position, its last move, and what a search thinks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmgym.envs.go.artwork import BLACK_STONE, WHITE_STONE, Layout, empty_board, font_of, ring, shadow, stone
from llmgym.envs.go.rules import MAX_SIZE, check_whole

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST_SIZE = 64  # pixels of the longer side; below that nothing can be seen
HEAT = ((44, 112, 190), (132, 62, 150), (214, 48, 40))  # few visits, half of the most, the most
LEAST_SHARE = 0.1  # of the most visits, for a number to be written: a small one says nothing and hides the board
LIGHT, DARK = (250, 249, 245), (16, 16, 20)


def board_picture(
    stones: np.ndarray,
    last: int | None = None,
    visits: np.ndarray | None = None,
    ownership: np.ndarray | None = None,
    size: int = 640,
) -> np.ndarray:
    """A position as an image, uint8 [height, width, 3].

    Args:
        stones: int [rows, cols], 0 empty, 1 black, 2 white.
        last: the action to mark; a pass marks nothing.
        visits: numbers [rows, cols], at least 0: a disc on every empty point that has some, larger and from blue to
            red as it comes nearer to the most, with the number where it is a tenth of that or more.
        ownership: numbers in [-1, 1], [rows, cols], 1 Black's and -1 White's: shade on the board, and a small
            square on every stone that is the other side's.
        size: pixels of the longer side.

    Raises:
        ValueError: an array of another shape or a value out of range.
    """
    stones = np.asarray(stones)
    layout = _layout(stones, size)
    picture = empty_board(layout).copy()
    if ownership is not None:
        _shade(picture, layout, _checked("ownership", ownership, stones.shape, -1, 1))
    _put_stones(picture, layout, stones)
    if ownership is not None:
        _mark_captives(picture, layout, stones, np.asarray(ownership, float))
    if visits is not None:
        counts = _checked("visits", visits, stones.shape, 0, np.inf)
        _put_visits(picture, layout, np.where(stones == 0, counts, 0))
    if last is not None and 0 <= last < stones.size:
        _mark_last(picture, layout, stones, *divmod(int(last), layout.cols))
    return np.array(picture)


def _layout(stones: np.ndarray, size: int) -> Layout:
    if stones.ndim != 2 or not all(1 <= side <= MAX_SIZE for side in stones.shape):
        raise ValueError(f"stones must be [rows, cols] with 1 to {MAX_SIZE} each, got the shape {stones.shape}")
    if not np.isin(stones, (0, BLACK_STONE, WHITE_STONE)).all():
        raise ValueError(f"stones must be 0 (empty), 1 (black) or 2 (white), got {np.unique(stones).tolist()}")
    check_whole("size", size, LEAST_SIZE, 10_000)
    rows, cols = stones.shape
    return Layout(rows, cols, int(size))


def _checked(name: str, values: Any, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    values = np.asarray(values, float)
    if values.shape != shape:
        raise ValueError(f"{name} must have the board's shape {shape}, got {values.shape}")
    if not (np.isfinite(values) & (values >= low) & (values <= high)).all():
        bounds = f"finite and at least {low}" if high == np.inf else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {bounds}, got {values.min()} to {values.max()}")
    return values


def _put_stones(picture: Image, layout: Layout, stones: np.ndarray) -> None:
    """First all shadows, so that none falls on a stone beside it."""
    occupied = [(int(row), int(col)) for row, col in np.argwhere(stones)]
    for row, col in occupied:
        _paste(picture, layout, row, col, (24, 14, 4), shadow(layout.cell))
    for row, col in occupied:
        _paste(picture, layout, row, col, *stone(layout.cell, int(stones[row, col])))


def _paste(picture: Image, layout: Layout, row: int, col: int, what: Any, mask: Image) -> None:
    """A colour or an image of the mask's size, its middle on a point."""
    x, y = layout.at(row, col)
    picture.paste(what, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)


# What is drawn on top


def _mark_last(picture: Image, layout: Layout, stones: np.ndarray, row: int, col: int) -> None:
    """A ring in the opposite shade."""
    colour = {BLACK_STONE: LIGHT, WHITE_STONE: DARK}.get(int(stones[row, col]), HEAT[-1])
    _paste(picture, layout, row, col, colour, ring(layout.cell, 0.50, 0.16))


def _shade(picture: Image, layout: Layout, ownership: np.ndarray) -> None:
    """Ownership as a smooth shade: dark is Black's, light is White's."""
    from PIL import Image

    box = (layout.cols * layout.cell, layout.rows * layout.cell)
    smooth = Image.fromarray(ownership.astype(np.float32)).resize(box, Image.Resampling.BICUBIC)
    values = np.clip(np.asarray(smooth), -1, 1)
    x, y = layout.at(-0.5, -0.5)
    for colour, part, strength in ((DARK, values, 0.50), (LIGHT, -values, 0.62)):
        mask = Image.fromarray((np.clip(part, 0, 1) * strength * 255).astype(np.uint8))
        picture.paste(colour, (round(x), round(y)), mask)


def _mark_captives(picture: Image, layout: Layout, stones: np.ndarray, ownership: np.ndarray) -> None:
    """A square of the owner's colour on every stone that is not its own side's."""
    from PIL import Image

    own = np.array([0, 1, -1])[stones]
    for row, col in np.argwhere(own * ownership < -0.1).tolist():
        side = max(1, round(0.42 * layout.cell * float(np.sqrt(abs(ownership[row, col])))) // 2 * 2 + 1)
        colour = DARK if ownership[row, col] > 0 else LIGHT
        _paste(picture, layout, row, col, colour, Image.new("L", (side, side), 235))


def _put_visits(picture: Image, layout: Layout, visits: np.ndarray) -> None:
    """A disc a point; the most visited one has a ring."""
    most = visits.max(initial=0)
    for row, col in np.argwhere(visits > 0).tolist():
        share = float(visits[row, col] / most)
        _put_disc(picture, layout, row, col, share)
        if share == 1:
            _paste(picture, layout, row, col, LIGHT, ring(layout.cell, 0.90, 0.10))
        if share >= LEAST_SHARE:
            _write_number(picture, layout, row, col, visits[row, col])


def _put_disc(picture: Image, layout: Layout, row: int, col: int, share: float) -> None:
    """Larger, warmer and stronger the larger the share in [0, 1]."""
    colour = tuple(round(float(np.interp(share, (0, 0.5, 1), stops))) for stops in zip(*HEAT, strict=True))
    width = 0.6 if share < LEAST_SHARE else round(1.3 + 0.5 * share, 1)  # in radii of a stone
    strength = 0.5 + 0.45 * share**0.5
    _paste(picture, layout, row, col, colour, ring(layout.cell, 0.0, width).point(lambda a: int(a * strength)))


def _write_number(picture: Image, layout: Layout, row: int, col: int, value: float) -> None:
    from PIL import ImageDraw

    text = short_number(value)
    font = font_of(min(0.36, 0.98 / (len(text) - 0.5 * text.count("."))) * layout.cell)
    if font.size >= 7:
        ImageDraw.Draw(picture).text(layout.at(row, col), text, LIGHT, font, anchor="mm")


def short_number(value: float) -> str:
    """At most four characters for what a search counts: 7, 0.25, 850, 1.2k, 12k, 3.4M."""
    if value < 1:
        return f"{value:.2f}".rstrip("0")
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            scaled = value / unit
            return f"{scaled:.1f}{name}" if scaled < 9.95 else f"{scaled:.0f}{name}"
    return f"{value:.0f}"
