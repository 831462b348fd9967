"""A world small enough to enumerate: an alphabet of eight tokens, and tasks over it that reply and fail."""

from __future__ import annotations

from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmgym.tasks import Problem, Task

PAD, EOS, A, B, C, EQUALS, NEWLINE, TAG = range(8)
V = 8
_PIECES = ("<pad>", "<eos>", "a", "b", "c", "=", "\n", "<t>")
# The system message after "c", the user's after "a", then "=" for the answer to follow.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ 'c' if m['role'] == 'system' else 'a' }}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)


def toy_tokenizer(**changes: Any) -> PreTrainedTokenizerFast:
    """One character a token and the tag `<t>`; `changes` replace the special tokens, such as `pad_token=None`."""
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(_PIECES)}, unk_token="c"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_tokens([AddedToken("<t>", normalized=False)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>"} | changes
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


class Words(Task):
    """Copy a word of one to four letters; the reward tells completions apart by their length too."""

    name = "words"
    weights = {"correct": 1.0, "format": 0.25, "length": 0.5}  # noqa: RUF012
    failing_reward = -1.0

    def problem(self, rng: np.random.Generator, split: str = "train") -> Problem:
        word = "".join("abc"[i] for i in rng.integers(3, size=rng.integers(1, 5)))
        return Problem(f"{word}=" if split == "train" else f"={word}=", word)

    def score(self, problem: Problem, text: str) -> dict[str, float]:
        return {"correct": float(text == problem.answer), "format": float("=" not in text), "length": len(text) / 8}


class Replying(Words):
    """Answers the first two EOS with text of its own."""

    def reply(self, problem: Problem, text: str) -> str | None:
        return "=c" if text.count("=") < 2 else None


class Failing(Words):
    """A scorer that fails in every way one can, depending on the text."""

    def score(self, problem: Problem, text: str) -> dict[str, float]:
        kind = len(text) % 6
        if kind == 0:
            raise KeyError("no such test case")
        terms = super().score(problem, text)
        broken = {1: float("nan"), 2: None, 3: "good"}.get(kind, terms["correct"])
        return None if kind == 4 else terms | {"correct": broken}  # type: ignore[return-value, dict-item]


class ReplyingFailing(Replying, Failing):
    """Both at once."""


def no_repeat(state: Any, tokens: Any) -> np.ndarray | None:
    """A grammar: no letter twice in a row, and nothing to say about what follows another token."""
    last = (state.tokens + tuple(tokens))[-1]
    if last not in (A, B, C):
        return None
    mask = np.ones(V, bool)
    mask[last] = False
    return mask


def newline_or_tag(state: Any, tokens: Any) -> bool:
    """A stop rule given as a plain function."""
    return tokens[-1] in (NEWLINE, TAG)


def random_tokens(rng: np.random.Generator, shape: Any, eos: float = 0.08) -> np.ndarray:
    """Tokens of the toy alphabet, EOS (and padding) rare enough for episodes of several steps."""
    p = np.full(V, (1 - 2 * eos) / (V - 2))
    p[[PAD, EOS]] = eos
    return rng.choice(V, size=shape, p=p)


def assert_same(a: Any, b: Any, where: str = "value") -> None:
    """Exact equality of nested dicts, sequences and arrays, types and dtypes included."""
    assert type(a) is type(b), f"{where}: {type(a)} and {type(b)}"
    if isinstance(a, dict):
        assert a.keys() == b.keys(), f"{where}: keys {sorted(a)} and {sorted(b)}"
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), f"{where}: {a.dtype}{a.shape} and {b.dtype}{b.shape}"
        if a.dtype == object:
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                assert_same(x, y, f"{where}[{i}]")
        else:
            assert np.array_equal(a, b), f"{where}: {a} and {b}"
    elif isinstance(a, tuple | list):
        assert len(a) == len(b), f"{where}: {len(a)} and {len(b)} items"
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, f"{where}: {a!r} and {b!r}"
