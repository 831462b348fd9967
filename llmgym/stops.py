"""Stop rules: where a block ends before its cap. Each is a pure function of (state, tokens of the block so far).

With these the terminations of MA-RLHF (Chai et al. 2024, section 3.2) are expressible: fixed length is
`block_size` alone, a random length is `RandomLength`, a parsing boundary is `StopAtText` or a function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from llmgym.text import TextState

StopRule = Callable[["TextState", Sequence[int]], bool]


@dataclass(frozen=True)
class StopAtText:
    """The block ends with the token that completes `text`: a newline, a tag, any string."""

    text: str
    tokenizer: Any

    def __call__(self, state: TextState, tokens: Sequence[int]) -> bool:
        text = self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self.text in text


@dataclass(frozen=True)
class RandomLength:
    """The block's length is uniform in [low, high], drawn from the random key that lives in the state.

    A state without a key (rebuilt from an observation alone) never stops early; the environment, which has
    the key, then ignores what follows the end of the block.
    """

    low: int
    high: int

    def __call__(self, state: TextState, tokens: Sequence[int]) -> bool:
        if state.key is None:
            return False
        # Seeded by key and position: every block has a length of its own, and asking twice gives the same.
        rng = np.random.default_rng((state.key, len(state.tokens)))
        return len(tokens) >= int(rng.integers(self.low, self.high + 1))


def make_stop(stop: str | Sequence[int] | StopRule | None, tokenizer: Any, block_size: int) -> StopRule | None:
    """A rule from its JSON-able spelling: a string to stop at, `[low, high]` for a random length, or a function.

    Raises:
        ValueError: an empty string, lengths outside 1 <= low <= high <= block_size, or something else.
    """
    if stop is None or callable(stop):
        return stop
    if isinstance(stop, str) and stop:
        return StopAtText(stop, tokenizer)
    lengths = [int(n) for n in stop if isinstance(n, int | np.integer)] if isinstance(stop, tuple | list) else []
    if len(lengths) != 2 or len(stop) != 2:
        raise ValueError(f"stop must be a non-empty string, [low, high] or a function, got {stop!r}")
    low, high = lengths
    if not 1 <= low <= high <= block_size:
        raise ValueError(f"stop lengths need 1 <= low <= high <= block_size = {block_size}, got {lengths}")
    return RandomLength(low, high)
