"""Many positions at once are each what it is alone."""

from __future__ import annotations

import numpy as np
import pytest

from llmgym.envs.go.many import GoRows
from llmgym.envs.go.mdp import GoMDP
from llmgym.mdp import MDP
from llmgym.search import Search, SearchOptions
from llmgym.search.evaluators import UniformEvaluator
from llmgym.store import Store

RULES = [
    {"ko": "situational", "planes": ("stones", "history", "colour")},
    {"ko": "simple", "planes": ("liberties", "ko"), "reward": "margin", "suicide": True},
    {"komi": 3, "capture_reward": 0.25},
]


@pytest.mark.parametrize("rules", RULES)
def test_a_store_in_rows_equals_a_list_of_states(rules):
    mdp, rng = GoMDP((4, 5), max_moves=40, **rules), np.random.default_rng(0)
    rows, plain = mdp.store(), Store(mdp)
    for store in (rows, plain):
        store.add([mdp.initial() for _ in range(7)])
    going, ended = np.arange(7), list[str]()
    while going.size:
        actions = [int(rng.choice(np.flatnonzero(mdp.mask(plain[i])))) for i in going]
        before = [hash(rows[i]) for i in range(len(rows))]
        found, expected = rows.step(going, actions), plain.step(going, actions)
        assert before == [hash(rows[i]) for i in range(len(before))] and len(rows) == len(plain)
        for own, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(own, other)
        new = np.arange(len(rows) - len(going), len(rows))
        assert list(rows.rows(new)) == plain.rows(new)
        ended += [plain[i].ending for i in new[found[1]]]
        going = new[~found[1]]
    assert len(ended) == 7 and {*ended} <= {"passes", "moves"}
    kept = np.sort(rng.choice(len(rows), 20, replace=False))
    for store in (rows, plain):
        store.keep(kept)
    assert [rows[i] for i in range(20)] == [plain[i] for i in range(20)] and len(rows) == 20
    rows.clear()
    assert len(rows) == 0


@pytest.mark.parametrize("planes", [("stones", "history", "colour"), ("liberties", "ko")])
def test_views_of_many_positions_equal_those_of_one(planes):
    mdp, rng = GoMDP((4, 5), planes=planes), np.random.default_rng(0)
    store = mdp.store()
    store.add([mdp.initial()] * 5)
    for _ in range(12):
        numbers = np.arange(len(store) - 5, len(store))
        states = store.rows(numbers)
        assert isinstance(states, GoRows) and len(states) == 5
        expected, allowed = MDP.views(mdp, states)
        for given in (states, list(states), states[:]):
            seen, masks = mdp.views(given)
            np.testing.assert_array_equal(seen, np.stack(expected))
            np.testing.assert_array_equal(masks, allowed)
        store.step(numbers, [int(rng.choice(np.flatnonzero(mask[:-1]))) for mask in masks])


@pytest.mark.parametrize("rule", ["puct", "gumbel"])
def test_a_search_finds_the_same_whatever_keeps_its_states(rule):
    class Plain(GoMDP):
        def store(self):
            return Store(self)

    mdp, found = GoMDP(4, komi=0.5), []
    states = [mdp.initial(options={"moves": moves}) for moves in ([], [5, 10], [5, 16])]
    for rules in (mdp, Plain(4, komi=0.5)):
        search = Search(rules, UniformEvaluator(rules), SearchOptions(150, rule, discount=-1.0, best=1.0, leaves=2))
        search.start(states, np.random.default_rng(0))
        search.run()
        search.advance([3, 3, 3], np.random.default_rng(0))
        found.append((search.run(), search.forest.states))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_array_equal(one.visits, other.visits)
        np.testing.assert_array_equal(one.values, other.values)
    assert found[0][1] == found[1][1]


def test_a_state_that_was_read_stays_as_it_is():
    mdp = GoMDP(3)
    store = mdp.store()
    store.add([mdp.initial()])
    first = store[0]
    store.clear()
    store.add([mdp.transition(mdp.initial(), 4)])
    assert first == mdp.initial() and store[0] != first


def test_an_illegal_action_among_others_loses():
    mdp = GoMDP(3)
    store = mdp.store()
    store.add([mdp.transition(mdp.initial(), 4)])
    rewards, terminals = store.step(np.array([0, 0]), [4, 0])
    assert store[1].ending == "illegal" and store[2].ending is None
    assert rewards.tolist() == [-1.0, 0.0] and terminals.tolist() == [True, False]
