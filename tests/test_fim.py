"""Fill-in-the-middle: where texts are cut, which marks stand where, and the recipe of the embedded model."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from toys import toy_tokenizer
from transformers import PreTrainedTokenizerFast

from llmgym.fim import FIM_SHARE, KNOWN_MARKS, Filling, Marks, cut, find_marks
from llmgym.tiny import MODEL_FOLDER, corpus
from llmgym.tiny.pretrain import PretrainConfig, command, encode
from llmgym.tokenization import load_tokenizer

TINY = load_tokenizer("tiny")
TEXT = "147+268=<think>7+8=15</think><answer>415</answer>"


def tokenizer_with(*marks):
    """Letters a and b, EOS and some marks."""
    pieces = ("<eos>", "a", "b", *marks)
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.add_special_tokens(list(marks))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", clean_up_tokenization_spaces=False)


# --- cuts -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=3)), st.integers(0, 2**32))
def test_the_three_parts_are_the_text(pieces, seed):
    assert "".join(cut(pieces, np.random.default_rng(seed))) == "".join(pieces)


def test_every_pair_of_places_is_cut_at_with_its_probability():
    rng, n, size = np.random.default_rng(0), 40_000, 3
    counts = Counter(cut("abc", rng) for _ in range(n))
    for i in range(size + 1):
        for j in range(i, size + 1):
            p = (1 if i == j else 2) / (size + 1) ** 2  # two places, in either order
            share = counts["abc"[:i], "abc"[i:j], "abc"[j:]] / n
            assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / n)


def test_a_tag_is_never_cut_and_letters_are():
    filling, rng, mark = Filling(TINY), np.random.default_rng(0), TINY.convert_tokens_to_ids
    tags = {mark(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")}
    lengths = set()
    for _ in range(300):
        ids, n_before = filling(TEXT, rng)
        assert sorted(set(ids) & tags) == sorted(tags)
        lengths.add(len(ids) - n_before - 1)
    assert lengths == set(range(len(TINY(TEXT)["input_ids"])))  # of the middle: nothing, up to everything


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_the_order_is_prefix_suffix_middle():
    ids, n_before = Filling(TINY).encode("147", "+2", "68=")
    assert TINY.decode(ids[:n_before]) == "<bos><|fim_prefix|>147<|fim_suffix|>68=<|fim_middle|>"
    assert TINY.decode(ids[n_before:]) == "+2<eos>"
    ids, n_before = Filling(TINY).encode("", "", "")
    assert TINY.decode(ids) == "<bos><|fim_prefix|><|fim_suffix|><|fim_middle|><eos>" and n_before == 4


def test_the_tokens_are_those_of_pre_training():
    """One transformation, two roads: the corpus writes marks as text, `Filling` as token ids."""
    fim = [d for d in islice(corpus.documents(3), 3000) if "<|fim_prefix|>" in d.prompt]
    assert len(fim) > 200
    for document, (ids, n_prompt) in zip(fim, encode(fim, TINY), strict=True):
        prefix, rest = document.prompt.removeprefix("<|fim_prefix|>").split("<|fim_suffix|>")
        suffix = rest.removesuffix("<|fim_middle|>")
        assert Filling(TINY).encode(prefix, document.completion, suffix) == (ids, n_prompt)


def test_a_tokenizer_without_bos_gets_none():
    tokenizer = tokenizer_with(*KNOWN_MARKS[1])
    prefix, middle, suffix = tokenizer.convert_tokens_to_ids(list(KNOWN_MARKS[1]))
    assert Filling(tokenizer).encode("a", "b", "aa") == ([prefix, 1, suffix, 1, 1, middle, 2, 0], 6)


# --- marks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marks", KNOWN_MARKS, ids=lambda marks: marks.prefix)
def test_known_marks_are_found(marks):
    assert find_marks(tokenizer_with(*marks)) == marks
    assert find_marks(tokenizer_with(*marks, "<p>", "<m>", "<s>"), ("<p>", "<m>", "<s>")) == Marks("<p>", "<m>", "<s>")


def test_missing_marks_are_one_sentence():
    with pytest.raises(ValueError, match="the tokenizer has no known fill-in-the-middle marks: fim must be 0, or name"):
        Filling(toy_tokenizer())
    with pytest.raises(ValueError, match="the tokenizer has no known"):
        Filling(tokenizer_with(*KNOWN_MARKS[1][:2]))
    with pytest.raises(ValueError, match="the tokenizer has no token '<s>': fim_marks must be three of its tokens"):
        Filling(tokenizer_with("<p>", "<m>"), ("<p>", "<m>", "<s>"))


# --- pre-training -----------------------------------------------------------------------------------------------------


def test_a_tenth_is_the_default_of_pre_training(tmp_path):
    assert FIM_SHARE == PretrainConfig(out=tmp_path / "model").fim == 0.1
    sample = list(islice(corpus.documents(5), 10_000))
    assert np.mean(["<|fim_prefix|>" in d.prompt for d in sample]) == pytest.approx(0.1, abs=0.015)
    assert not any("<|fim_prefix|>" in d.prompt for d in islice(corpus.documents(5, fim=0.0), 500))
    with pytest.raises(ValueError, match=r"fim must be in \[0, 0.96\], .*, got 0.97"):
        PretrainConfig(out=tmp_path / "model", fim=0.97)


def test_the_recipe_of_the_shipped_model_still_gives_its_corpus(tmp_path):
    """The card's command names the share it was made with; the stream's hash was taken when it was made."""
    recipe = command(PretrainConfig(out=tmp_path / "model", fim=0.04))
    assert f"`{recipe}`" in (MODEL_FOLDER / "README.md").read_text("utf-8")
    digest = hashlib.sha256()
    for d in islice(corpus.documents(0, fim=0.04), 2000):
        digest.update(f"{d.prompt}\n{d.completion}\n".encode())
    assert digest.hexdigest() == "e9fdfc501b8a6aba8209c1a21d58f31080eba170b884f2102071a642f937a18f"
