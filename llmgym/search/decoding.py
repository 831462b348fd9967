"""Ways of answering, all paid in the same coin: forward tokens of one prefix-shared tree (`TextReader`).

    answers = best_by_reward(draw(reader, states, 16))
    answers = found(search, values)

Whoever picks by reward is told by the task which text is right, as a search is at the ends of its tree; greedy,
sampling, beam search by log-prob and self-consistency are not.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.spaces import MultiDiscrete

from llmgym.search.search import Search
from llmgym.search.text import TextReader
from llmgym.search.text_candidates import action_of, candidates
from llmgym.search.text_values import RolloutValue, rewards_of
from llmgym.search.tree import ROOT
from llmgym.tasks.base import extract_answer
from llmgym.text import TextMDP, TextState


@dataclass(frozen=True)
class Answer:
    """A finished text.

    Attributes:
        state: terminal.
        reward: the task's.
        logp: log-prob of what the policy wrote, nats; NaN where nobody asked.
        is_success: the task's judgement.
    """

    state: TextState
    reward: float
    logp: float
    is_success: bool


def judged(mdp: TextMDP, ends: Sequence[tuple[TextState, float]]) -> list[Answer]:
    """Finished states and their log-probs as answers.

    Raises:
        ScorerFailed: the task could not judge one of them.
    """
    states = [state for state, _ in ends]
    rewards, outcomes = rewards_of(mdp, states), mdp.outcomes(states)
    rows = zip(ends, rewards.tolist(), outcomes, strict=True)
    return [Answer(state, reward, logp, bool(o.is_success)) for (state, logp), reward, o in rows]  # type: ignore[union-attr]


def greedy(reader: TextReader, states: Sequence[TextState]) -> list[Answer]:
    """The most probable token, each time."""
    return judged(reader.mdp, reader.finish(states, deterministic=True))


def draw(reader: TextReader, states: Sequence[TextState], n: int) -> list[list[Answer]]:
    """n samples of each state; one of them is plain sampling.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    answers = judged(reader.mdp, reader.finish([state for state in states for _ in range(n)]))
    return [answers[i : i + n] for i in range(0, len(answers), n)]


def beam_search(reader: TextReader, states: Sequence[TextState], width: int) -> list[list[Answer]]:
    """The texts that a beam of this width ends with, the most probable first.

    Raises:
        ValueError: width below 1.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    whole = copy.copy(reader)  # reads along the same tree
    whole.mdp = as_sequence(reader.mdp)
    return [
        judged(whole.mdp, _written(whole, state, beam.blocks, beam.logp))
        for state, beam in zip(states, candidates(whole, states, width), strict=True)
    ]


def _written(
    reader: TextReader, state: TextState, blocks: Sequence[tuple[int, ...]], logp: np.ndarray
) -> list[tuple[TextState, float]]:
    """The ends of these blocks and their log-probs; where the task replies to EOS, it goes on greedily."""
    ends = [reader.mdp.transition(state, action_of(reader.mdp, block)) for block in blocks]
    after = reader.finish(ends, deterministic=True)
    return [(end, first + more) for (end, more), first in zip(after, logp.tolist(), strict=True)]


def best_by_reward(groups: Sequence[Sequence[Answer]]) -> list[Answer]:
    """Of each group the first of the highest reward: best-of-N with the task as the judge."""
    return [max(group, key=lambda answer: answer.reward) for group in groups]


def best_by_logp(groups: Sequence[Sequence[Answer]]) -> list[Answer]:
    """Of each group the most probable one: best-of-N without a judge, or the result of a beam search."""
    return [max(group, key=lambda answer: answer.logp) for group in groups]


def majority(mdp: TextMDP, groups: Sequence[Sequence[Answer]]) -> list[Answer]:
    """Self-consistency (Wang et al. 2023): an answer of the most frequent content of `<answer>`; the first at a tie."""
    picked = []
    for group in groups:
        contents = [extract_answer(mdp.text(answer.state)) for answer in group]
        picked.append(group[contents.index(Counter(contents).most_common(1)[0][0])])
    return picked


def found(search: Search, reader: TextReader, values: RolloutValue | None = None) -> list[Answer]:
    """What a search answers: the best finished text that it has seen, at an end of its tree or in a rollout.

    Where none of these has the reward `best` of the options, one more is written: down the most visited edges, then
    greedily to the end. It costs tokens of its own, and wins where nothing better was seen.

    Args:
        search: over the reader's MDP, after `run`.
        reader: of the policy.
        values: rollouts whose texts count as seen.
    """
    best = np.inf if search.options.best is None else search.options.best
    groups = [judged(reader.mdp, _seen(search, tree, values)) for tree in range(search.forest.trees)]
    open_ = [tree for tree, group in enumerate(groups) if all(answer.reward < best for answer in group)]
    ends = reader.finish([_most_visited(search, tree) for tree in open_], deterministic=True)
    for tree, end in zip(open_, judged(reader.mdp, [(state, np.nan) for state, _ in ends]), strict=True):
        groups[tree] = [end, *groups[tree]]
    return best_by_reward(groups)


def _seen(search: Search, tree: int, values: RolloutValue | None) -> list[tuple[TextState, float]]:
    states = search.forest.states[tree]
    root, ended = states[ROOT], [state for state in states if search.mdp.terminal(state)]
    rollouts = [] if values is None else values.finished.get(root.tokens[: root.n_prompt], [])
    ended += [end for _, end in rollouts if end.tokens[: len(root.tokens)] == root.tokens]
    return [(state, np.nan) for state in dict.fromkeys(ended)]


def _most_visited(search: Search, tree: int) -> TextState:
    forest, node = search.forest, ROOT
    while True:
        it = forest.nodes[tree, node]
        children = forest.edges["child"][tree, it["first"] : it["first"] + it["degree"]]
        children = children[children >= 0]
        if not len(children):
            return forest.state(tree, node)
        node = int(children[forest.nodes["visits"][tree, children].argmax()])


def as_sequence(mdp: TextMDP) -> TextMDP:
    """The same rules with the whole text as one action."""
    whole = copy.copy(mdp)
    whole.block_size, whole.stop = mdp.max_new_tokens, None
    whole.action_space = MultiDiscrete([mdp.codec.vocab_size] * whole.block_size)
    return whole
