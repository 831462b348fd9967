"""MCTS as an agent: it plays what wins, learns by playing itself, and comes back from a folder as it was."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from test_search import GAME, TicTacToe, solve
from worlds import flat

from llmgym.agents import MCTS, MCTSConfig
from llmgym.agents.resignation import Resignation
from llmgym.agents.selfplay import GameOptions, Positions, SelfPlay
from llmgym.agents.strength import strength
from llmgym.agents.window import Window
from llmgym.agents.workers import Workers
from llmgym.env import MDPEnv
from llmgym.envs.go.mdp import GoMDP
from llmgym.mdp import MDP
from llmgym.nets import NetPolicy
from llmgym.search import Search, SearchOptions
from llmgym.search.evaluators import NetEvaluator, PlayoutEvaluator, UniformEvaluator
from llmgym.search.losses import policy_loss, return_loss

SMALL = {"seed": 0, "device": "cpu", "games": 8, "moves": 6, "simulations": 8, "batch_size": 32, "match_every": 0}


def go(size=3, komi=0.5, **options):
    return gym.make("llmgym/Go-v0", board_size=size, komi=komi, **options)


class Noughts(TicTacToe):
    """Tic-tac-toe that can be seen: own marks and the opponent's, as one vector."""

    observation_space = gym.spaces.Box(0, 1, (18,), np.int8)

    def observation(self, state):
        board, me = np.array(state), self.player(state) + 1
        return np.concatenate([board == me, board == 3 - me]).astype(np.int8)


class Corridor(MDP[int, int]):
    """Alone: left or right from 2; 1 at 4, nothing at 0."""

    observation_space, action_space = gym.spaces.Discrete(5), gym.spaces.Discrete(2)

    def initial(self, rng=None, options=None):
        return 2

    def transition(self, state, action):
        return state + (1 if action else -1)

    def reward(self, state, action, next_state):
        return float(next_state == 4)

    def terminal(self, state):
        return state in (0, 4)

    def observation(self, state):
        return state

    def mask(self, state):
        return np.ones(2, bool)


# Acting.


@pytest.mark.parametrize("rule", ["puct", "uct", "gumbel"])
def test_it_takes_what_wins(rule):
    env = go(5, komi=10.5)  # whoever takes first saves his own
    observation, _ = env.reset(options={"position": "XXXX.\nOOOO.\nXXXXX\n.....\n....."})
    # Single playouts are noise: σ of Gumbel, meant for learnt values, must not take them at their word.
    agent = MCTS("random", env, rule=rule, simulations=400, considered=26, c_scale=0.1, seed=0)
    action, state = agent.predict(observation)
    assert action == 9 and state is None and env.action_space.contains(action)


@pytest.mark.parametrize("rule", ["puct", "uct"])
def test_it_opens_in_the_centre_of_3x3(rule):
    env = go(3, komi=4.5)  # only the centre wins: by 9, a side by 3
    observation, _ = env.reset(seed=0)
    agent = MCTS("random", env, rule=rule, simulations=1000, considered=10, seed=0, best=1.0)
    assert agent.predict(observation)[0] == 4


@pytest.mark.parametrize("policy", ["uniform", "random"])
def test_it_never_loses_at_tic_tac_toe(policy):
    env = MDPEnv(Noughts())
    agent = MCTS(policy, env, rule="puct", simulations=1500, best=1.0, seed=1)
    rng = np.random.default_rng(2)
    for game in range(4):
        observation, over = env.reset()[0], False
        while not over:
            mine = len([mark for mark in env.state if mark]) % 2 == game % 2
            legal = np.flatnonzero(env.action_masks())
            action = agent.predict(observation)[0] if mine else rng.choice(legal)
            observation, reward, over, _, _ = env.step(int(action))
        assert reward == 0 or mine


def test_a_tree_is_kept_along_the_moves_and_only_there():
    env = go(3, opponent="light")
    agent = MCTS("random", env, rule="puct", simulations=200, seed=0)
    observation = env.reset(seed=0)[0]
    carried = 0
    for _ in range(5):
        action = agent.predict(observation)[0]
        assert agent.predict(observation)[0] == action  # the same state again is answered as before
        observation, _, over, _, _ = env.step(action)
        if over:
            break
        agent.predict(observation)
        carried += agent.planner.last.visits.sum() > 200
    assert carried >= 2
    observation = env.reset(seed=1)[0]
    agent.predict(observation)
    assert agent.planner.last.visits.sum() == 200


def test_it_plays_for_both_colours_in_every_form():
    agent = MCTS("random", go(3), simulations=8, seed=0)
    env = go(3, opponent=agent, color="white")
    result, _ = evaluate_policy(MCTS("random", env, simulations=8, seed=1), Monitor(env), n_eval_episodes=2)
    assert -1 <= result <= 1
    rows = gym.make_vec("llmgym/Go-v0", num_envs=3, board_size=3, opponent="light", color="random")
    agent, observations = MCTS("random", rows, simulations=8, seed=0), rows.reset(seed=0)[0]
    for _ in range(30):
        actions = agent.predict(observations, deterministic=False)[0]
        observations, _, _, truncations, _ = rows.step(actions)
        assert actions.shape == (3,) and not truncations.any()


def test_alone_a_reward_is_sought():
    env = MDPEnv(Corridor())
    for config in ({"rule": "puct"}, {"rule": "gumbel", "discount": 0.9}):
        agent, observation, over = MCTS("random", env, simulations=60, seed=0, **config), env.reset()[0], False
        assert agent.options.discount > 0
        while not over:
            observation, reward, over, _, _ = env.step(agent.predict(observation)[0])
        assert reward == 1


# Learning.


def test_self_play_makes_it_stronger():
    env = go(3, komi=0.5)
    agent = MCTS("CnnPolicy", env, seed=1, device="cpu", simulations=8, considered=4, batch_size=64, match_every=0)
    options = SearchOptions(simulations=2, discount=-1.0, rule="gumbel")  # hardly any search: the network must know

    def result():
        return strength(agent.mdp, agent.evaluator, options, "light", 100, np.random.default_rng(0))

    before, records = result(), []
    agent.learn(total_timesteps=6_000, callback=lambda agent, metrics, games: records.append(metrics))
    after = result()
    assert after > before + 0.3 and after > 0.8
    assert records[-1]["policy_loss"] < records[1]["policy_loss"]
    assert records[-1]["timesteps"] == agent.num_timesteps == 12 * 32 * 16


def test_tic_tac_toe_and_a_walk_alone_are_learnt():
    agent = MCTS("MlpPolicy", MDPEnv(Noughts()), **SMALL | {"rule": "puct", "match_every": 2, "opponent": "random"})
    records = []
    agent.learn(total_timesteps=400, callback=lambda agent, metrics, games: records.append(metrics))
    assert records[-1]["strength"] > 0 and np.isfinite(records[-1]["loss"])
    page = (Path(__file__).parent.parent / "docs" / "agents" / "mcts.md").read_text("utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page.split("## What is logged")[1], re.M)
    assert {name for row in rows for name in re.findall(r"\w+", row)} == set(records[-1])
    alone = MCTS("MlpPolicy", MDPEnv(Corridor()), **SMALL).learn(total_timesteps=400)
    assert strength(alone.mdp, alone.evaluator, alone.options, "random", 4, np.random.default_rng(0)) == 1.0


def test_returns_are_of_the_player_to_move():
    rng = np.random.default_rng(0)
    look = MCTS("MlpPolicy", MDPEnv(Noughts()), **SMALL).evaluator.look
    options = SearchOptions(rule="puct", simulations=20, discount=-1.0, noise=0.25, best=1.0)
    search = Search(Noughts(), UniformEvaluator(GAME), options)
    played = SelfPlay(Noughts(), search, look, 6, GameOptions(opening_moves=3), rng).play(12)
    assert len(played) >= 6 and not any(game.resigned for game in played)
    for game in (one.positions for one in played):
        marks = game.observations.sum(1)
        assert marks.tolist() == list(range(len(game)))  # every move from the first, both players'
        assert np.allclose(game.returns[:-1], -game.returns[1:]) and set(game.returns.tolist()) <= {-1.0, 0.0, 1.0}
        assert np.allclose(game.policies.sum(1), 1) and not game.policies[~game.masks].any()


def self_play(mdp, seed, games=6, evaluate=None, **how):
    policy = NetPolicy("CnnPolicy", mdp, hidden=(8,), device="cpu", seed=0)
    evaluator = NetEvaluator(mdp, policy)
    options = SearchOptions(rule="gumbel", simulations=4, considered=4, discount=-1.0)
    rng = np.random.default_rng(seed)
    search = Search(mdp, evaluate or evaluator, options)
    return SelfPlay(mdp, search, evaluator.look, games, GameOptions(**how), rng)


def test_workers_play_what_each_would_play_alone():
    mdp = GoMDP(3, komi=0.5)
    alone = [game for seed in (1, 2) for game in self_play(mdp, seed, random_moves=3).play(20, -0.9)]
    together = Workers([self_play(mdp, seed, random_moves=3) for seed in (1, 2)]).play(20, -0.9)
    assert len(alone) == len(together) > 4
    for one, two in zip(alone, together, strict=True):
        assert np.array_equal(one.positions.observations, two.positions.observations)
        assert np.array_equal(one.positions.policies, two.positions.policies)


def test_games_begin_with_random_moves():
    mdp = GoMDP(5)
    counts = np.bincount([game.state.n_moves for game in self_play(mdp, 0, 400, random_moves=3).games], minlength=4)
    assert len(counts) == 4 and (counts > 60).all()
    assert not any(mdp.terminal(game.state) for game in self_play(GoMDP(1, komi=0.5), 0, 50, random_moves=3).games)


def test_who_resigns_has_lost_and_some_games_tell_whether_that_was_right():
    class Sure(UniformEvaluator):
        """White believes to have lost."""

        def value(self, state):
            return 1.0 if state.to_play == 0 else -1.0

    mdp = GoMDP(3, komi=-20.0)  # Black has won
    games = self_play(mdp, 0, 40, Sure(mdp), to_the_end=0.5, best=1.0).play(30, -0.9)
    given_up, played = ([game for game in games if game.resigned is which] for which in (True, False))
    assert len(given_up) > 10 and len(played) > 10
    assert all(game.positions.returns.tolist() == [1.0, -1.0] and np.isnan(game.low) for game in given_up)
    assert all(game.positions.returns[0] == 1.0 for game in played) and max(len(g.positions) for g in played) > 2
    assert all(game.low > 0.5 for game in played)  # Black never doubted
    resignation = Resignation(wrong=0.05)
    resignation.add(game.low for game in played[:10])
    assert resignation.threshold == -np.inf
    resignation.add([-0.99] * 2 + [-0.7] * 18 + [0.5] * 60)
    assert -0.7 <= resignation.threshold < -0.6 and Resignation().threshold == -np.inf
    resignation.add([0.0] * 500)
    assert resignation.threshold == -0.5  # never above


def test_a_teacher_plays_in_the_networks_place():
    teacher = "mcts:simulations=100,threads=2"
    agent = MCTS("CnnPolicy", go(3), **SMALL | {"teacher": teacher, "batch_size": 10**6})
    games = []
    agent.learn(total_timesteps=200, callback=lambda agent, metrics, ended: games.extend(ended))
    assert agent.policy.counters.forward_passes == 0
    game = games[0]
    shares = game.positions.policies * 100
    assert np.allclose(shares, shares.round(), atol=1e-4) and game.positions.policies.max(1).mean() > 0.3
    mixed = game.targets(0.25).returns
    assert np.allclose(mixed, 0.75 * game.positions.returns + 0.25 * game.values) and (game.values != 0).any()
    with pytest.raises(ValueError, match="a game's result, the reward here is 'margin'"):
        MCTS("CnnPolicy", go(3, reward="margin"), **SMALL | {"teacher": teacher}).learn(total_timesteps=50)


def test_playouts_are_mixed_into_the_values_of_leaves():
    settings = {**SMALL, "mix": 1.0, "playouts": 8, "rule": "puct"}
    agent = MCTS("CnnPolicy", go(3), **settings | {"simulations": 400})
    state = agent.mdp.initial()
    assert agent.plan([state])[0].action == 4  # playouts alone find the centre, whatever the network says
    assert agent.guide(3)([state]).values != agent.guide(4)([state]).values
    assert agent.guide(3)([state]).values == agent.guide(3)([state]).values
    runs = [MCTS("CnnPolicy", go(3), **settings, workers=2).learn(total_timesteps=100) for _ in range(2)]
    assert torch.equal(*(flat(one.policy.parameters()) for one in runs))
    with pytest.raises(ValueError, match="the reward here is 'margin'"):
        MCTS("CnnPolicy", go(3, reward="margin"), **settings)
    with pytest.raises(ValueError, match="playouts are of Go, got the rules Noughts"):
        MCTS("MlpPolicy", MDPEnv(Noughts()), **settings)


def test_strength_is_measured_against_a_search_too():
    mdp, rng = GoMDP(4, komi=0.5), np.random.default_rng(0)
    options = SearchOptions(simulations=4, rule="puct", discount=-1.0)
    results = [
        strength(mdp, UniformEvaluator(mdp), options, name, 20, rng) for name in ("light", "mcts:simulations=64")
    ]
    assert results[1] < results[0] - 0.2
    with pytest.raises(ValueError, match="plays Go only"):
        strength(Noughts(), UniformEvaluator(GAME), options, "mcts", 2, rng)


def test_losses_are_those_of_the_papers():
    outputs = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    masks = torch.tensor([[1, 1, 1, 0, 1]] * 4, dtype=torch.bool)
    targets = torch.rand(4, 5, dtype=torch.float64) * masks
    targets = targets / targets.sum(1, keepdim=True)
    policy_loss(outputs, targets, masks).backward()
    p = outputs.masked_fill(~masks, -torch.inf).softmax(1)
    torch.testing.assert_close(outputs.grad, ((p - targets) / 4).detach())  # softmax and cross-entropy
    halves = [policy_loss(outputs[r], targets[r], masks[r], denominator=4) for r in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(halves), policy_loss(outputs, targets, masks))
    assert return_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])) == 0.5


def test_the_window_keeps_the_newest(tmp_path):
    def some(first, n):
        x = np.arange(first, first + n, dtype=np.float32)
        return Positions(x[:, None].astype(np.int8), np.ones((n, 2), bool), np.stack([x, x], 1), x)

    window = Window(5)
    with pytest.raises(ValueError, match="no position"):
        window.sample(1, np.random.default_rng(0))
    for first, n in ((0, 3), (3, 4), (7, 1)):
        window.add(some(first, n))
    drawn = window.sample(200, np.random.default_rng(0))
    assert set(drawn.returns.tolist()) == {3.0, 4.0, 5.0, 6.0, 7.0} and (drawn.policies[:, 0] == drawn.returns).all()
    window.save(tmp_path / "w.safetensors")
    again = Window(3)
    again.load(tmp_path / "w.safetensors")
    assert set(again.sample(100, np.random.default_rng(0)).returns.tolist()) == {5.0, 6.0, 7.0}


# Files.


def test_a_folder_brings_it_back(tmp_path):
    env = go(3, opponent="light")
    agent = MCTS("CnnPolicy", env, **SMALL).learn(total_timesteps=300)
    agent.save(tmp_path / "a")
    again = MCTS.load(tmp_path / "a")  # the environment comes back from its spec
    assert torch.equal(flat(agent.policy.parameters()), flat(again.policy.parameters()))
    assert again.config == agent.config and again.num_timesteps == agent.num_timesteps
    assert len(again.distillation.window) == len(agent.distillation.window) > 0
    for one in (agent, again):
        one.env.reset(seed=3)
    found = [one.predict(one.env.unwrapped.mdp.observation(one.env.unwrapped.state))[0] for one in (agent, again)]
    assert found[0] == found[1]
    assert again.learn(total_timesteps=100).num_timesteps > agent.num_timesteps
    twice = [MCTS.load(tmp_path / "a").learn(total_timesteps=100) for _ in range(2)]
    assert torch.equal(*(flat(one.policy.parameters()) for one in twice))
    assert MCTS.load(tmp_path / "a", simulations=5).config.simulations == 5


def test_without_a_network_too(tmp_path):
    agent = MCTS("random", go(3), simulations=50, rule="puct", seed=4)
    agent.save(tmp_path / "a")
    again = MCTS.load(tmp_path / "a")
    assert again.config == agent.config and again.policy == "random"
    with pytest.raises(ValueError, match="nothing to learn"):
        again.learn(total_timesteps=10)


# The evaluators.


def test_a_network_is_asked_once_for_all_states():
    mdp = GoMDP(4)
    policy = NetPolicy("CnnPolicy", mdp, device="cpu", seed=0)
    rng, states = np.random.default_rng(0), [mdp.initial()]
    for _ in range(9):
        states.append(mdp.transition(states[-1], mdp.light_move(states[-1], rng)))
    evaluator = NetEvaluator(mdp, policy, "clip")
    told = evaluator(states)
    assert policy.counters.forward_passes == 1
    for row, state in enumerate(states):
        legal = np.flatnonzero(mdp.mask(state))
        assert np.flatnonzero(told.masks[row]).tolist() == legal.tolist()
        with torch.no_grad():
            outputs, value = policy.net(torch.from_numpy(mdp.observation(state)[None]).float())
        np.testing.assert_allclose(told.logits[row], outputs[0].numpy(), atol=1e-5)
        assert told.values[row] == pytest.approx(float(value.clamp(-1, 1)), abs=1e-5)
    half = NetEvaluator(mdp, policy, "clip", bfloat16=True)(states)
    np.testing.assert_allclose(half.logits, told.logits, atol=0.02)


def test_playouts_are_worth_what_the_player_to_move_gets():
    values = PlayoutEvaluator(GAME, -1.0, np.random.default_rng(0))([(1, 1, 0, 2, 2, 0, 0, 0, 0)] * 300).values
    assert set(values.tolist()) <= {-1.0, 0.0, 1.0} and values.mean() > 0
    assert solve((1, 1, 0, 2, 2, 0, 0, 0, 0)) == 1.0


# What is refused.


def test_bad_input_is_one_sentence():
    env = go(3)
    for config, sentence in [
        ({"simulations": 0}, "simulations must be at least 1, got 0"),
        ({"rule": "rave"}, "rule must be one of gumbel, puct, uct"),
        ({"games": 0}, "games must be at least 1"),
        ({"replay": 0.0}, "replay must be above 0"),
        ({"opponent": "strong"}, "opponent must be light, random or mcts:…, got 'strong'"),
        ({"opponent": "mcts:force=3"}, "mcts has no option 'force'"),
        ({"resign": True}, "resign needs best"),
        ({"teacher": "gnugo"}, "teacher must be mcts or mcts:option=value,…, got 'gnugo'"),
        ({"mix": 1.5}, "mix must be in"),
        ({"playouts": 0}, "playouts must be at least 1"),
        ({"workers": 40}, "games must be at least 40, got 32"),
        ({"to_the_end": 1.5}, "to_the_end must be in"),
        ({"lora": 4}, "lora"),
        ({"discount": -1.0}, "discount"),
        ({"bound": "sigmoid"}, "bound must be one of"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            MCTSConfig(**config)
    with pytest.raises(TypeError, match="simulation"):
        MCTS("random", env, simulation=3)
    with pytest.raises(ValueError, match="policy must be one of"):
        MCTS("tiny", env)
    with pytest.raises(ValueError, match="a value head"):
        MCTS(NetPolicy("CnnPolicy", env, value_head=False, device="cpu"), env)
    with pytest.raises(ValueError, match="must be a language model"):
        MCTS("random", gym.make("llmgym/TokenMDP-v0"))
    with pytest.raises(ValueError, match="rules to plan on"):
        MCTS("MlpPolicy", gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="budget"):
        MCTS("CnnPolicy", env, device="cpu").learn()


def test_an_observation_of_another_environment_is_refused():
    env, other = go(3), go(3)
    env.reset(seed=0)
    observation = other.reset(seed=0)[0]
    observation = other.step(4)[0]
    with pytest.raises(ValueError, match="not of that state"):
        MCTS("random", env, simulations=4).predict(observation)
    with pytest.raises(gym.error.ResetNeeded):
        MCTS("random", go(3), simulations=4).predict(observation)
