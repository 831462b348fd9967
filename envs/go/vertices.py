"""Names of points as Go players write them: A1 is the lower left, the letter I is skipped, A goes on after Z."""

from __future__ import annotations

LETTERS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"  # 25 of them: the widest board


def vertex(action: int, rows: int, cols: int) -> str:
    """Action 0 is the upper left point, row by row; the last action is "pass"."""
    if not 0 <= action <= rows * cols:
        raise ValueError(f"an action of a {rows}x{cols} board lies in [0, {rows * cols}], got {action}")
    if action == rows * cols:
        return "pass"
    row, col = divmod(action, cols)
    return f"{LETTERS[col]}{rows - row}"


def parse_vertex(name: str, rows: int, cols: int) -> int:
    """The action of a name such as "D4", "d4" or "PASS".

    Raises:
        ValueError: the name is no point of the board.
    """
    if name.lower() == "pass":
        return rows * cols
    col, number = LETTERS.find(name[:1].upper()), name[1:]
    # A name of one letter finds "" at column 0; isascii, for isdigit takes other scripts' digits too.
    if name and 0 <= col < cols and number.isascii() and number.isdigit() and 1 <= int(number) <= rows:
        return (rows - int(number)) * cols + col
    last = f"{LETTERS[cols - 1]}{rows}"
    raise ValueError(f"a vertex of this board is A1 to {last} (no I) or pass, got {name!r}")
