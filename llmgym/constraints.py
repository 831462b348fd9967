"""Which tokens may come next: the environment's side of constrained generation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from llmgym.mdp import NoLegalAction

if TYPE_CHECKING:
    from llmgym.text import TextState

# (state, tokens of the block so far) -> allowed next tokens, bool [V], or None for all.
TokenConstraint = Callable[["TextState", Sequence[int]], np.ndarray | None]


@dataclass(frozen=True)
class Constraints:
    """Banned tokens, a minimum length and a user's function (such as a grammar), combined by "and".

    Attributes:
        vocab_size: V.
        eos_id: forbidden while fewer than `min_new_tokens` tokens have been generated.
        banned: ids that may never be chosen.
        min_new_tokens: shortest completion, in tokens without its EOS.
        function: `(state, tokens of the block so far) -> bool [V]` or None.
    """

    vocab_size: int
    eos_id: int
    banned: tuple[int, ...] = ()
    min_new_tokens: int = 0
    function: TokenConstraint | None = None

    def __post_init__(self):
        wrong = [t for t in self.banned if not 0 <= t < self.vocab_size]
        if wrong:
            raise ValueError(f"banned_tokens must lie in [0, {self.vocab_size}), got {wrong[0]}")
        if self.min_new_tokens < 0:
            raise ValueError(f"min_new_tokens must be at least 0, got {self.min_new_tokens}")
        if not self.static(0).any():
            raise ValueError(f"banned_tokens leave no token to begin with: {len(self.banned)} of {self.vocab_size}")

    def __bool__(self) -> bool:
        return bool(self.banned or self.min_new_tokens or self.function)

    @cached_property
    def _not_banned(self) -> np.ndarray:
        return ~np.isin(np.arange(self.vocab_size), self.banned)

    def static(self, n_tokens: int) -> np.ndarray:
        """What may come after `n_tokens` tokens whatever these are; bool [V]."""
        return self.static_rows(np.array([n_tokens]))[0]

    def static_rows(self, n_tokens: np.ndarray) -> np.ndarray:
        """`static` of many rows at once, int [n] -> bool [n, V]; all there is to know without a `function`."""
        masks = np.repeat(self._not_banned[None], len(n_tokens), 0)
        masks[n_tokens < self.min_new_tokens, self.eos_id] = False
        return masks

    def static_allows(self, n_tokens: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Whether each row's token is allowed by `static`, int [n], int [n] -> bool [n]."""
        too_early = (tokens == self.eos_id) & (n_tokens < self.min_new_tokens)
        return self._not_banned[tokens] & ~too_early

    def mask(self, state: TextState, tokens: Sequence[int]) -> np.ndarray:
        """Allowed next tokens after `state` and the block's `tokens`; bool [V].

        Raises:
            NoLegalAction: the constraints leave nothing to choose.
            ValueError: the user's function returned another shape.
        """
        mask = self.static(state.n_tokens + len(tokens))
        if self.function is not None and (own := self.function(state, tokens)) is not None:
            own = np.asarray(own, bool)
            if own.shape != mask.shape:
                raise ValueError(f"a token constraint must return bool [{self.vocab_size}], got shape {own.shape}")
            mask &= own
        if not mask.any():
            raise NoLegalAction(f"the constraints forbid every token after {state.n_tokens + len(tokens)} tokens")
        return mask


def token_ids(tokens: Iterable[int | str], tokenizer) -> tuple[int, ...]:
    """Ids of tokens given as ids or as strings that are single tokens.

    Raises:
        ValueError: a string is not one token of this tokenizer, or a lone string was given.
    """
    if isinstance(tokens, str):  # would be read letter by letter
        raise ValueError(f"banned_tokens must be a list of ids or strings, got {tokens!r}: write [{tokens!r}]")
    return tuple(_single_id(t, tokenizer) if isinstance(t, str) else int(t) for t in tokens)


def _single_id(text: str, tokenizer) -> int:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"banned_tokens: {text!r} is {len(ids)} tokens of this tokenizer, it must be exactly one")
    return ids[0]
