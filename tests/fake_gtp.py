"""A GTP engine for tests, in its own process: `python fake_gtp.py MODE [LOG]`; LOG collects what it was told.

It passes when it is to move, unless its MODE says otherwise. A number after the mode says which `genmove` goes wrong:
`crash:3` plays two moves first.
"""

from __future__ import annotations

import sys
import time

MODE, _, NUMBER = sys.argv[1].partition(":")
LOG = sys.argv[2] if len(sys.argv) > 2 else None
MOVES = {"illegal": "A1", "nowhere": "Z99", "resign": "RESIGN", "empty": ""}


def genmove() -> str:
    """The move, or an accident."""
    if MODE == "crash":
        raise RuntimeError("out of ideas")
    if MODE == "hang":
        time.sleep(60)
    if MODE == "garbage":
        return print("I think that D4 is good", flush=True) or "D4"
    if MODE == "refuse":
        return "? I do not feel like it"
    return MOVES.get(MODE, "PASS")


def answer(words: list[str], number: int) -> str:
    """The answer to one command."""
    if words[0] == "boardsize" and MODE == "small" and int(words[1]) > 5:
        return "? unacceptable size"
    if words[0] == "play" and MODE == "strict":
        return "? illegal move"
    if words[0] == "known_command" and MODE == "bare":
        return "? unknown command"
    if words[0] == "known_command":
        return "= true" if words[1] == "set_random_seed" and MODE == "seeded" else "= false"
    if words[0] == "name":
        return "= Fake"
    if words[0] != "genmove":
        return "="
    move = genmove() if number >= int(NUMBER or 1) else "PASS"
    return move if move.startswith("?") else f"= {move}"


def main() -> None:
    """Answer until `quit`."""
    number = 0
    if MODE == "mute":
        time.sleep(60)
    for line in sys.stdin:
        if LOG:
            with open(LOG, "a", encoding="utf-8") as file:
                file.write(line)
        words = line.split()
        number += words[0] == "genmove"
        print(answer(words, number), end="\n\n", flush=True)
        if words[0] == "quit":
            return


if __name__ == "__main__":
    main()
