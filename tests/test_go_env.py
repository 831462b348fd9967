"""`llmgym/Go-v0`: whose view, who moves when, how games end, and that everything can be repeated."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from toys import assert_same

from llmgym.envs.go.env import GoEnv
from llmgym.envs.go.mdp import GoMDP

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"board_size": 5},
    "white": {"board_size": 5, "color": "white", "komi": 2, "handicap": 2},
    "rectangle": {
        "board_size": (3, 6),
        "color": "random",
        "ko": "situational",
        "suicide": True,
        "capture_reward": 0.25,
    },
    "margin": {"board_size": 4, "color": "random", "ko": "simple", "reward": "margin", "planes": ("liberties", "ko")},
}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
STEP = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


def passing(mdp: GoMDP, state: Any, rng: np.random.Generator) -> int:
    """An opponent without ambition."""
    return mdp.rules.points


def uniform(mdp: GoMDP, state: Any, rng: np.random.Generator) -> int:
    """What "random" does, as a function."""
    return mdp.random_move(state, rng)


def light(mdp: GoMDP, state: Any, rng: np.random.Generator) -> int:
    """What "light" does, as a function."""
    return mdp.light_move(state, rng)


FUNCTIONS = {"random": uniform, "light": light}


def play(env: GoEnv, seed: int = 0, n: int = 1000) -> list[STEP]:
    """Random legal actions from here to the end of the game, or n of them."""
    rng, steps = np.random.default_rng(seed), list[STEP]()
    while len(steps) < n and not (steps and (steps[-1][2] or steps[-1][3])):
        legal = np.flatnonzero(env.action_masks())
        steps.append(env.step(int(rng.choice(legal)) if len(legal) else 0))
    return steps


def stepped(env: GoEnv, *actions: int) -> STEP:
    """The last of some steps."""
    for action in actions:
        step = env.step(action)
    return step


@pytest.mark.parametrize(
    ("board", "color", "reward"),
    [("X. .. ..", "black", 1.0), ("X. .. ..", "white", -1.0), ("XX .. OO", "black", 0.0), ("OO .. ..", "white", 1.0)],
)
def test_the_result_is_the_agents(board, color, reward):
    env = GoEnv(board_size=(3, 2), komi=0, opponent=passing, color=color)
    position = board.replace(" ", "\n")
    env.reset(options={"position": position, "to_play": 0})
    *_, said, terminated, truncated, info = env.step(6)
    assert (said, type(said), terminated, truncated) == (reward, float, True, False)
    score = env.mdp.score(env.state)
    assert info["ending"] == "passes" and info["score"] == score
    assert info["winner"] == (-1 if score == 0 else int(score < 0))
    assert info["is_success"] is (reward > 0)


def test_there_is_no_reward_before_the_end():
    env = GoEnv(board_size=5, opponent="light")
    env.reset(seed=1)
    *before, last = play(env)
    assert len(before) > 5 and all(step[1:4] == (0.0, False, False) for step in before)
    assert all(set(step[4]) == {"action_mask"} for step in before) and last[1] in (1.0, -1.0)


def test_an_illegal_action_loses_at_once():
    env = GoEnv(board_size=5, opponent=passing)
    env.reset()
    env.step(12)
    observation, reward, terminated, truncated, info = env.step(12)
    assert (reward, terminated, truncated) == (-1.0, True, False)
    assert info["illegal"] is True and info["winner"] == 1 and info["ending"] == "illegal" and not info["is_success"]
    assert not info["action_mask"].any() and not env.action_masks().any()
    assert observation[0, 2, 2] == 1  # still seen from the agent's side


def test_margin_and_captures_are_the_agents():
    """White takes a stone in the corner, Black takes two; Black wins 6 points of 9."""
    env = GoEnv(board_size=3, komi=1, opponent=passing, reward="margin", capture_reward=0.5)
    env.reset(options={"position": "OO.\nXX.\n..."})
    assert env.step(2)[1] == 1.0  # two stones
    _, reward, terminated, *_ = env.step(9)
    assert terminated and reward == pytest.approx((9 - 1) / 9)

    env = GoEnv(board_size=3, opponent=lambda mdp, state, rng: 2, capture_reward=0.5)
    env.reset(options={"position": "XX.\nOO.\n..."})
    assert env.step(8)[1] == -1.0


def test_a_suicide_costs_what_a_capture_brings():
    env = GoEnv(board_size=3, suicide=True, opponent=passing, capture_reward=1.0)
    env.reset(options={"position": "X.O\nOO.\n..."})
    assert env.step(1)[1] == -2.0


@pytest.mark.parametrize(
    ("color", "handicap", "moves"), [("black", 0, 0), ("white", 0, 1), ("black", 2, 1), ("white", 2, 0)]
)
def test_the_opponent_moves_first_where_it_is_to_play(color, handicap, moves):
    env = GoEnv(board_size=9, color=color, handicap=handicap, opponent="light")
    env.reset(seed=3)
    assert env.state.n_moves == moves == len(env.table.moves)
    assert env.mdp.player(env.state) == env.color == ("black", "white").index(color)
    env.step(40)
    assert env.state.n_moves == moves + 2 and env.mdp.player(env.state) == env.color


def test_a_random_colour_is_drawn_at_each_reset():
    env = GoEnv(board_size=5, color="random")
    env.reset(seed=0)
    colors = []
    for _ in range(40):
        observation, _ = env.reset()
        colors.append(env.color)
        assert (observation[-1] == 1 - env.color).all()
    assert 8 < sum(colors) < 32


@every_variant
@pytest.mark.parametrize("opponent", FUNCTIONS)
def test_compiled_replies_are_those_of_a_function(options, opponent):
    """Two ways through the code, one game: observations, masks, rewards and infos."""
    for seed in range(12):
        envs = [GoEnv(opponent=kind, **options) for kind in (opponent, FUNCTIONS[opponent])]
        assert_same(*(env.reset(seed=seed) for env in envs))
        first, second = (play(env, seed) for env in envs)
        assert_same(first, second)
        assert envs[0].state == envs[1].state and envs[0].table.moves == envs[1].table.moves


@every_variant
def test_a_game_is_what_the_rules_make_of_its_moves(options):
    env = GoEnv(opponent="random", **options)
    for seed in range(8):
        env.reset(seed=seed)
        begun = len(env.table.moves)
        rewards = [step[1] for step in play(env, seed)]
        state, total, mdp = env.table.start, 0.0, env.mdp
        for number, action in enumerate(env.table.moves):
            before, state = state, mdp.transition(state, action)
            sign = 1 if mdp.player(before) == env.color else -1
            total += sign * mdp.reward(before, action, state) if number >= begun else 0.0
        assert state == env.state and mdp.terminal(state) and sum(rewards) == pytest.approx(total)


@every_variant
def test_the_board_is_always_seen_from_the_agents_side(options):
    env = GoEnv(opponent="light", **options)
    observation, _ = env.reset(seed=5)
    steps = [(observation,), *play(env, 5)]
    for step in steps[:-1]:
        assert step[0] in env.observation_space
    if "stones" in env.mdp.planes:
        stones = env.state.stones
        assert np.array_equal(steps[-1][0][0], stones == 1 + env.color)
        assert np.array_equal(steps[-1][0][1], stones == 2 - env.color)
        assert all((step[0][-1] == 1 - env.color).all() for step in steps)


def test_observations_are_those_of_the_mdp_and_new_arrays():
    env = GoEnv(board_size=5, opponent="light")
    kept = [env.reset(seed=0)[0]]
    expected = [env.mdp.observation(env.state)]
    for _ in range(6):
        observation, *_, info = play(env, 1, 1)[0]
        kept.append(observation)
        expected.append(env.mdp.observation(env.state))
        assert np.array_equal(info["action_mask"], env.mdp.mask(env.state))
        info["action_mask"][:] = False  # the caller's own
        assert env.action_masks().any()
    assert_same(kept, expected)


@every_variant
@pytest.mark.parametrize("opponent", ["random", "light", uniform])
def test_the_same_seed_plays_the_same_game(options, opponent):
    games = []
    for seed in (7, 7, 8):
        env = GoEnv(opponent=opponent, **options)
        env.reset(seed=seed)
        games.append((play(env, 1), env.table.moves))
    assert_same(games[0], games[1])
    assert games[0][1] != games[2][1]


@every_variant
@pytest.mark.parametrize("opponent", ["random", uniform])
def test_copies_pickles_and_snapshots_go_on_identically(options, opponent):
    env = GoEnv(opponent=opponent, **options)
    env.reset(seed=3)
    play(env, 3, 2)
    fresh = GoEnv(opponent=opponent, **options)
    fresh.set_state(pickle.loads(pickle.dumps(env.get_state())))
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env)), fresh]
    snapshot = env.get_state()
    expected = play(env, 4)
    for twin in twins:
        assert_same(play(twin, 4), expected)
        assert twin.state == env.state and twin.table.moves == env.table.moves
        twin.set_state(snapshot)  # also back in time
        assert_same(play(twin, 4), expected)
        assert_same(twin.reset(), copy.deepcopy(env).reset())


def test_a_snapshot_of_a_finished_game_is_finished():
    env, twin = GoEnv(board_size=2), GoEnv(board_size=2)
    env.reset(seed=0)
    play(env)
    twin.set_state(env.get_state())
    with pytest.raises(ResetNeeded, match=r"call reset\(\)"):
        twin.step(0)


def test_a_snapshot_of_other_rules_is_refused():
    env = GoEnv(board_size=(4, 6))
    env.reset()
    for options in ({"board_size": (6, 4)}, {"board_size": (4, 6), "ko": "simple"}, {"board_size": 9}):
        with pytest.raises(ValueError, match="got one of other rules"):
            GoEnv(**options).set_state(env.get_state())


def test_games_begin_as_the_options_say():
    env = GoEnv(board_size=5, opponent=passing, color="white")
    env.reset(options={"moves": [12, 7]})
    assert env.table.moves == [12, 7, 25] and env.state.stones[2, 2] == 1 and env.state.stones[1, 2] == 2
    assert env.table.start == env.mdp.initial()
    env.reset(options={"moves": np.array([12])})
    assert env.table.moves == [12]
    env.reset(options={"moves": None})
    assert env.table.moves == [25]
    env.reset(options={"position": np.eye(5, dtype=int), "to_play": 1})
    assert env.table.moves == [] and env.state.stones.sum() == 5
    env.reset(options={"handicap": 2})
    assert env.table.moves == [] and env.state.stones.sum() == 2
    assert env.reset()[0].sum() == 0 and env.table.moves == [25]
    with pytest.raises(ValueError, match="options of Go are"):
        env.reset(options={"problem": 1})
    state = env.state
    with pytest.raises(ValueError, match="moves must be legal"):
        env.reset(options={"moves": [12, 12]})
    assert env.state == state


@pytest.mark.parametrize("opponent", ["random", uniform])
@pytest.mark.parametrize(
    ("arguments", "options"),
    [({"max_moves": 1, "color": "white"}, None), ({}, {"moves": [9, 9]}), ({"color": "white"}, {"moves": [0, 9, 9]})],
)
def test_a_game_that_is_over_before_the_agent_moves_is_told_by_the_first_step(opponent, arguments, options):
    env = GoEnv(board_size=3, opponent=opponent, **arguments)
    _, info = env.reset(seed=0, options=options)
    for mask in (info["action_mask"], env.action_masks()):
        assert mask.nonzero()[0].tolist() == [9]  # something must be chosen
    moves = env.table.moves
    _, reward, terminated, truncated, info = env.step(0)
    assert terminated and not truncated and reward == (1.0 if info["winner"] == env.color else -1.0)
    assert env.table.moves == moves and "illegal" not in info


def test_the_smallest_boards():
    env = GoEnv(board_size=1, komi=0)
    env.reset(seed=0)
    assert env.step(1)[1:4] == (0.0, True, False)
    env = GoEnv(board_size=(1, 2), komi=0.5, opponent="light")
    for seed in range(10):
        env.reset(seed=seed)
        assert play(env, seed)[-1][2]


def test_the_cap_on_moves_scores_the_board():
    env = GoEnv(board_size=5, max_moves=4, opponent="light")
    env.reset(seed=0)
    steps = play(env)
    assert len(steps) == 2 and steps[-1][2] and steps[-1][4]["ending"] == "moves"


def test_stepping_needs_a_game():
    env = GoEnv(board_size=5)
    for call in (lambda: env.step(0), lambda: env.state, env.action_masks, env.get_state):
        with pytest.raises(ResetNeeded):
            call()
    env.reset(seed=0)
    play(env)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.close()
    env.close()


@pytest.mark.parametrize("action", [-1, 26, 10**9])
def test_an_action_outside_the_space_is_an_error(action):
    env = GoEnv(board_size=5)
    env.reset()
    with pytest.raises(ValueError, match=rf"an action lies in \[0, 25\], got {action}"):
        env.step(action)
    assert env.state.n_moves == 0


def test_actions_may_be_numpy_integers_but_no_fractions():
    env = GoEnv(board_size=5)
    env.reset()
    env.step(np.int64(3))
    env.step(np.array(4))
    with pytest.raises(TypeError):
        env.step(3.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"color": "red"}, "color must be one of black, white, random, got 'red'"),
        ({"render_mode": "sound"}, "render_mode must be None or one of"),
        ({"board_size": 26}, "board_size must be a whole number in"),
        ({"opponent": 3}, "opponent must be .*, got 3"),
        ({"opponent": "no-such-engine --fast"}, "there is no program 'no-such-engine'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GoEnv(**arguments)


def test_the_mask_may_be_left_out_of_info():
    env = GoEnv(board_size=5, mask_in_info=False)
    assert env.reset(seed=0)[1] == {} and env.step(0)[4] == {} and env.action_masks().shape == (26,)


def test_random_replies_are_uniform_over_legal_actions():
    """Chi-square of 6,000 first replies on 2x2, where three points and the pass are open."""
    env, counts = GoEnv(board_size=2), np.zeros(5)
    env.reset(seed=0)
    for _ in range(6000):
        env.reset()
        env.step(0)
        counts[env.table.moves[-1]] += 1
    assert counts[0] == 0 and (((counts[1:] - 1500) ** 2) / 1500).sum() < 16.3  # 99.9 % of 3 degrees of freedom


def test_two_sizes_in_one_process_do_not_know_of_each_other():
    alone = GoEnv(board_size=7)
    alone.reset(seed=2)
    expected = play(alone, 2)
    small, large = GoEnv(board_size=3), GoEnv(board_size=7)
    small.reset(seed=1)
    large.reset(seed=2)
    rng, steps = np.random.default_rng(2), []
    while not (steps and steps[-1][2]):
        small.reset()
        small.step(4)
        steps.append(large.step(int(rng.choice(np.flatnonzero(large.action_masks())))))
    assert_same(steps, expected)
