"""Search over language: one tree of texts, three levels, exact answers on a vocabulary of four."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from toys import Failing, Replying, no_repeat, toy_tokenizer
from worlds import KINDS, four_mdp, lm_policy, tiny_model

from llmgym.evaluation import complete
from llmgym.mdp import ScorerFailed
from llmgym.models import load_model
from llmgym.oracle import Oracle
from llmgym.policy import LMPolicy
from llmgym.search import Search, SearchError, SearchOptions
from llmgym.search.decoding import as_sequence, beam_search, best_by_logp, best_by_reward, draw, found, greedy, majority
from llmgym.search.prefix import PrefixReader
from llmgym.search.text import TextEvaluator, TextReader
from llmgym.search.text_candidates import candidates
from llmgym.search.text_values import HeadValue, Mixed, RolloutValue, fit_head
from llmgym.tasks import Problem
from llmgym.text import TextMDP

PROBLEM = Problem("ab=", "ab")
LEVELS: dict[str, dict[str, Any]] = {
    "token": {"block_size": 1},
    "block": {"block_size": 2},
    "line": {"block_size": 3, "stop": "b"},  # four letters have no newline: a line ends with b
}


def zero(states):
    """The least that a value function can say."""
    return np.zeros(len(states))


def searched(mdp, value=zero, k=4, policy=None, simulations=30, sampled=False, seed=0, **options):
    policy = policy or lm_policy(mdp)
    reader = TextReader(policy, mdp, seed=seed)
    value = value(reader) if isinstance(value, type) else value
    search = Search(mdp, TextEvaluator(reader, k, value, sampled=sampled), SearchOptions(**options))
    search.start([mdp.start(PROBLEM)])
    return reader, search, search.run(simulations)[0]


def prefixes(texts):
    """Distinct prefixes of at least one token."""
    return {text[:length] for text in texts for length in range(1, len(text) + 1)}


def uncached(model, text):
    with torch.no_grad():
        out = model(torch.tensor([text]), output_hidden_states=True)
    return out.logits[0, -1], out.hidden_states[-1][0, -1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sliding"])
def test_a_tree_of_texts_is_read_as_without_a_cache_and_every_prefix_once(kind, monkeypatch):
    monkeypatch.setattr("llmgym.search.prefix.GATHERED", 40)  # several passes a call
    model, rng, known = tiny_model(kind).eval(), np.random.default_rng(0), set()
    reader = PrefixReader(model)
    for _ in range(4):
        texts = [tuple(rng.integers(0, 4, rng.integers(1, 8)).tolist()) for _ in range(12)]
        prediction = reader.read(texts)
        known |= prefixes(texts)
        assert reader.counters.forward_tokens == len(reader) == len(known)
        for row, text in enumerate(texts):
            logits, hidden = uncached(model, text)
            torch.testing.assert_close(prediction.logits[row], logits, rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(prediction.hidden[row], hidden, rtol=1e-11, atol=1e-11)


def test_the_embedded_model_is_read_alike_through_its_fused_form():
    model = load_model("tiny", device="cpu")
    texts = [(20, 30, 40), (20, 30, 40, 50, 60), (20, 31), (20, 31)]
    reader = PrefixReader(model)
    prediction = reader.read(texts)
    assert reader.counters.forward_tokens == 6 and reader.counters.forward_passes == 1
    for row, text in enumerate(texts):
        torch.testing.assert_close(prediction.logits[row], uncached(model, text)[0], rtol=1e-4, atol=1e-4)


def test_other_parameters_empty_the_tree_and_a_model_with_a_window_is_refused():
    model = tiny_model().eval()
    reader = PrefixReader(model)
    before = reader.read([(1, 2)]).logits
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    after = reader.read([(1, 2)]).logits
    assert not torch.equal(before, after) and reader.counters.forward_tokens == 4 and len(reader) == 2
    torch.testing.assert_close(after[0], uncached(model, (1, 2))[0])
    with pytest.raises(ValueError, match="full attention"):
        PrefixReader(tiny_model("sliding"))


@pytest.mark.parametrize("level", LEVELS)
def test_a_node_costs_its_own_tokens_only(level):
    mdp = four_mdp(**LEVELS[level])
    reader, search, _ = searched(mdp, k=2)
    nodes = [state.tokens for state in search.forest.states[0] if not mdp.terminal(state)]
    if level == "token":
        assert reader.counters.forward_tokens == len(mdp.start(PROBLEM).tokens) + len(nodes) - 1
    proposed = candidates(reader, [s for s in search.forest.states[0] if not mdp.terminal(s)], 2)
    assert reader.counters.forward_tokens == len(reader.texts)  # asking again was free
    needed = prefixes(nodes) | prefixes(
        node + block[:-1] for node, c in zip(nodes, proposed, strict=True) for block in c.blocks
    )
    # Beams that were dropped have been read too.
    assert len(needed) <= len(reader.texts) <= len(needed) + (0 if level == "token" else 2 * len(nodes))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("optimal", {"rule": "puct"}),
        ("optimal", {"rule": "uct"}),
        ("policy", {"rule": "uct", "c_uct": 10.0}),
        # The optimum is improbable here, and what PUCT explores is what the policy would do.
        ("policy", {"rule": "puct", "c_init": 20.0}),
    ],
)
def test_the_optimal_text_is_found_and_proven(level, kind, options):
    mdp = four_mdp(**LEVELS[level])
    policy = lm_policy(mdp)
    oracle = Oracle(mdp, PROBLEM, policy)
    returns, best = oracle.returns.tolist(), float(oracle.returns.max())
    optimal: dict[Any, float] = {}
    for episode, value in zip(oracle.episodes, returns, strict=True):
        for step in episode:
            optimal[step.state] = max(value, optimal.get(step.state, -np.inf))
    values = optimal if kind == "optimal" else oracle.values()
    exact = lambda states: [values[state] for state in states]  # noqa: E731
    reader, search, result = searched(mdp, exact, 64, policy, 400, best=best, **options)
    assert result.exact and result.value == best
    (answer,) = found(search, reader)
    assert answer.reward == best


@pytest.mark.parametrize("level", LEVELS)
def test_levels_reach_the_same_texts(level):
    mdp = four_mdp(**LEVELS[level])
    _, search, _ = searched(mdp, k=64, simulations=2000, rule="uct", c_uct=100.0, best=10.0)
    ends = {state for state in search.forest.states[0] if mdp.terminal(state)}
    oracle = Oracle(four_mdp(), PROBLEM, lm_policy(mdp))
    assert ends == {episode[-1].next_state for episode in oracle.episodes} and len(ends) == 40


@pytest.mark.parametrize("level", LEVELS)
def test_a_task_that_replies_is_searched_and_written_on(level):
    mdp = four_mdp(**LEVELS[level], task=Replying(), max_new_tokens=5)
    reader, search, _ = searched(mdp, RolloutValue, k=3, simulations=200, rule="uct", c_uct=10.0)
    ends = [state for state in search.forest.states[0] if mdp.terminal(state)]
    samples, beam = draw(reader, [mdp.start(PROBLEM)], 50)[0], beam_search(reader, [mdp.start(PROBLEM)], 20)[0]
    ends += [answer.state for answer in samples + beam]
    assert all(end.finish_reason in ("eos", "length") for end in ends)
    assert sum(not all(end.chosen[end.n_prompt :]) for end in ends) > 20  # the task has had its say
    assert len({answer.state for answer in beam}) == len(beam) == 20
    (end, logp), *_ = reader.finish([mdp.start(PROBLEM)], deterministic=True)
    said = {answer.state: answer.logp for answer in beam}
    assert end not in said or said[end] == pytest.approx(logp)


@pytest.mark.parametrize("level", LEVELS)
def test_all_blocks_are_proposed_with_their_probabilities_where_k_allows(level):
    mdp = four_mdp(**LEVELS[level])
    policy = lm_policy(mdp)
    oracle, start = Oracle(mdp, PROBLEM, policy), mdp.start(PROBLEM)
    reader = TextReader(policy, mdp)
    (all_,) = candidates(reader, [start], 100)
    firsts = {episode[0].tokens for episode in oracle.episodes}
    assert set(all_.blocks) == firsts and all_.complete
    assert np.exp(all_.logp).sum() == pytest.approx(1.0) and (np.diff(all_.logp) <= 0).all()
    (few,) = candidates(reader, [start], len(firsts) - 1)
    assert not few.complete and len(few.blocks) == len(firsts) - 1


@pytest.mark.parametrize("level", ["token", "block"])
def test_sampled_candidates_are_draws_without_replacement(level):
    mdp = four_mdp(**LEVELS[level])
    reader, start = TextReader(lm_policy(mdp), mdp), mdp.start(PROBLEM)
    (all_,) = candidates(reader, [start], 100)
    p, n = dict(zip(all_.blocks, np.exp(all_.logp), strict=True)), 4000
    drawn = candidates(reader, [start] * n, 2, reader.generator)
    assert all(len(set(c.blocks)) == 2 for c in drawn)
    logp = dict(zip(all_.blocks, all_.logp, strict=True))
    assert all(c.logp[0] == pytest.approx(logp[c.blocks[0]]) for c in drawn[:50])
    for block, share in p.items():  # first with p, second with p given that another was first
        second = sum(other * share / (1 - other) for name, other in p.items() if name != block)
        for place, expected in enumerate((share, second)):
            seen = np.mean([c.blocks[place] == block for c in drawn])
            assert seen == pytest.approx(expected, abs=4.5 * np.sqrt(expected * (1 - expected) / n) + 1e-9)


@pytest.mark.parametrize("level", LEVELS)
def test_masks_are_respected(level):
    def never_equals_after_a(state, tokens):
        return np.array([True, True, True, (state.tokens + tuple(tokens))[-1] != 1])

    mdp = four_mdp(**LEVELS[level], banned_tokens=["b"], min_new_tokens=1, constraint=never_equals_after_a)
    _, search, _ = searched(mdp, RolloutValue, k=8, simulations=100)
    states = search.forest.states[0]
    states += [end for _, end in reader_finished(search)]
    assert {state.finish_reason for state in states} <= {None, "eos", "length"}
    texts = [mdp.text(state) for state in states]
    assert not any("b" in text or "a=" in text for text in texts) and len(set(texts)) > 4
    assert search.forest.root_value(0)[0] == pytest.approx(search.run(1)[0].value, abs=0.2)


def reader_finished(search):
    """Texts that the rollouts of a search have finished."""
    return [pair for pairs in search.evaluate.value.finished.values() for pair in pairs]


def test_a_mask_narrows_the_candidates_of_a_token():
    mdp = TextMDP(task=Failing(), tokenizer=toy_tokenizer(), max_new_tokens=4, constraint=no_repeat)
    reader = TextReader(lm_policy(mdp), mdp)
    (found_,) = candidates(reader, [mdp.start(Problem("a", "a"))], 100)
    assert len(found_.blocks) == 7 and (2,) not in found_.blocks and found_.complete


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_seed_gives_the_same_result(level):
    mdp = four_mdp(**LEVELS[level])
    runs = [searched(mdp, RolloutValue, k=2, sampled=True, seed=seed, rule="uct") for seed in (3, 3, 4)]
    (_, a, one), (_, b, two), (_, c, _) = runs
    assert a.forest.states == b.forest.states and one.value == two.value
    np.testing.assert_array_equal(one.visits, two.visits)
    assert a.forest.states != c.forest.states


def test_bad_input_is_a_sentence():
    mdp = four_mdp()
    policy = lm_policy(mdp)
    reader = TextReader(policy, mdp)
    for wrong in (
        lambda: TextEvaluator(reader, 0, zero),
        lambda: RolloutValue(reader, 0),
        lambda: draw(reader, [mdp.start(PROBLEM)], 0),
        lambda: beam_search(reader, [mdp.start(PROBLEM)], 0),
        lambda: SearchOptions(simulations=0),
        lambda: searched(mdp, simulations=0),
    ):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            wrong()
    with pytest.raises(ValueError, match="value_head=True"):
        HeadValue(reader)
    with pytest.raises(ValueError, match="finite numbers"):
        Mixed({zero: np.nan})
    with pytest.raises(SearchError, match="finite number, got nan"):
        searched(mdp, lambda states: np.full(len(states), np.nan))
    with pytest.raises(SearchError, match="must give 1 numbers"):
        searched(mdp, lambda states: [0.0, 0.0])
    with pytest.raises(ValueError, match="share a tokenizer"):
        TextReader(policy, TextMDP())


def test_a_scorer_that_fails_is_told():
    mdp = TextMDP(task=Failing(), tokenizer=toy_tokenizer(), max_new_tokens=6, banned_tokens=["<eos>"])
    reader = TextReader(lm_policy(mdp), mdp)
    with pytest.raises(ScorerFailed):
        RolloutValue(reader, 20)([mdp.start(Problem("a", "a"))])


def test_greedy_is_what_the_policy_does_greedily_and_a_wide_beam_knows_every_text():
    mdp = four_mdp()
    policy, start = lm_policy(mdp), mdp.start(PROBLEM)
    reader, oracle = TextReader(policy, mdp), Oracle(mdp, PROBLEM, policy)
    (text,) = complete(policy, mdp, [PROBLEM])
    (answer,) = greedy(reader, [start])
    assert mdp.text(answer.state) == text.text and answer.logp == pytest.approx(text.logp)
    (beam,) = beam_search(reader, [start], 100)
    assert {a.state for a in beam} == {episode[-1].next_state for episode in oracle.episodes}
    assert best_by_reward([beam])[0].reward == pytest.approx(float(oracle.returns.max()))
    assert best_by_logp([beam])[0].logp == pytest.approx(oracle.logp().max().item()) == beam[0].logp


def test_samples_have_the_policys_mean_and_the_majority_is_its_most_frequent_answer():
    mdp = four_mdp(block_size=2)
    policy = lm_policy(mdp)
    reader, oracle = TextReader(policy, mdp), Oracle(mdp, PROBLEM, policy)
    (samples,) = draw(reader, [mdp.start(PROBLEM)], 3000)
    rewards = np.array([a.reward for a in samples])
    expected = oracle.expected_return().item()
    assert rewards.mean() == pytest.approx(expected, abs=4 * rewards.std() / len(rewards) ** 0.5)
    assert reader.counters.forward_tokens == len(reader.texts) <= 3 + 3 + 9  # prompt, then every prefix but the last
    p: dict[str, float] = {}
    for episode, share in zip(oracle.episodes, oracle.logp().exp().tolist(), strict=True):
        text = mdp.text(episode[-1].next_state).strip()
        p[text] = p.get(text, 0.0) + share
    assert mdp.text(majority(mdp, [samples])[0].state) == max(p, key=p.__getitem__)


def test_rollouts_and_a_fitted_head_estimate_the_value_of_the_policy():
    mdp = four_mdp()
    policy = lm_policy(mdp, value_head=True)
    reader, start = TextReader(policy, mdp), mdp.start(PROBLEM)
    oracle = Oracle(mdp, PROBLEM, policy)
    rollouts, head = RolloutValue(reader, 4000), HeadValue(reader)
    assert rollouts([start])[0] == pytest.approx(oracle.value(start), abs=0.05)
    assert head([start])[0] == 0.0
    assert 0 < fit_head(reader, [start], n=4000, ridge=1e-6) <= 1
    before, after = head([start])[0], Mixed({head: 0.5, zero: 2.0})([start])[0]
    assert before == pytest.approx(oracle.value(start), abs=0.05) and after == before / 2


def test_a_separate_value_model_reads_a_tree_of_its_own():
    mdp = four_mdp()
    policy = lm_policy(mdp, value_head="separate")
    reader = TextReader(policy, mdp)
    assert HeadValue(reader)([mdp.start(PROBLEM)])[0] == 0.0
    assert len(reader.value_texts) == 3 and len(reader.texts) == 0 and policy.counters.forward_tokens == 3


def test_a_sequence_is_one_action_of_the_same_rules():
    mdp = four_mdp(block_size=2, stop="b")
    whole = as_sequence(mdp)
    assert whole.block_size == 3 and whole.stop is None and (mdp.block_size, mdp.stop is None) == (2, False)
    assert whole.transition(whole.start(PROBLEM), (1, 0, 0)).finish_reason == "eos"
    assert whole.action_space.contains(np.array([1, 0, 0]))


def test_the_search_beats_one_sample_for_the_same_tokens():
    """The thin path, end to end, on the embedded model."""
    mdp = TextMDP(max_new_tokens=40)
    policy = LMPolicy("tiny", mdp, seed=0, device="cpu")
    reader = TextReader(policy, mdp)
    rng = np.random.default_rng(0)
    states = [mdp.initial(rng) for _ in range(20)]
    values = RolloutValue(reader)
    search = Search(mdp, TextEvaluator(reader, 4, values), SearchOptions(best=1.0))
    search.start(states)
    search.run(16)
    solved = np.mean([answer.is_success for answer in found(search, reader, values)])
    spent = policy.counters.forward_tokens / len(states)
    one = np.mean([answer.is_success for answer in greedy(reader, states)])
    assert solved >= 0.9 > one and spent < 120


@pytest.mark.parametrize("level", LEVELS)
def test_played_move_by_move_a_tree_is_kept_and_nothing_is_read_twice(level):
    mdp = four_mdp(**LEVELS[level])
    policy = lm_policy(mdp)
    oracle = Oracle(mdp, PROBLEM, policy)
    values, best = oracle.values(), oracle.returns.max().item()
    exact = lambda states: [values[state] for state in states]  # noqa: E731
    reader, search, result = searched(mdp, exact, 64, policy, 400, rule="uct", c_uct=10.0, best=best)
    state = search.forest.roots[0]
    while True:
        after = mdp.transition(state, result.action)
        if mdp.terminal(after):
            break
        search.advance([result.index])
        assert search.forest.roots[0] == after
        (result,), state = search.run(50), after
    assert mdp.reward(state, result.action, after) == best
    assert policy.counters.forward_tokens == len(reader.texts)


def test_several_trees_and_leaves_share_one_tree_of_texts():
    mdp = four_mdp(block_size=2)
    policy = lm_policy(mdp)
    reader = TextReader(policy, mdp)
    search = Search(mdp, TextEvaluator(reader, 3, zero), SearchOptions(leaves=4, rule="uct"))
    search.start([mdp.start(PROBLEM), mdp.start(Problem("aa=", "a")), mdp.start(PROBLEM)])
    one, other, same = search.run(20)
    assert one.visits.sum() == other.visits.sum() == same.visits.sum() == 20
    np.testing.assert_array_equal(one.visits, same.visits)  # the same problem was paid once
    texts = [state.tokens for states in search.forest.states for state in states if not mdp.terminal(state)]
    assert (
        prefixes(texts) <= set(map(tuple, known_texts(reader))) and len(reader.texts) == reader.counters.forward_tokens
    )


def known_texts(reader):
    """Every text of the tree."""
    tokens = {child: (key >> 32, key & 0xFFFFFFFF) for key, child in reader.texts._children.items()}
    texts: dict[int, tuple[int, ...]] = {-1: ()}
    for node in sorted(tokens):
        parent, token = tokens[node]
        texts[node] = (*texts[parent], token)
    return [text for text in texts.values() if text]
