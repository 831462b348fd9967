"""Rules by which a search takes an edge: PUCT, UCB1, RAVE, and Gumbel's below the root."""

from __future__ import annotations

import math

from llmgym.compiled import inlined
from llmgym.search.tree import (
    BASE,
    EQUIVALENCE,
    INIT,
    PENDING,
    REDUCTION,
    RULE,
    SCALE,
    UCT_FACTOR,
    VISIT,
    edge_value,
    edge_visits,
)

PUCT, UCT, GUMBEL, RAVE = 0.0, 1.0, 2.0, 3.0  # as `llmgym.search.options.RULES` has them


@inlined
def best_puct(nodes, edges, node, numbers):
    """The edge that maximises q + c P sqrt(N) / (1 + n); Silver et al. 2018."""
    it = nodes[node]
    n_parent = it.visits + it.flight
    c = (math.log((n_parent + numbers[BASE] + 1) / numbers[BASE]) + numbers[INIT]) * math.sqrt(n_parent)
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
    if numbers[REDUCTION] == 0.0:
        return worth
    mass = 0.0
    for edge in range(it.first, it.first + it.degree):
        mass += edges[edge].prior if edges[edge].child >= 0 else 0.0
    return worth - numbers[REDUCTION] * math.sqrt(mass)


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
            score = edge_value(nodes, edges, edge, numbers) + numbers[UCT_FACTOR] * math.sqrt(log / n)
        if edges[edge].child != PENDING and (best < 0 or score > best_score):
            best, best_score = edge, score
    return best


@inlined
def best_rave(nodes, edges, node, numbers):
    """The edge that maximises (1 - β) q + β q_all + c sqrt(ln N / n), β = m / (m + n + m n / k): with few visits n it
    leans on its m all-moves-as-first simulations. After Gelly & Silver 2011, section 4.3, with 1 / k for 4 b²."""
    it = nodes[node]
    log, k = math.log(max(it.visits + it.flight, 1)), numbers[EQUIVALENCE]
    best, best_score = -1, -math.inf
    for edge in range(it.first, it.first + it.degree):
        n, m = edge_visits(nodes, edges, edge), edges[edge].all_visits
        score = edges[edge].all_total / m if m > 0 else math.inf
        if n > 0:
            beta = m / (m + n + m * n / k)
            q = edge_value(nodes, edges, edge, numbers)
            score = (beta * score if m > 0 else 0.0) + (1 - beta) * q + numbers[UCT_FACTOR] * math.sqrt(log / n)
        if edges[edge].child != PENDING and (best < 0 or score > best_score):
            best, best_score = edge, score
    return best


@inlined
def choose(nodes, edges, node, numbers, policy):
    """The edge that the rule takes from an inner node; -1 if all are being evaluated."""
    if numbers[RULE] == PUCT:
        return best_puct(nodes, edges, node, numbers)
    if numbers[RULE] == UCT:
        return best_uct(nodes, edges, node, numbers)
    if numbers[RULE] == RAVE:
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
    return (numbers[VISIT] + most) * numbers[SCALE]


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
