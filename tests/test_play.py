"""`Player`: fragments against environments stepped by hand, in every autoreset mode."""

from __future__ import annotations

import math
from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit, TransformReward

from llmgym.batch import Fragments
from llmgym.nets import NetPolicy
from llmgym.play import Player, vectorised
from llmgym.returns import gae

MODES = list(AutoresetMode)
modes = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)


class Walk(gym.Env):
    """An episode of random length and irregular rewards; the observation tells every state of every episode apart."""

    metadata = {"render_modes": ["human", "rgb_array"]}  # noqa: RUF012
    observation_space: gym.Space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space: gym.Space = spaces.Discrete(3)

    def __init__(self, longest: int = 6, render_mode: str | None = None):
        self.longest, self.render_mode = longest, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.key, self.t, self.end = self.np_random.normal(), 0, int(self.np_random.integers(1, self.longest + 1))
        return self.show(), {}

    def step(self, action):
        assert self.t < self.end, "the episode is over"
        assert self.action_space.contains(action), action
        self.t += 1
        reward = math.sin(10 * self.key + self.t + float(np.sum(action)))
        return self.show(), reward, self.t == self.end, False, {}

    def show(self):
        return np.float32([self.key, self.t, self.end - self.t])


class Ruled(Walk):
    """An action is legal where (its index + the step) is even; a state that is over allows nothing."""

    def legal(self):
        return ((np.arange(3) + self.t) % 2 == 0) & (self.t < self.end)

    def step(self, action):
        assert self.legal()[action], f"illegal: {action}"
        return super().step(action)


class Masked(Ruled):
    """Tells its masks when asked."""

    def action_masks(self):
        return self.legal()


class MaskInInfo(Ruled):
    """Tells its masks in the info."""

    def reset(self, **arguments):
        return super().reset(**arguments)[0], {"action_mask": self.legal().astype(np.int8)}

    def step(self, action):
        return *super().step(action)[:4], {"action_mask": self.legal().astype(np.int8)}


class Pairs(Walk):
    """Two choices with a mask that is flat, a Dict to look at."""

    observation_space = spaces.Dict(state=Walk.observation_space, t=spaces.Discrete(20))
    action_space = spaces.MultiDiscrete([2, 3])

    def action_masks(self):
        return np.array([True, self.t % 2 == 0, True, self.t % 3 == 0, True])

    def step(self, action):
        assert self.action_masks()[[action[0], 2 + action[1]]].all(), f"illegal: {action}"
        return super().step(action)

    def show(self):
        return {"state": super().show(), "t": self.t}


class Pushed(Walk):
    """A box of actions, with bounds."""

    action_space = spaces.Box(-0.5, 0.5, (2,), np.float32)


def limited(kind=Walk, limit=4, **arguments):
    return TimeLimit(kind(**arguments), limit)


def rows(kind=Walk, n=3, mode=AutoresetMode.NEXT_STEP, limit=4):
    return SyncVectorEnv([lambda: limited(kind, limit)] * n, autoreset_mode=mode)


def player(venv, n_steps=7, seed=5, dtype="float64", **settings):
    return Player(venv, NetPolicy("MlpPolicy", venv, dtype=dtype, seed=1), n_steps, seed=seed, **settings)


def by_hand(parts, row, env, encode, seed):
    """Step one environment through the actions of a row, over fragments that follow each other.

    Returns its episodes, each a list of (observation, action, reward, what followed, terminated, truncated).
    """
    actions = torch.cat([p.actions[row] for p in parts])
    mask = torch.cat([p.mask[row] for p in parts])
    show = lambda x: encode(encode.batch(x))[0]  # noqa: E731
    episodes, observation = [[]], env.reset(seed=seed)[0]
    for action in actions[mask].numpy():
        if episodes[-1] and any(episodes[-1][-1][4:]):
            episodes.append([])
            observation = env.reset()[0]
        given = np.clip(action, -0.5, 0.5).astype(np.float32) if isinstance(env.action_space, spaces.Box) else action
        following, reward, terminated, truncated, _ = env.step(given)
        truncated = truncated and not terminated
        episodes[-1].append((show(observation), action, reward, show(following), terminated, truncated))
        observation = following
    return episodes


def joined(parts, name, row):
    """A quantity of a row at the places that count, over all fragments."""
    return torch.cat([getattr(p, name)[row][p.mask[row]] for p in parts])


@modes
@pytest.mark.parametrize("kind", [Walk, Masked, MaskInInfo, Pairs, Pushed])
@pytest.mark.parametrize("n_steps", [1, 7])
def test_fragments_are_what_stepping_by_hand_gives(kind, mode, n_steps):
    venv = rows(kind, mode=mode)
    ours = player(venv, n_steps)
    parts = [ours.collect() for _ in range(42 // n_steps)]
    episodes = [by_hand(parts, row, limited(kind), ours.policy.encode, 5 + row) for row in range(3)]
    for row, own in enumerate(episodes):
        steps = [step for episode in own for step in episode]
        assert np.array_equal(joined(parts, "observations", row), np.stack([step[0] for step in steps]))
        assert joined(parts, "rewards", row).tolist() == [step[2] for step in steps]
        assert joined(parts, "terminated", row).tolist() == [step[4] for step in steps]
        assert joined(parts, "truncated", row).tolist() == [step[5] for step in steps]
    assert sum(any(e[-1][4:]) for own in episodes for e in own) > 15
    finals = [p.final_observations for p in parts]
    for part, final in zip(parts, finals, strict=True):
        assert len(final) == int(part.truncated.sum())
        assert part.rewards.dtype == torch.float64 and part.actions.shape[:2] == part.mask.shape == (3, n_steps)
        assert (
            not (part.truncated & part.terminated).any() and not ((part.truncated | part.terminated) & ~part.mask).any()
        )
    assert sum(len(final) for final in finals) > 3
    for row, own in enumerate(episodes):
        cut = [final[part.truncated.nonzero()[:, 0] == row] for part, final in zip(parts, finals, strict=True)]
        expected = [e[-1][3] for e in own if e[-1][5]]
        assert np.array_equal(torch.cat(cut), np.stack(expected) if expected else np.zeros((0, cut[0].shape[1])))
        if not any(own[-1][-1][4:]):
            assert np.array_equal(parts[-1].last_observations[row], own[-1][-1][3])


@modes
def test_returns_and_lengths_of_the_episodes_that_ended(mode):
    ours = player(rows(mode=mode), n_steps=5)
    parts = [ours.collect() for _ in range(6)]
    told = sorted((float(r), int(n)) for p in parts for r, n in zip(p.episode_returns, p.episode_lengths, strict=True))
    ended = [
        e for row in range(3) for e in by_hand(parts, row, limited(), ours.policy.encode, 5 + row) if any(e[-1][4:])
    ]
    expected = sorted((sum(step[2] for step in e), len(e)) for e in ended)
    assert [n for _, n in told] == [n for _, n in expected] and len(told) > 10
    assert np.allclose([r for r, _ in told], [r for r, _ in expected], atol=1e-12)


def naive(rewards, values, after, gamma, lam):
    """Advantages of one episode, straight from the sum: `after` is the value of what followed its last action."""
    v = [*values, after]
    deltas = [rewards[t] + gamma * v[t + 1] - v[t] for t in range(len(rewards))]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@modes
@pytest.mark.parametrize("kind", [Walk, Pairs, Pushed])
def test_gae_over_fragments_is_gae_over_the_episodes_written_out(kind, mode):
    """Each cut is bootstrapped from its own last state, and nothing passes an episode's end."""
    ours = player(rows(kind, mode=mode), n_steps=60)
    batch = ours.collect()
    scored = ours.policy.score(batch)
    advantages, _ = gae(
        batch.rewards,
        scored.values,
        batch.mask,
        gamma=0.9,
        lam=0.8,
        bootstrap=scored.bootstrap,
        terminated=batch.terminated,
        truncated=batch.truncated,
        final_values=scored.final_values,
    )
    value = lambda x: ours.policy.net(torch.from_numpy(np.stack(x)))[1].tolist()  # noqa: E731
    for row in range(3):
        expected = []
        for episode in by_hand([batch], row, limited(kind), ours.policy.encode, 5 + row):
            states, _, rewards, following, terminated, _ = zip(*episode, strict=True)
            after = 0.0 if terminated[-1] else value(following[-1:])[0]
            expected += naive(rewards, value(states), after, 0.9, 0.8)
        assert np.allclose(advantages[row][batch.mask[row]], expected, atol=1e-10)
    assert not advantages[~batch.mask].any()


@modes
def test_what_follows_an_end_does_not_reach_what_precedes_it(mode):
    """Other values and rewards of the later episodes, and of the resets, change nothing before."""
    ours = player(rows(mode=mode), n_steps=12)
    batch = ours.collect()
    scored = ours.policy.score(batch)

    def advantages(rewards, values, bootstrap):
        named = {"terminated": batch.terminated, "truncated": batch.truncated, "final_values": scored.final_values}
        return gae(rewards, values, batch.mask, gamma=0.9, lam=0.8, bootstrap=bootstrap, **named)[0]

    plain = advantages(batch.rewards, scored.values, scored.bootstrap)
    for row, t in (batch.terminated | batch.truncated).nonzero().tolist():
        rewards, values, bootstrap = batch.rewards.clone(), scored.values.clone(), scored.bootstrap.clone()
        rewards[row, t + 1 :], values[row, t + 1 :], bootstrap[row] = 1e9, -1e9, 1e9
        assert torch.equal(advantages(rewards, values, bootstrap)[row, : t + 1], plain[row, : t + 1])


def same(one, two):
    for f in fields(Fragments):
        a, b = getattr(one, f.name), getattr(two, f.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, f.name


@modes
@pytest.mark.parametrize("whole_episodes", [False, True])
def test_the_same_seed_is_the_same_run(mode, whole_episodes):
    one, two, other = (player(rows(mode=mode), seed=s, whole_episodes=whole_episodes) for s in (5, 5, 6))
    for _ in range(3):
        same(one.collect(), two.collect())
    assert not torch.equal(one.collect().observations, other.collect().observations)


@modes
@pytest.mark.parametrize("kind", [Walk, Masked, MaskInInfo, Pairs])
def test_whole_episodes_are_the_first_of_each_row(kind, mode):
    ours = player(rows(kind, mode=mode, limit=5), n_steps=1, whole_episodes=True)
    parts = [ours.collect() for _ in range(4)]
    for batch in parts:
        lengths = batch.mask.sum(1)
        assert torch.equal(batch.mask, torch.arange(batch.mask.shape[1]) < lengths[:, None])
        ends = batch.terminated | batch.truncated
        assert torch.equal(ends.nonzero()[:, 1], lengths - 1) and int(ends.sum()) == 3
        assert int(lengths.max()) == batch.mask.shape[1]
        assert torch.allclose(batch.episode_returns.sort()[0], batch.returns.sort()[0], atol=1e-12)
        assert torch.equal(batch.episode_lengths.sort()[0], lengths.sort()[0])
    assert any(p.truncated.any() for p in parts) and any(p.terminated.any() for p in parts)
    first = parts[0]
    for row in range(3):
        (episode,) = by_hand([first], row, limited(kind, 5), ours.policy.encode, 5 + row)
        assert np.array_equal(first.observations[row][first.mask[row]], np.stack([step[0] for step in episode]))
        assert first.rewards[row][first.mask[row]].tolist() == [step[2] for step in episode]


def test_long_episodes_outgrow_what_was_set_aside():
    class Long(Walk):
        def reset(self, **arguments):
            super().reset(**arguments)
            self.end = 200
            return self.show(), {}

    batch = player(SyncVectorEnv([Long]), n_steps=1, whole_episodes=True).collect()
    assert batch.mask.shape == (1, 200) and batch.observations[0, :, 1].tolist() == list(range(200))


def test_behaviour_log_probs_are_those_of_the_masked_policy():
    for kind in (Masked, MaskInInfo, Pairs, Pushed, Walk):
        ours = player(rows(kind))
        batch = ours.collect()
        assert torch.allclose(batch.logp, ours.policy.score(batch).logp, atol=1e-12)
        assert (batch.action_masks is None) == (kind in (Pushed, Walk))
        if kind is MaskInInfo:  # both ways to tell a mask are one
            twin = player(rows(Masked)).collect()
            assert torch.equal(batch.action_masks, twin.action_masks) and torch.equal(batch.actions, twin.actions)


def test_masks_of_a_vector_environment_itself():
    class Vector(SyncVectorEnv):
        def action_masks(self):
            return np.stack([env.unwrapped.action_masks() for env in self.envs])

    batch = player(Vector([lambda: limited(Masked)] * 3)).collect()
    same(batch, player(rows(Masked)).collect())


def test_processes_of_their_own():
    for kind in (Masked, Walk):
        venv = AsyncVectorEnv([lambda kind=kind: limited(kind)] * 2)
        try:
            same(player(venv, 12).collect(), player(rows(kind, 2), 12).collect())
        finally:
            venv.close()


def test_an_environment_may_reuse_its_arrays():
    venv = SyncVectorEnv([limited] * 3, copy=False)
    same(player(venv, 20).collect(), player(rows(), 20).collect())


def test_rewards_that_a_wrapper_gives_to_a_reset_do_not_count():
    venv = gym.wrappers.vector.TransformReward(rows(), lambda r: r + 100.0)
    batch, plain = player(venv, 30).collect(), player(rows(), 30).collect()
    assert not batch.mask.all()
    assert torch.allclose(batch.episode_returns, plain.episode_returns + 100.0 * plain.episode_lengths, atol=1e-9)


def test_masks_that_do_not_fit_are_refused():
    class Wrong(Walk):
        def action_masks(self):
            return np.ones(4, bool)

    class Pointless(Pushed):
        def action_masks(self):
            return np.ones(2, bool)

    with pytest.raises(ValueError, match=r"action masks must be \[3, 3\], got \[3, 4\]"):
        player(rows(Wrong)).collect()
    with pytest.raises(ValueError, match=r"actions of Box.* take no action masks, but the environment has some"):
        player(rows(Pointless)).collect()


def test_n_steps_must_be_positive():
    with pytest.raises(ValueError, match="n_steps must be at least 1, got 0"):
        player(rows(), 0)


# Gymnasium's own environments.


def cartpole(limit, n=4):
    return vectorised(gym.make("CartPole-v1", max_episode_steps=limit), n)


def test_the_native_cartpole_is_cartpole():
    """Step by step as a single environment that is put into the same state; its limit truncates, and it resets late."""
    venv = cartpole(25)
    assert type(venv).__name__ == "CartPoleVectorEnv" and venv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    batch = player(venv, 200, dtype="float32").collect()
    single = gym.make("CartPole-v1").unwrapped
    single.reset(seed=0)
    ends = batch.terminated | batch.truncated
    length = 0
    for row in range(4):
        for t in range(199):
            length = length + 1 if batch.mask[row, t] else 0
            if not batch.mask[row, t]:
                assert ends[row, t - 1] and batch.rewards[row, t] == 0
                assert (batch.observations[row, t + 1].abs() <= 0.05).all()  # a first state
                continue
            single.state, single.steps_beyond_terminated = batch.observations[row, t].double().numpy(), None
            following, reward, terminated, _, _ = single.step(int(batch.actions[row, t]))
            assert np.allclose(batch.observations[row, t + 1], following, atol=1e-5)
            assert batch.rewards[row, t] == reward == 1.0 and batch.terminated[row, t] == terminated
            assert batch.truncated[row, t] == (length == 25 and not terminated)
        length = 0
    assert batch.truncated.any() and batch.terminated.any()
    cut = [(row, t) for row, t in batch.truncated.nonzero().tolist() if t < 199]
    finals = batch.final_observations[: len(cut)]
    assert torch.equal(finals[0], batch.observations[cut[0][0], cut[0][1] + 1])


def test_taxi_never_takes_an_illegal_action():
    taxi = max(name for name in gym.registry if name.startswith("Taxi-v"))
    venv = vectorised(gym.make(taxi, max_episode_steps=20), 4)
    ours = player(venv, 60, dtype="float32")
    batch = ours.collect()
    assert batch.observations.shape == (4, 60, 500) and batch.mask.all()
    assert batch.action_masks.gather(-1, batch.actions[..., None]).all() and not batch.action_masks.all()
    assert int(batch.truncated.sum()) == 12 and set(batch.episode_lengths.tolist()) == {20}


# From one environment to rows of it.


@pytest.fixture
def walk_id():
    gym.register("tests/Walk-v0", entry_point=Walk, max_episode_steps=4)
    yield "tests/Walk-v0"
    del gym.registry["tests/Walk-v0"]


def test_copies_are_made_from_the_spec(walk_id):
    venv = vectorised(gym.make(walk_id, longest=50, max_episode_steps=9), 3)
    assert isinstance(venv, SyncVectorEnv) and venv.num_envs == 3
    assert [env.unwrapped.longest for env in venv.envs] == [50] * 3 and venv.envs[0].unwrapped is not venv.envs[
        1
    ].unwrapped
    batch = player(venv, 200).collect()
    assert batch.mask.all() and int(batch.episode_lengths.max()) == 9


def test_wrappers_come_along(walk_id):
    double = TransformReward(gym.make("CartPole-v1"), lambda r: 2 * r)
    venv = vectorised(double, 2)
    assert type(venv) is SyncVectorEnv and all(isinstance(env, TransformReward) for env in venv.envs)
    assert set(player(venv, 5, dtype="float32").collect().rewards.flatten().tolist()) == {2.0}


class Nameless(gym.RewardWrapper):
    """A wrapper that does not tell its arguments."""

    def reward(self, reward):
        return 3.0


@pytest.mark.parametrize("wrap", [Walk, lambda: Nameless(gym.make("CartPole-v1"))], ids=["no spec", "no arguments"])
def test_what_cannot_be_rebuilt_is_the_only_row(wrap):
    env = wrap()
    venv = vectorised(env, 8)
    assert venv.num_envs == 1 and venv.envs[0] is env


def test_a_vector_environment_is_used_as_it_is():
    venv = rows()
    assert vectorised(venv, 8) is venv


def test_copies_open_no_window(walk_id):
    given = gym.make(walk_id, render_mode="human")
    venv = vectorised(given, 2)
    assert [env.render_mode for env in venv.envs] == [None, None] and given.spec.kwargs == {"render_mode": "human"}
    assert vectorised(gym.make(walk_id, render_mode="rgb_array"), 2).envs[0].render_mode == "rgb_array"


def test_num_envs_must_be_positive():
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        vectorised(Walk(), 0)
