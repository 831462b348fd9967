"""The compiled search with playouts, against the search core in Python and against itself."""

from __future__ import annotations

import numpy as np
import pytest

from llmgym.compiled import kernel
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.playout import write_light_mask
from llmgym.envs.go.rollout_search import RolloutSearch
from llmgym.mdp import NoLegalAction
from llmgym.search import Proposal, Search, SearchOptions


@kernel
def light_mask(ints, longs, mask):
    write_light_mask(ints, longs, mask)


def static(mdp):
    """An evaluator in Python that says what the compiled driver does for "static"."""

    def evaluate(states):
        proposals = []
        for state in states:
            mask = np.empty(mdp.rules.points + 1, np.bool_)
            light_mask(state.ints, state.longs, mask)
            actions = np.flatnonzero(mask).tolist()
            value = float(np.sign(mdp.score(state))) * (1 - 2 * state.to_play)
            proposals.append(Proposal(actions, np.ones(len(actions)), value, complete=False))
        return proposals

    return evaluate


def opened(mdp, seed, moves):
    rng, state = np.random.default_rng(seed), mdp.initial()
    for _ in range(moves):
        state = mdp.transition(state, mdp.light_move(state, rng))
    return state


@pytest.mark.parametrize("rule", ["puct", "uct"])
@pytest.mark.parametrize("best", [None, 1.0])
@pytest.mark.parametrize(("size", "moves"), [(3, 0), (4, 5), (5, 9)])
def test_the_compiled_driver_equals_the_one_in_python(rule, best, size, moves):
    mdp = GoMDP(size, komi=0.5)
    state = opened(mdp, size, moves)
    options = SearchOptions(simulations=300, rule=rule, discount=-1.0, best=best)
    compiled = RolloutSearch(mdp, options, playouts="static").run(state)
    search = Search(mdp, static(mdp), options)
    search.start([state])
    (plain,) = search.run()
    assert compiled.actions == plain.actions
    np.testing.assert_array_equal(compiled.visits, plain.visits)
    np.testing.assert_allclose(compiled.values, plain.values)
    assert compiled.visits.sum() == 300


@pytest.mark.parametrize("rule", ["uct", "rave", "puct"])
@pytest.mark.parametrize("threads", [1, 2])
def test_visits_sum_and_the_same_seed_gives_the_same_search(rule, threads):
    mdp = GoMDP(7)
    options = SearchOptions(simulations=401, rule=rule, best=1.0)
    results = [RolloutSearch(mdp, options, threads=threads, seed=5).run(opened(mdp, 1, 10)) for _ in range(2)]
    assert results[0].visits.sum() == 401
    np.testing.assert_array_equal(results[0].visits, results[1].visits)
    other = RolloutSearch(mdp, options, threads=threads, seed=6).run(opened(mdp, 1, 10))
    assert (results[0].visits != other.visits).any()


def test_a_tree_is_kept_along_the_moves_that_are_played():
    mdp = GoMDP(5, komi=0.5)
    options = SearchOptions(simulations=300, rule="uct", best=1.0)
    searcher = RolloutSearch(mdp, options, playouts="static")
    state = mdp.initial()
    first = searcher.run(state)
    after = mdp.transition(state, first.action)
    carried = int(first.visits[first.index]) - 1
    second = searcher.run(after)
    assert second.visits.sum() == 300 + carried > 300
    fresh = RolloutSearch(mdp, options, playouts="static").run(after, 300 + carried)
    np.testing.assert_array_equal(second.visits, fresh.visits)
    elsewhere = searcher.run(opened(mdp, 9, 6))
    assert elsewhere.visits.sum() == 300


@pytest.mark.parametrize("rule", ["uct", "rave"])
def test_the_centre_of_3x3_is_found(rule):
    """Black wins by 9 from the centre and by 3 from a side, so that with komi 6 only the centre is right."""
    result = RolloutSearch(GoMDP(3, komi=6), SearchOptions(simulations=5000, rule=rule, best=1.0)).run(
        GoMDP(3).initial()
    )
    assert result.action == 4 and result.value > 0.5


def test_bad_input_is_named():
    mdp = GoMDP(5)
    over = mdp.transition(mdp.transition(mdp.initial(), 25), 25)
    with pytest.raises(NoLegalAction, match="not terminal"):
        RolloutSearch(mdp).run(over)
    with pytest.raises(ValueError, match="playouts"):
        RolloutSearch(mdp, playouts="wild")
    with pytest.raises(ValueError, match="rule"):
        RolloutSearch(mdp, SearchOptions(rule="gumbel"))
    with pytest.raises(ValueError, match="simulations"):
        RolloutSearch(mdp).run(mdp.initial(), 0)
