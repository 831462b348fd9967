"""Sequential halving at the root: which actions get how many simulations. Danihelka et al. 2022, section 3.4."""

from __future__ import annotations

import math
from functools import cache

from llmgym.compiled import kernel
from llmgym.search.tree import ROOT, edge_value, edge_visits, mixed_value, sigma_scale


@cache
def considered_visits(considered: int, simulations: int) -> tuple[int, ...]:
    """For every simulation, the visits that an action must have to be taken next.

    The best m actions are visited in turns, in rounds of equal budgets, and after each round the better half stays.
    """
    if considered <= 1:
        return tuple(range(simulations))
    rounds, left = math.ceil(math.log2(considered)), considered
    visits, sequence = [0] * considered, list[int]()
    while len(sequence) < simulations:
        for _ in range(max(1, simulations // (rounds * left))):
            sequence += visits[:left]
            visits[:left] = [n + 1 for n in visits[:left]]
        left = max(2, left // 2)
    return tuple(sequence[:simulations])


@kernel
def halving_edges(nodes, edges, gumbels, wanted, numbers, root_edges):
    """Of the root's edges with the wanted visits, the one of the highest Gumbel + logit + σ(q).

    Args:
        gumbels: of each edge of the root, float64 [B, K].
        wanted: visits, int64 [B].
        root_edges: filled where it is not -2 already; int64 [B].
    """
    for b in range(nodes.shape[0]):
        if root_edges[b] == -2:
            continue
        it, best, best_score = nodes[b, ROOT], -1, -math.inf
        scale = sigma_scale(nodes[b], edges[b], ROOT, numbers)
        filled = mixed_value(nodes[b], edges[b], ROOT, numbers)
        for k in range(it.degree):
            edge = it.first + k
            n = edge_visits(nodes[b], edges[b], edge)
            if n == wanted[b] or wanted[b] < 0:
                q = edge_value(nodes[b], edges[b], edge, numbers) if n > 0 else filled
                score = gumbels[b, k] + math.log(max(edges[b, edge].prior, 1e-30)) + scale * q
                if score > best_score:
                    best, best_score = edge, score
        root_edges[b] = best
