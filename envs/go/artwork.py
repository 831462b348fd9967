"""What pictures of Go boards are made of: the empty board, stones, shadows and rings.

All of it is drawn several times too large and reduced, which smooths the edges, and kept for the next picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from llmgym.envs.go.vertices import LETTERS

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

SCALE = 4  # drawn so many times too large
MARGIN = 1.2  # from the outermost line to the edge, in distances between lines
LIGHT_WOOD, DARK_WOOD, INK = (229, 187, 120), (189, 137, 74), (58, 38, 18)
BLACK_STONE, WHITE_STONE = 1, 2  # as `GoState.stones` has them


@dataclass(frozen=True)
class Layout:
    """Where things are, in pixels; the distance between lines is whole, so that all lines are equally sharp."""

    rows: int
    cols: int
    size: int

    @property
    def cell(self) -> int:
        """Distance between two lines; at most a third of the picture, for a board of one point."""
        return max(2, min(int(self.size / (max(self.rows, self.cols) - 1 + 2 * MARGIN)), self.size // 3))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        longer = max(self.rows, self.cols)
        return self.size - (longer - self.rows) * self.cell, self.size - (longer - self.cols) * self.cell

    @property
    def origin(self) -> tuple[int, int]:
        """x and y of the upper left point."""
        height, width = self.shape
        return (width - 1 - (self.cols - 1) * self.cell) // 2, (height - 1 - (self.rows - 1) * self.cell) // 2

    def at(self, row: float, col: float) -> tuple[float, float]:
        """x and y of the middle of a point's pixel."""
        x, y = self.origin
        return x + col * self.cell + 0.5, y + row * self.cell + 0.5


def star_points(rows: int, cols: int) -> list[tuple[int, int]]:
    """Points marked for orientation: corners and middles of the fourth (from 13 on) or third lines, and the centre."""
    stars = {(row, col) for row in _star_lines(rows) for col in _star_lines(cols)}
    if rows % 2 and cols % 2 and min(rows, cols) >= 5:
        stars.add((rows // 2, cols // 2))
    return sorted(stars)


def _star_lines(side: int) -> set[int]:
    if side < 8:
        return set()
    line = 3 if side >= 13 else 2
    return {line, side - 1 - line} | ({side // 2} if side % 2 and side >= 15 else set())


@lru_cache(maxsize=16)
def empty_board(layout: Layout) -> Image:
    """Wood, lines, star points and coordinates; not to be drawn on."""
    from PIL import Image

    wood = Image.fromarray(_wood(*layout.shape))
    wood.paste(INK, (0, 0), _lines(layout).reduce(SCALE).point(lambda a: int(a * 0.85)))
    _write_coordinates(wood, layout)
    return wood


def _lines(layout: Layout) -> Image:
    """Coverage of lines and star points, enlarged by SCALE."""
    from PIL import Image, ImageDraw

    height, width = layout.shape
    mask = Image.new("L", (width * SCALE, height * SCALE))
    draw = ImageDraw.Draw(mask)
    thin = max(1, round(min(layout.cell, layout.size / 12) / 32)) / 2
    for row in range(layout.rows):
        _rectangle(draw, layout.at(row, 0), layout.at(row, layout.cols - 1), thin * (1 + (row in (0, layout.rows - 1))))
    for col in range(layout.cols):
        _rectangle(draw, layout.at(0, col), layout.at(layout.rows - 1, col), thin * (1 + (col in (0, layout.cols - 1))))
    dot = max(1.0, layout.cell * 0.11)
    for row, col in star_points(layout.rows, layout.cols):
        x, y = layout.at(row, col)
        draw.ellipse([SCALE * (x - dot), SCALE * (y - dot), SCALE * (x + dot) - 1, SCALE * (y + dot) - 1], fill=255)
    return mask


def _rectangle(draw: Any, start: tuple[float, float], end: tuple[float, float], half: float) -> None:
    """A line from start to end and `half` further on all sides."""
    corners = [start[0] - half, start[1] - half, end[0] + half, end[1] + half]
    left, top, right, bottom = (round(SCALE * value) for value in corners)
    draw.rectangle([left, top, right - 1, bottom - 1], fill=255)


def _write_coordinates(picture: Image, layout: Layout) -> None:
    """Letters above and below, numbers on both sides."""
    from PIL import ImageDraw

    if layout.cell < 10:
        return  # nobody could read them
    draw, font = ImageDraw.Draw(picture), font_of(min(layout.cell * 0.36, layout.size / 24))
    away = 0.68 * MARGIN
    for col in range(layout.cols):
        for row in (-away, layout.rows - 1 + away):
            draw.text(layout.at(row, col), LETTERS[col], INK, font, anchor="mm")
    for row in range(layout.rows):
        for where in (-away, layout.cols - 1 + away):
            draw.text(layout.at(row, where), str(layout.rows - row), INK, font, anchor="mm")


def _wood(height: int, width: int) -> np.ndarray:
    """Straight-grained wood, uint8 [height, width, 3]; always the same tree."""
    rng = np.random.default_rng(19)
    drift = _noise(rng, 3, 4, height, width)
    across = np.linspace(0, 11, width)[None, :] + 0.9 * drift
    rings = (0.5 + 0.5 * np.sin(2 * np.pi * across)) ** 3  # late wood is a thin dark line
    grain = 0.30 * rings + 0.16 * _noise(rng, 3, 9, height, width) + 0.10 * _noise(rng, 4, width // 6, height, width)
    fibres = _noise(rng, max(2, height // 40), width // 2, height, width)
    tone = np.clip(0.22 + grain + 0.07 * fibres, 0, 1)[..., None]
    colour = np.array(LIGHT_WOOD) + (np.array(DARK_WOOD) - np.array(LIGHT_WOOD)) * tone
    return np.clip(colour * _bevel(height, width)[..., None], 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, rows: int, cols: int, height: int, width: int) -> np.ndarray:
    """Smooth noise with so many bumps along each side, about unit variance, [height, width]."""
    from PIL import Image

    coarse = rng.standard_normal((rows, max(2, cols))).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _bevel(height: int, width: int) -> np.ndarray:
    """Brightness of a board whose edges are rounded and lit from the upper left, [height, width]."""
    edge = max(2.0, min(height, width) / 90)
    y, x = np.mgrid[:height, :width] + 0.5
    lit = np.exp(-y / edge) + np.exp(-x / edge)
    shaded = np.exp(-(height - y) / edge) + np.exp(-(width - x) / edge)
    return 1 + 0.14 * lit - 0.28 * shaded


@lru_cache(maxsize=64)
def stone(cell: int, colour: int) -> tuple[Image, Image]:
    """One stone and its coverage."""
    from PIL import Image

    x, y = _plane(cell, 0.5)
    distance = np.hypot(x, y)
    glow = np.exp(-((x + 0.36) ** 2 + (y + 0.42) ** 2) / 0.22)  # the lamp is at the upper left
    if colour == BLACK_STONE:
        light = 26 + 92 * glow + 20 * np.clip(x + y - 0.6, 0, 1) * distance**4
        rgb = light[..., None] * np.array([0.97, 1.0, 1.06])
    else:
        light = 238 + 20 * glow - 46 * np.clip(0.75 * (x + y), 0, 1) ** 2 - 22 * distance**6
        rgb = light[..., None] * np.array([1.0, 0.99, 0.965])
    image = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    return image.reduce(SCALE), _mask(distance <= 1)


@lru_cache(maxsize=64)
def shadow(cell: int) -> Image:
    """Soft, and a little to the lower right."""
    x, y = _plane(cell, 0.8)
    distance = np.hypot(x - 0.13, y - 0.19)
    return _mask(0.55 / (1 + np.exp((distance - 1.0) / 0.075)))


def _plane(cell: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """x and y in radii of a stone over a square of an odd number of pixels, `reach` cells to each side, enlarged."""
    side = 2 * max(1, int(np.ceil(cell * reach))) + 1
    line = ((np.arange(side * SCALE) + 0.5) / SCALE - side / 2) / max(1.0, cell * 0.482)
    return np.meshgrid(line, line)  # type: ignore[return-value]


def _mask(cover: np.ndarray) -> Image:
    """Coverage in [0, 1] as a mask, reduced."""
    from PIL import Image

    return Image.fromarray((cover * 255).astype(np.uint8)).reduce(SCALE)


@lru_cache(maxsize=64)
def ring(cell: int, radius: float, width: float) -> Image:
    """A ring, its middle and width in radii of a stone; one as wide as its diameter is a disc."""
    distance = np.hypot(*_plane(cell, 0.5))
    return _mask(np.abs(distance - radius) <= max(width, 2.4 / cell) / 2)


@lru_cache(maxsize=64)
def font_of(size: float) -> FreeTypeFont:
    """Pillow's own font, so that pictures are the same everywhere."""
    from PIL import ImageFont

    return ImageFont.load_default(max(1, round(size)))  # type: ignore[return-value]
