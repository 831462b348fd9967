"""Trees as arrays, and the kernels that walk them: select, expand, back up.

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
# The numbers of `SearchOptions` that kernels read, in this order: see `numbers`.
PUCT, UCT, GUMBEL, RAVE = 0.0, 1.0, 2.0, 3.0
_RULE, _DISCOUNT, _BASE, _INIT, _UCT, _REDUCTION, _LOSS, _VISIT, _SCALE, _BEST, _EQUIVALENCE = range(11)


@inlined
def mean(nodes, node, loss):
    """Mean return of a visited node, visits under way counted as losses of the player who moves into it."""
    it = nodes[node]
    return (it.total + it.flight * loss) / (it.visits + it.flight)


@inlined
def edge_value(nodes, edges, edge, numbers):
    """Return of taking a visited edge, from the view of who takes it."""
    discount, child = numbers[_DISCOUNT], edges[edge].child
    exact = nodes[child].exact
    if exact == exact:
        return edges[edge].reward + discount * exact
    # Visits under way are losses for who takes the edge; `mean` is of the player there.
    loss = -numbers[_LOSS] if discount > 0 else numbers[_LOSS]
    return edges[edge].reward + discount * mean(nodes, child, loss)


@inlined
def edge_visits(nodes, edges, edge):
    """Visits of an edge, those under way included."""
    child = edges[edge].child
    return 0 if child < 0 else nodes[child].visits + nodes[child].flight


@inlined
def best_puct(nodes, edges, node, numbers):
    """The edge that maximises q + c P sqrt(N) / (1 + n); Silver et al. 2018."""
    it = nodes[node]
    n_parent = it.visits + it.flight
    c = (math.log((n_parent + numbers[_BASE] + 1) / numbers[_BASE]) + numbers[_INIT]) * math.sqrt(n_parent)
    unvisited = _first_play(nodes, edges, node, numbers)
    best, best_score = -1, -math.inf
    for edge in range(it.first, it.first + it.degree):
        n = edge_visits(nodes, edges, edge)
        q = edge_value(nodes, edges, edge, numbers) if n > 0 else unvisited
        score = q + c * edges[edge].prior / (1 + n)
        if edges[edge].child != PENDING and score > best_score:
            best, best_score = edge, score
    return best


@inlined
def _first_play(nodes, edges, node, numbers):
    it = nodes[node]
    worth = it.total / it.visits
    if numbers[_REDUCTION] == 0.0:
        return worth
    mass = 0.0
    for edge in range(it.first, it.first + it.degree):
        mass += edges[edge].prior if edges[edge].child >= 0 else 0.0
    return worth - numbers[_REDUCTION] * math.sqrt(mass)


@inlined
def best_uct(nodes, edges, node, numbers):
    """The edge that maximises q + c sqrt(ln N / n), unvisited ones first; Kocsis & Szepesvári 2006."""
    it = nodes[node]
    log = math.log(max(it.visits + it.flight, 1))
    best, best_score = -1, -math.inf
    for edge in range(it.first, it.first + it.degree):
        n = edge_visits(nodes, edges, edge)
        score = math.inf
        if n > 0:
            score = edge_value(nodes, edges, edge, numbers) + numbers[_UCT] * math.sqrt(log / n)
        if edges[edge].child != PENDING and (best < 0 or score > best_score):
            best, best_score = edge, score
    return best


@inlined
def best_rave(nodes, edges, node, numbers):
    """The edge that maximises (1 - β) q + β q_all + c sqrt(ln N / n), β = m / (m + n + m n / k): with few visits n it
    leans on its m all-moves-as-first simulations. After Gelly & Silver 2011, section 4.3, with 1 / k for 4 b²."""
    it = nodes[node]
    log, k = math.log(max(it.visits + it.flight, 1)), numbers[_EQUIVALENCE]
    best, best_score = -1, -math.inf
    for edge in range(it.first, it.first + it.degree):
        n, m = edge_visits(nodes, edges, edge), edges[edge].all_visits
        score = edges[edge].all_total / m if m > 0 else math.inf
        if n > 0:
            beta = m / (m + n + m * n / k)
            q = edge_value(nodes, edges, edge, numbers)
            score = (beta * score if m > 0 else 0.0) + (1 - beta) * q + numbers[_UCT] * math.sqrt(log / n)
        if edges[edge].child != PENDING and (best < 0 or score > best_score):
            best, best_score = edge, score
    return best


@inlined
def choose(nodes, edges, node, numbers, policy):
    """The edge that the rule takes from an inner node; -1 if all are being evaluated."""
    if numbers[_RULE] == PUCT:
        return best_puct(nodes, edges, node, numbers)
    if numbers[_RULE] == UCT:
        return best_uct(nodes, edges, node, numbers)
    if numbers[_RULE] == RAVE:
        return best_rave(nodes, edges, node, numbers)
    improved_policy(nodes, edges, node, numbers, policy)
    return _best_gumbel(nodes, edges, node, policy)


@inlined
def improved_policy(nodes, edges, node, numbers, policy):
    """π' = softmax(logits + σ(completed q)) over the edges of a node, into policy; Danihelka et al. 2022, eq. 11."""
    it = nodes[node]
    scale, filled = sigma_scale(nodes, edges, node, numbers), mixed_value(nodes, edges, node, numbers)
    top = -math.inf
    for k in range(it.degree):
        edge = it.first + k
        q = edge_value(nodes, edges, edge, numbers) if edge_visits(nodes, edges, edge) > 0 else filled
        policy[k] = math.log(max(edges[edge].prior, 1e-30)) + scale * q
        top = max(top, policy[k])
    total = 0.0
    for k in range(it.degree):
        policy[k] = math.exp(policy[k] - top)
        total += policy[k]
    for k in range(it.degree):
        policy[k] /= total


@inlined
def sigma_scale(nodes, edges, node, numbers):
    """The factor of q in σ(q)."""
    it, most = nodes[node], 0
    for edge in range(it.first, it.first + it.degree):
        most = max(most, edge_visits(nodes, edges, edge))
    return (numbers[_VISIT] + most) * numbers[_SCALE]


@inlined
def mixed_value(nodes, edges, node, numbers):
    """v_mix, what unvisited actions are taken to be worth; Danihelka et al. 2022, appendix D."""
    it, mass, weighted, visits = nodes[node], 0.0, 0.0, 0
    for edge in range(it.first, it.first + it.degree):
        n = edge_visits(nodes, edges, edge)
        if n > 0:
            mass += edges[edge].prior
            weighted += edges[edge].prior * edge_value(nodes, edges, edge, numbers)
            visits += n
    return it.value if mass <= 0.0 else (it.value + visits * weighted / mass) / (1 + visits)


@inlined
def _best_gumbel(nodes, edges, node, policy):
    """The edge whose visits lag furthest behind π'; Danihelka et al. 2022, eq. 14."""
    it, visits = nodes[node], 0
    for edge in range(it.first, it.first + it.degree):
        visits += edge_visits(nodes, edges, edge)
    best, best_score = -1, -math.inf
    for k in range(it.degree):
        edge = it.first + k
        score = policy[k] - edge_visits(nodes, edges, edge) / (1 + visits)
        if edges[edge].child != PENDING and score > best_score:
            best, best_score = edge, score
    return best


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
    worth, proving = it.exact if exact else it.value, exact and numbers[_BEST] < math.inf
    while True:
        nodes[node].total += worth
        nodes[node].visits += 1
        nodes[node].flight -= 1
        edge = nodes[node].edge
        if edge < 0:
            return
        worth = edges[edge].reward + numbers[_DISCOUNT] * worth
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
            best = max(best, edges[edge].reward + numbers[_DISCOUNT] * nodes[child].exact)
    if all_exact or best >= numbers[_BEST]:
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
def select(nodes, edges, root_edges, numbers, width, leaf_edges, leaf_nodes):
    """One way down every tree: [B, M], [B, E], int64 [B] -> int64 [B] twice, as `descend` returns them.

    Args:
        root_edges: first edge of the way, or -1 for the rule's own; -2 leaves a tree out.
        width: most edges of a node.
    """
    policy = np.empty(width)
    for b in range(nodes.shape[0]):
        leaf_edges[b] = leaf_nodes[b] = -1
        if root_edges[b] >= -1:
            leaf_edges[b], leaf_nodes[b] = descend(nodes[b], edges[b], root_edges[b], numbers, policy)


@kernel
def grow(
    nodes, edges, counts, trees, leaf_edges, actions, priors, degrees, values, rewards, terminals, completes, numbers
):
    """Add n evaluated leaves and back them up: all arrays [n, …], counts int32 [B, 2].

    Args:
        actions: of the new edges, int64 [n, W]; or of no width, where Python keeps them.
    """
    for i in range(trees.shape[0]):
        b, first = trees[i], np.int64(counts[trees[i], 1])
        at_end = (values[i], rewards[i], terminals[i], completes[i])
        node = add_node(nodes[b], edges[b], counts[b], leaf_edges[i], *at_end)
        nodes[b, node].first, nodes[b, node].degree = first, degrees[i]
        for k in range(degrees[i]):
            add_edge(edges[b], first + k, node, priors[i, k])
            if actions.shape[1] > 0:
                edges[b, first + k].action = actions[i, k]
        counts[b, 1] = first + degrees[i]
        back_up(nodes[b], edges[b], node, numbers)


@kernel
def revisit(nodes, edges, trees, leaf_nodes, numbers):
    """Back up ways that ended at exact nodes."""
    for i in range(trees.shape[0]):
        back_up(nodes[trees[i]], edges[trees[i]], leaf_nodes[i], numbers)


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


@kernel
def fill_improved_policy(nodes, edges, node, numbers, policy):
    """`improved_policy` for Python: one tree, [M] and [E]."""
    improved_policy(nodes, edges, node, numbers, policy)
