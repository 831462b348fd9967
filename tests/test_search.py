"""The search core on a third game, and its laws."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from llmgym.mdp import MDP, NoLegalAction
from llmgym.search import LegalActions, Proposal, Proposals, Search, SearchError, SearchOptions

LINES = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]


class TicTacToe(MDP[tuple[int, ...], int]):
    """States are nine numbers: 0 empty, 1 first player, 2 second; who moves follows from their count."""

    action_space = gym.spaces.Discrete(9)

    def initial(self, rng=None, options=None):
        return (0,) * 9

    def player(self, state):
        return sum(x != 0 for x in state) % 2

    def transition(self, state, action):
        assert state[action] == 0
        return (*state[:action], self.player(state) + 1, *state[action + 1 :])

    def _won(self, state):
        return any(state[a] == state[b] == state[c] != 0 for a, b, c in LINES)

    def reward(self, state, action, next_state):
        return float(self._won(next_state))

    def terminal(self, state):
        return self._won(state) or 0 not in state

    def mask(self, state):
        return np.array([x == 0 for x in state])


GAME = TicTacToe()


def solve(state, known={}):  # noqa: B006 (kept between calls)
    """Return of the player to move, by exhaustion."""
    if state not in known:
        outcomes = []
        for action in np.flatnonzero(GAME.mask(state)):
            after = GAME.transition(state, int(action))
            value = 0.0 if GAME.terminal(after) else solve(after)
            outcomes.append(GAME.reward(state, action, after) - value)
        known[state] = max(outcomes)
    return known[state]


def uniform(states):
    """Equal priors, value 0."""
    actions = [np.flatnonzero(GAME.mask(state)).tolist() for state in states]
    return [Proposal(a, np.ones(len(a)), 0.0) for a in actions]


def hashed(states):
    """Priors and values that differ from state to state and are always the same for one."""
    out = []
    for state in states:
        rng = np.random.default_rng(abs(hash(state)) % 2**32)
        actions = np.flatnonzero(GAME.mask(state)).tolist()
        out.append(Proposal(actions, rng.random(len(actions)), rng.uniform(-0.5, 0.5)))
    return out


def searched(states, evaluate=hashed, seed=None, **options):
    search = Search(GAME, evaluate, SearchOptions(**({"discount": -1.0} | options)))
    search.start(states, None if seed is None else np.random.default_rng(seed))
    return search, search.run()


def positions(n, seed=0, most=6):
    """Positions of random games that are not over."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < n:
        state = GAME.initial()
        for _ in range(rng.integers(0, most)):
            if not GAME.terminal(state):
                state = GAME.transition(state, int(rng.choice(np.flatnonzero(GAME.mask(state)))))
        found += [] if GAME.terminal(state) else [state]
    return found


@pytest.mark.parametrize("rule", ["puct", "uct", "gumbel"])
@pytest.mark.parametrize("leaves", [1, 4])
def test_visits_sum_to_the_simulations_and_only_legal_moves_are_visited(rule, leaves):
    states = positions(8)
    _, results = searched(states, rule=rule, simulations=50, leaves=leaves, seed=0)
    for state, result in zip(states, results, strict=True):
        assert result.visits.sum() == 50
        assert GAME.mask(state)[result.actions].all() and len(set(result.actions)) == GAME.mask(state).sum()
        assert result.policy.sum() == pytest.approx(1) and np.isfinite(result.value)


@pytest.mark.parametrize("rule", ["puct", "uct", "gumbel"])
def test_proven_values_are_exact_and_play_is_perfect(rule):
    states = positions(40, most=8)
    _, results = searched(states, uniform, seed=0, rule=rule, simulations=1500, best=1.0)
    proven = 0
    for state, result in zip(states, results, strict=True):
        if result.exact:
            proven += 1
            assert result.value == solve(state)
            after = GAME.transition(state, result.action)
            worth = GAME.reward(state, result.action, after) - (0.0 if GAME.terminal(after) else solve(after))
            assert worth == solve(state)
    assert proven >= 20


def test_perfect_play_never_loses():
    rng = np.random.default_rng(3)
    for game in range(10):
        state, me = GAME.initial(), game % 2
        while not GAME.terminal(state):
            if GAME.player(state) == me:
                action = searched([state], uniform, simulations=3000, best=1.0)[1][0].action
            else:
                action = int(rng.choice(np.flatnonzero(GAME.mask(state))))
            before, state = state, GAME.transition(state, action)
        assert not GAME._won(state) or GAME.player(before) == me


@pytest.mark.parametrize("rule", ["puct", "uct"])
@pytest.mark.parametrize("best", [None, 1.0])
def test_a_reused_tree_equals_a_fresh_search_of_equal_visits(rule, best):
    search, (first,) = searched([GAME.initial()], rule=rule, simulations=300, best=best)
    index = int(first.visits.argmax())
    search.advance([index])
    carried = int(search.forest.root_visits()[0])
    assert carried == first.visits[index] - 1 > 20
    (reused,) = search.run(100)
    state = GAME.transition(GAME.initial(), first.actions[index])
    _, (fresh,) = searched([state], rule=rule, simulations=carried + 100, best=best)
    assert reused.visits.sum() == carried + 100
    np.testing.assert_array_equal(reused.visits, fresh.visits)
    np.testing.assert_allclose(reused.values, fresh.values)


def test_a_move_that_was_never_visited_begins_a_new_tree():
    search, (first,) = searched([GAME.initial()], simulations=3)
    index = int(np.flatnonzero(first.visits == 0)[0])
    search.advance([index])
    (result,) = search.run(30)
    _, (fresh,) = searched([GAME.transition(GAME.initial(), first.actions[index])], simulations=30)
    np.testing.assert_array_equal(result.visits, fresh.visits)


@pytest.mark.parametrize("rule", ["puct", "uct"])
def test_many_trees_equal_one_at_a_time(rule):
    states = positions(10)
    _, together = searched(states, rule=rule, simulations=80)
    for state, result in zip(states, together, strict=True):
        _, (alone,) = searched([state], rule=rule, simulations=80)
        np.testing.assert_array_equal(result.visits, alone.visits)
        np.testing.assert_array_equal(result.values, alone.values)


@pytest.mark.parametrize("rule", ["puct", "gumbel"])
def test_masks_and_logits_say_the_same_as_candidates_and_priors(rule):
    def masked(states):
        told, masks = hashed(states), np.stack([GAME.mask(state) for state in states])
        logits = np.full(masks.shape, np.nan)  # of what is not legal, anything
        for row, proposal in enumerate(told):
            logits[row, proposal.actions] = np.log(proposal.priors) + row
        return LegalActions(masks, logits.astype(np.float32), np.array([p.value for p in told]))

    def numbered(states):
        told, k = hashed(states), [len(p.actions) for p in hashed(states)]
        actions, priors = np.zeros((len(told), 9), np.int64), np.full((len(told), 9), np.nan)
        for row, proposal in enumerate(told):
            actions[row, : k[row]], priors[row, : k[row]] = proposal.actions, 3 * proposal.priors
        return Proposals(actions, priors, np.array([p.value for p in told]), np.ones(len(told), bool), np.array(k))

    states = positions(10)
    _, expected = searched(states, rule=rule, simulations=60, seed=0)
    for evaluate in (masked, numbered):
        _, results = searched(states, evaluate, rule=rule, simulations=60, seed=0)
        for one, other in zip(results, expected, strict=True):
            assert one.actions == list(other.actions)
            np.testing.assert_array_equal(one.visits, other.visits)
            np.testing.assert_allclose(one.priors, other.priors, rtol=1e-5)
            np.testing.assert_allclose(one.policy, other.policy, rtol=1e-4, atol=1e-9)


class Widening(MDP[tuple[int, ...], int]):
    """At depth d there are 2^d actions; the end comes at depth 6."""

    def transition(self, state, action):
        return (*state, action)

    def reward(self, state, action, next_state):
        return 0.0

    def terminal(self, state):
        return len(state) == 6


def test_nodes_may_have_more_candidates_than_those_above_them():
    def evaluate(states):
        return [Proposal([f"{i}" for i in range(2 ** len(s))], np.ones(2 ** len(s)), 0.0) for s in states]

    search = Search(Widening(), evaluate, SearchOptions(simulations=300, rule="uct", leaves=3))
    search.start([(), ()])
    search.run()
    search.advance([0, 0])
    for result in search.run():
        assert result.actions == ["0", "1"] and result.visits.sum() == 300 + 299
    for tree, states in enumerate(search.forest.states):
        nodes, edges = search.forest.nodes[tree], search.forest.edges[tree]
        for node, state in enumerate(states):
            assert nodes["degree"][node] == (0 if len(state) == 6 else 2 ** len(state))
            if node:
                edge = nodes["edge"][node]
                above = edges["node"][edge]
                assert states[above] == state[:-1] and edge - nodes["first"][above] == int(state[-1])


def plain_puct(state, simulations, options):
    """The same search as a textbook writes it: dictionaries and recursion."""
    tree = {}

    def visit(state):
        if GAME.terminal(state):
            return 0.0
        if state_key(state) not in tree:
            (proposal,) = hashed([state])
            priors = np.asarray(proposal.priors) / np.sum(proposal.priors)
            tree[state_key(state)] = {"N": 1, "W": proposal.value, "p": priors, "a": proposal.actions}
            tree[state_key(state)] |= {"n": np.zeros(len(priors)), "w": np.zeros(len(priors))}
            return proposal.value
        node = tree[state_key(state)]
        q = np.where(node["n"] > 0, node["w"] / np.maximum(node["n"], 1), node["W"] / node["N"])
        c = np.log((node["N"] + options.c_base + 1) / options.c_base) + options.c_init
        k = int(np.argmax(q + c * np.sqrt(node["N"]) * node["p"] / (1 + node["n"])))
        path.append(node["a"][k])
        after = GAME.transition(state, node["a"][k])
        worth = GAME.reward(state, node["a"][k], after) - visit(after)
        node["n"][k] += 1
        node["w"][k] += worth
        node["N"] += 1
        node["W"] += worth
        return worth

    def state_key(_):
        return tuple(path)  # a tree, not a graph: a node is the way to it

    for _ in range(simulations + 1):
        path = []
        visit(state)
    path = []
    return tree[state_key(state)]["n"]


def test_puct_is_the_textbooks():
    for state in positions(6):
        _, (result,) = searched([state], simulations=200)
        np.testing.assert_array_equal(result.visits, plain_puct(state, 200, SearchOptions()))


def test_several_leaves_at_once_ask_in_larger_batches():
    sizes = []

    def counting(states):
        sizes.append(len(states))
        return hashed(states)

    searched([GAME.initial()], counting, simulations=64, leaves=8)
    assert max(sizes) == 8 and sum(sizes) <= 65 and len(sizes) < 30


def test_noise_changes_the_priors_of_the_root_alone():
    search, (noisy,) = searched([GAME.initial()], noise=0.25, noise_alpha=1.0, seed=1, simulations=20)
    _, (plain,) = searched([GAME.initial()], simulations=20)
    assert noisy.priors.sum() == pytest.approx(1) and not np.allclose(noisy.priors, plain.priors)
    assert (noisy.priors >= 0.75 * plain.priors - 1e-12).all()
    child = int(search.forest.edges["child"][0, : len(noisy.priors)].max())
    (told,) = hashed([search.forest.states[0][child]])
    first = search.forest.nodes["first"][0, child]
    got = search.forest.edges["prior"][0, first : first + len(told.priors)]
    np.testing.assert_allclose(got, told.priors / np.sum(told.priors))


class Bandit(MDP[int, int]):
    """One action, then the end; rewards are given."""

    action_space = gym.spaces.Discrete(6)

    def __init__(self, rewards):
        self.rewards = rewards

    def transition(self, state, action):
        return action + 1

    def reward(self, state, action, next_state):
        return float(self.rewards[action])

    def terminal(self, state):
        return state > 0


@pytest.mark.parametrize("simulations", [2, 4, 8])
def test_gumbel_improves_the_policy_in_expectation(simulations):
    """Danihelka et al. 2022, theorem 1: E[q(action)] >= Σ π q, with few simulations; and π' improves too."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        rewards, logits = rng.uniform(-1, 1, 6), rng.normal(size=6)
        prior = np.exp(logits) / np.exp(logits).sum()
        bandit = Bandit(rewards)
        options = SearchOptions(rule="gumbel", simulations=simulations, considered=4)
        search = Search(bandit, lambda s, p=prior, r=rewards: [Proposal(range(6), p, float(p @ r)) for _ in s], options)
        search.start([0] * 2000, rng)
        results = search.run()
        got = np.array([rewards[result.action] for result in results])
        assert got.mean() >= prior @ rewards - 2 * got.std() / np.sqrt(len(got))
        assert np.mean([result.policy @ rewards for result in results]) >= prior @ rewards - 1e-9


def test_sequential_halving_visits_as_published():
    from llmgym.search.gumbel import considered_visits

    # The example of mctx's documentation of its schedule: m = 4 and 8 simulations.
    assert considered_visits(4, 8) == (0, 0, 0, 0, 1, 1, 2, 2)
    assert considered_visits(1, 3) == (0, 1, 2)


def test_bad_input_is_named():
    with pytest.raises(NoLegalAction, match="not terminal"):
        searched([(1, 1, 1, 2, 2, 0, 0, 0, 0)])
    for proposal, sentence in [
        (Proposal([], [], 0.0), "at least one candidate"),
        (Proposal([0], [1.0], float("nan")), "finite number"),
        (Proposal([0, 1], [1.0, float("nan")], 0.0), "finite numbers"),
        (Proposal([0, 1], [1.0], 0.0), "2 finite numbers"),
    ]:
        with pytest.raises(SearchError, match=sentence):
            searched([GAME.initial()], lambda states, p=proposal: [p for _ in states])
    arrays = np.array([[0, 1]]), np.ones((1, 2)), np.zeros(1), np.ones(1, bool)
    for told, sentence in [
        (Proposals(*arrays, np.array([3])), "3 finite numbers"),
        (Proposals(*arrays[:2], np.zeros(2), arrays[3], np.array([2])), "one proposal a state"),
        (LegalActions(np.ones((1, 9), bool), np.full((1, 9), np.nan), np.zeros(1)), "logits must be numbers"),
        (LegalActions(np.ones((1, 9), bool), np.zeros((1, 9)), np.full(1, np.inf)), "finite number"),
    ]:
        with pytest.raises(SearchError, match=sentence):
            searched([GAME.initial()], lambda states, t=told: t)
    with pytest.raises(NoLegalAction, match="forbids every action"):
        searched([GAME.initial()], lambda states: LegalActions(np.zeros((1, 9), bool), np.zeros((1, 9)), np.zeros(1)))
    for options in ({"simulations": 0}, {"leaves": 0}, {"rule": "best"}, {"noise": 2.0}, {"discount": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            SearchOptions(**options)
    search, _ = searched([GAME.initial()])
    with pytest.raises(ValueError, match="simulations"):
        search.run(0)
    with pytest.raises(ValueError, match="generator"):
        searched([GAME.initial()], rule="gumbel")
    with pytest.raises(ValueError, match="'rave'"):
        Search(GAME, uniform, SearchOptions(rule="rave"))
