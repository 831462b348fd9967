"""The compiled search with playouts, against the search core in Python and against itself."""

from __future__ import annotations

import time

import numpy as np
import pytest

from llmgym.compiled import kernel
from llmgym.envs.go.cells import action_of
from llmgym.envs.go.heavy import heavy_cell, pattern_table
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.rollout_search import DEFAULT, RolloutSearch
from llmgym.envs.go.rollouts import write_candidates
from llmgym.mdp import NoLegalAction
from llmgym.search import Proposal, Search, SearchOptions


@kernel
def candidates_of(ints, longs, every, mask):
    write_candidates(ints, longs, every, mask)


def static(mdp, every=False):
    """An evaluator in Python that says what the compiled driver does for "static"."""

    def evaluate(states):
        proposals = []
        for state in states:
            mask = np.empty(mdp.rules.points + 1, np.bool_)
            candidates_of(state.ints, state.longs, every, mask)
            actions = np.flatnonzero(mask).tolist()
            value = float(np.sign(mdp.score(state))) * (1 - 2 * state.to_play)
            proposals.append(Proposal(actions, np.ones(len(actions)), value, complete=every))
        return proposals

    return evaluate


def opened(mdp, seed, moves):
    rng, state = np.random.default_rng(seed), mdp.initial()
    for _ in range(moves):
        state = mdp.transition(state, mdp.light_move(state, rng))
    return state


@pytest.mark.parametrize("rule", ["puct", "uct"])
@pytest.mark.parametrize("best", [None, 1.0])
@pytest.mark.parametrize("candidates", ["sensible", "all"])
@pytest.mark.parametrize(("size", "moves"), [(3, 0), (2, 4), (4, 5), (5, 9)])
def test_the_compiled_driver_equals_the_one_in_python(rule, best, candidates, size, moves):
    mdp = GoMDP(size, komi=0.5)
    state = opened(mdp, size, moves)
    options = SearchOptions(simulations=300, rule=rule, discount=-1.0, best=best)
    compiled = RolloutSearch(mdp, options, playouts="static", candidates=candidates).run(state)
    search = Search(mdp, static(mdp, candidates == "all"), options)
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
    for _ in range(6):  # a whole line of play, each time from a tree that was cut out of the last
        if not mdp.terminal(after):
            after = mdp.transition(after, second.action)
            carried = int(second.visits[second.index]) - 1
            second = searcher.run(after)
            assert second.visits.sum() == 300 + carried
            fresh = RolloutSearch(mdp, options, playouts="static").run(after, 300 + carried)
            np.testing.assert_array_equal(second.visits, fresh.visits)
    elsewhere = searcher.run(opened(mdp, 9, 6))
    assert elsewhere.visits.sum() == 300


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rule", ["uct", "rave"])
def test_a_search_that_ends_early_plays_the_same_move(rule, threads):
    """And what it leaves out could not have changed it: the lead is larger than the simulations that are missing."""
    mdp, missing = GoMDP(5, komi=0.5), []
    options = SearchOptions(simulations=500, rule=rule, best=1.0)
    for seed in range(30):
        state = opened(mdp, seed, seed % 20)
        searchers = [RolloutSearch(mdp, options, threads=threads, seed=seed) for _ in range(2)]
        full, early = searchers[0].run(state), searchers[1].run(state, early=True)
        left = 500 - early.visits.sum()
        if full.exact:
            continue
        assert early.action == full.action and (early.visits <= full.visits).all()
        lead = early.visits[early.index] - np.delete(early.visits, early.index).max()
        assert left == 0 or lead > left
        missing.append(left)
    assert len(missing) > 10 and np.mean(missing) > 10


def test_seconds_end_early_where_one_move_is_far_ahead():
    """That is the centre of 3x3 with komi 6, but for which Black loses."""
    mdp = GoMDP(3, komi=6)
    searcher = RolloutSearch(mdp, DEFAULT, playouts="heavy")
    searcher.run(mdp.initial(), 10)  # compiled, or read from the disk
    searcher.forget()
    began = time.perf_counter()
    result = searcher.run(mdp.initial(), seconds=2, early=True)
    spent = time.perf_counter() - began
    assert result.action == 4 and not result.exact and 2 / 32 < spent < 1.8


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
    with pytest.raises(ValueError, match="candidates"):
        RolloutSearch(mdp, candidates="some")
    with pytest.raises(ValueError, match="rule"):
        RolloutSearch(mdp, SearchOptions(rule="gumbel"))
    with pytest.raises(ValueError, match="simulations"):
        RolloutSearch(mdp).run(mdp.initial(), 0)


def test_heavy_playouts_save_take_and_answer():
    """From one position, many times: what is in atari is saved or taken far more often than by chance."""
    mdp, rng = GoMDP(9), np.random.default_rng(0)
    state = mdp.position(
        """
        . . . . . . . . .
        . . . . . . . . .
        . . . X . . . . .
        . . X O X . . . .
        . . . O . . . . .
        . . . X . . . . .
        . . . . . . . . .
        . . . . . . . . .
        . . . . . . . . .""",
        to_play=0,
    )
    # Black at D5 leaves the white stones one liberty, E5.
    state = mdp.transition(state, 4 * 9 + 2)
    answers = np.bincount([heavy_reply(state, rng) for _ in range(300)], minlength=82)
    assert answers.argmax() == 4 * 9 + 4 and answers.max() > 200


@kernel
def heavy_move(ints, longs, seed, choices):
    cell = heavy_cell(ints, longs, seed, choices)
    return action_of(ints, cell) if cell > 0 else -1


def heavy_reply(state, rng):
    """A move of a heavy playout."""
    seed = rng.integers(0, 2**64, 1, np.uint64)
    action = heavy_move(state.ints.copy(), state.longs.copy(), seed, np.empty(16, np.int64))
    return action if action >= 0 else state.rows * state.cols


def test_heavy_playouts_end_and_know_no_illegal_move():
    mdp, rng = GoMDP(7), np.random.default_rng(1)
    for seed in range(20):
        state = opened(mdp, seed, 5)
        while not mdp.terminal(state):
            action = heavy_reply(state, rng)
            assert mdp.mask(state)[action]
            state = mdp.transition(state, action)
        assert state.ending in ("passes", "moves")


def test_the_pattern_table_is_the_same_for_both_colours_and_all_symmetries():
    table = pattern_table()
    assert 0.05 < table.mean() < 0.5
    for code in np.random.default_rng(0).integers(0, 1 << 16, 300):
        cells = [(code >> (2 * k)) & 3 for k in range(8)]
        swapped = [(0, 2, 1, 3)[c] for c in cells]
        square = np.array([*cells[:4], -1, *cells[4:]]).reshape(3, 3)
        turned = np.rot90(square).ravel()
        for other in (swapped, [c for c in turned if c >= 0]):
            assert table[code] == table[sum(int(c) << (2 * k) for k, c in enumerate(other))]
