"""AlphaGo's stages: what each reads, learns and leaves, against exact values on boards of a few points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmgym.agents.alphago.games import duel
from llmgym.agents.alphago.nets import load_net, save_net
from llmgym.agents.alphago.player import AlphaGoPlayer, AlphaGoSettings, FastPlayouts
from llmgym.agents.alphago.policy import (
    PlayedMoves,
    PolicyConfig,
    fit_policy,
    positions,
    score_policy,
    score_uniform,
    turned,
)
from llmgym.agents.alphago.records import Moves, load_records
from llmgym.agents.alphago.reinforce import PoolConfig, Reinforce, accumulate, advantages, copied, play
from llmgym.agents.alphago.value import Outcomes, ValueConfig, ValueGames, all_values, error, fit_value
from llmgym.envs.go.fast_policy import FEATURES, NEAR, FastPolicy
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import Game
from llmgym.envs.go.record import VOID
from llmgym.envs.go.replay import new_game, record_of
from llmgym.envs.go.sgf import save_sgf
from llmgym.envs.go.symmetry import Turns
from llmgym.nets import NetPolicy
from llmgym.search import Proposals
from llmgym.search.evaluators import NetEvaluator
from llmgym.search.mixed import MixedEvaluator, NetValue

RNG = np.random.default_rng


def game_of(mdp: GoMDP, actions: list[int]) -> Game:
    """A game of these moves."""
    state = mdp.initial()
    for action in actions:
        state = mdp.transition(state, action)
    return new_game(mdp)._replace(moves=tuple(actions), state=state)


def near_games(mdp: GoMDP, games: int, seed: int) -> list[Moves]:
    """Games of a policy that likes to play beside the last move: there is something to learn."""
    weights = np.zeros(FEATURES)
    weights[NEAR : NEAR + 2] = 3.0
    fast, rng, found = FastPolicy(weights), RNG(seed), []
    for _ in range(games):
        state, states, actions = mdp.initial(), [], []
        while not mdp.terminal(state):
            states.append(state)
            actions.append(fast.move(state, rng))
            state = mdp.transition(state, actions[-1])
        found.append(Moves(states, actions))
    return found


# --- records --------------------------------------------------------------------------------------------------------


def test_records_are_different_games_without_their_openings(tmp_path):
    mdp = GoMDP(5, komi=6.5)
    for name, actions in (("a", [12, 7, 25, 3]), ("deep/b", [12, 7, 25, 3]), ("deep/c", [3, 4, 25, 25]), ("d", [1])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_sgf(record_of(game_of(mdp, actions)), tmp_path / f"{name}.sgf")
    void = replace(record_of(game_of(mdp, [0, 1, 2])), result="Void", ending=VOID)
    save_sgf(void, tmp_path / "e.sgf")
    records = load_records([str(tmp_path)], skip=2)
    assert [game.actions for game in records.games] == [[25, 3], [25, 25]]
    assert [game.states[0].n_moves for game in records.games] == [2, 2]
    assert records.rules == {"board_size": 5, "komi": 6.5, "ko": "positional", "suicide": False}
    assert records.left_out == 3  # repeated, too short, void
    train, held_out = records.split(0.5, RNG(0))
    assert len(train) == len(held_out) == 1 and train[0].actions != held_out[0].actions
    with pytest.raises(ValueError, match=r"held_out must be a share in \(0, 1\) that leaves games, got 1 of 2"):
        records.split(1, RNG(0))


def test_bad_records_are_told_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="records must be SGF files or folders with some, got"):
        load_records([str(tmp_path)])
    save_sgf(record_of(game_of(GoMDP(5), [1])), tmp_path / "a.sgf")
    with pytest.raises(ValueError, match=r"none of 1 games in .* can be learnt from"):
        load_records([str(tmp_path)], skip=1)
    save_sgf(record_of(game_of(GoMDP(4), [1])), tmp_path / "b.sgf")
    with pytest.raises(ValueError, match=r"one board size, got \(4, 4\), \(5, 5\)"):
        load_records([str(tmp_path)])


def test_a_game_against_the_rules_is_left_out(tmp_path):
    taken_twice = game_of(GoMDP(3), [0, 1, 2])._replace(moves=(0, 1, 1))
    save_sgf(record_of(taken_twice), tmp_path / "a.sgf")
    save_sgf(record_of(game_of(GoMDP(3), [0, 1])), tmp_path / "b.sgf")
    records = load_records([str(tmp_path / "a.sgf"), str(tmp_path / "b.sgf")])
    assert records.left_out == 1 and [game.actions for game in records.games] == [[0, 1]]


# --- policy ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    """A policy network fitted to games, and the data."""
    mdp = GoMDP(5, planes=("stones", "history", "colour"))
    train, held_out = (positions(mdp, near_games(mdp, n, seed)) for n, seed in ((40, 0), (10, 1)))
    policy, told = NetPolicy("ResNetPolicy", mdp, hidden=(16, 16), seed=0, device="cpu"), []
    fit_policy(policy, train, held_out, PolicyConfig(epochs=6, batch_size=64), RNG(0), lambda m: told.append(m))
    return mdp, policy, train, held_out, told


def test_it_predicts_moves_of_games_it_has_not_seen(fitted):
    _, policy, _, held_out, told = fitted
    score, uniform = score_policy(policy, held_out), score_uniform(held_out.masks)
    assert score["accuracy"] > 2 * uniform["accuracy"] and score["held_out_loss"] < uniform["held_out_loss"] - 0.3
    assert [metrics["epoch"] for metrics in told] == [1, 2, 3, 4, 5, 6]
    assert {name: told[-1][name] for name in score} == pytest.approx(score)


def test_scores_are_those_of_a_plain_loop(fitted):
    _, policy, _, held_out, _ = fitted
    few = PlayedMoves(*(array[:20] for array in held_out))
    right, loss = 0, 0.0
    for planes, mask, action in zip(*few, strict=True):
        with torch.no_grad():
            outputs = policy.net.outputs(torch.from_numpy(planes[None]).float())[0].numpy()
        shares = np.where(mask, np.exp(outputs), 0.0)
        right, loss = right + int(shares.argmax() == action), loss - np.log(shares[action] / shares.sum())
    score = score_policy(policy, few)
    assert score["accuracy"] == right / 20 and score["held_out_loss"] == pytest.approx(loss / 20, rel=1e-5)
    assert score_uniform(few.masks)["accuracy"] == pytest.approx(np.mean([1 / m.sum() for m in few.masks]))


def test_a_handful_of_games_is_learnt_by_heart():
    mdp = GoMDP(4, planes=("stones", "history", "colour"))
    data = positions(mdp, near_games(mdp, 3, 5))
    policy = NetPolicy("ResNetPolicy", mdp, hidden=(32, 32), seed=0, device="cpu")
    config = PolicyConfig(epochs=60, batch_size=16, learning_rate=4e-3)
    fit_policy(policy, data, data, config, RNG(0), lambda metrics: metrics["accuracy"] < 0.85)
    assert score_policy(policy, data)["accuracy"] >= 0.85


def test_a_turned_position_keeps_its_move():
    planes = np.zeros((24, 1, 3, 4), np.int8)
    actions = np.tile(np.arange(12), 2)
    planes.reshape(24, 12)[np.arange(24), actions] = 1  # a stone where the move was played
    masks = np.concatenate([planes.reshape(24, 12) > 0, np.ones((24, 1), bool)], 1)
    data = turned(PlayedMoves(planes, masks, actions), Turns(3, 4, RNG(0)).draw(24))
    np.testing.assert_array_equal(data.planes.reshape(24, 12).argmax(1), data.actions)
    assert data.masks[np.arange(24), data.actions].all() and (data.actions != actions).any()


def test_the_last_epoch_may_be_the_first(fitted):
    mdp, policy, train, held_out, _ = fitted
    told = []
    few = PlayedMoves(*(array[:10] for array in train))
    fit_policy(copied(policy, mdp, 0), few, held_out, PolicyConfig(), RNG(0), lambda m: bool(told.append(m)))
    assert len(told) == 1


# --- reinforce ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    """Three points in a row, four moves a game at most; a learner and an opponent that are not uniform."""
    mdp = GoMDP((1, 3), komi=0.5, max_moves=4, planes=("stones", "colour"))
    nets = [NetPolicy("MlpPolicy", mdp, hidden=(6,), dtype="float64", seed=seed) for seed in (1, 2)]
    with torch.no_grad():
        for net in nets:
            net.net.actor.layers[-1].weight *= 100
    return mdp, *nets


def probabilities(mdp: GoMDP, net: NetPolicy, state) -> torch.Tensor:
    planes, mask = mdp.observation(state), torch.from_numpy(mdp.mask(state))
    outputs = net.net.outputs(torch.from_numpy(planes.reshape(1, -1)).double())[0]
    return outputs.masked_fill(~mask, -torch.inf).softmax(0)


def expected(mdp: GoMDP, players: list[NetPolicy], state, mover: int) -> torch.Tensor:
    """Expected result of player `mover`, by enumeration; differentiable."""
    if mdp.terminal(state):
        return torch.tensor(mdp.outcome(state, mover), dtype=torch.float64)
    shares = probabilities(mdp, players[mdp.player(state)], state)
    legal = np.flatnonzero(mdp.mask(state)).tolist()
    return sum(shares[a] * expected(mdp, players, mdp.transition(state, a), mover) for a in legal)  # type: ignore[return-value]


def flat(net: NetPolicy) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in net.net.actor.parameters()])


@pytest.mark.parametrize("by_network", [False, True])
def test_the_gradient_is_that_of_the_expected_result(toy, by_network):
    mdp, learner, opponent = toy
    learner.net.zero_grad()
    start = mdp.initial()
    # Half of the games with each colour.
    value = (expected(mdp, [learner, opponent], start, 0) + expected(mdp, [opponent, learner], start, 1)) / 2
    (-value).backward()
    exact = flat(learner).clone()
    estimates = []
    baseline = (lambda planes: all_values(opponent, planes).astype(np.float64)) if by_network else None
    for seed in range(40):
        learner.seed(seed), opponent.seed(1000 + seed)
        learner.net.zero_grad()
        played = play(mdp, learner, opponent, 500)
        accumulate(learner, played, advantages(played, baseline))
        estimates.append(flat(learner).clone())
    learner.net.zero_grad()
    found = torch.stack(estimates)
    mean, deviation = found.mean(0), found.std(0) / len(found) ** 0.5
    assert exact.norm() > 0.05 and ((mean - exact).abs() <= 4.5 * deviation + 1e-9).all()
    assert (mean - exact).norm() < 0.2 * exact.norm()


def test_play_tells_both_colours_and_their_results(toy):
    mdp, learner, opponent = toy
    played = play(mdp, learner, opponent, 6)
    assert played.black.tolist() == [True, False] * 3
    assert set(played.games.tolist()) == set(range(6)) and set(np.abs(played.results)) == {1.0}
    colours = played.positions.planes[:, -1, 0, 0]  # everywhere 1 if Black is to move
    np.testing.assert_array_equal(colours, played.black[played.games])
    assert played.positions.masks[np.arange(len(played.games)), played.positions.actions].all()


def test_the_mean_of_the_others_is_the_baseline(toy):
    mdp, learner, opponent = toy
    played = play(mdp, learner, opponent, 8)._replace(results=np.array([1.0, 1, -1, -1, 1, -1, 1, -1]))
    rows = {0: 1 - 1 / 3, 2: -1 - 3 / 3, 1: 1 + 3 / 3, 3: -1 + 1 / 3}
    told = advantages(played, None)
    for game, value in rows.items():
        assert told[played.games == game] == pytest.approx(value)


def test_it_beats_the_network_it_began_as():
    mdp = GoMDP((2, 3), komi=0.5, max_moves=8, planes=("stones", "colour"))
    policy = NetPolicy("MlpPolicy", mdp, hidden=(16,), seed=1)
    first = copied(policy, mdp, 2)
    before = duel(mdp, policy, first, 2000)
    config = PoolConfig(updates=40, games=64, learning_rate=0.01, match_every=20, match_games=50)
    stage, told = Reinforce(mdp, policy, first, config, RNG(0)), []
    stage.learn(lambda metrics: told.append(metrics))
    after = stage.match(2000)
    assert before["interval"][0] < 0.5 < before["interval"][1] and after["interval"][0] > 0.65
    assert len(stage.pool) == 5 and [m["pool"] for m in told] == [1] * 10 + [2] * 10 + [3] * 10 + [4] * 10
    assert [m["update"] for m in told if "score" in m] == [20]
    for name, weights in first.net.state_dict().items():
        assert torch.equal(weights, stage.pool[0][name])  # the pool begins with what it began as


# --- value ----------------------------------------------------------------------------------------------------------


def test_a_position_a_game_after_one_random_move(toy):
    mdp, policy, opening = toy
    moved = []
    config = ValueConfig(games=3000, latest=1, rows=100)
    data = ValueGames(mdp, policy, opening, RNG(0)).play(config, moved.append)
    assert sum(moved) == len(data.results) == 3000
    start = mdp.initial()
    states = [mdp.transition(start, a) for a in np.flatnonzero(mdp.mask(start)).tolist()]
    rows = data.planes.reshape(3000, -1)
    for state in states:  # each is as likely, and has the result that the policy can expect
        mine = (rows == mdp.observation(state).reshape(-1)).all(1)
        with torch.no_grad():
            value = float(expected(mdp, [policy, policy], state, mdp.player(state)))
        n = int(mine.sum())
        assert n == pytest.approx(3000 / len(states), abs=4.5 * np.sqrt(3000 / len(states)))
        assert data.results[mine].mean() == pytest.approx(value, abs=4.5 * np.sqrt((1 - value**2) / n) + 1e-9)


def test_the_opening_policy_plays_up_to_the_random_move(toy):
    mdp, policy, opening = toy
    data = ValueGames(mdp, policy, opening, RNG(1)).play(ValueConfig(games=4000, latest=2, rows=500), lambda n: None)
    # Half of the games had their random move second, after one of the opening policy; some of them it has ended.
    start, reached, empty = mdp.initial(), 0.0, 0.0
    for a, share in enumerate(probabilities(mdp, opening, start).tolist()):
        after = mdp.transition(start, a)
        for b in np.flatnonzero(mdp.mask(after)).tolist():
            end = mdp.transition(after, b)
            chance = share / mdp.mask(after).sum() * (not mdp.terminal(end))
            reached, empty = reached + chance, empty + chance * (not (end.stones == 1).any())
    black_moves = data.planes[:, -1, 0, 0] == 1
    rows = data.planes[black_moves][:, 0].reshape(-1, 3)
    assert black_moves.mean() == pytest.approx(reached / (1 + reached), abs=4.5 * np.sqrt(0.25 / 4000))
    assert (rows.sum(1) == 0).mean() == pytest.approx(empty / reached, abs=4.5 * np.sqrt(0.25 / len(rows)))


def test_a_value_is_learnt_better_than_a_constant():
    mdp = GoMDP(4, planes=("stones", "colour"))
    states = [state for game in near_games(mdp, 60, 3) for state in game.states if state.n_moves > 3]
    planes = np.stack([mdp.observation(state) for state in states])
    lead = planes[:, 0].sum((1, 2)).astype(int) - planes[:, 1].sum((1, 2))
    data = Outcomes(planes, np.sign(lead - 0.5).astype(np.float32))
    half = len(states) // 2
    train, held_out = (Outcomes(planes[rows], data.results[rows]) for rows in (slice(half), slice(half, None)))
    net, told = NetPolicy("ResNetPolicy", mdp, hidden=(16, 16), seed=0, device="cpu"), []
    config = ValueConfig(epochs=8, batch_size=32, learning_rate=3e-3)
    fit_value(net, train, held_out, config, RNG(0), lambda metrics: told.append(metrics))
    constant = float(np.var(held_out.results))
    assert error(net, held_out) < 0.4 * constant and told[-1]["held_out_loss"] == pytest.approx(error(net, held_out))
    assert all_values(net, held_out.planes).shape == held_out.results.shape


# --- the search that mixes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory, fitted):
    """A policy, a value network with komi 0.5, and a fast policy on disk."""
    mdp, policy, *_ = fitted
    root, rules = tmp_path_factory.mktemp("nets"), {"board_size": 5, "komi": 0.5, "planes": list(mdp.planes)}
    save_net(policy, root / "policy", "policy", rules)
    value = NetPolicy("ResNetPolicy", mdp, hidden=(8,), seed=3, device="cpu")
    save_net(value, root / "value", "value", rules)
    FastPolicy(np.zeros(FEATURES)).save(root / "rollout")
    return {name: str(root / name) for name in ("policy", "value", "rollout")}


def test_a_network_comes_back_with_its_rules(folders, fitted):
    policy, rules = load_net(folders["policy"])
    assert rules == {"board_size": 5, "komi": 0.5, "planes": ["stones", "history", "colour"]}
    for name, weights in fitted[1].net.state_dict().items():
        assert torch.equal(weights, policy.net.state_dict()[name])
    with pytest.raises(ValueError, match=r"holds no policy for Go: policy\.json is missing"):
        load_net(folders["rollout"])


def test_leaves_are_worth_what_is_mixed(fitted):
    mdp, policy, *_ = fitted
    states = [game.states[6] for game in near_games(mdp, 5, 9)]
    net, asked = NetEvaluator(mdp, policy), []
    other = NetEvaluator(mdp, NetPolicy("ResNetPolicy", mdp, hidden=(8,), seed=7, device="cpu"))

    def playout(given):
        asked.append(len(given))
        return np.linspace(-1, 1, len(given))

    def values(mix: float) -> np.ndarray:
        told, plain = MixedEvaluator(net, mix, value=NetValue(other), playout=playout)(states), net(states)
        for name in set(plain._fields) - {"values"}:  # candidates and priors are the policy's
            np.testing.assert_array_equal(getattr(told, name), getattr(plain, name))
        return told.values

    np.testing.assert_array_equal(values(0.0), other(states).values)
    assert not asked  # what has no weight is not paid for
    np.testing.assert_array_equal(values(1.0), np.linspace(-1, 1, 5))
    assert asked == [5]
    own = MixedEvaluator(net, 0.0)(states)
    np.testing.assert_array_equal(own.values, net(states).values)  # of the same network, if no other is given
    np.testing.assert_allclose(values(0.25), 0.75 * other(states).values + 0.25 * np.linspace(-1, 1, 5))


def test_what_is_mixed_must_be_there():
    def priors(states: list) -> Proposals:
        raise AssertionError("not asked")

    for mix in (0.5, 1.0):
        with pytest.raises(ValueError, match=f"mix = {mix} needs playouts, got none"):
            MixedEvaluator(priors, mix)
    with pytest.raises(ValueError, match=r"mix must be in \[0, 1\], got 2"):
        MixedEvaluator(priors, 2)


def test_a_playout_is_the_result_of_who_moves():
    mdp = GoMDP(3, komi=0.5)
    dead = mdp.position("XX.\nXXX\nXX.", 1)  # White has nowhere to live
    states = [dead] * 4 + [mdp.transition(dead, 9)] * 3
    np.testing.assert_array_equal(FastPlayouts(mdp, FastPolicy(np.zeros(FEATURES)))(states), [-1] * 4 + [1] * 3)


def test_a_name_says_the_settings(folders):
    told = AlphaGoSettings.parse("alphago: policy=a/b,value=c, mix=0.25,simulations=7,reuse=false")
    assert told == AlphaGoSettings("a/b", "c", mix=0.25, simulations=7, reuse=False)


@pytest.mark.parametrize(
    ("name", "sentence"),
    {
        "alphago": "alphago needs policy=DIR",
        "alphago:speed=1": "alphago has no option 'speed': choose policy, value",
        "alphago:mix=1": "alphago needs policy=DIR",
        "alphago:policy=p": "with mix=0.5 needs value=DIR",
        "alphago:policy=p,mix=2": r"mix must be in \[0, 1\], got 2",
        "alphago:policy=p,mix=half": "mix of alphago must be a number, got 'half'",
        "alphago:policy=p,mix=1,simulations=0": "simulations must be at least 1, got 0",
        "alphago:policy=p,policy=q": "policy of alphago is given twice",
        "alphago:policy=nowhere,mix=1": r"holds no policy for Go: policy\.json is missing",
    }.items(),
)
def test_a_wrong_name_is_one_sentence(name, sentence):
    from llmgym.commands.players import make_player

    with pytest.raises(ValueError, match=sentence) as told:
        make_player(name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_the_player_repeats_a_game_with_its_seed(folders, mix):
    player = AlphaGoPlayer(AlphaGoSettings(**folders, mix=mix, simulations=12, leaves=4))
    mdp = GoMDP(5, komi=0.5)

    def moves(seed: int) -> list[int]:
        game, rng, found = new_game(mdp), RNG(seed), []
        player.start(game)
        for _ in range(6):
            found.append(player.move(game, rng))
            assert mdp.mask(game.state)[found[-1]]
            state = mdp.transition(game.state, found[-1])
            game = game._replace(moves=(*game.moves, found[-1]), state=state)
        return found

    first = moves(0)
    assert moves(0) == first and len(first) == 6
    assert (player.fast is None) == (mix == 0) and (player.value is None) == (mix == 1)


@pytest.mark.parametrize("rollout", ["light", "heavy"])
def test_leaves_may_be_played_out_by_rules(folders, rollout):
    player = AlphaGoPlayer(AlphaGoSettings(**(folders | {"rollout": rollout}), mix=1.0, simulations=12))
    mdp = GoMDP(5, komi=0.5)
    first = player.move(new_game(mdp), RNG(0))
    player.start(new_game(mdp))
    assert player.move(new_game(mdp), RNG(0)) == first and player.fast is None


def test_it_takes_a_win_that_is_one_move_away(folders):
    """Black is ahead and White has just passed: a pass wins at once, and is proven to."""
    mdp = GoMDP(5, komi=0.5)
    state = mdp.position(".XXXX\nXXXXX\nXXXX.\nXXXXX\n.XXXX", 1)
    state = mdp.transition(state, 25)
    untrained = folders | {"policy": folders["value"]}  # whose priors rule nothing out
    player = AlphaGoPlayer(AlphaGoSettings(**untrained, mix=0.5, simulations=60))
    assert player.move(new_game(mdp, state), RNG(0)) == 25


def test_it_refuses_a_network_of_margins(folders, tmp_path):
    net, rules = load_net(folders["value"])
    save_net(net, tmp_path, "value", rules | {"reward": "margin"})
    with pytest.raises(ValueError, match="has learnt margins, here results are mixed"):
        AlphaGoPlayer(AlphaGoSettings(**(folders | {"value": str(tmp_path)})))


def test_it_refuses_other_boards_and_other_komi(folders):
    player = AlphaGoPlayer(AlphaGoSettings(**folders, mix=0.5))
    player.check(GoMDP(5, komi=0.5))
    with pytest.raises(ValueError, match="was trained on 5x5 and cannot play on 7x7"):
        player.check(GoMDP(7, komi=0.5))
    with pytest.raises(ValueError, match=r"trained with komi 0\.5 and cannot judge a game with komi 7\.5"):
        player.check(GoMDP(5, komi=7.5))
    AlphaGoPlayer(AlphaGoSettings(**folders, mix=1.0)).check(GoMDP(5, komi=7.5))  # a playout counts points itself
