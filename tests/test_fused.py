"""The fused form of small Llama models as a scorer: values and gradients are those of Hugging Face's own code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from worlds import tiny_model

from llmgym import kernels
from llmgym.forward import CachedForward
from llmgym.fused import FusedLlama, PrefixTree
from llmgym.kernels import read_off, rows_of, swiglu, unit

# Rows 0, 3 and 4 begin alike, rows 0 and 4 are equal throughout; what follows a row's last place is padding.
TEXTS = [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 0, 0], [2, 2, 2, 1, 1, 0], [1, 2, 3, 0, 5, 6], [1, 2, 3, 4, 5, 6]]
TOKENS = torch.tensor(TEXTS)
ROWS, PLACES = torch.tensor([0, 0, 1, 2, 2, 3, 4]), torch.tensor([2, 4, 1, 0, 4, 4, 5])


@pytest.fixture
def exact_norms(monkeypatch):
    """Hugging Face's norms round to float32 even in a float64 model; these do not."""
    for norm in (LlamaRMSNorm, Qwen2RMSNorm):
        exact = lambda self, x: F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)  # noqa: E731
        monkeypatch.setattr(norm, "forward", exact)


def scored(form, model):
    """Logits, hidden states and the gradient of a function of both."""
    logits, hidden = form(model).score(TOKENS, ROWS, PLACES, hidden=True)
    loss = logits.log_softmax(-1)[:, 3].sum() + hidden.sin().sum()
    return logits, hidden, torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_scores_and_gradients_are_those_of_the_model(kind, exact_norms):
    model = tiny_model(kind, 8, dtype=torch.float64).eval()
    ours, theirs = scored(FusedLlama, model), scored(CachedForward, model)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(ours[1][ROWS, PLACES], theirs[1][ROWS, PLACES], rtol=0, atol=1e-10)
    for name, a, b in zip(dict(model.named_parameters()), ours[2], theirs[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=name)
        assert a.abs().sum() > 0, name


def test_scoring_after_acting_reads_the_same_table(exact_norms):
    model = tiny_model("llama", 8, dtype=torch.float64).eval()
    form = FusedLlama(model)
    with torch.inference_mode():
        form.refresh()
        acted, _ = form(TOKENS[:3, :3].numpy(), torch.arange(3).repeat(3, 1).numpy(), None)
    logits, _ = form.score(TOKENS, torch.arange(3), torch.full((3,), 2), hidden=False)
    logits.sum().backward()
    torch.testing.assert_close(logits, acted, rtol=0, atol=1e-10)


def test_equal_beginnings_are_one_node():
    tree = PrefixTree(TOKENS, ROWS, PLACES)
    # Row 0 has 6 places, as row 4; rows 1 and 2 have 2 and 5 of their own, row 3 adds 2 after three shared ones.
    assert len(tree.ids) == 6 + 2 + 5 + 2
    assert torch.equal(tree.node[0, :5], tree.node[4, :5]) and torch.equal(tree.node[0, :3], tree.node[3, :3])
    assert tree.node[0, 4] != tree.node[3, 4]  # the same token at the same place, after another one
    assert torch.equal(tree.ids[tree.node[3, :5]], TOKENS[3, :5])
    assert torch.equal(tree.depth[tree.node[3, :5]], torch.arange(5))


def test_gradients_written_out_are_those_of_the_formulas():
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    root = x.new_tensor(0.3)
    torch.testing.assert_close(unit(x, root), x / (x.square().sum(-1, keepdim=True) + 0.09).sqrt())
    torch.testing.assert_close(swiglu(x), F.silu(x[:, :4]) * x[:, 4:])
    assert torch.autograd.gradcheck(lambda x: unit(x, root), x)
    assert torch.autograd.gradcheck(swiglu, x)
    index = torch.tensor([[2, 0], [2, 1]])
    torch.testing.assert_close(rows_of(x.view(3, 2, 4), index), x.view(3, 2, 4)[index])
    assert torch.autograd.gradcheck(lambda x: rows_of(x.view(3, 2, 4), index), x)
    with torch.no_grad():  # acting
        torch.testing.assert_close(unit(x, root), x / (x.square().sum(-1, keepdim=True) + 0.09).sqrt())


def test_only_some_places_are_asked_for(exact_norms):
    model = tiny_model("llama", 8, dtype=torch.float64).eval()
    rows, places = torch.tensor([2, 0, 4]), torch.tensor([3, 2, 2])  # two of them are one node
    ours, theirs = (form(model).score(TOKENS, rows, places, hidden=True) for form in (FusedLlama, CachedForward))
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-10)
    assert torch.equal(ours[1][1], ours[1][2])


@pytest.mark.parametrize("split", [1, 2, 99])
def test_log_probs_and_entropies_are_read_off(split, monkeypatch):
    monkeypatch.setattr(kernels, "_slices", lambda x: [slice(i, i + split) for i in range(0, len(x), split)])
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [0, 0, 0, 1, 0]]).bool()
    tokens = torch.tensor([0, 2, 3])

    def ours(x, entropy=True):
        return read_off(x.masked_fill(~mask, -torch.inf), tokens, entropy=entropy)

    def formulas(x):
        p = torch.distributions.Categorical(logits=x.masked_fill(~mask, -torch.inf))
        return p.log_prob(tokens), torch.where(mask, -p.probs * p.logits.masked_fill(~mask, 0.0), 0.0).sum(-1)

    torch.testing.assert_close(ours(logits), formulas(logits))
    assert torch.autograd.gradcheck(ours, logits)
    for i in range(2):  # one of the two alone
        a, b = (torch.autograd.grad(f(logits)[i].sin().sum(), logits)[0] for f in (ours, formulas))
        torch.testing.assert_close(a, b)
    alone, none = ours(logits, entropy=False)
    assert torch.equal(alone, ours(logits)[0]) and none is None
