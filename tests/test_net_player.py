"""`alphazero`: a network that searches, as a player."""

from __future__ import annotations

import pickle
import time

import gymnasium as gym
import numpy as np
import pytest

from llmgym.agents import MCTS
from llmgym.commands.players import make_player
from llmgym.envs.go.leaf_playouts import LeafPlayouts
from llmgym.envs.go.match import Entrant, Tally, draw_openings, play_match
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.net_player import NetSearcher, NetSettings
from llmgym.envs.go.replay import new_game
from llmgym.envs.go.rollout_search import RolloutSearch
from llmgym.nets import NetPolicy
from llmgym.search import SearchOptions
from llmgym.search.evaluators import NetEvaluator
from llmgym.search.mixed import MixedEvaluator


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Folders of agents that know nothing yet: 3x3, for the result and for the margin."""
    folder = tmp_path_factory.mktemp("nets")
    for reward in ("result", "margin"):
        env = gym.make("llmgym/Go-v0", board_size=3, komi=0.5, reward=reward)
        MCTS("ResNetPolicy", env, seed=0, device="cpu").save(folder / reward)
    return folder


def player(folder, reward="result", **settings):
    return NetSearcher(NetSettings(policy=str(folder / reward), device="cpu", **settings))


def game_at(mdp, *moves):
    state = mdp.initial()
    for move in moves:
        state = mdp.transition(state, move)
    return new_game(mdp)._replace(state=state, moves=moves)


def test_a_result_is_enough_or_all_points_are_wanted(untrained):
    """Black is ahead and White has passed: to pass wins; for the margin White's stone is to be taken first."""
    mdp, rng = GoMDP(3, komi=0.5), np.random.default_rng(0)
    game = game_at(mdp, 4, 8, 5, 9)  # Black centre and side, White in a corner, a pass
    assert mdp.score(mdp.transition(game.state, 9)) > 0
    assert player(untrained).move(game, rng) == 9
    assert player(untrained, "margin", simulations=8000, leaves=16).move(game, rng) != 9


def test_thinking_time_ends_and_moves_are_legal(untrained):
    mdp, rng = GoMDP(3, komi=-20.0), np.random.default_rng(0)
    slow = player(untrained, "margin", seconds=0.3)
    slow.start(game_at(mdp))
    started = time.perf_counter()
    assert mdp.mask(mdp.initial())[slow.move(game_at(mdp), rng)]
    assert 0.15 < time.perf_counter() - started < 1.5
    assert slow._search.forest.root_visits()[0] > 100


def test_the_same_move_again_and_in_a_copy(untrained):
    mdp, rng = GoMDP(3, komi=0.5), np.random.default_rng(0)
    for rule in ("puct", "gumbel"):
        one = player(untrained, rule=rule, simulations=30, reuse=False)
        two = pickle.loads(pickle.dumps(one))
        assert len({who.move(game_at(mdp, 4), rng) for who in (one, one, two)}) == 1


def test_the_tree_is_kept_between_moves(untrained):
    """What is known below the move and its answer counts on; a game elsewhere, a new one, or reuse=False begins one."""
    mdp, rng = GoMDP(3, komi=0.5), np.random.default_rng(0)
    kept, anew = (player(untrained, simulations=400, early=False, reuse=reuse) for reuse in (True, False))
    for who in (kept, anew):
        who.start(game_at(mdp))
        first = who.move(game_at(mdp), rng)
        answer = next(action for action in range(9) if action != first)
        who.move(game_at(mdp, first, answer), rng)
    carried = kept._search.forest.root_visits()[0]
    assert carried > 400 == anew._search.forest.root_visits()[0]
    kept.move(game_at(mdp, 0, 8), rng)
    assert kept._search.forest.root_visits()[0] == 400
    kept.start(game_at(mdp))
    kept.move(game_at(mdp, 0, 8), rng)
    assert kept._search.forest.root_visits()[0] == 400
    kept.move(game_at(mdp, 0, 8), rng)  # asked again: it goes on
    assert kept._search.forest.root_visits()[0] == 800


def test_a_search_ends_where_the_rest_could_not_change_the_move(untrained):
    mdp, rng, ended = GoMDP(3, komi=0.5), np.random.default_rng(0), 0
    for moves in ((), (4,), (4, 8), (4, 8, 5)):
        whole, early = (player(untrained, simulations=400, leaves=1, early=early) for early in (False, True))
        assert whole.move(game_at(mdp, *moves), rng) == early.move(game_at(mdp, *moves), rng)
        spent = [who._search.forest.root_visits()[0] for who in (whole, early)]
        assert spent[1] <= spent[0] <= 401
        ended += spent[1] < spent[0]
    assert ended > 0


def test_it_resigns_where_it_is_lost(untrained):
    """3x3 is Black's: White, whose moves all lose, gives up once the search has seen it, and not without `resign`."""
    mdp, rng = GoMDP(3, komi=0.5), np.random.default_rng(0)
    lost = game_at(mdp, 4, 1, 3, 9, 5)  # White has one stone that cannot live
    assert player(untrained, simulations=2000, resign=0.05, mix=1.0).move(lost, rng) is None
    assert player(untrained, simulations=2000, mix=1.0).move(lost, rng) is not None
    with pytest.raises(ValueError, match=r"resign must be 0 for a network that has learnt margins, got 0\.1"):
        player(untrained, "margin", resign=0.1).check(mdp)


def test_leaves_are_worth_a_mix_of_network_and_playouts(untrained):
    mdp = GoMDP(3, komi=0.5)
    states = [game_at(mdp, *moves).state for moves in ((), (4,), (4, 8, 5))]
    network = NetEvaluator(mdp, NetPolicy.load(untrained / "result", mdp, device="cpu"))
    own, played = network(states), LeafPlayouts(mdp, 3, seed=1)(states)
    for mix in (0.0, 0.25, 1.0):
        told = MixedEvaluator(network, mix, playout=LeafPlayouts(mdp, 3, seed=1))(states)
        np.testing.assert_allclose(told.values, (1 - mix) * own.values + mix * played)
        assert np.array_equal(told.logits, own.logits)
    assert player(untrained, mix=1.0, simulations=300).move(game_at(mdp), np.random.default_rng(0)) == 4


def test_playouts_of_leaves_are_those_of_the_search():
    """Their mean is that of whole games, seen by who moves; a finished game is what it is."""
    mdp = GoMDP(5, komi=0.5)
    black, white = game_at(mdp, 12).state, game_at(mdp, 12, 25).state
    for heavy in (False, True):
        means = LeafPlayouts(mdp, 4000, heavy=heavy, seed=0)([black, white])
        options = SearchOptions(simulations=4000, rule="uct", best=None)
        searched = RolloutSearch(mdp, options, playouts="heavy" if heavy else "light", seed=1)
        child = max(searched.run(game_at(mdp).state, 4000).values)  # of Black's best first move, at least the centre
        assert means[0] < 0 < means[1] and abs(means[0]) <= child + 0.1
    rng = np.random.default_rng(0)
    games = [mdp.outcome(mdp.rollout(white, rng), 0) for _ in range(4000)]
    assert LeafPlayouts(mdp, 4000, heavy=False)([white])[0] == pytest.approx(np.mean(games), abs=0.06)
    over = game_at(mdp, 12, 25, 25).state
    assert LeafPlayouts(mdp, 2)([over])[0] == mdp.outcome(over, over.to_play)


@pytest.mark.parametrize("size", [5, 7, 9])
def test_the_networks_that_llmgym_brings_are_strong(size):
    mdp = GoMDP(size, komi=0.5)
    entrants = [Entrant("net", make_player("alphazero:simulations=16")), Entrant("light", make_player("light"))]
    games = list(play_match(entrants, draw_openings(mdp, 5, seed=0, random_moves=2), 10))
    assert Tally(games).score(0) == 1.0


def test_what_it_refuses(untrained, tmp_path):
    for words, sentence in {
        "alphazero:simulations=0": "simulations must be at least 1|simulations must be .*0",
        "alphazero:force=3": "alphazero has no option 'force': choose policy, simulations",
        "alphazero:leaves=2,leaves=3": "leaves of alphazero is given twice",
        "alphazero:leaves=two": "leaves of alphazero must be a whole number, got 'two'",
        "alphazero:rule=uct": "rule must be one of puct, gumbel, got 'uct'",
        "alphazero:rule=gumbel,seconds=1": "seconds need rule=puct",
        "alphazero:mix=2": r"mix must be in \[0, 1\], got 2.0",
        "alphazero:bfloat16=maybe": "bfloat16 of alphazero must be true or false, got 'maybe'",
        "alphazero:resign=1": r"resign must be in \[0, 1\), got 1.0",
        "alphazero:seconds=-1": "seconds must be at least 0, got -1.0",
        f"alphazero:policy={tmp_path}": "holds no policy for Go: policy.json is missing",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            make_player(words)
    with pytest.raises(ValueError, match="was trained on 3x3 and cannot play on 5x5"):
        player(untrained).check(GoMDP(5))
    with pytest.raises(ValueError, match=r"llmgym brings networks for .*, none for 11x11"):
        make_player("alphazero").check(GoMDP(11))
