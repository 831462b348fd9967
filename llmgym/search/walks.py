"""What is done to many trees in one call: ways down them, what lies at the end, and new nodes there."""

from __future__ import annotations

import math

import numpy as np

from llmgym.compiled import inlined, kernel
from llmgym.search.gumbel import halving_edge
from llmgym.search.rules import GUMBEL, choose, improved_policy
from llmgym.search.tree import (
    NO_CHILD,
    PENDING,
    ROOT,
    RULE,
    add_edge,
    add_node,
    back_out,
    back_up,
    edge_value,
    edge_visits,
)


@kernel
def select(nodes, edges, goals, leaves, gumbels, plans, numbers, width, found):
    """Ways down all trees, up to so many leaves of each; those that end at an exact node are backed up at once.

    Args:
        goals: visits that every root shall have; int64 [B].
        gumbels, plans: of sequential halving, see `llmgym.search.gumbel.halving_edge`; [B, K] and [B, simulations].
        width: most edges of a node.
        found: filled with the edges at the ends, which lead nowhere yet: tree, edge, number of the state where it
            begins, its action, and its place among the candidates there. int64 [5, B · leaves].

    Returns:
        How many edges were found; -1 if all roots have their visits.
    """
    policy, n, asked = np.empty(width), 0, False
    for _ in range(leaves):
        before = n
        for b in range(nodes.shape[0]):
            left = goals[b] - nodes[b, ROOT].visits - nodes[b, ROOT].flight
            if left <= 0:
                continue
            asked, first = True, -1
            if numbers[RULE] == GUMBEL:
                first = halving_edge(nodes[b], edges[b], gumbels[b], plans[b, plans.shape[1] - left], numbers)
            edge, node = descend(nodes[b], edges[b], first, numbers, policy)
            if node >= 0:
                back_up(nodes[b], edges[b], node, numbers)
            elif edge >= 0:
                note(nodes[b], edges[b], b, edge, found[:, n])
                n += 1
        if n == before:
            break
    return n if asked else -1


@kernel
def look_up(nodes, edges, trees, leaf_edges, found):
    """What `select` tells of edges that it has found, for others: int64 [n] twice, [5, n]."""
    for i in range(trees.shape[0]):
        note(nodes[trees[i]], edges[trees[i]], trees[i], leaf_edges[i], found[:, i])


@inlined
def note(nodes, edges, tree, edge, found):
    """An edge, int64 [5]."""
    it = edges[edge]
    found[0], found[1], found[2] = tree, edge, nodes[it.node].state
    found[3], found[4] = it.action, edge - nodes[it.node].first


@inlined
def descend(nodes, edges, root_edge, numbers, policy):
    """From the root to an edge without child, or to a node that is exact; marks what it passes as under way.

    Returns:
        (edge, node): one of them is -1; both are if the way led to a state that is being evaluated.
    """
    node, depth = ROOT, 0
    while True:
        if nodes[node].exact == nodes[node].exact and node != ROOT:
            nodes[node].flight += 1
            return -1, node
        edge = root_edge if depth == 0 and root_edge >= 0 else choose(nodes, edges, node, numbers, policy)
        if edge < 0 or edges[edge].child == PENDING:
            back_out(nodes, edges, node)
            return -1, -1
        nodes[node].flight += 1
        if edges[edge].child == NO_CHILD:
            edges[edge].child = PENDING
            return edge, -1
        node, depth = edges[edge].child, depth + 1


@kernel
def grow(
    nodes, edges, counts, trees, leaf_edges, state, actions, priors, degrees, values, completes, rewards, terminals,
    numbers,
):  # fmt: skip
    """Add n nodes and back them up; those that are not terminal take the proposals, m of them, in turn.

    Nothing is changed if a proposal has no candidate, a prior that is none or a value that is no number.

    Args:
        trees, leaf_edges: where, int64 [n]; the edge -1 makes a root.
        state: number of the first new state.
        actions: of the new edges, int64 [m, W]; or of no width, where Python keeps them.
        priors: float64 [m, W], of which the first K count; they are normalised (equal where all are 0).

    Returns:
        The proposal that is at fault; -1 if none is.
    """
    for j in range(priors.shape[0]):
        if not sound(priors[j], degrees[j], values[j]):
            return j
    j = 0
    for i in range(trees.shape[0]):
        b, ends = trees[i], terminals[i]
        told = (0.0, rewards[i], True, True) if ends else (values[j], rewards[i], False, completes[j])
        node = hang(nodes[b], edges[b], counts[b], leaf_edges[i], state + i, told)
        if not ends:
            add_edges(nodes[b], edges[b], counts[b], node, actions[j], priors[j], degrees[j])
            j += 1
        back_up(nodes[b], edges[b], node, numbers)
    return -1


@kernel
def grow_legal(
    nodes, edges, counts, trees, leaf_edges, state, masks, logits, values, rewards, terminals, numbers
):  # fmt: skip
    """`grow` where the candidates are all actions that a mask allows, bool [m, K], and priors softmax(logits)."""
    for j in range(masks.shape[0]):
        if not sound_logits(masks[j], logits[j], values[j]):
            return j
    j = 0
    for i in range(trees.shape[0]):
        b, ends = trees[i], terminals[i]
        told = (0.0, rewards[i], True, True) if ends else (np.float64(values[j]), rewards[i], False, True)
        node = hang(nodes[b], edges[b], counts[b], leaf_edges[i], state + i, told)
        if not ends:
            add_legal_edges(nodes[b], edges[b], counts[b], node, masks[j], logits[j])
            j += 1
        back_up(nodes[b], edges[b], node, numbers)
    return -1


@inlined
def hang(nodes, edges, counts, edge, state, told):
    """A node without edges: `add_node`, and where its state is."""
    node = add_node(nodes, edges, counts, edge, *told)
    nodes[node].state, nodes[node].first = state, counts[1]
    return node


@inlined
def sound(priors, degree, value):
    """Whether a tree can grow by a proposal."""
    if not (0 < degree <= priors.shape[0] and -math.inf < value < math.inf):
        return False
    for k in range(degree):  # noqa: SIM110 (kernels know no generators)
        if not 0.0 <= priors[k] < math.inf:
            return False
    return True


@inlined
def sound_logits(mask, logits, value):
    """Whether something is legal, its logits have a softmax, and the value is a number."""
    top = -math.inf
    for k in range(mask.shape[0]):
        if mask[k]:
            if not logits[k] < math.inf:
                return False
            top = max(top, logits[k])
    return top > -math.inf and -math.inf < value < math.inf


@inlined
def add_edges(nodes, edges, counts, node, actions, priors, degree):
    """Edges of a node that has none yet, after all others."""
    first, total = np.int64(nodes[node].first), 0.0
    for k in range(degree):
        total += priors[k]
    for k in range(degree):
        add_edge(edges, first + k, node, priors[k] / total if total > 0.0 else 1.0 / degree)
        if actions.shape[0] > 0:
            edges[first + k].action = actions[k]
    nodes[node].degree = degree
    counts[1] = first + degree


@inlined
def add_legal_edges(nodes, edges, counts, node, mask, logits):
    """The same of the actions that a mask allows."""
    first, edge, top, total = np.int64(nodes[node].first), np.int64(nodes[node].first), -math.inf, 0.0
    for k in range(mask.shape[0]):
        if mask[k]:
            top = max(top, np.float64(logits[k]))
    for k in range(mask.shape[0]):
        if mask[k]:
            prior = math.exp(logits[k] - top)
            add_edge(edges, edge, node, prior)
            edges[edge].action = k
            total, edge = total + prior, edge + 1
    for at in range(first, edge):
        edges[at].prior /= total
    nodes[node].degree = edge - first
    counts[1] = edge


@kernel
def weigh(nodes, edges, numbers, visits, values, exact, policy):
    """What is known of the candidates of all roots: all [B, W], of which the first K of a row are filled.

    Args:
        visits: of each; int64.
        values: mean or proven return; NaN without a visit. float64.
        exact: whether it is proven; bool.
        policy: shares of the visits, or Gumbel's improved policy; float64.
    """
    for b in range(nodes.shape[0]):
        it, total = nodes[b, ROOT], 0
        for k in range(it.degree):
            edge = it.first + k
            n, child = edge_visits(nodes[b], edges[b], edge), edges[b, edge].child
            visits[b, k], total = n, total + n
            values[b, k] = edge_value(nodes[b], edges[b], edge, numbers) if n > 0 else math.nan
            exact[b, k] = child >= 0 and nodes[b, child].exact == nodes[b, child].exact
        if numbers[RULE] == GUMBEL:
            improved_policy(nodes[b], edges[b], ROOT, numbers, policy[b])
        else:
            for k in range(it.degree):
                policy[b, k] = visits[b, k] / total
