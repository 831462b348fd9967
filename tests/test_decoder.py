"""Incremental decoding against a full forward pass, whatever happens to rows and weights in between."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from worlds import KINDS, Bigram, tiny_model

from llmgym import forward
from llmgym.decoder import IncrementalDecoder
from llmgym.forward import CachedForward, FullForward, FusedLlama

V, WIDTH = 8, 24
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def decoder_of(kind, dtype=torch.float64, seed=0):
    return IncrementalDecoder(tiny_model(kind, V, seed, dtype).eval())


def texts_to_arrays(texts):
    tokens = np.full((len(texts), WIDTH), 7, np.int64)  # what lies beyond the length is never read
    for i, text in enumerate(texts):
        tokens[i, : len(text)] = text
    return tokens, np.array([len(t) for t in texts])


@torch.no_grad()
def full_pass(model, text):
    """Logits and hidden state after a text that stands alone, by Hugging Face's forward without a cache."""
    output = model(torch.tensor([text]), use_cache=False, output_hidden_states=True)
    return output.logits[0, -1], output.hidden_states[-1][0, -1]


def check(decoder, rows, texts):
    prediction = decoder.predict(np.array(rows), *texts_to_arrays(texts))
    for i, text in enumerate(texts):
        logits, hidden = full_pass(decoder.model, text)
        tolerance = TOLERANCE[logits.dtype]
        assert (prediction.logits[i] - logits).abs().max() <= tolerance
        assert (prediction.hidden[i] - hidden).abs().max() <= tolerance


def change(rng, texts, row):
    """What may happen to a row between two calls."""
    text = texts[row]
    new = rng.integers(V, size=rng.integers(1, 4)).tolist()
    kind = rng.choice(["step", "step", "step", "more", "restore", "same", "other", "copy", "branch"])
    if kind == "copy":
        return list(texts[rng.integers(len(texts))])
    changed = {
        "step": text + new[:1],
        "more": text + new,
        "restore": text[: rng.integers(1, len(text) + 1)],
        "branch": text[: rng.integers(0, len(text))] + new[:1],
        "same": text,
        "other": new,
    }[kind]
    return changed if len(changed) <= WIDTH else changed[:2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_a_full_pass_after_restoring_reordering_dropping_and_returning(kind, dtype):
    play(decoder_of(kind, dtype))


def play(decoder, steps=25):
    """Any changes to any rows, each answer against the full pass."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(V, size=rng.integers(1, 9)).tolist() for _ in range(5)]
    for _ in range(steps):
        rows = rng.permutation(5)[: rng.integers(1, 6)]
        texts = [change(rng, texts, row) if row in rows else texts[row] for row in range(5)]
        check(decoder, rows, [texts[row] for row in rows])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "neox", "sliding"])
def test_equal_prompts_computed_once_part_ways_correctly(kind):
    decoder = decoder_of(kind)
    check(decoder, range(4), [[1, 2, 3]] * 4)
    assert decoder.counters.forward_tokens == 3
    check(decoder, range(4), [[1, 2, 3, i] for i in range(4)])
    check(decoder, [3, 1], [[1, 2, 3, 3, 5], [1, 2, 3, 1, 6]])
    check(decoder, [4, 1, 5], [[6, 6], [1, 2, 3, 1, 6, 0], [6, 6]])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "sliding"])
def test_a_row_that_moves_to_another_slot_takes_its_length_along(kind):
    """Not that of the longer row whose place it takes, even where the new tokens are those of the padding."""
    decoder = decoder_of(kind)
    check(decoder, [0, 1], [[1, 2, 3, 4, 5, 6], [1, 2]])
    check(decoder, [1], [[1, 2, 7, 7, 3]])


def steps(model):
    """Every way in which weights change while rows are held."""
    parameters = list(model.parameters())
    fused = torch.optim.AdamW(parameters, lr=0.05, fused=True)
    return {
        "fused AdamW": fused.step,
        "AdamW": torch.optim.AdamW(parameters, lr=0.05).step,
        "SGD": torch.optim.SGD(parameters, lr=0.05).step,
        "in place": lambda: [p.mul_(1.1) for p in parameters],
    }


@pytest.mark.parametrize("way", ["fused AdamW", "AdamW", "SGD", "in place"])
@pytest.mark.parametrize(("kind", "dtype"), [("gpt2", torch.float64), ("llama", torch.float32)])
def test_nothing_of_old_parameters_survives_a_step(kind, dtype, way):
    decoder = decoder_of(kind, dtype)
    step = steps(decoder.model)[way]
    texts = [[1, 2, 3, 4], [5, 6]]
    for _ in range(3):
        before = decoder.predict(np.arange(2), *texts_to_arrays(texts)).logits
        for parameter in decoder.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        with torch.no_grad():
            step()
        texts = [[*t, 7] for t in texts]
        check(decoder, range(2), texts)
        assert (
            decoder.predict(np.arange(2), *texts_to_arrays([t[:-1] for t in texts])).logits - before
        ).abs().max() > 1e-3


def test_fused_optimisers_leave_version_counters_alone():
    """Why optimiser steps are counted; should this change, the counting can go."""
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer, version = torch.optim.AdamW([parameter], fused=True), parameter._version
    optimizer.step()
    assert parameter._version == version


def test_what_leaves_no_trace_needs_clear():
    decoder = decoder_of("llama", torch.float32)
    check(decoder, [0], [[1, 2, 3]])
    for parameter in decoder.model.parameters():
        parameter.data.mul_(1.1)
    decoder.clear()
    check(decoder, [0], [[1, 2, 3, 4]])


def test_only_new_tokens_are_fed():
    decoder = decoder_of("llama")
    counters = decoder.counters

    def cost(rows, texts):
        before = counters.as_dict()
        decoder.predict(np.array(rows), *texts_to_arrays(texts))
        return tuple(counters.as_dict()[k] - before[k] for k in ("forward_passes", "forward_tokens", "cache_hits"))

    assert cost([0, 1], [[1, 2, 3], [4, 5]]) == (1, 5, 0)
    assert cost([0, 1], [[1, 2, 3, 4], [4, 5, 6]]) == (1, 2, 5)
    assert cost([0], [[1, 2, 3, 4, 5]]) == (1, 1, 4)  # row 1 costs nothing
    assert cost([1, 0], [[4, 5, 6, 7], [1, 2, 3, 4, 5]]) == (2, 5, 4)  # a row that comes back is computed afresh, apart
    assert cost([0], [[1, 2, 0]]) == (1, 1, 2)  # restored to a prefix that is held
    assert cost([0], [[1, 2, 0]]) == (1, 1, 2)  # the last token is always fed: it gives the logits


@pytest.mark.parametrize("kind", ["gpt2", "llama", "sliding"])
def test_an_interrupted_pass_leaves_nothing_wrong_behind(kind, monkeypatch):
    """Ctrl-C in the second layer: the first layer has already written over the old entries."""
    decoder = decoder_of(kind)
    check(decoder, [0, 1], [[1, 2, 3, 4], [5, 6]])
    real = torch.nn.functional.scaled_dot_product_attention
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoder.predict(np.arange(2), *texts_to_arrays([[1, 2, 7, 7, 7], [5, 0, 0]]))
    monkeypatch.undo()
    check(decoder, [0, 1], [[1, 2, 3, 4, 5], [5, 6, 7]])


def test_rows_keep_their_order_in_the_answer():
    decoder = decoder_of("llama")
    texts = [[1, 2], [3, 4, 5], [6]]
    there = decoder.predict(np.arange(3), *texts_to_arrays(texts)).logits
    back = decoder.predict(np.array([2, 1, 0]), *texts_to_arrays(texts[::-1])).logits
    torch.testing.assert_close(there, back.flip(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_long_text_outgrows_the_first_cache(kind):
    decoder, rng = decoder_of(kind), np.random.default_rng(0)
    texts = rng.integers(V, size=(2, 60))
    for length in (3, 40, 60):
        prediction = decoder.predict(np.arange(2), texts, np.array([length, length // 2]))
        for row, end in ((0, length), (1, length // 2)):
            logits, _ = full_pass(decoder.model, texts[row, :end].tolist())
            assert (prediction.logits[row] - logits).abs().max() <= 1e-10


# --- which form -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("llama", FusedLlama),
        ("qwen2", FusedLlama),
        ("gpt2", CachedForward),
        ("qwen3", CachedForward),
        ("neox", CachedForward),
        ("sliding", FullForward),
    ],
)
def test_each_architecture_takes_the_fastest_form_that_is_exact(kind, form):
    assert type(forward.make_forward(tiny_model(kind, dtype=torch.float32))) is form


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_only_float32_is_fused(dtype):
    assert type(forward.make_forward(tiny_model("llama", dtype=dtype))) is CachedForward


def test_anything_causal_works():
    table = torch.randn(V, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    decoder = IncrementalDecoder(Bigram(table))
    prediction = decoder.predict(np.array([3, 5]), *texts_to_arrays([[1, 2, 3], [4]]))
    assert torch.equal(prediction.logits, table[[3, 4]])


def test_large_models_run_their_own_layers(monkeypatch):
    monkeypatch.setattr("llmgym.fused.FUSE_BELOW", 0)
    assert type(forward.make_forward(tiny_model("llama", dtype=torch.float32))) is CachedForward


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_fused_form_is_exact_where_the_norms_are(kind, monkeypatch):
    """Hugging Face's norms round to float32 in a float64 model; with norms that do not, 1e-10 holds as well."""
    for norm in (LlamaRMSNorm, Qwen2RMSNorm):
        exact = lambda self, x: F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)  # noqa: E731
        monkeypatch.setattr(norm, "forward", exact)
    decoder = decoder_of(kind)
    decoder.forward = FusedLlama(decoder.model)
    play(decoder)


def test_a_model_whose_layers_were_replaced_runs_its_own_forward():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = tiny_model("llama", V, dtype=torch.float32).eval()
    old = model.model.layers[0].self_attn.q_proj
    new = Doubled(old.in_features, old.out_features, bias=False)
    model.model.layers[0].self_attn.q_proj = new
    assert type(forward.make_forward(model)) is CachedForward
    check(IncrementalDecoder(model), [0, 1], [[1, 2, 3], [4, 5]])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_bfloat16_gives_float32_logits_near_those_of_a_full_pass(kind):
    decoder = decoder_of(kind, torch.bfloat16)
    for texts in ([[1, 2, 3], [4, 5]], [[1, 2, 3, 6], [4, 5, 0]]):
        prediction = decoder.predict(np.arange(2), *texts_to_arrays(texts))
        assert prediction.logits.dtype == torch.float32
        for row, text in enumerate(texts):
            logits, _ = full_pass(decoder.model, text)
            assert (prediction.logits[row] - logits.float()).abs().max() < 0.1
