"""Contract tests over every registered id."""

from __future__ import annotations

import inspect
import pickle
import re
import warnings
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode
from toys import assert_same

import llmgym
from llmgym.env import MDPEnv
from llmgym.envs import BlockMDP, TokenMDP
from llmgym.envs.go.env import GoEnv
from llmgym.envs.go.mdp import GoMDP
from llmgym.text import TextMDP

IDS = sorted(id for id in gym.registry if id.startswith("llmgym/"))
TEXT = [id for id in IDS if str(gym.spec(id).entry_point).startswith("llmgym.envs.text:")]
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "reverse, test split": {"task": "reverse", "split": "test"},
    "small": {"max_prompt_tokens": 12, "max_new_tokens": 5, "task_options": {"digits": 1}},
    "masks": {"mask_in_info": True, "banned_tokens": ["<think>", 0], "min_new_tokens": 3},
}
BLOCKS: dict[str, dict[str, Any]] = {
    "one": {"block_size": 1},
    "random length": {"block_size": 6, "stop": [1, 6]},
    "newline": {"block_size": 8, "stop": "\n", "mask_in_info": True},
}
GO: dict[str, dict[str, Any]] = {
    "default": {},
    "white": {"board_size": 5, "color": "white", "opponent": "light", "capture_reward": 0.1, "mask_in_info": False},
    "rectangle": {
        "board_size": [4, 6],
        "color": "random",
        "komi": 2,
        "ko": "situational",
        "suicide": True,
        "planes": ["stones", "liberties", "ko", "colour"],
        "reward": "margin",
    },
}
# What stable-baselines3 says of any 3-D Box: planes of a board are no image of 8 bits, and that is meant.
IMAGE_HINTS = (
    "It seems that your observation .*is an image",
    "Treating image space",
    "The minimal resolution for an im",
)
CASES = [(id, {}) for id in IDS if id not in TEXT and id != "llmgym/Go-v0"]
CASES += [(id, options) for id in TEXT for options in OPTIONS.values()]
CASES += [("llmgym/BlockMDP-v0", options) for options in BLOCKS.values()]
CASES += [("llmgym/Go-v0", options) for options in GO.values()]
SECTIONS = (
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Arguments",
    "Vectorized environment",
    "Version History",
)


def name(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(value) or "default"


def row(observations: Any, i: int) -> Any:
    """Row i of a batch of observations."""
    return {k: v[i] for k, v in observations.items()} if isinstance(observations, dict) else observations[i]


every_case = pytest.mark.parametrize(("id", "options"), CASES, ids=name)


def test_the_ids_of_the_contract_are_registered():
    assert {"llmgym/TokenMDP-v0", "llmgym/BlockMDP-v0", "llmgym/SequenceMDP-v0"} <= set(TEXT)
    assert "llmgym/Go-v0" in IDS


@every_case
def test_gymnasium_finds_nothing_to_say(id, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check_env(gym.make(id, **options).unwrapped)


@every_case
def test_stable_baselines3_finds_nothing_to_say(id, options):
    from stable_baselines3.common.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for hint in IMAGE_HINTS if id == "llmgym/Go-v0" else ():
            warnings.filterwarnings("ignore", hint)
        check_env(gym.make(id, **options))


@every_case
def test_the_spec_survives_json(id, options):
    env = gym.make(id, **options)
    spec = EnvSpec.from_json(env.spec.to_json())
    again = gym.make(spec)
    assert_same(again.reset(seed=5), env.reset(seed=5))
    rows = gym.make_vec(id, num_envs=2, autoreset_mode="SameStep", **options)
    assert_same(gym.make_vec(EnvSpec.from_json(rows.spec.to_json())).reset(seed=5), rows.reset(seed=5))


@every_case
def test_row_i_of_the_vector_form_is_a_single_environment_seeded_with_s_plus_i(id, options):
    rows = gym.make_vec(id, num_envs=3, **options)
    observations, infos = rows.reset(seed=40)
    assert observations in rows.observation_space
    for i in range(3):
        observation, info = gym.make(id, **options).reset(seed=40 + i)
        assert_same(row(observations, i), observation)
        for key, value in info.items():
            assert infos[f"_{key}"][i]
            assert_same(infos[key][i], value)


@every_case
def test_the_vector_form_is_the_native_one_and_gives_no_warning(id, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = gym.make_vec(id, num_envs=3, **options)
    assert not isinstance(rows, gym.vector.SyncVectorEnv) and rows.num_envs == 3
    assert rows.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    single = gym.make(id, **options)
    assert rows.single_action_space == single.action_space
    assert rows.single_observation_space == single.observation_space
    rows.reset(seed=0)
    observations, rewards, terminated, truncated, _ = rows.step(rows.action_space.sample())
    assert observations in rows.observation_space
    assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)
    rows.close()


@every_case
def test_masks_states_and_pickles_are_there(id, options):
    env = gym.make(id, **options).unwrapped
    env.reset(seed=1)
    mask, space = env.action_masks(), env.action_space
    width = space.n if isinstance(space, gym.spaces.Discrete) else space.nvec.sum()
    assert mask.dtype == bool and mask.shape == (width,)
    twins = [pickle.loads(pickle.dumps(env)), gym.make(id, **options).unwrapped]
    twins[1].set_state(pickle.loads(pickle.dumps(env.get_state())))
    env.action_space.seed(0)
    action = env.action_space.sample()
    expected = env.step(action)
    for twin in twins:
        assert_same(twin.step(action), expected)


@pytest.mark.parametrize("id", IDS)
def test_the_docstring_is_the_documentation_page_in_cartpoles_order(id):
    module, _, cls = str(gym.spec(id).entry_point).partition(":")
    text = getattr(import_module(module), cls).__doc__
    assert tuple(re.findall(r"^ *## (.*)$", text, re.MULTILINE)) == SECTIONS
    assert "* v0: " in text and id in text + gym.spec(id).id


@pytest.mark.parametrize("id", TEXT)
def test_the_documentation_names_every_argument(id):
    """Those of `TextMDP` and of the shells: what can be said can be read."""
    names = {*inspect.signature(TextMDP).parameters, *inspect.signature(MDPEnv).parameters} - {"mdp"}
    text = TokenMDP.__doc__ + BlockMDP.__doc__
    assert not [argument for argument in names if f"| `{argument}` |" not in text]


def test_the_documentation_of_go_names_every_argument_and_its_default():
    shown = re.findall(r"^ *\| `(\w+)` \| (.*?) \|", GoEnv.__doc__.split("## Arguments")[1], re.MULTILINE)
    arguments = {**inspect.signature(GoMDP).parameters, **inspect.signature(GoEnv).parameters}
    defaults = {name: p.default for name, p in arguments.items() if name != "mdp"}
    assert {name: value.strip("`").strip('"').replace('"', "'") for name, value in shown} == {
        name: str(value) for name, value in defaults.items()
    }


@pytest.mark.parametrize("id", TEXT)
def test_documented_defaults_are_the_defaults(id):
    defaults = {k: p.default for k, p in inspect.signature(TextMDP).parameters.items()}
    defaults |= {"mask_in_info": False, "render_mode": None, "block_size": BlockMDP(max_new_tokens=8).mdp.block_size}
    tables = [cls.__doc__.split("## Arguments")[1] for cls in (TokenMDP, BlockMDP)]
    rows = re.findall(r"\| `(\w+)` \| (.*?) \|", "".join(tables))
    assert len(rows) == len(defaults)
    assert {k: v.strip("`").strip('"') for k, v in rows} == {k: str(v) for k, v in defaults.items()}


def test_an_unknown_id_is_gymnasiums_own_error():
    assert llmgym.__version__
    with pytest.raises(gym.error.NameNotFound, match="WordMDP"):
        gym.make("llmgym/WordMDP-v0")
