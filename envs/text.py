"""The three text environments: one class, one integer apart."""

from __future__ import annotations

from typing import Any

from llmgym.env import MDPEnv
from llmgym.envs.vector import VectorTextEnv
from llmgym.text import TextMDP


class TextEnv(MDPEnv):
    """Text generation with a block of tokens as the action; see `TokenMDP` for the documentation page."""

    metadata = {"render_modes": ["ansi", "human"], "render_fps": 4}  # noqa: RUF012 (Gymnasium's own type)

    def __init__(self, *, render_mode: str | None = None, mask_in_info: bool = False, **mdp: Any):
        super().__init__(TextMDP(**mdp), render_mode, mask_in_info)


class TokenMDP(TextEnv):
    """
    ## Description
    A language model writes an answer to a prompt, one token an action. The state is the prompt and everything
    written so far; a transition appends the chosen token. The environment owns the text, the token masks and the
    reward; it holds no language model.

    ## Action Space
    `Discrete(V)`: the id of the next token, V being the size of the tokenizer's vocabulary. A token that the
    constraints forbid ends the episode with the task's failing reward and `info["illegal"]`.

    ## Observation Space
    A `Dict`, right-padded to L = max_prompt_tokens + max_new_tokens:

    | Key | Space | Meaning |
    |---|---|---|
    | `input_ids` | `Box(0, V - 1, (L,), int64)` | prompt and tokens so far, then padding |
    | `attention_mask` | `Box(0, 1, (L,), int8)` | 1 where there is a token |
    | `n_tokens` | `Box(0, max_new_tokens, (1,), int64)` | tokens after the prompt: the horizon is visible |

    ## Rewards
    The task's score when the episode ends, a Python float; 0.0 before. For the default task: 1.0 for the right
    answer, else 0.0. If the scorer itself fails: 0.0, `truncated=True` and `info["scorer_failed"]`.

    ## Starting State
    The prompt of a problem drawn from the task's split with the environment's random generator, or the one given in
    `reset(options={"problem": Problem(...)})`. `info["prompt"]` holds its text.

    ## Episode End
    Termination: the EOS token (`info["finish_reason"] == "eos"`), `max_new_tokens` tokens (`"length"`: the budget is
    the MDP's horizon, not an outer limit) or an illegal token (`"illegal"`). Truncation: only a scorer that failed,
    or an outer limit such as Gymnasium's `TimeLimit`. At the end `info` also holds `text`, `n_tokens`,
    `reward_terms` and `is_success`.

    ## Arguments
    | Argument | Default | Meaning |
    |---|---|---|
    | `task` | `"arithmetic"` | a registered name or a `Task` |
    | `task_options` | None | options of the named task, such as `{"digits": 2}` |
    | `split` | `"train"` | `"train"` or `"test"` |
    | `tokenizer` | `"tiny"` | `"tiny"`, a path or hub id, or a tokenizer |
    | `max_prompt_tokens` | 32 | longest prompt |
    | `max_new_tokens` | 48 | budget of tokens after the prompt |
    | `banned_tokens` | `()` | ids or single-token strings that may never be chosen |
    | `min_new_tokens` | 0 | tokens before EOS becomes legal |
    | `constraint` | None | `(state, tokens of the block so far) -> bool [V]` or None, such as a grammar |
    | `reward` | None | in place of the score: `(problem, text, tokens) -> float` or terms, a reward model, its folder |
    | `mask_in_info` | False | adds `info["action_mask"]` |
    | `render_mode` | None | `"ansi"` or `"human"` (coloured by token) |

    ```python
    import gymnasium as gym
    import llmgym

    env = gym.make("llmgym/TokenMDP-v0", task="arithmetic", max_new_tokens=48)
    ```

    `env.unwrapped` has `mdp` (the rules, for search), `state`, `action_masks()`, `get_state()` and `set_state()`.

    ## Vectorized environment
    `gym.make_vec("llmgym/TokenMDP-v0", num_envs=N)` gives the native form, all three autoreset modes
    (`autoreset_mode="NextStep"`, `"SameStep"`, `"Disabled"`).

    ## Version History
    * v0: Initial version
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**_token(kwargs))


class BlockMDP(TextEnv):
    """
    ## Description
    The task of `TokenMDP` with a block of tokens as the unit action: macro actions (MA-RLHF, Chai et al. 2024).
    States, transitions and rewards are the same; so are the return, Σ log π and Σ KL of the same token stream.

    ## Action Space
    `MultiDiscrete([V] * block_size)`. `stop` ends a block early: at a string (newline, tag, …), after a random
    length in `[low, high]` drawn from the state's key, or where a function says so. What follows EOS, the budget or
    the block's end is ignored and is no part of the action's log-probability. A forbidden token ends the episode;
    the tokens before it stay.
    `action_masks()` is exact for the first token of the block; of the others it says only what earlier tokens of
    the block cannot change.

    ## Observation Space
    As in `TokenMDP`.

    ## Rewards
    As in `TokenMDP`.

    ## Starting State
    As in `TokenMDP`.

    ## Episode End
    As in `TokenMDP`.

    ## Arguments
    Those of `TokenMDP`, and

    | Argument | Default | Meaning |
    |---|---|---|
    | `block_size` | 4 | tokens in an action, in [1, max_new_tokens]; the cap when `stop` is given |
    | `stop` | None | end of a block: a string, `[low, high]`, or `(state, tokens of the block) -> bool` |

    ```python
    env = gym.make("llmgym/BlockMDP-v0", block_size=8, stop="\\n")
    ```

    ## Vectorized environment
    As in `TokenMDP`.

    ## Version History
    * v0: Initial version
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**_block(kwargs))


class SequenceMDP(TextEnv):
    """
    ## Description
    The task of `TokenMDP` with the whole completion as one action: a contextual bandit, the view of RLOO and of
    sequence-level GRPO. It is `BlockMDP` with `block_size=max_new_tokens`.

    ## Action Space
    `MultiDiscrete([V] * max_new_tokens)`; what follows EOS is ignored.

    ## Observation Space
    As in `TokenMDP`.

    ## Rewards
    As in `TokenMDP`; every episode is one step (more only if the task replies).

    ## Starting State
    As in `TokenMDP`.

    ## Episode End
    As in `TokenMDP`.

    ## Arguments
    Those of `TokenMDP`.

    ```python
    env = gym.make("llmgym/SequenceMDP-v0")
    ```

    ## Vectorized environment
    As in `TokenMDP`.

    ## Version History
    * v0: Initial version
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**_sequence(kwargs))


def token_vector(num_envs: int = 1, **kwargs: Any) -> VectorTextEnv:
    """Vector form of `TokenMDP`."""
    return _vector(num_envs, _token(kwargs))


def block_vector(num_envs: int = 1, **kwargs: Any) -> VectorTextEnv:
    """Vector form of `BlockMDP`."""
    return _vector(num_envs, _block(kwargs))


def sequence_vector(num_envs: int = 1, **kwargs: Any) -> VectorTextEnv:
    """Vector form of `SequenceMDP`."""
    return _vector(num_envs, _sequence(kwargs))


_SHELL = ("autoreset_mode", "render_mode", "mask_in_info", "max_episode_steps")


def _vector(num_envs: int, kwargs: dict[str, Any]) -> VectorTextEnv:
    shell = {name: kwargs.pop(name) for name in _SHELL if name in kwargs}
    return VectorTextEnv(TextMDP(**kwargs), num_envs, **shell)


def _token(kwargs: dict[str, Any]) -> dict[str, Any]:
    return _without(kwargs, "block_size", "stop") | {"block_size": 1}


def _block(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"block_size": 4} | kwargs


def _sequence(kwargs: dict[str, Any]) -> dict[str, Any]:
    budget = kwargs.get("max_new_tokens", 48)
    return _without(kwargs, "block_size", "stop") | {"block_size": budget, "max_new_tokens": budget}


def _without(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        if name in kwargs:
            raise TypeError(f"{name} is an argument of llmgym/BlockMDP-v0 only, got {name}={kwargs[name]!r}")
    return kwargs
