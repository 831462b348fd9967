"""The engine against others, move by move: the slow reference of these tests, its own batch form, OpenSpiel."""

from __future__ import annotations

import numpy as np
import pytest
from go_reference import Game

from llmgym.envs.go.batch import GoBatch
from llmgym.envs.go.mdp import GoMDP
from llmgym.envs.go.planes import PLANES

RULES = [(ko, suicide) for ko in ("simple", "positional", "situational") for suicide in (False, True)]


def choose(mask, rng):
    """A random action; seldom a pass, so that games are long and boards fill up, are emptied, and fill up again."""
    stones = np.flatnonzero(mask[:-1])
    return int(rng.choice(stones)) if len(stones) and rng.random() < 0.97 else len(mask) - 1


# The reference: masks, boards, captures and scores at every move, for all variants of the rules.


def compare_with_reference(size, ko, suicide, seed):
    """A random game on both; the number of points that only the ko rule has forbidden in it."""
    rng = np.random.default_rng(seed)
    komi, cap, to_play = (
        float(rng.integers(-2, 3)),
        int(rng.integers(1, 4 * size[0] * size[1] + 20)),
        int(rng.integers(2)),
    )
    mdp = GoMDP(size, komi=komi, ko=ko, suicide=suicide, max_moves=cap)
    game = Game(*size, komi=komi, ko=ko, suicide=suicide, max_moves=cap, to_play=to_play)
    state, barred = mdp.position(game.stones(), to_play), 0
    while not game.ending:
        mask = mdp.mask(state)
        assert np.array_equal(mask, game.mask()), (size, ko, suicide, seed, state.n_moves)
        barred += sum(game.fits(point) for point in np.flatnonzero(~mask))
        action = choose(mask, rng)
        before, state = state, mdp.transition(state, action)
        game.play(action)
        agree(mdp, state, game)
    check_end(mdp, before, action, state, game)
    return barred


def agree(mdp, state, game):
    """What can be asked at every move."""
    assert np.array_equal(state.stones, game.stones())
    assert mdp.score(state) == game.score() and list(state.captures) == game.captures
    assert mdp.area(state).reshape(-1).tolist() == list(game.grid.area(game.board))
    assert (state.to_play, state.n_moves, state.ending) == (game.to_play, len(game.actions), game.ending)


def check_end(mdp, before, action, state, game):
    """Result, and nothing more to do."""
    assert mdp.terminal(state) and not mdp.mask(state).any()
    sign = 1 - 2 * before.to_play
    assert mdp.reward(before, action, state) == sign * np.sign(game.score())
    assert mdp.info(state)["score"] == game.score()


SMALL = [(1, 1), (1, 2), (2, 1), (1, 5), (2, 2), (2, 3), (3, 2), (3, 3), (4, 1), (4, 4), (2, 7)]
MIXED = [*SMALL, (1, 9), (3, 4), (4, 3), (3, 8), (5, 5), (5, 4), (6, 6), (7, 7), (4, 9)]
LARGE = [(9, 9), (9, 9), (13, 6), (11, 11), (1, 25), (2, 25), (16, 3), (19, 19)]


@pytest.mark.parametrize(("ko", "suicide"), RULES)
def test_games_on_small_boards_are_those_of_the_reference(ko, suicide):
    barred = sum(compare_with_reference(size, ko, suicide, seed) for seed in range(3) for size in SMALL)
    assert barred > 0  # or nothing of the ko rule would have been compared


@pytest.mark.slow
@pytest.mark.parametrize(("ko", "suicide"), RULES)
def test_games_are_those_of_the_reference(ko, suicide):
    """2,208 games, all variants together."""
    for seed in range(100, 118):
        for size in MIXED:
            compare_with_reference(size, ko, suicide, seed)
    for size in LARGE:
        compare_with_reference(size, ko, suicide, 0)


# Rows of a batch are games of `GoMDP`.


@pytest.mark.parametrize(("n", "threads"), [(7, 1), (80, 3)])  # threads share what is much
@pytest.mark.parametrize(("ko", "suicide"), RULES)
def test_rows_of_a_batch_are_games(ko, suicide, n, threads):
    """Illegal actions and new games among them; some rows wait at each step."""
    mdp = GoMDP((3, 4), komi=1, ko=ko, suicide=suicide, max_moves=40, planes=tuple(PLANES))
    batch = GoBatch(mdp.rules, n, planes=tuple(PLANES), threads=threads)
    states, rng = [mdp.initial()] * n, np.random.default_rng(0)
    for _ in range(90 - n // 2):
        actions = np.where(rng.random(n) < 0.98, batch.sample(rng), rng.integers(13, size=n))
        chosen = rng.random(n) < 0.9
        moving = chosen & ~batch.terminated
        batch.step(actions, chosen)
        for row in range(n):
            before = states[row]
            states[row] = mdp.transition(before, actions[row]) if moving[row] else before
            reward = mdp.reward(before, actions[row], states[row]) if moving[row] else 0.0
            assert batch.rewards[row] == reward
            check_row(mdp, batch, row, states[row])
        over = batch.terminated & (rng.random(n) < 0.5)
        batch.reset(over)
        states = [mdp.initial() if over[row] else states[row] for row in range(n)]


def check_row(mdp, batch, row, state):
    """All that a batch shows of a row."""
    assert np.array_equal(batch.masks[row], mdp.mask(state)) and batch.state(row) == state
    assert np.array_equal(batch.planes[row], mdp.observation(state))
    counts = (batch.to_play[row], batch.n_moves[row], batch.passes[row], *batch.captures[row])
    assert counts == (state.to_play, state.n_moves, state.passes, *state.captures)
    assert batch.terminated[row] == mdp.terminal(state)
    assert batch.last_actions[row] == (-1 if state.last_action is None else state.last_action)
    if mdp.terminal(state):
        assert batch.scores[row] == mdp.score(state)
        assert (None, "passes", "moves", "illegal")[batch.endings[row]] == state.ending


# OpenSpiel: simple ko, no suicide, square boards; it numbers the rows from below, and a repetition ends its games.


class Spiel:
    """A game of OpenSpiel, seen as ours are."""

    def __init__(self, pyspiel, size, komi):
        self.size, self.state = size, pyspiel.load_game("go", {"board_size": size, "komi": komi}).new_initial_state()

    def action(self, ours):
        """Its number of an action of ours; its own inverse."""
        row, col = divmod(ours, self.size)
        return ours if row == self.size else (self.size - 1 - row) * self.size + col

    def play(self, action):
        self.state.apply_action(self.action(action))

    def mask(self):
        mask = np.zeros(self.size**2 + 1, bool)
        mask[self.state.legal_actions()] = True
        mask[:-1] = mask[:-1].reshape(self.size, -1)[::-1].reshape(-1)
        return mask

    def stones(self):
        black, white = np.array(self.state.observation_tensor(0), np.int8).reshape(4, self.size, -1)[:2]
        return (black + 2 * white)[::-1]

    def repeats(self, action):
        """Whether an action would end the game as a repetition."""
        after = self.state.clone()
        after.apply_action(self.action(action))
        return after.is_terminal() and after.returns() == [0, 0]


def compare_with_openspiel(pyspiel, size, seed):
    """A random game on both up to the first repetition; whether it came to one."""
    rng = np.random.default_rng(seed)
    komi = [7.5, 0.5, -1.5][seed % 3]  # no draws: only a repetition is one
    options = {"komi": komi, "max_moves": 2 * size**2}
    simple, superko = GoMDP(size, ko="simple", **options), GoMDP(size, ko="positional", **options)
    ours, strict, theirs = simple.initial(), superko.initial(), Spiel(pyspiel, size, komi)
    actions: list[int] = []
    while not simple.terminal(ours):
        mask, allowed = simple.mask(ours), superko.mask(strict)
        assert np.array_equal(mask, theirs.mask()) and not theirs.state.is_terminal()
        assert np.array_equal(ours.stones, theirs.stones())
        assert not (allowed & ~mask).any() and all(theirs.repeats(a) for a in np.flatnonzero(mask & ~allowed))
        actions.append(choose(mask, rng))
        theirs.play(actions[-1])
        if not allowed[actions[-1]]:
            return theirs.state.is_terminal()
        before, ours, strict = ours, simple.transition(ours, actions[-1]), superko.transition(strict, actions[-1])
    assert theirs.state.is_terminal() and np.array_equal(ours.stones, theirs.stones())
    assert theirs.state.returns()[before.to_play] == simple.reward(before, actions[-1], ours)
    assert is_draw(pyspiel, size, simple.score(ours) + komi, actions)
    return False


def is_draw(pyspiel, size, komi, actions):
    """Whether OpenSpiel counts the same points: komi makes up for them."""
    game = Spiel(pyspiel, size, komi)
    for action in actions:
        game.play(action)
    return game.state.is_terminal() and game.state.returns() == [0, 0]


@pytest.fixture
def pyspiel():
    return pytest.importorskip("pyspiel", reason="OpenSpiel is on Linux only (extra `test`)")


def test_a_few_games_are_those_of_openspiel(pyspiel):
    repeated = [compare_with_openspiel(pyspiel, size, seed) for size in (2, 3, 4, 5, 9) for seed in range(4)]
    assert any(repeated) and not all(repeated)


@pytest.mark.slow
def test_2016_games_are_those_of_openspiel(pyspiel):
    repeated = [compare_with_openspiel(pyspiel, size, seed) for size in range(2, 20) for seed in range(100, 212)]
    assert len(repeated) == 2016 and sum(repeated) > 20  # most of them on the smallest boards
