"""The fast rollout policy: its features by an independent computation, its probabilities exactly, what it learns."""

from __future__ import annotations

import numpy as np
import pytest
from go_reference import Grid

from llmgym.agents.alphago.records import Moves
from llmgym.agents.alphago.rollout import RolloutConfig, choices, fit_rollout, score_rollout
from llmgym.envs.go.fast_policy import (
    CAPTURE,
    ESCAPE,
    FEATURES,
    LINE,
    NEAR,
    PATTERN,
    SELF_ATARI,
    FastPolicy,
    features_of,
)
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.opponents import FunctionOpponent
from llmgym.envs.go.state import GoState


def random_weights(seed: int, scale: float = 1.0) -> np.ndarray:
    weights = scale * np.random.default_rng(seed).normal(size=FEATURES)
    weights[0] = 0.0
    return weights


def some_states(mdp: GoMDP, seed: int, games: int = 3) -> list[GoState]:
    """Positions of random games."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(games):
        state = mdp.initial()
        while not mdp.terminal(state):
            found.append(state)
            state = mdp.transition(state, mdp.random_move(state, rng))
    return found


def told(grid: Grid, state: GoState, point: int) -> tuple[list[int], tuple]:
    """Features of a move but the pattern, and the neighbourhood, turned and mirrored to its least form."""
    board, own = tuple(state.stones.ravel().tolist()), 1 + state.to_play
    taken = saved = 0
    for near in grid.near[point]:
        if board[near] and len(grid.liberties(board, near)) == 1:
            stones = len(grid.region(board, near)[0])
            taken, saved = (taken, max(saved, stones)) if board[near] == own else (max(taken, stones), saved)
    # Liberties after the move: of stones that it takes, those beside it count and those elsewhere do not.
    put = (*board[:point], own, *board[point + 1 :])
    opened = [q for q in grid.near[point] if board[q] == 3 - own and grid.liberties(board, q) == {point}]
    safe = len(grid.liberties(put, point) | set(opened)) > 1
    friends = sum(board[near] == own for near in grid.near[point])
    row, col = divmod(point, grid.cols)
    last = state.last_action
    distance = 8
    if last is not None and last < grid.points:
        rows, cols = abs(row - last // grid.cols), abs(col - last % grid.cols)
        distance = min(8, rows + cols + max(rows, cols))
    line = min(row, col, grid.rows - 1 - row, grid.cols - 1 - col, 3)
    features = [0 if not taken else CAPTURE + (taken > 1), 0 if not saved or not safe else ESCAPE + (saved > 1)]
    features += [0 if safe else SELF_ATARI + (friends > 0), NEAR + distance - 2, LINE + line]
    padded = np.full((grid.rows + 2, grid.cols + 2), 3)
    padded[1:-1, 1:-1] = state.stones
    square = padded[row : row + 3, col : col + 3]
    if own == 2:
        square = np.choose(square, [0, 2, 1, 3])
    images = [np.rot90(x, k) for x in (square, square.T) for k in range(4)]
    return features, min(tuple(image.ravel().tolist()) for image in images)


@pytest.mark.parametrize("size", [5, (4, 7), 1])
def test_features_are_those_of_a_plain_computation(size):
    mdp = GoMDP(size)
    grid, numbers, patterns = Grid(mdp.rules.rows, mdp.rules.cols), dict[tuple, int](), dict[int, tuple]()
    counted = 0
    for state in some_states(mdp, 0):
        features, candidates = features_of(state)
        light = mdp.mask(state)[:-1] & candidates
        np.testing.assert_array_equal(light, candidates)  # legal
        for point in np.flatnonzero(candidates).tolist():
            plain, pattern = told(grid, state, point)
            assert features[point, :5].tolist() == plain, (state.stones, point)
            number = int(features[point, 5])
            assert numbers.setdefault(pattern, number) == number and patterns.setdefault(number, pattern) == pattern
            counted += 1
        assert not features[~candidates].any()
    assert counted > 300 or size == 1
    assert min(patterns, default=PATTERN) >= PATTERN and max(patterns, default=0) < FEATURES


def softmax(mdp: GoMDP, state: GoState, weights: np.ndarray) -> np.ndarray:
    """Probabilities of all actions, by a loop."""
    features, candidates = features_of(state)
    logits = [sum(weights[f] for f in row) if ok else -np.inf for row, ok in zip(features, candidates, strict=True)]
    shares = np.exp(np.array([*logits, -np.inf]) - max(logits))
    return shares / shares.sum()


@pytest.mark.parametrize("name", ["plain", "ko", "suicide"])
def test_the_kernel_draws_by_exactly_the_softmax(name):
    mdp = GoMDP(4)
    if name == "plain":
        state = some_states(mdp, 3)[7]
    elif name == "ko":
        state = mdp.position(".XO.\nXO.O\n.XO.\n....", 0)
        state = mdp.transition(state, 6)  # Black takes, White may not retake
        assert not mdp.mask(state)[5] and state.stones[1, 1] == 0
    else:
        state = mdp.position(".X..\nX...\n....\n....", 1)
        assert not mdp.mask(state)[0]  # White's suicide
    weights = random_weights(1)
    fast, n = FastPolicy(weights), 100_000
    expected = softmax(mdp, state, weights)
    np.testing.assert_allclose(fast.probabilities(state), expected, atol=1e-12)
    counts = np.bincount(fast.moves(state, n, np.random.default_rng(0)), minlength=17)
    deviations = (counts - n * expected) / np.sqrt(n * expected * (1 - expected) + 1e-9)
    assert np.abs(deviations[expected > 0]).max() < 4.5 and not counts[expected == 0].any()


def test_without_a_candidate_it_passes():
    mdp = GoMDP((1, 2))
    state = mdp.position("X.", 0)  # the empty point is its own eye
    fast = FastPolicy(random_weights(0))
    assert fast.move(state, np.random.default_rng(0)) == 2
    np.testing.assert_array_equal(fast.probabilities(state), [0, 0, 1])


def exact_result(mdp: GoMDP, fast: FastPolicy, state: GoState) -> float:
    """Expected result for Black, by enumeration."""
    if mdp.terminal(state):
        return float(np.sign(mdp.score(state)))
    shares = fast.probabilities(state)
    return sum(shares[a] * exact_result(mdp, fast, mdp.transition(state, int(a))) for a in np.flatnonzero(shares))


def test_playouts_have_the_expected_result():
    mdp = GoMDP((2, 2), komi=0.5, max_moves=7)
    fast, n = FastPolicy(random_weights(5)), 20_000
    expected = exact_result(mdp, fast, mdp.initial())
    results = fast.results([mdp.initial()] * n, 0.5, np.random.default_rng(0))
    assert -0.99 < expected < 0.99
    assert results.mean() == pytest.approx(expected, abs=4.5 * np.sqrt((1 - expected**2) / n))


def test_playouts_leave_the_states_as_they_are():
    mdp = GoMDP(5)
    states = some_states(mdp, 1, games=1)[:6]
    before = [(state.ints.copy(), state.longs.copy()) for state in states]
    FastPolicy(random_weights(0)).results(states, 7.5, np.random.default_rng(0))
    for state, (ints, longs) in zip(states, before, strict=True):
        np.testing.assert_array_equal(state.ints, ints)
        np.testing.assert_array_equal(state.longs, longs)


def games_of(fast: FastPolicy, mdp: GoMDP, games: int, seed: int) -> list[Moves]:
    rng, found = np.random.default_rng(seed), []
    for _ in range(games):
        state, states, actions = mdp.initial(), [], []
        while not mdp.terminal(state):
            states.append(state)
            actions.append(fast.move(state, rng))
            state = mdp.transition(state, actions[-1])
        found.append(Moves(states, actions))
    return found


def test_it_learns_the_policy_that_made_the_records():
    mdp, weights = GoMDP(5), np.zeros(FEATURES)
    weights[CAPTURE : CAPTURE + 2], weights[SELF_ATARI : SELF_ATARI + 2] = 2.0, -2.0
    weights[NEAR], weights[LINE] = 1.5, -1.0
    maker = FastPolicy(weights)
    train, held_out = choices(games_of(maker, mdp, 150, 0)), choices(games_of(maker, mdp, 40, 1))
    told = []
    config = RolloutConfig(epochs=8)
    fast = fit_rollout(train, held_out, config, np.random.default_rng(0), lambda metrics: told.append(metrics))
    import torch

    best = score_rollout(torch.from_numpy(weights), held_out)["held_out_loss"]
    uniform = float(np.log(held_out.candidates.sum(1)).mean())
    assert len(told) == 8 and told[-1] == {"epoch": 8, "loss": told[-1]["loss"]} | score_rollout(
        torch.from_numpy(fast.weights.astype(np.float32)), held_out
    )
    # Of what can be learnt, uniform -> best, nearly all is.
    assert told[-1]["held_out_loss"] - best < 0.15 * (uniform - best)
    learnt = fast.weights[CAPTURE] - fast.weights[SELF_ATARI]
    assert learnt == pytest.approx(4.0, abs=1.2) and fast.weights[0] == 0


def test_choices_leave_out_what_it_cannot_play():
    mdp = GoMDP(5)
    start = mdp.initial()
    game = Moves([start, start], [7, 25])
    assert choices([game]).actions.tolist() == [7]
    with pytest.raises(ValueError, match="no move that the fast policy could play"):
        choices([Moves([start], [25])])


def test_it_is_kept_and_refused(tmp_path):
    fast = FastPolicy(random_weights(2))
    fast.save(tmp_path)
    np.testing.assert_array_equal(FastPolicy.load(tmp_path).weights, fast.weights)
    (tmp_path / "rollout.json").write_text('{"features": 7, "kinds": []}')
    with pytest.raises(ValueError, match="has other features than these: capture"):
        FastPolicy.load(tmp_path)
    with pytest.raises(ValueError, match=r"rollout\.json is missing"):
        FastPolicy.load(tmp_path / "nowhere")
    for wrong in (np.zeros(3), np.full(FEATURES, np.nan), np.ones(FEATURES)):
        with pytest.raises(ValueError, match="finite numbers, 0 the first"):
            FastPolicy(wrong)


def test_it_is_a_player(tmp_path):
    from llmgym.commands.players import make_player

    FastPolicy(random_weights(2)).save(tmp_path)
    player = make_player(str(tmp_path))
    assert isinstance(player, FunctionOpponent)
    mdp = GoMDP(5)
    assert 0 <= player.function(mdp, mdp.initial(), np.random.default_rng(0)) < 25
