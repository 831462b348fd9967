"""Log-probs out of hidden states: tiles change nothing, and no model is read by a head that is not all of it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config
from worlds import four_mdp, lm_policy, tiny_model

from llmgym import heads
from llmgym.heads import chosen_logp, output_head, token_logp
from llmgym.lora import add_lora
from llmgym.tasks import Problem
from llmgym.texts import batch_of, completion_logp, text_of


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("masked", [False, True])
def test_tiles_change_neither_values_nor_gradients(masked, monkeypatch):
    head, hidden, tokens = torch.nn.Linear(5, 9).double(), draw(23, 5), torch.arange(23) % 7
    mask = (draw(23, 7, seed=1) > 0) | (torch.arange(7) == tokens[:, None]) if masked else None
    results = []
    for tile in (1 << 24, 7 * 4, 1):  # all at once, four tokens at a time, one
        monkeypatch.setattr(heads, "TILE", tile)
        leaf = hidden.clone().requires_grad_()
        logp = token_logp(head, leaf, tokens, 7, mask)
        results.append((logp, *torch.autograd.grad(logp.square().sum(), [leaf, *head.parameters()])))
    logits = head(hidden)[:, :7]
    logits = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
    expected = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    for result in results:
        torch.testing.assert_close(result[0], expected, rtol=0, atol=1e-12)
        for one, two in zip(result, results[0], strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_scores_are_read_in_float32(dtype):
    logits, tokens = draw(4, 6).to(dtype), torch.arange(4)
    expected = logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(chosen_logp(logits, tokens, 6), expected)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "qwen3", "neox", "sliding"])
def test_the_head_is_all_that_these_models_do(kind):
    model = tiny_model(kind).eval()
    for one in (model, add_lora(model, 2) if kind == "llama" else model):
        output = one(torch.tensor([[1, 2, 3, 0]]), output_hidden_states=True)
        assert torch.equal(output_head(one)(output.hidden_states[-1]), output.logits)


def test_a_model_that_caps_its_scores_is_read_through_its_own_code():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma2Config(
        vocab_size=4, head_dim=4, num_key_value_heads=2, final_logit_softcapping=0.5, initializer_range=0.4, **sizes
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).double()
    assert output_head(model) is None
    mdp = four_mdp()
    policy = lm_policy(mdp, model)
    batch = batch_of([text_of(mdp, Problem("b="), "ab"), text_of(mdp, Problem("a="), "b")], mdp)
    torch.testing.assert_close(completion_logp(policy, batch), policy.evaluate(batch).logp[:, 0], rtol=0, atol=1e-10)
