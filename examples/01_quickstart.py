"""Text generation behind the Gymnasium API: random play, a language model, and one completion at three granularities.

    python examples/01_quickstart.py

Seconds on a CPU.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np

import llmgym  # noqa: F401  (registers the environments)
from llmgym.policy import LMPolicy


def random_episode() -> None:
    """The loop of every Gymnasium environment."""
    env = gym.make("llmgym/TokenMDP-v0", task="arithmetic", max_new_tokens=12, render_mode="ansi")
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    over = False
    while not over:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        over = terminated or truncated
    print(f"random tokens: {env.render()!r}, reward {reward}, {info['finish_reason']}")


def model_episodes(rows: int = 4) -> list[tuple]:
    """The embedded model answers a prompt a row; each answer as (problem, its tokens, its reward)."""
    env = gym.make_vec("llmgym/TokenMDP-v0", num_envs=rows, autoreset_mode="Disabled")
    policy = LMPolicy("tiny", env, temperature=1.0, seed=1)
    observation, _ = env.reset(seed=0)
    active, returns = np.ones(rows, bool), np.zeros(rows)
    while active.any():
        action = policy.act(observation, active)  # finished rows cost nothing
        observation, rewards, terminated, truncated, _ = env.step(action.for_env)
        returns += rewards
        active &= ~(terminated | truncated)
    for state, total in zip(env.states, returns, strict=True):
        print(f"the model: {state.problem.prompt}{env.mdp.text(state)}, return {total}")
    return [(s.problem, s.completion, r) for s, r in zip(env.states, returns, strict=True)]


def replay(id: str, problem, tokens: tuple[int, ...], **options) -> tuple[float, int]:
    """Return and number of actions when given tokens are written through an environment."""
    env = gym.make(id, **options)
    env.reset(options={"problem": problem})
    size, over, total, actions = env.unwrapped.mdp.block_size, False, 0.0, 0
    while not over:
        block = list(tokens[actions * size : (actions + 1) * size])
        block += [0] * (size - len(block))  # what follows EOS is ignored
        _, reward, terminated, truncated, _ = env.step(block[0] if size == 1 else np.array(block))
        over, total, actions = terminated or truncated, total + float(reward), actions + 1
    return total, actions


def main() -> None:
    random_episode()
    episodes = model_episodes()
    problem, tokens, expected = max(episodes, key=lambda episode: episode[2])
    print(f"{problem.prompt} again, the same {len(tokens)} tokens:")
    for id, options in (("TokenMDP", {}), ("BlockMDP", {"block_size": 4}), ("SequenceMDP", {})):
        total, actions = replay(f"llmgym/{id}-v0", problem, tokens, **options)
        assert total == expected
        print(f"  {id}: {actions} actions, return {total}")


if __name__ == "__main__":
    main()
