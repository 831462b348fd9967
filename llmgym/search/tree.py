"""Trees as arrays, and what is done to one: grow, back up, prove, move the root.

A search has B trees of at most M nodes and E edges. Returns of a node are from the view of who moves there; along an
edge G = reward + discount · G(child), so that a zero-sum game of two is `discount = -1` (as in mctx). A tree has one
edge to each node: an edge's visits and mean are those of its child.
"""

from __future__ import annotations

import math

import numpy as np

from llmgym.compiled import inlined, kernel

NODE = np.dtype(
    [
        ("total", np.float64),  # sum of returns
        ("value", np.float64),  # of the evaluator
        ("exact", np.float64),  # proven return, or NaN
        ("visits", np.int32),
        ("flight", np.int32),  # visits under way
        ("first", np.int32),  # its first edge
        ("degree", np.int32),  # number of edges; 0 at a terminal
        ("edge", np.int32),  # that leads here; -1 at the root
        ("state", np.int32),  # its number where states are kept; drivers of games play them again instead
        ("complete", np.int32),  # whether the candidates are all actions
    ],
    align=True,
)
EDGE = np.dtype(
    [
        ("prior", np.float64),
        ("reward", np.float64),
        ("all_total", np.float64),  # RAVE: returns of simulations in which the action came later too, of who takes it
        ("all_visits", np.int32),  # and how many they are; only drivers of games fill these
        ("action", np.int32),  # where candidates are numbers and not kept in Python
        ("node", np.int32),  # where it begins
        ("child", np.int32),  # where it ends; -1 before, PENDING while its state is being evaluated
    ],
    align=True,
)
NO_CHILD, PENDING = -1, -2
ROOT = 0
# The numbers of `SearchOptions` that kernels read, in this order: see `llmgym.search.forest.numbers`.
RULE, DISCOUNT, BASE, INIT, UCT_FACTOR, REDUCTION, LOSS, VISIT, SCALE, BEST, EQUIVALENCE = range(11)


@inlined
def mean(nodes, node, loss):
    """Mean return of a visited node, visits under way counted as losses of the player who moves into it."""
    it = nodes[node]
    return (it.total + it.flight * loss) / (it.visits + it.flight)


@inlined
def edge_value(nodes, edges, edge, numbers):
    """Return of taking a visited edge, from the view of who takes it."""
    discount, child = numbers[DISCOUNT], edges[edge].child
    exact = nodes[child].exact
    if exact == exact:
        return edges[edge].reward + discount * exact
    # Visits under way are losses for who takes the edge; `mean` is of the player there.
    loss = -numbers[LOSS] if discount > 0 else numbers[LOSS]
    return edges[edge].reward + discount * mean(nodes, child, loss)


@inlined
def edge_visits(nodes, edges, edge):
    """Visits of an edge, those under way included."""
    child = edges[edge].child
    return 0 if child < 0 else nodes[child].visits + nodes[child].flight


@inlined
def back_out(nodes, edges, node):
    """Take back the marks above a node that a way cannot go on from."""
    while nodes[node].edge >= 0:
        node = edges[nodes[node].edge].node
        nodes[node].flight -= 1


@inlined
def back_up(nodes, edges, node, numbers):
    """Add the value of a node that a way has ended at to all nodes on the way, and pass proofs up."""
    it = nodes[node]
    exact = it.exact == it.exact
    worth, proving = it.exact if exact else it.value, exact and numbers[BEST] < math.inf
    while True:
        nodes[node].total += worth
        nodes[node].visits += 1
        nodes[node].flight -= 1
        edge = nodes[node].edge
        if edge < 0:
            return
        worth = edges[edge].reward + numbers[DISCOUNT] * worth
        node = edges[edge].node
        proving = proving and prove(nodes, edges, node, numbers)


@inlined
def prove(nodes, edges, node, numbers):
    """Make a node exact that has a winning edge, or whose edges are all exact (if they are all actions)."""
    it = nodes[node]
    best, all_exact = -math.inf, it.complete == 1
    for edge in range(it.first, it.first + it.degree):
        child = edges[edge].child
        if child < 0 or nodes[child].exact != nodes[child].exact:
            all_exact = False
        else:
            best = max(best, edges[edge].reward + numbers[DISCOUNT] * nodes[child].exact)
    if all_exact or best >= numbers[BEST]:
        nodes[node].exact = best
        return True
    return False


@inlined
def add_node(nodes, edges, counts, edge, value, reward, terminal, complete):
    """A node without edges at the end of an edge (-1: the root), a visit under way; returns its number.

    Args:
        counts: nodes and edges of this tree so far, int32 [2]; increased.
    """
    node = np.int64(counts[0])
    nodes[node].total = 0.0
    nodes[node].visits = nodes[node].degree = 0
    nodes[node].flight = 1
    nodes[node].value, nodes[node].exact = value, value if terminal else math.nan
    nodes[node].edge, nodes[node].complete = edge, complete
    if edge >= 0:
        edges[edge].child, edges[edge].reward = node, reward
    counts[0] = node + 1
    return node


@inlined
def add_edge(edges, edge, node, prior):
    """An edge that begins at a node and leads nowhere yet."""
    edges[edge].prior, edges[edge].reward = prior, 0.0
    edges[edge].node, edges[edge].child = node, NO_CHILD
    edges[edge].all_total, edges[edge].all_visits = 0.0, 0


@kernel
def reroot(nodes, edges, counts, root_edge, moved):
    """Keep only what lies below an edge of the root: one tree, [M], [E], int32 [2].

    Args:
        moved: filled with the new number of every old node, -1 for those that are gone; int64 [M].
    """
    old_edges, kept, kept_edges = edges[: counts[1]].copy(), 0, 0
    for node in range(counts[0]):  # children have larger numbers than their parents
        edge = nodes[node].edge
        moved[node] = -1
        if edge == root_edge or (edge >= 0 and moved[old_edges[edge].node] >= 0):
            moved[node] = kept
            kept += 1
    for node in range(counts[0]):
        if moved[node] >= 0:
            kept_edges = _move(nodes, edges, old_edges, node, moved, kept_edges)
    if kept > 0:
        nodes[ROOT].edge = -1
    counts[0], counts[1] = kept, kept_edges


@inlined
def _move(nodes, edges, old_edges, node, moved, first):
    """Copy a node and its edges to their new places; that of a node lies before the old one, or is the same."""
    old, new = nodes[node].first, moved[node]
    nodes[new] = nodes[node]
    nodes[new].first = first
    for k in range(nodes[new].degree):
        edges[first + k] = old_edges[old + k]
        edges[first + k].node = new
        child = edges[first + k].child
        if child >= 0:
            edges[first + k].child = moved[child]
            nodes[child].edge = first + k
    return first + nodes[new].degree
