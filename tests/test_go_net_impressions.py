"""What a network thinks of moves, in the trees of a search with playouts."""

from __future__ import annotations

import numpy as np
import pytest

from llmgym.commands.players import make_player
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.net_impressions import NetImpressions, reached
from llmgym.envs.go.replay import new_game
from llmgym.envs.go.rollout_search import DEFAULT, RolloutSearch
from llmgym.envs.go.trained import net_evaluator, shipped_folder
from llmgym.search import LegalActions, SearchOptions
from llmgym.search.tree import ROOT


class Says:
    """A network that likes one action of every position, and remembers what it was shown."""

    def __init__(self, mdp, action=None):
        self.mdp, self.action, self.shown = mdp, action, []

    def __call__(self, states):
        self.shown += states
        logits = np.zeros((len(states), self.mdp.rules.points + 1), np.float32)
        if self.action is not None:
            logits[:, self.action] = 20.0
        return LegalActions(np.stack([self.mdp.mask(state) for state in states]), logits, np.zeros(len(states)))


def searcher(mdp, network=None, **named):
    return RolloutSearch(mdp, DEFAULT, playouts="light", network=network, seed=3, **named)


def test_a_network_of_no_weight_changes_nothing():
    mdp = GoMDP(5, komi=0.5)
    plain, shown = searcher(mdp), searcher(mdp, NetImpressions(Says(mdp), weight=0.0, after=5))
    state = mdp.initial()
    for _ in range(3):  # the tree goes along
        one, two = plain.run(state, 700), shown.run(state, 700)
        assert np.array_equal(one.visits, two.visits) and np.array_equal(one.values, two.values, equal_nan=True)
        state = mdp.transition(state, one.action)


@pytest.mark.parametrize("threads", [1, 2])
def test_positions_are_shown_once_and_when_they_have_been_visited(threads):
    mdp, after = GoMDP(5, komi=0.5), 12
    says = Says(mdp)
    search = searcher(mdp, NetImpressions(says, 50.0, after), threads=threads)
    found, root = search.run(mdp.initial(), 1500), mdp.initial()
    assert found.visits.sum() == 1500
    assert len(says.shown) > 10 * threads and says.shown.count(root) == threads
    assert (search.nodes["state"] == 1).sum() == len(says.shown)
    for nodes, edges, counts in zip(search.nodes, search.edges, search.counts, strict=True):
        nodes = nodes[: counts[0]]
        told = nodes["state"] == 1
        assert told[ROOT] and (nodes["visits"][told] >= after).all()
        waiting = (nodes["visits"] >= after) & (nodes["degree"] > 0) & ~told
        assert nodes["visits"][waiting].max(initial=0) < after + 200  # no more than came in the last slice
        for node in np.flatnonzero(told):
            assert reached(mdp, root, nodes, edges, int(node)) in says.shown
    before = len(says.shown)
    search.run(mdp.transition(root, found.action), 10)  # what is known below goes along: only what is new is shown
    assert len(says.shown) - before <= 8 * threads


def test_a_move_counts_as_simulations_that_were_won():
    """weight times the root of its probability among the candidates, which fill no eye and are not illegal."""
    mdp = GoMDP(3, komi=0.5)
    search = searcher(mdp, prior=0.0)
    search.run(mdp.initial(), 2)
    nodes, edges, count = search.nodes[0], search.edges[0], int(search.counts[0, 0])
    before = edges[: nodes["degree"][ROOT]].copy()
    logits = np.log(np.array([[0.4, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 1.0]]))
    NetImpressions(lambda states: LegalActions(None, logits, None), weight=100.0)(
        mdp, mdp.initial(), nodes, edges, count
    )
    after = edges[: nodes["degree"][ROOT]]
    won = np.round(100 * np.sqrt(np.exp(logits[0]) / 2))[after["action"]]
    assert np.array_equal(after["all_visits"] - before["all_visits"], won)
    np.testing.assert_allclose(after["all_total"] - before["all_total"], won)


def test_a_move_that_the_network_likes_is_tried():
    mdp = GoMDP(7, komi=0.5)
    visits = [
        searcher(mdp, NetImpressions(Says(mdp, action), 1000.0, 5)).run(mdp.initial(), 300).visits[10]
        for action in (None, 10)
    ]
    assert visits[1] > 5 * visits[0] + 50


def test_only_rave_hears_a_network():
    mdp = GoMDP(5)
    with pytest.raises(ValueError, match="a network needs the rule 'rave', which takes its impressions, got 'uct'"):
        RolloutSearch(mdp, SearchOptions(rule="uct"), network=NetImpressions(Says(mdp)))


def test_the_players_that_take_a_network(tmp_path):
    """With what llmgym brings for 5x5, Black is sure of the centre; the network's own planes are used."""
    player, mdp = make_player("mcts:network=shipped,simulations=200,device=cpu"), GoMDP(5, komi=0.5)
    player.check(mdp)
    evaluate = net_evaluator(shipped_folder(mdp.rules), mdp.rules, bfloat16=False, device="cpu")
    assert int(np.argmax(evaluate([mdp.initial()]).logits)) == 12
    assert player.move(new_game(mdp), np.random.default_rng(0)) == 12
    with pytest.raises(ValueError, match="llmgym brings networks for 5x5, 7x7, 9x9, none for 11x11"):
        player.check(GoMDP(11))
    for words, sentence in {
        "mcts:network=shipped,rule=uct": "a network needs rule=rave, which takes its impressions, got 'uct'",
        "mcts:network_after=0": "network_after must be",
        "mcts:network_weight=-1": "network_weight must be at least 0, got -1.0",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            make_player(words)
    with pytest.raises(ValueError, match=r"holds no policy for Go: policy\.json is missing"):
        make_player(f"mcts:network={tmp_path}").check(mdp)
