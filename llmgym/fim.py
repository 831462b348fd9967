"""Fill-in-the-middle (Bavarian et al. 2022): a text is cut in three, and its middle is learnt from what is around it.

    prefix middle suffix   ->   <PREFIX> prefix <SUFFIX> suffix <MIDDLE> middle EOS

This is their prefix-suffix-middle order. The cuts are two places drawn uniformly, so that each part may be empty.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

FIM_SHARE = 0.10  # share of the documents that is cut in pre-training, by default


class Marks(NamedTuple):
    """The tokens in front of the three parts."""

    prefix: str
    middle: str
    suffix: str


# Of the embedded model and Qwen2.5-Coder, of StarCoder, of SantaCoder, of Code Llama and of DeepSeek-Coder.
KNOWN_MARKS = (
    Marks("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    Marks("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
    Marks("<fim-prefix>", "<fim-middle>", "<fim-suffix>"),
    Marks("▁<PRE>", "▁<MID>", "▁<SUF>"),
    Marks("<PRE>", "<MID>", "<SUF>"),
    Marks("<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜fim▁hole｜>"),
)


def find_marks(tokenizer: Any, given: Sequence[str] | None = None) -> Marks:
    """The tokenizer's marks: those that are given, or the first of `KNOWN_MARKS` that it has.

    Args:
        tokenizer: a Hugging Face tokenizer.
        given: the marks of prefix, middle and suffix, each of them one token.

    Raises:
        ValueError: the tokenizer lacks a given mark, or has none of the known ones.
    """
    vocabulary = tokenizer.get_vocab()
    if given is not None:
        marks = Marks(*given)
        missing = [mark for mark in marks if mark not in vocabulary]
        if missing:
            raise ValueError(f"the tokenizer has no token {missing[0]!r}: fim_marks must be three of its tokens")
        return marks
    known = next((marks for marks in KNOWN_MARKS if all(mark in vocabulary for mark in marks)), None)
    if known is None:
        raise ValueError("the tokenizer has no known fill-in-the-middle marks: fim must be 0, or name fim_marks")
    return known


def cut(pieces: Sequence[str], rng: np.random.Generator) -> tuple[str, str, str]:
    """Prefix, middle and suffix of a text that is given in pieces: cuts fall between two of them."""
    i, j = sorted(rng.integers(len(pieces) + 1, size=2))
    prefix, middle, suffix = ("".join(part) for part in (pieces[:i], pieces[i:j], pieces[j:]))
    return prefix, middle, suffix


class Filling:
    """A tokenizer's way to fill in the middle: from a text to token ids.

    Cuts fall between characters (Bavarian et al. 2022, section 3: within words too, as a user's cursor stands), but
    never inside a tag or another token that was added to the tokenizer whole.

    Args:
        tokenizer: a Hugging Face tokenizer; it is only read.
        marks: as `find_marks` takes them.

    Raises:
        ValueError: the tokenizer has no such marks.
    """

    def __init__(self, tokenizer: Any, marks: Sequence[str] | None = None):
        self.tokenizer, self.marks = tokenizer, find_marks(tokenizer, marks)
        whole = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._pieces = re.compile("|".join([*map(re.escape, whole), "."]), re.DOTALL)
        self._start = self._ids("", special=True)  # BOS, where prompts begin with it

    def __call__(self, text: str, rng: np.random.Generator) -> tuple[list[int], int]:
        """Token ids with EOS at the end, and how many come before the middle."""
        return self.encode(*cut(self._pieces.findall(text), rng))

    def encode(self, prefix: str, middle: str, suffix: str) -> tuple[list[int], int]:
        """Token ids of a text that is cut already."""
        mark = dict(zip(Marks._fields, self.tokenizer.convert_tokens_to_ids(list(self.marks)), strict=True))
        before = [*self._start, mark["prefix"], *self._ids(prefix), mark["suffix"], *self._ids(suffix), mark["middle"]]
        return [*before, *self._ids(middle), self.tokenizer.eos_token_id], len(before)

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]
